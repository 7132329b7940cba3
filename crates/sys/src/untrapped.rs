//! System calls that carry a cookie in their sixth argument, which none of them uses.
//!
//! Code of ours that carries a guest's seccomp filter must not wait for the answer of a trap (the one
//! who answers may wait for that very code). The filter lets a call with the container's cookie in
//! the sixth argument pass without a trap. Traps are for semantics and protect nothing, so a guest
//! that learned the cookie would only deceive itself.

use crate::error::{Result, check};
use std::sync::atomic::{AtomicU64, Ordering};

static CARRIED: AtomicU64 = AtomicU64::new(0);

/// Says that this process carries a filter with this cookie itself: [`crate::ptrace`] then makes its
/// calls with it.
pub fn carry(cookie: u64) {
    CARRIED.store(cookie, Ordering::Relaxed);
}

/// The cookie of [`carry`], 0 if none.
pub(crate) fn carried() -> u64 {
    CARRIED.load(Ordering::Relaxed)
}

/// Makes calls with a cookie. What a child does before its exec is in [`crate::birth`].
#[derive(Debug, Clone, Copy)]
pub struct Untrapped {
    /// The cookie that the filter knows.
    pub cookie: u64,
}

impl Untrapped {
    /// `kill`.
    ///
    /// # Errors
    /// `ESRCH`, `EPERM`, `EINVAL`.
    pub fn kill(self, target: i32, signal: i32) -> Result<()> {
        // SAFETY: integers only.
        let done = unsafe {
            libc::syscall(libc::SYS_kill, target, signal, 0_u64, 0_u64, 0_u64, self.cookie)
        };
        check("kill", done)?;
        Ok(())
    }

    /// Sets the blocked signals of the calling thread, bit n-1 for signal n.
    ///
    /// # Errors
    /// None that the kernel documents.
    pub fn set_signal_mask(self, mask: u64) -> Result<()> {
        // SAFETY: the kernel reads the eight bytes of the mask.
        let done = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const mask,
                0_u64,
                8_u64,
                0_u64,
                self.cookie,
            )
        };
        check("rt_sigprocmask", done)?;
        Ok(())
    }

    /// Ignores a signal (or gives it its default action) in the whole process; also those that the
    /// C library keeps for itself.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal or whose action is fixed.
    pub fn set_ignored(self, signal: i32, ignored: bool) -> Result<()> {
        // The kernel's struct sigaction: handler, flags, restorer, mask.
        let handler = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        let action = [handler as u64, 0, 0, 0];
        // SAFETY: the kernel reads the 32 bytes of the action; neither of the two runs code.
        let done = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                0_u64,
                8_u64,
                0_u64,
                self.cookie,
            )
        };
        check("rt_sigaction", done)?;
        Ok(())
    }
}

/// Whom a queued signal shows as its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// `si_code`.
    pub code: i32,
    /// `si_pid`.
    pub pid: u32,
    /// `si_uid`.
    pub uid: u32,
    /// `si_value`.
    pub value: u64,
}

impl Sender {
    /// The kernel's siginfo for `SI_QUEUE`: signo, errno, code, padding, pid, uid, value.
    pub(crate) fn info(&self, signal: i32) -> [u64; 16] {
        let mut info = [0; 16];
        info[0] = u64::from(signal as u32);
        info[1] = u64::from(self.code as u32);
        info[2] = u64::from(self.pid) | u64::from(self.uid) << 32;
        info[3] = self.value;
        info
    }
}
