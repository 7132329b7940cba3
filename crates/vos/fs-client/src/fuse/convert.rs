//! Between the protocol's types and the kernel's.

use dvs_fs::messages::{
    AttributeChanges, Attributes, Credentials, LockKind, LockRange, Time, TimeChange,
};
use dvs_sys::fuse::abi::setattr;
use dvs_sys::fuse::reply::Attr;
use dvs_sys::fuse::request::{FileLock, Header, SetAttr};

/// Preferred block size that `stat` shows.
const BLOCK_SIZE: u32 = 4096;

pub(super) fn credentials(header: &Header) -> Credentials {
    // The kernel has applied the umask.
    Credentials { uid: header.uid, gid: header.gid, pid: header.pid, umask: 0 }
}

pub(super) fn attr(a: &Attributes) -> Attr {
    let time = |time: Time| (time.seconds, time.nanoseconds);
    Attr {
        ino: a.inode.number,
        size: a.size,
        blocks: a.blocks,
        accessed: time(a.accessed),
        modified: time(a.modified),
        changed: time(a.changed),
        mode: a.mode,
        links: a.links,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        block_size: BLOCK_SIZE,
    }
}

pub(super) fn changes(s: &SetAttr) -> AttributeChanges {
    let has = |bit| s.valid & bit != 0;
    let time = |given, now, (seconds, nanoseconds): (i64, u32)| {
        if has(now) {
            Some(TimeChange::Now)
        } else {
            has(given).then_some(TimeChange::To(Time { seconds, nanoseconds }))
        }
    };
    AttributeChanges {
        mode: has(setattr::MODE).then_some(s.mode & 0o7777),
        uid: has(setattr::UID).then_some(s.uid),
        gid: has(setattr::GID).then_some(s.gid),
        size: has(setattr::SIZE).then_some(s.size),
        accessed: time(setattr::ATIME, setattr::ATIME_NOW, s.accessed),
        modified: time(setattr::MTIME, setattr::MTIME_NOW, s.modified),
        kill_privileges: has(setattr::KILL_SUIDGID),
    }
}

/// The kernel's end of a lock that reaches to the end of the file: the greatest file offset.
const LOCK_END: u64 = i64::MAX as u64;

pub(super) fn lock_range(lock: &FileLock) -> Option<LockRange> {
    let kind = match i32::try_from(lock.kind).ok()? {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return None,
    };
    let end = if lock.end >= LOCK_END { u64::MAX } else { lock.end };
    (lock.start <= end).then_some(LockRange { start: lock.start, end, kind, pid: lock.pid })
}

pub(super) fn file_lock(range: Option<LockRange>) -> FileLock {
    let kind = |kind: i32| kind.cast_unsigned();
    match range {
        None => FileLock { start: 0, end: 0, kind: kind(libc::F_UNLCK), pid: 0 },
        Some(range) => FileLock {
            start: range.start,
            end: range.end.min(LOCK_END),
            kind: kind(match range.kind {
                LockKind::Read => libc::F_RDLCK,
                LockKind::Write => libc::F_WRLCK,
                LockKind::Unlock => libc::F_UNLCK,
            }),
            pid: range.pid,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_to_the_end_reaches_to_the_end() {
        let lock = FileLock { start: 5, end: i64::MAX as u64, kind: 1, pid: 7 };
        let range = lock_range(&lock).unwrap();
        assert_eq!(range, LockRange { start: 5, end: u64::MAX, kind: LockKind::Write, pid: 7 });
        assert_eq!(file_lock(Some(range)), lock);
        assert_eq!(lock_range(&FileLock { kind: 9, ..lock }), None);
        assert_eq!(lock_range(&FileLock { end: 4, ..lock }), None);
    }

    #[test]
    fn only_valid_fields_change() {
        let given = SetAttr {
            valid: setattr::MODE | setattr::MTIME | setattr::MTIME_NOW | setattr::KILL_SUIDGID,
            mode: 0o100_755,
            uid: 5,
            ..SetAttr::default()
        };
        assert_eq!(
            changes(&given),
            AttributeChanges {
                mode: Some(0o755),
                modified: Some(TimeChange::Now),
                kill_privileges: true,
                ..AttributeChanges::default()
            }
        );
    }
}
