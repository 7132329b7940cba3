//! Signals of the own process: mask, ignored ones, and reading them from a descriptor (`signalfd`).

use crate::error::{Result, SysError, check};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Blocks signals for the calling thread and the threads that it makes afterwards.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn block(signals: &[i32]) -> Result<()> {
    mask(libc::SIG_BLOCK, signals)
}

/// Unblocks signals for the calling thread.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn unblock(signals: &[i32]) -> Result<()> {
    mask(libc::SIG_UNBLOCK, signals)
}

/// Ignores a signal in the whole process.
///
/// # Errors
/// `EINVAL` for a number that is no signal or cannot be ignored.
pub fn ignore(signal: i32) -> Result<()> {
    disposition(signal, libc::SIG_IGN)
}

/// Gives a signal its default action in the whole process.
///
/// # Errors
/// `EINVAL` for a number that is no signal or has no changeable action.
pub fn set_default(signal: i32) -> Result<()> {
    disposition(signal, libc::SIG_DFL)
}

/// Whether the whole process ignores a signal (as `nohup` arranges for `SIGHUP`).
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn is_ignored(signal: i32) -> Result<bool> {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only reads the present one into the buffer that is given.
    check("sigaction", unsafe {
        i64::from(libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()))
    })?;
    // SAFETY: sigaction succeeded and has filled the structure.
    Ok(unsafe { old.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Signals that arrived, readable when one is pending. The signals must be blocked.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

/// One signal that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Number.
    pub signal: i32,
    /// `si_code`; `SI_KERNEL` (0x80) for those that a terminal sends.
    pub code: i32,
    /// Sender's pid, 0 where the kernel sent it.
    pub pid: u32,
}

impl SignalFd {
    /// A descriptor for these signals; not inherited over exec, never blocking.
    ///
    /// # Errors
    /// What `signalfd` says (`EMFILE`, `ENFILE`).
    pub fn new(signals: &[i32]) -> Result<SignalFd> {
        let set = set_of(signals)?;
        // SAFETY: the set is initialized and outlives the call.
        let fd = check("signalfd", unsafe {
            i64::from(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
        })?;
        let fd = i32::try_from(fd).unwrap_or(-1);
        // SAFETY: signalfd returned a new descriptor that nobody else owns.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes one pending signal, if any.
    ///
    /// # Errors
    /// What `read` says, other than that nothing is pending.
    pub fn take(&self) -> Result<Option<Taken>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is valid for `size` bytes and any bytes make a signalfd_siginfo.
        let got = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if got < 0 {
            let error = SysError::last("read");
            let empty = matches!(error.errno, libc::EAGAIN | libc::EINTR);
            return if empty { Ok(None) } else { Err(error) };
        }
        if usize::try_from(got) != Ok(size) {
            return Ok(None);
        }
        // SAFETY: the kernel filled the whole structure.
        let info = unsafe { info.assume_init() };
        Ok(Some(Taken {
            signal: i32::try_from(info.ssi_signo).unwrap_or(0),
            code: info.ssi_code,
            pid: info.ssi_pid,
        }))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_of(signals: &[i32]) -> Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initializes the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialized just above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: the set is initialized; a wrong number is answered with EINVAL.
        check("sigaddset", unsafe { i64::from(libc::sigaddset(&raw mut set, *signal)) })?;
    }
    Ok(set)
}

fn mask(how: i32, signals: &[i32]) -> Result<()> {
    let set = set_of(signals)?;
    // SAFETY: the set is initialized; no old set is asked for.
    let errno = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
    if errno == 0 { Ok(()) } else { Err(SysError::new("pthread_sigmask", errno)) }
}

fn disposition(signal: i32, action: libc::sighandler_t) -> Result<()> {
    // SAFETY: SIG_IGN and SIG_DFL run no code of ours; the call touches no memory of the caller.
    let old = unsafe { libc::signal(signal, action) };
    if old == libc::SIG_ERR { Err(SysError::last("signal")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_from_its_descriptor() {
        block(&[libc::SIGUSR2]).unwrap();
        let signals = SignalFd::new(&[libc::SIGUSR2]).unwrap();
        assert_eq!(signals.take().unwrap(), None);
        // SAFETY: sends a blocked signal to the calling thread only.
        unsafe { libc::raise(libc::SIGUSR2) };
        let taken = signals.take().unwrap().unwrap();
        assert_eq!((taken.signal, taken.pid), (libc::SIGUSR2, std::process::id()));
        assert!(block(&[0]).is_err());
    }
}
