//! `fork` of a process that has one thread, without exec.
//!
//! After a fork only the calling thread exists in the child; a lock that another thread held stays
//! held for ever there. So the fork is refused where other threads exist.

use crate::error::{Result, SysError, check};

/// Forks; the child runs `body` and exits with the number it returns (101 after a panic). Nothing
/// that the parent has buffered is flushed in the child, and no exit handler runs there.
///
/// # Errors
/// `EDEADLK` where the process has more than one thread; otherwise what `fork` says (`EAGAIN`: too
/// many processes, `ENOMEM`).
pub fn fork(body: impl FnOnce() -> i32) -> Result<u32> {
    if threads()? != 1 {
        return Err(SysError::new("fork", libc::EDEADLK));
    }
    // SAFETY: this is the only thread (checked above; no other thread exists that could start one),
    // so the child's copy of every lock and allocator is in a state that its own code left.
    let pid = check("fork", i64::from(unsafe { libc::fork() }))?;
    if pid != 0 {
        return Ok(u32::try_from(pid).unwrap_or(0));
    }
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
    // SAFETY: ends the calling process; nothing is touched afterwards.
    unsafe { libc::_exit(code) }
}

/// Number of threads of this process.
fn threads() -> Result<usize> {
    let entries = std::fs::read_dir("/proc/self/task")
        .map_err(|error| SysError::new("fork", error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(entries.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_refused() {
        // The test harness itself runs tests on threads of their own.
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || receiver.recv());
            assert_eq!(fork(|| 0).unwrap_err().errno, libc::EDEADLK);
            drop(sender);
        });
    }
}
