//! `flock(2)`: whole-file locks that belong to an open file description.

use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Result, check};

/// Takes, changes or releases the lock: `LOCK_SH`, `LOCK_EX` or `LOCK_UN`, with `LOCK_NB`.
/// `EWOULDBLOCK`: another description has it. Without `LOCK_NB` it waits, `EINTR` by a signal.
pub fn flock(fd: impl AsFd, operation: i32) -> Result<()> {
    // SAFETY: flock takes a descriptor and a plain number.
    let result = unsafe { libc::flock(fd.as_fd().as_raw_fd(), operation) };
    check("flock", i64::from(result))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::reopen;

    #[test]
    fn a_lock_belongs_to_its_description() {
        let file = crate::descriptor::memory_file(c"lock").unwrap();
        let other = reopen(&file, libc::O_RDWR).unwrap();
        flock(&file, libc::LOCK_EX).unwrap();
        let refused = flock(&other, libc::LOCK_EX | libc::LOCK_NB).unwrap_err();
        assert_eq!(refused.errno, libc::EWOULDBLOCK);
        flock(file.try_clone().unwrap(), libc::LOCK_UN).unwrap();
        flock(&other, libc::LOCK_SH | libc::LOCK_NB).unwrap();
    }
}
