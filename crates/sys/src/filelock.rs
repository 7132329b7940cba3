//! Whole-file locks (`flock`): held by an open file description, gone with its last descriptor, so
//! also with a process that is killed.

use crate::error::{Result, SysError};
use std::os::fd::{AsFd, AsRawFd};

/// Takes the shared lock if nobody holds the exclusive one. False: somebody does.
///
/// # Errors
/// What `flock` says, other than that the lock is taken.
pub fn try_shared(file: impl AsFd) -> Result<bool> {
    try_lock(file, libc::LOCK_SH)
}

/// Takes the exclusive lock if nobody holds any. False: somebody does.
///
/// # Errors
/// What `flock` says, other than that the lock is taken.
pub fn try_exclusive(file: impl AsFd) -> Result<bool> {
    try_lock(file, libc::LOCK_EX)
}

/// Waits for the shared lock.
///
/// # Errors
/// What `flock` says.
pub fn shared(file: impl AsFd) -> Result<()> {
    flock(file, libc::LOCK_SH)
}

/// Waits for the exclusive lock.
///
/// # Errors
/// What `flock` says.
pub fn exclusive(file: impl AsFd) -> Result<()> {
    flock(file, libc::LOCK_EX)
}

fn try_lock(file: impl AsFd, kind: libc::c_int) -> Result<bool> {
    match flock(file, kind | libc::LOCK_NB) {
        Ok(()) => Ok(true),
        Err(error) if error.errno == libc::EWOULDBLOCK => Ok(false),
        Err(error) => Err(error),
    }
}

fn flock(file: impl AsFd, operation: libc::c_int) -> Result<()> {
    loop {
        // SAFETY: the descriptor is open for the length of the call; flock touches no memory.
        if unsafe { libc::flock(file.as_fd().as_raw_fd(), operation) } == 0 {
            return Ok(());
        }
        let error = SysError::last("flock");
        if error.errno != libc::EINTR {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_and_shared_exclude_each_other() {
        let path = std::env::temp_dir().join(format!("dvs-filelock-{}", std::process::id()));
        let open =
            || std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let (first, second, third) = (open().unwrap(), open().unwrap(), open().unwrap());
        assert!(try_shared(&first).unwrap());
        assert!(try_shared(&second).unwrap());
        assert!(!try_exclusive(&third).unwrap());
        drop((first, second));
        assert!(try_exclusive(&third).unwrap());
        assert!(!try_shared(open().unwrap()).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
