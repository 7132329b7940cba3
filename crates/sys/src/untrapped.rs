//! System calls that carry a cookie in their sixth argument, which none of them uses.
//!
//! Code of ours that carries a guest's seccomp filter must not wait for the answer of a trap (the one
//! who answers may wait for that very code). The filter lets a call with the container's cookie in
//! the sixth argument pass without a trap. Traps are for semantics and protect nothing, so a guest
//! that learned the cookie would only deceive itself.

use crate::error::{Result, check};
use std::ffi::CStr;
use std::os::fd::RawFd;
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

/// Makes calls with a cookie.
#[derive(Debug, Clone, Copy)]
pub struct Untrapped {
    /// The cookie that the filter knows.
    pub cookie: u64,
}

/// A C string array for exec: pointers into live strings, then NULL.
#[derive(Debug)]
pub struct StringArray<'a> {
    pointers: Vec<*const libc::c_char>,
    strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> StringArray<'a> {
    /// An array of these strings.
    #[must_use]
    pub fn new(strings: impl Iterator<Item = &'a CStr>) -> Self {
        let pointers = strings.map(CStr::as_ptr).chain([std::ptr::null()]).collect();
        StringArray { pointers, strings: std::marker::PhantomData }
    }
}

impl Untrapped {
    fn integers(self, name: &'static str, number: i64, arguments: [u64; 5]) -> Result<i64> {
        let [a, b, c, d, e] = arguments;
        // SAFETY: private; used below only for calls whose arguments are integers.
        check(name, unsafe { libc::syscall(number, a, b, c, d, e, self.cookie) })
    }

    /// `execve`; returns only when it failed.
    pub fn execute(
        self,
        path: &CStr,
        arguments: &StringArray<'_>,
        environment: &StringArray<'_>,
    ) -> crate::error::SysError {
        // SAFETY: the path and both arrays are NUL-terminated and live through the call.
        unsafe {
            libc::syscall(
                libc::SYS_execve,
                path.as_ptr(),
                arguments.pointers.as_ptr(),
                environment.pointers.as_ptr(),
                0_u64,
                0_u64,
                self.cookie,
            );
        }
        crate::error::SysError::last("execve")
    }

    /// `kill`.
    ///
    /// # Errors
    /// `ESRCH`, `EPERM`, `EINVAL`.
    pub fn kill(self, target: i32, signal: i32) -> Result<()> {
        self.integers("kill", libc::SYS_kill, [target as u64, signal as u64, 0, 0, 0])?;
        Ok(())
    }

    /// Queues a signal with a sender of the caller's choice (`rt_sigqueueinfo`). The kernel accepts
    /// only negative codes other than `SI_TKILL` for a sender that is not the caller.
    ///
    /// # Errors
    /// `ESRCH`, `EPERM`, `EINVAL`, `EAGAIN` at the limit of queued signals.
    pub fn queue(self, target: u32, signal: i32, sender: &Sender) -> Result<()> {
        let info = sender.info(signal);
        // SAFETY: the buffer has the 128 bytes of a siginfo_t, which the kernel only reads.
        let done = unsafe {
            libc::syscall(
                libc::SYS_rt_sigqueueinfo,
                target,
                signal,
                info.as_ptr(),
                0_u64,
                0_u64,
                self.cookie,
            )
        };
        check("rt_sigqueueinfo", done)?;
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

    /// The calling process is traced by its parent from now on.
    ///
    /// # Errors
    /// `EPERM` when it is traced already.
    pub fn trace_me(self) -> Result<()> {
        let arguments = [u64::from(libc::PTRACE_TRACEME), 0, 0, 0, 0];
        self.integers("ptrace(TRACEME)", libc::SYS_ptrace, arguments)?;
        Ok(())
    }

    /// `setsid`.
    ///
    /// # Errors
    /// `EPERM` for the leader of a process group.
    pub fn new_session(self) -> Result<()> {
        self.integers("setsid", libc::SYS_setsid, [0; 5])?;
        Ok(())
    }

    /// `setpgid`.
    ///
    /// # Errors
    /// `EPERM` for a group of another session, `ESRCH`, `EACCES`.
    pub fn set_group(self, pid: u32, group: u32) -> Result<()> {
        let arguments = [u64::from(pid), u64::from(group), 0, 0, 0];
        self.integers("setpgid", libc::SYS_setpgid, arguments)?;
        Ok(())
    }

    fn prctl(self, operation: i32, first: u64, second: u64) -> Result<()> {
        // Private: the operations below take integers only.
        self.integers("prctl", libc::SYS_prctl, [operation as u64, first, second, 0, 0])?;
        Ok(())
    }

    /// Exec shall give no privileges (`PR_SET_NO_NEW_PRIVS`).
    ///
    /// # Errors
    /// None that the kernel documents.
    pub fn no_new_privileges(self) -> Result<()> {
        self.prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
    }

    /// Keep the permitted capabilities over the next change of user ids (`PR_SET_KEEPCAPS`).
    ///
    /// # Errors
    /// `EPERM` when locked.
    pub fn keep_capabilities(self, keep: bool) -> Result<()> {
        self.prctl(libc::PR_SET_KEEPCAPS, u64::from(keep), 0)
    }

    /// Drops a capability from the bounding set (`PR_CAPBSET_DROP`).
    ///
    /// # Errors
    /// `EINVAL` for a number over the kernel's last one, `EPERM`.
    pub fn drop_bounding(self, capability: u32) -> Result<()> {
        self.prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0)
    }

    /// Adds a capability to the ambient set; it must be permitted and inheritable.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL`.
    pub fn raise_ambient(self, capability: u32) -> Result<()> {
        let raise = libc::PR_CAP_AMBIENT_RAISE as u64;
        self.prctl(libc::PR_CAP_AMBIENT, raise, u64::from(capability))
    }

    /// `setresuid`.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL` for an id that is not mapped.
    pub fn set_user_ids(self, ids: [u32; 3]) -> Result<()> {
        let [r, e, s] = ids.map(u64::from);
        self.integers("setresuid", libc::SYS_setresuid, [r, e, s, 0, 0])?;
        Ok(())
    }

    /// `setresgid`.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL` for an id that is not mapped.
    pub fn set_group_ids(self, ids: [u32; 3]) -> Result<()> {
        let [r, e, s] = ids.map(u64::from);
        self.integers("setresgid", libc::SYS_setresgid, [r, e, s, 0, 0])?;
        Ok(())
    }

    /// `setgroups`.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL` for an id that is not mapped.
    pub fn set_groups(self, list: &[u32]) -> Result<()> {
        // SAFETY: the kernel reads `len` ids.
        let done = unsafe {
            libc::syscall(
                libc::SYS_setgroups,
                list.len(),
                list.as_ptr(),
                0_u64,
                0_u64,
                0_u64,
                self.cookie,
            )
        };
        check("setgroups", done)?;
        Ok(())
    }

    /// `prlimit` of the own process.
    ///
    /// # Errors
    /// `EPERM` for raising a hard limit, `EINVAL`.
    pub fn set_limit(self, resource: u32, soft: u64, hard: u64) -> Result<()> {
        let new = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the kernel reads `new`; no old value is asked for.
        let done = unsafe {
            libc::syscall(
                libc::SYS_prlimit64,
                0,
                resource,
                &raw const new,
                0_u64,
                0_u64,
                self.cookie,
            )
        };
        check("prlimit", done)?;
        Ok(())
    }

    /// `setpriority` of the own process.
    ///
    /// # Errors
    /// `EACCES` for lowering it without the right.
    pub fn set_nice(self, nice: i32) -> Result<()> {
        let arguments = [libc::PRIO_PROCESS as u64, 0, nice as u64, 0, 0];
        self.integers("setpriority", libc::SYS_setpriority, arguments)?;
        Ok(())
    }

    /// `sched_setaffinity` of the own thread, a mask of the first 64 CPUs.
    ///
    /// # Errors
    /// `EINVAL` when none of them exists.
    pub fn set_affinity(self, mask: u64) -> Result<()> {
        // SAFETY: the kernel reads the eight bytes of the mask.
        let done = unsafe {
            libc::syscall(
                libc::SYS_sched_setaffinity,
                0,
                8_usize,
                &raw const mask,
                0_u64,
                0_u64,
                self.cookie,
            )
        };
        check("sched_setaffinity", done)?;
        Ok(())
    }

    /// `chdir`.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, ...
    pub fn change_directory(self, path: &CStr) -> Result<()> {
        // SAFETY: the path is NUL-terminated and lives through the call.
        let done = unsafe {
            libc::syscall(libc::SYS_chdir, path.as_ptr(), 0_u64, 0_u64, 0_u64, 0_u64, self.cookie)
        };
        check("chdir", done)?;
        Ok(())
    }

    /// `openat` relative to the working directory; never makes the file the controlling terminal.
    /// Returns the raw number.
    ///
    /// # Errors
    /// What `openat` says.
    pub fn open(self, path: &CStr, flags: i32, mode: u32) -> Result<RawFd> {
        // SAFETY: the path is NUL-terminated and lives through the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat,
                libc::AT_FDCWD,
                path.as_ptr(),
                flags | libc::O_NOCTTY,
                mode,
                0_u64,
                self.cookie,
            )
        };
        Ok(check("openat", fd)? as RawFd)
    }

    /// Moves the offset of a raw descriptor to a position from the start.
    ///
    /// # Errors
    /// `ESPIPE`, `EINVAL`.
    pub fn seek(self, fd: RawFd, offset: u64) -> Result<()> {
        let arguments = [fd as u64, offset, libc::SEEK_SET as u64, 0, 0];
        self.integers("lseek", libc::SYS_lseek, arguments)?;
        Ok(())
    }

    /// Makes a terminal the controlling one of the own session (`TIOCSCTTY`).
    ///
    /// # Errors
    /// `EPERM` when it is another session's, `ENOTTY`.
    pub fn control_terminal(self, fd: RawFd) -> Result<()> {
        let arguments = [fd as u64, libc::TIOCSCTTY, 0, 0, 0];
        self.integers("ioctl(TIOCSCTTY)", libc::SYS_ioctl, arguments)?;
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
