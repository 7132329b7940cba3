//! Whole-file locks: Linux's open file description locks (`fcntl(2)`, `F_OFD_SETLK`). They are held
//! by an open file description, so they pass to forked children and are gone with the last
//! descriptor, also when its process is killed. Unlike `flock` they can be tested without being
//! taken. The file must be open for writing for an exclusive lock, for reading for a shared one.

use crate::error::{Result, SysError};
use std::os::fd::{AsFd, AsRawFd};

/// Takes the shared lock if nobody holds the exclusive one. False: somebody does.
///
/// # Errors
/// What `fcntl` says, other than that the lock is taken.
pub fn try_shared(file: impl AsFd) -> Result<bool> {
    try_lock(file, libc::F_RDLCK)
}

/// Takes the exclusive lock if nobody holds any. False: somebody does.
///
/// # Errors
/// What `fcntl` says, other than that the lock is taken.
pub fn try_exclusive(file: impl AsFd) -> Result<bool> {
    try_lock(file, libc::F_WRLCK)
}

/// Waits for the shared lock.
///
/// # Errors
/// What `fcntl` says.
pub fn shared(file: impl AsFd) -> Result<()> {
    call(file, libc::F_OFD_SETLKW, libc::F_RDLCK).map(|_| ())
}

/// Whether anybody else holds a lock, shared or exclusive. Takes nothing.
///
/// # Errors
/// What `fcntl` says.
pub fn is_held(file: impl AsFd) -> Result<bool> {
    Ok(call(file, libc::F_OFD_GETLK, libc::F_WRLCK)? != libc::F_UNLCK)
}

fn try_lock(file: impl AsFd, kind: libc::c_int) -> Result<bool> {
    match call(file, libc::F_OFD_SETLK, kind) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.errno, libc::EAGAIN | libc::EACCES) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One call on the whole file; returns the kind that the kernel left in the structure.
fn call(file: impl AsFd, command: libc::c_int, kind: libc::c_int) -> Result<libc::c_int> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        // Must be 0 for this family of locks.
        l_pid: 0,
    };
    loop {
        // SAFETY: the descriptor is open for the length of the call and the structure is valid for
        // reading and writing.
        let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) };
        if result == 0 {
            return Ok(libc::c_int::from(lock.l_type));
        }
        let error = SysError::last("fcntl");
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
        let open = || {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).truncate(false).read(true).write(true).open(&path).unwrap()
        };
        let (first, second, third) = (open(), open(), open());
        assert!(!is_held(&third).unwrap());
        assert!(try_shared(&first).unwrap());
        assert!(try_shared(&second).unwrap());
        assert!(is_held(&third).unwrap());
        assert!(!try_exclusive(&third).unwrap());
        drop((first, second));
        assert!(!is_held(&third).unwrap());
        assert!(try_exclusive(&third).unwrap());
        assert!(!is_held(&third).unwrap(), "an own lock is not somebody else's");
        assert!(!try_shared(open()).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
