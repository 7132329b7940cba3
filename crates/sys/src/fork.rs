//! `fork` of a whole program that goes on without exec: how a command becomes a daemon.
//!
//! After a fork only the calling thread exists in the child; a lock that another thread held stays
//! held for ever there. So the fork is refused where other threads exist. In contrast to
//! [`crate::process::fork`] the child may start threads: it is made by the C library's own `fork`,
//! which keeps that library's idea of the process true.

use crate::error::{Result, SysError, check};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Forks; the child leads a session of its own and runs `body`, then exits with the number that it
/// returns (101 after a panic). In the child standard input, output and error are `/dev/null` and no
/// descriptor but `keep`, which `body` is given, is open. Nothing that the parent has buffered is
/// flushed in the child, and no exit handler runs there.
///
/// # Errors
/// `EDEADLK` where the process has more than one thread; otherwise what `fork` says (`EAGAIN`: too
/// many processes, `ENOMEM`).
pub fn fork_daemon(keep: Vec<OwnedFd>, body: impl FnOnce(Vec<OwnedFd>) -> i32) -> Result<u32> {
    if threads()? != 1 {
        return Err(SysError::new("fork", libc::EDEADLK));
    }
    // SAFETY: this is the only thread (checked above; no other thread exists that could start one),
    // so the child's copy of every lock and allocator is in a state that its own code left.
    let pid = check("fork", i64::from(unsafe { libc::fork() }))?;
    if pid != 0 {
        return Ok(u32::try_from(pid).unwrap_or(0));
    }
    let run = std::panic::AssertUnwindSafe(move || match detach(&keep) {
        Ok(()) => body(keep),
        Err(error) => error.errno,
    });
    let code = std::panic::catch_unwind(run).unwrap_or(101);
    // SAFETY: ends the calling process; nothing is touched afterwards.
    unsafe { libc::_exit(code) }
}

fn detach(keep: &[OwnedFd]) -> Result<()> {
    // SAFETY: no pointers; a forked child is never a group leader, so it cannot fail.
    check("setsid", i64::from(unsafe { libc::setsid() }))?;
    // SAFETY: the path is NUL-terminated and static.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let null = check("open(/dev/null)", i64::from(null))? as RawFd;
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    if kept.first().is_some_and(|first| *first <= libc::STDERR_FILENO) {
        return Err(SysError::new("dup2", libc::EINVAL));
    }
    for number in 0..=libc::STDERR_FILENO {
        // SAFETY: the child is new: the objects of its parent that own these numbers are never used
        // or dropped in it (it ends by _exit), and `keep` has none of them (checked above).
        check("dup2", i64::from(unsafe { libc::dup2(null, number) }))?;
    }
    let mut first = libc::STDERR_FILENO as u32 + 1;
    for number in kept.into_iter().map(|number| number as u32).chain([u32::MAX]) {
        if number > first {
            // SAFETY: as above: nobody in the child uses the numbers between those kept.
            let done = unsafe { libc::syscall(libc::SYS_close_range, first, number - 1, 0) };
            check("close_range", done)?;
        }
        first = number.saturating_add(1);
    }
    Ok(())
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
            assert_eq!(fork_daemon(Vec::new(), |_| 0).unwrap_err().errno, libc::EDEADLK);
            drop(sender);
        });
    }
}
