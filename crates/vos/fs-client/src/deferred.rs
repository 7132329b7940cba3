//! Files of an image that are opened at the server only if something is asked of the open file.
//!
//! A build opens the same headers again and again, and the kernel has their pages. Once the server has
//! granted the content of a file for ever (and until it recalls that), opening it for reading needs no
//! message: the kernel has checked the rights, and gets a number of ours. The first read that misses
//! the kernel's pages, lock or seek opens the file at the server; most are closed before.

use dvs_fs::messages::{Credentials, Handle, InodeId, Operation};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Tells our numbers from the server's. (The bit above it tells attached descriptions.)
const DEFERRED: u64 = 1 << 62;
/// Most of them at one time; beyond that files are opened at once.
pub(crate) const MAX_DEFERRED: usize = 65_536;

/// A file whose opening was put off.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) credentials: Credentials,
    pub(crate) flags: u32,
    /// The server's handle, once it was needed. Held while it is being opened.
    pub(crate) opened: Mutex<Option<Handle>>,
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct DeferredTable {
    files: HashMap<u64, Arc<Deferred>>,
    last: u64,
}

/// Whether a handle is one of ours.
pub(crate) fn is_deferred(handle: Handle) -> bool {
    handle.0 & DEFERRED != 0
}

/// Whether an open with these flags asks for nothing but to read.
pub(crate) fn only_reads(flags: u32) -> bool {
    let other = libc::O_ACCMODE
        | libc::O_TRUNC
        | libc::O_CREAT
        | libc::O_APPEND
        | libc::O_DIRECT
        | libc::O_DIRECTORY
        | libc::O_SYNC
        | libc::O_PATH;
    flags & other.cast_unsigned() == 0
}

impl DeferredTable {
    /// A number for a file that is not opened yet. `None`: there are too many.
    pub(crate) fn add(&mut self, credentials: Credentials, flags: u32) -> Option<Handle> {
        if self.files.len() >= MAX_DEFERRED {
            return None;
        }
        self.last += 1;
        let number = DEFERRED | self.last;
        let file = Deferred { credentials, flags, opened: Mutex::new(None) };
        self.files.insert(number, Arc::new(file));
        Some(Handle(number))
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<Arc<Deferred>> {
        self.files.get(&handle.0).cloned()
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Option<Arc<Deferred>> {
        self.files.remove(&handle.0)
    }
}

/// The handles of an operation, each with the object it is of.
pub(crate) fn handles(operation: &mut Operation) -> [Option<(InodeId, &mut Handle)>; 2] {
    match operation {
        Operation::Read { inode, handle, .. }
        | Operation::Write { inode, handle, .. }
        | Operation::Flush { inode, handle, .. }
        | Operation::Release { inode, handle, .. }
        | Operation::Fsync { inode, handle, .. }
        | Operation::ReadDirectory { inode, handle, .. }
        | Operation::Allocate { inode, handle, .. }
        | Operation::Seek { inode, handle, .. }
        | Operation::TestLock { inode, handle, .. }
        | Operation::SetLock { inode, handle, .. }
        | Operation::SetAttributes { inode, handle: Some(handle), .. } => {
            [Some((*inode, handle)), None]
        }
        Operation::CopyRange { from, to, .. } => {
            [Some((from.0, &mut from.1)), Some((to.0, &mut to.1))]
        }
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Credentials = Credentials { uid: 0, gid: 0, pid: 1, umask: 0 };

    #[test]
    fn only_plain_reading_is_put_off() {
        assert!(only_reads(libc::O_RDONLY.cast_unsigned()));
        assert!(only_reads(
            (libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOFOLLOW).cast_unsigned()
        ));
        for flag in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, libc::O_APPEND, libc::O_DIRECT] {
            assert!(!only_reads(flag.cast_unsigned()), "{flag:o}");
        }
    }

    #[test]
    fn numbers_are_not_the_servers_and_are_bounded() {
        let mut table = DeferredTable::default();
        let first = table.add(WHO, 0).unwrap();
        assert!(is_deferred(first) && !is_deferred(Handle(7)));
        for _ in 1..MAX_DEFERRED {
            assert_ne!(table.add(WHO, 0).unwrap(), first);
        }
        assert_eq!(table.add(WHO, 0), None);
        assert!(table.remove(first).is_some());
        assert!(table.get(first).is_none());
        assert!(table.add(WHO, 0).is_some());
    }
}
