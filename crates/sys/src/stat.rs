//! `fstat(2)` without a detour: std's way needs a `File`, whose close would be seen by the file.

use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Result, check};

/// What `fstat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub links: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `st_rdev`.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Access, modification, change: seconds and nanoseconds.
    pub times: [(i64, u32); 3],
}

/// Attributes of an open file.
pub fn fstat(fd: impl AsFd) -> Result<Stat> {
    // SAFETY: all-zero bytes are a valid stat (plain integers).
    let mut raw: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat writes one stat.
    let result = unsafe { libc::fstat(fd.as_fd().as_raw_fd(), &raw mut raw) };
    check("fstat", i64::from(result))?;
    let part = |nanoseconds: i64| u32::try_from(nanoseconds).unwrap_or(0);
    Ok(Stat {
        device: raw.st_dev,
        inode: raw.st_ino,
        mode: raw.st_mode,
        links: raw.st_nlink,
        uid: raw.st_uid,
        gid: raw.st_gid,
        rdev: raw.st_rdev,
        size: u64::try_from(raw.st_size).unwrap_or(0),
        blocks: u64::try_from(raw.st_blocks).unwrap_or(0),
        times: [
            (raw.st_atime, part(raw.st_atime_nsec)),
            (raw.st_mtime, part(raw.st_mtime_nsec)),
            (raw.st_ctime, part(raw.st_ctime_nsec)),
        ],
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_says_what_std_says() {
        let file = std::fs::File::open("/etc/passwd").unwrap();
        let (ours, theirs) = (fstat(&file).unwrap(), file.metadata().unwrap());
        assert_eq!((ours.inode, ours.size, ours.mode), (theirs.ino(), theirs.len(), theirs.mode()));
        assert_eq!(ours.times[1].0, theirs.mtime());
    }
}
