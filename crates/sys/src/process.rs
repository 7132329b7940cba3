//! Processes: making them (`clone3`), naming them (pidfd), waiting for them, and their attributes.
//!
//! A forked child that goes on without exec is only sound in a process with one thread: whoever forks
//! shows a [`SingleThreaded`]. Inside the child a [`Forked`] gives access to the few operations that
//! would pull descriptors away from under Rust objects: they are harmless there, because the child
//! only execs or exits. Programs are not made this way but by [`crate::birth`], at half the cost.

use crate::descriptor::own;
use crate::error::{Result, SysError, check};
use std::ffi::CStr;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Proof that the process had one thread when it was made. It cannot leave its thread.
#[derive(Debug, Clone, Copy)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Checks that the calling thread is the only one.
    ///
    /// The holder must start no thread as long as it forks; that is a matter of a program's structure
    /// and is checked again by every [`fork`] in debug builds.
    ///
    /// # Errors
    /// `EDEADLK` when there are more threads.
    pub fn check() -> Result<Self> {
        if threads()? == 1 {
            Ok(SingleThreaded(PhantomData))
        } else {
            Err(SysError::new("fork", libc::EDEADLK))
        }
    }
}

/// Threads of this process: the link count of its task folder minus the two of every folder.
fn threads() -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let folder = std::fs::metadata("/proc/self/task").map_err(|error| {
        SysError::new("stat(/proc/self/task)", error.raw_os_error().unwrap_or(libc::EIO))
    })?;
    Ok(folder.nlink().saturating_sub(2))
}

/// The calling code runs in a forked child and will never return to its caller.
#[derive(Debug)]
pub struct Forked(PhantomData<*const ()>);

/// How [`fork`] makes its child.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneOptions<'a> {
    /// `CLONE_NEW*` and `CLONE_PARENT`; flags that share memory, descriptors or signal handlers
    /// are refused.
    pub flags: u64,
    /// Pid in the child's pid namespace (`set_tid`); needs `CAP_CHECKPOINT_RESTORE` there.
    pub pid: Option<u32>,
    /// Cgroup (v2 folder) in which the child begins.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Ask for a pidfd.
    pub pidfd: bool,
}

/// A child as its parent sees it.
#[derive(Debug)]
pub struct Child {
    /// Pid in the parent's pid namespace.
    pub pid: u32,
    /// Its pidfd, if asked for.
    pub pidfd: Option<OwnedFd>,
}

/// Flags of clone that would share something with the parent that Rust code assumes to be its own.
const SHARING: u64 = (libc::CLONE_VM
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_VFORK
    | libc::CLONE_SETTLS) as u64;

/// `CLONE_INTO_CGROUP`, which the library's type cannot hold.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks with `clone3`. The child runs `body` and exits with the number that it returns (101 after a
/// panic); no exit handler runs there. Its exit signal is `SIGCHLD`.
///
/// # Errors
/// `EINVAL` for flags that share memory and the like; `EEXIST` when the pid is taken, `EAGAIN` at a
/// limit, `EPERM`, `ENOSPC` (too many namespaces) and what else `clone3` says.
pub fn fork(
    _alone: SingleThreaded,
    options: CloneOptions<'_>,
    body: impl FnOnce(&Forked) -> i32,
) -> Result<Child> {
    if options.flags & SHARING != 0 {
        return Err(SysError::new("clone3", libc::EINVAL));
    }
    // Unknown where /proc does not show this process (a launcher behind its guest's /proc).
    debug_assert!(threads().map_or(true, |count| count <= 1), "fork in a process with threads");
    let mut pidfd: RawFd = -1;
    let wanted = options.pid.map(|pid| pid as libc::pid_t);
    // SAFETY: all fields of clone_args are integers, for which zero is valid ("not used").
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = options.flags;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if options.pidfd {
        arguments.flags |= libc::CLONE_PIDFD as u64;
        arguments.pidfd = (&raw mut pidfd) as u64;
    }
    if let Some(pid) = &wanted {
        arguments.set_tid = std::ptr::from_ref(pid) as u64;
        arguments.set_tid_size = 1;
    }
    if let Some(cgroup) = options.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the structure and what it points to live through the call; no flag shares memory, so
    // the child has its own copy of everything; the process has one thread (SingleThreaded), so no
    // lock is held by a thread that the child lacks.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
    };
    let pid = check("clone3", pid)?;
    if pid != 0 {
        let pidfd = options.pidfd.then(|| own(i64::from(pidfd)));
        return Ok(Child { pid: pid as u32, pidfd });
    }
    let forked = Forked(PhantomData);
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&forked)));
    exit_now(code.unwrap_or(101))
}

/// Ends the process at once, without exit handlers or flushing (`exit_group`).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the calling process; nothing is touched afterwards.
    unsafe { libc::_exit(code) }
}

impl Forked {
    /// Closes one number.
    pub fn close(&self, number: RawFd) {
        // SAFETY: the child only execs or exits (Forked), so no Rust object relies on the number.
        unsafe { libc::close(number) };
    }

    /// Closes every descriptor from `first` to `last`, inclusive.
    ///
    /// # Errors
    /// `ENOSYS` before Linux 5.9.
    pub fn close_range(&self, first: u32, last: u32) -> Result<()> {
        // SAFETY: the child only execs or exits (Forked), so no Rust object relies on the numbers.
        check("close_range", unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        Ok(())
    }
}

/// A descriptor that names a process (`pidfd_open`).
///
/// # Errors
/// `ESRCH`, `EMFILE`.
pub fn pidfd_open(pid: u32) -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    Ok(own(check("pidfd_open", fd)?))
}

/// A duplicate of descriptor `number` of another process (`pidfd_getfd`).
///
/// # Errors
/// `EPERM` without the right to trace it, `EBADF` for a number that it does not have.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    Ok(own(check("pidfd_getfd", fd)?))
}

/// Sends a signal to the process that a pidfd names.
///
/// # Errors
/// `ESRCH` when it is gone, `EPERM`.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo makes the kernel fill in what kill does.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check("pidfd_send_signal", done)?;
    Ok(())
}

/// Sends a signal (`kill`): a process, a group (< -1), all (-1), or the own group (0).
///
/// # Errors
/// `ESRCH`, `EPERM`, `EINVAL`.
pub fn kill(target: i32, signal: i32) -> Result<()> {
    // SAFETY: integers only.
    check("kill", i64::from(unsafe { libc::kill(target, signal) }))?;
    Ok(())
}

/// Sends a signal to one thread (`tgkill`).
///
/// # Errors
/// `ESRCH`, `EPERM`, `EINVAL`.
pub fn tgkill(process: u32, thread: u32, signal: i32) -> Result<()> {
    // SAFETY: integers only.
    check("tgkill", unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) })?;
    Ok(())
}

/// How a waited-for child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitState {
    /// It called exit with this code.
    Exited(i32),
    /// It was ended by this signal; `true`: with a core dump.
    Killed(i32, bool),
    /// Stopped by this signal; the second number is the ptrace event, 0 for none.
    Stopped(i32, i32),
    /// It goes on.
    Continued,
}

/// One answer of [`wait`].
#[derive(Debug, Clone, Copy)]
pub struct Waited {
    /// The child, in the caller's pid namespace.
    pub pid: u32,
    /// The raw status, as `waitpid` gives it.
    pub status: i32,
    /// The same, taken apart.
    pub state: WaitState,
    /// CPU time of it and its waited-for children, microseconds: user, system.
    pub cpu: (u64, u64),
    /// Largest resident size in KiB.
    pub max_resident: u64,
}

impl WaitState {
    /// Takes a raw status apart.
    #[must_use]
    pub fn of(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            WaitState::Exited(libc::WEXITSTATUS(status))
        } else if libc::WIFSTOPPED(status) {
            WaitState::Stopped(libc::WSTOPSIG(status), status >> 16)
        } else if libc::WIFCONTINUED(status) {
            WaitState::Continued
        } else {
            WaitState::Killed(libc::WTERMSIG(status), libc::WCOREDUMP(status))
        }
    }
}

/// Waits for a child (`wait4`): `target` as in `waitpid`, `flags` of `WNOHANG`, `WUNTRACED`,
/// `WCONTINUED`, `__WALL`, ... `None`: nothing to report with `WNOHANG`, or interrupted. The cookie
/// travels in the unused sixth argument (see [`crate::untrapped`]).
///
/// # Errors
/// `ECHILD`, `EINVAL`.
pub fn wait(target: i32, flags: i32, cookie: u64) -> Result<Option<Waited>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both buffers are valid and exclusively borrowed for the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_wait4,
            target,
            &raw mut status,
            flags,
            usage.as_mut_ptr(),
            0_u64,
            cookie,
        )
    };
    let pid = match check("wait4", pid) {
        Ok(0) => return Ok(None),
        Ok(pid) => pid as u32,
        Err(error) if error.errno == libc::EINTR => return Ok(None),
        Err(error) => return Err(error),
    };
    // SAFETY: zeroed at first and filled by the kernel; all fields are integers.
    let usage = unsafe { usage.assume_init() };
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Ok(Some(Waited {
        pid,
        status,
        state: WaitState::of(status),
        cpu: (micros(usage.ru_utime), micros(usage.ru_stime)),
        max_resident: usage.ru_maxrss as u64,
    }))
}

/// `prctl` with integer arguments; for operations that take no pointers.
fn prctl(operation: i32, first: u64, second: u64) -> Result<i64> {
    // SAFETY: private; the operations below take integers only.
    check("prctl", i64::from(unsafe { libc::prctl(operation, first, second, 0, 0) }))
}

/// Whether other processes of the same user may trace this one and read its `/proc` files.
///
/// # Errors
/// What `PR_SET_DUMPABLE` says.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, u64::from(dumpable), 0)?;
    Ok(())
}

/// The signal that this process gets when the thread that made it ends; 0: none. Cleared by exec of a
/// set-id program and by changes of credentials.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn set_parent_death_signal(signal: i32) -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0)?;
    Ok(())
}

/// Orphans below this process become its children.
///
/// # Errors
/// What `PR_SET_CHILD_SUBREAPER` says.
pub fn set_child_subreaper() -> Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0)?;
    Ok(())
}

/// Sets the name of the calling thread; at most 15 bytes are kept.
///
/// # Errors
/// What `PR_SET_NAME` says.
pub fn set_name(name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads at most 16 bytes of a NUL-terminated string.
    check("prctl(PR_SET_NAME)", unsafe {
        i64::from(libc::prctl(libc::PR_SET_NAME, name.as_ptr()))
    })?;
    Ok(())
}

/// Soft and hard resource limit of a process (0: this one), and setting both (`prlimit`).
///
/// # Errors
/// `EPERM` for raising a hard limit, `EINVAL`, `ESRCH`.
pub fn prlimit(pid: u32, resource: u32, new: Option<(u64, u64)>) -> Result<(u64, u64)> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let new = new.map(|(soft, hard)| libc::rlimit64 { rlim_cur: soft, rlim_max: hard });
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `new` is null or points to a live structure, `old` is exclusively borrowed.
    let done = unsafe {
        libc::syscall(libc::SYS_prlimit64, pid as libc::pid_t, resource, new, &raw mut old)
    };
    check("prlimit", done)?;
    Ok((old.rlim_cur, old.rlim_max))
}

/// Sets the nice value of a process (0: this one).
///
/// # Errors
/// `EACCES`, `EPERM` for lowering it without the right.
pub fn set_nice(pid: u32, nice: i32) -> Result<()> {
    // SAFETY: integers only.
    check("setpriority", unsafe { i64::from(libc::setpriority(libc::PRIO_PROCESS, pid, nice)) })?;
    Ok(())
}

/// The CPUs on which a thread (0: this one) may run, as a mask of the first 64.
///
/// # Errors
/// `ESRCH`.
pub fn affinity(pid: u32) -> Result<u64> {
    let mut set = [0_u64; 16];
    // SAFETY: the kernel writes at most the size given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            pid as libc::pid_t,
            size_of_val(&set),
            set.as_mut_ptr(),
        )
    };
    check("sched_getaffinity", done)?;
    Ok(set[0])
}

/// Sets the CPUs on which a thread (0: this one) may run.
///
/// # Errors
/// `EINVAL` when none of them exists, `ESRCH`, `EPERM`.
pub fn set_affinity(pid: u32, mask: u64) -> Result<()> {
    // SAFETY: the kernel reads the eight bytes of the mask.
    let done = unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, pid as libc::pid_t, 8_usize, &raw const mask)
    };
    check("sched_setaffinity", done)?;
    Ok(())
}

/// The CPU on which the caller runs now.
#[must_use]
pub fn current_cpu() -> u32 {
    // SAFETY: no arguments; the answer is a number.
    u32::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0)
}

/// Sets the file creation mask; returns the old one.
pub fn set_umask(mask: u32) -> u32 {
    // SAFETY: integers only; the call cannot fail.
    unsafe { libc::umask(mask) }
}

/// Waits for a signal that is not blocked.
pub fn pause() {
    // SAFETY: no arguments; touches nothing.
    unsafe { libc::pause() };
}

/// The own pid, in the own pid namespace (never cached).
#[must_use]
pub fn id() -> u32 {
    // SAFETY: no arguments; the call cannot fail.
    (unsafe { libc::getpid() }) as u32
}

/// The parent's pid, 0 when the parent is outside the own pid namespace.
#[must_use]
pub fn parent_id() -> u32 {
    // SAFETY: no arguments; the call cannot fail.
    (unsafe { libc::getppid() }) as u32
}

/// Effective user and group id.
#[must_use]
pub fn effective_ids() -> (u32, u32) {
    // SAFETY: no arguments; the calls cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Begins a session.
///
/// # Errors
/// `EPERM` for the leader of a process group.
pub fn new_session() -> Result<()> {
    // SAFETY: no arguments.
    check("setsid", i64::from(unsafe { libc::setsid() }))?;
    Ok(())
}

/// Sets real, effective and saved user id.
///
/// # Errors
/// `EPERM`; `EINVAL` for an id that is not mapped.
pub fn set_user_ids(real: u32, effective: u32, saved: u32) -> Result<()> {
    // SAFETY: integers only. The raw call changes the calling thread alone.
    check("setresuid", unsafe { libc::syscall(libc::SYS_setresuid, real, effective, saved) })?;
    Ok(())
}

/// Sets real, effective and saved group id.
///
/// # Errors
/// `EPERM`; `EINVAL` for an id that is not mapped.
pub fn set_group_ids(real: u32, effective: u32, saved: u32) -> Result<()> {
    // SAFETY: integers only. The raw call changes the calling thread alone.
    check("setresgid", unsafe { libc::syscall(libc::SYS_setresgid, real, effective, saved) })?;
    Ok(())
}

/// Supplementary groups.
///
/// # Errors
/// What `getgroups` says.
pub fn groups() -> Result<Vec<u32>> {
    // SAFETY: a size of zero asks for the number alone.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let count = check("getgroups", i64::from(count))? as usize;
    let mut list = vec![0_u32; count];
    // SAFETY: the buffer has room for `count` ids.
    let count = unsafe { libc::getgroups(count as i32, list.as_mut_ptr()) };
    list.truncate(check("getgroups", i64::from(count))? as usize);
    Ok(list)
}

/// Sets the supplementary groups.
///
/// # Errors
/// `EPERM` where the user namespace denies it, `EINVAL` for an id that is not mapped.
pub fn set_groups(list: &[u32]) -> Result<()> {
    // SAFETY: the kernel reads `len` ids. The raw call changes the calling thread alone.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, list.len(), list.as_ptr()) };
    check("setgroups", done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn statuses_are_taken_apart() {
        assert_eq!(WaitState::of(3 << 8), WaitState::Exited(3));
        assert_eq!(WaitState::of(9), WaitState::Killed(9, false));
        assert_eq!(WaitState::of(0x80 | 11), WaitState::Killed(11, true));
        assert_eq!(WaitState::of(0x7f | 19 << 8), WaitState::Stopped(19, 0));
        assert_eq!(WaitState::of(0x7f | 5 << 8 | 4 << 16), WaitState::Stopped(5, 4));
        assert_eq!(WaitState::of(0xffff), WaitState::Continued);
    }

    #[test]
    fn flags_that_share_memory_are_refused() {
        let options = CloneOptions { flags: libc::CLONE_VM as u64, ..Default::default() };
        let alone = SingleThreaded(PhantomData);
        assert_eq!(fork(alone, options, |_| 0).unwrap_err().errno, libc::EINVAL);
    }

    #[test]
    fn a_pidfd_names_the_process() {
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
        assert!(crate::descriptor::wait_readable(pidfd.as_fd(), Some(60_000)).unwrap());
        child.wait().unwrap();
        assert_eq!(pidfd_send_signal(pidfd.as_fd(), 0).unwrap_err().errno, libc::ESRCH);
    }

    #[test]
    fn limits_and_affinity_can_be_read() {
        let (soft, hard) = prlimit(0, libc::RLIMIT_NOFILE, None).unwrap();
        assert!(soft <= hard);
        assert_ne!(affinity(0).unwrap(), 0);
    }
}
