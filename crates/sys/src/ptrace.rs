//! ptrace(2): attaching, stopping, going on, registers, signal masks.
//!
//! Every request but attaching must come from the thread that attached, while the tracee is in a
//! ptrace stop (else `ESRCH`). Stops are read with [`crate::process::wait`].

use crate::error::{Result, check};
use std::mem::MaybeUninit;

/// `PTRACE_O_EXITKILL`: the tracee dies with its tracer.
pub const OPTION_EXIT_KILL: u64 = 1 << 20;
/// `PTRACE_O_TRACESYSGOOD`: stops at calls have bit 7 set in their signal.
pub const OPTION_SYSCALL_GOOD: u64 = 1;
/// `PTRACE_O_TRACEEXEC`: a stop after a successful exec.
pub const OPTION_EXEC: u64 = 1 << 4;
/// `PTRACE_O_TRACECLONE`.
pub const OPTION_CLONE: u64 = 1 << 3;
/// `PTRACE_O_TRACEEXIT`: a stop before the end.
pub const OPTION_EXIT: u64 = 1 << 6;
/// Event of the stop after an exec.
pub const EVENT_EXEC: i32 = 4;
/// Event of a stop by [`interrupt`] or of a group stop of a seized tracee.
pub const EVENT_STOP: i32 = 128;
/// Event of the stop before the end.
pub const EVENT_EXIT: i32 = 6;

/// The general registers, as `struct user_regs_struct` of x86-64 has them.
pub type Registers = libc::user_regs_struct;

fn request(request: u32, pid: u32, address: u64, data: u64) -> Result<i64> {
    // SAFETY: private; the callers below pass integers or pointers to live memory of the size that
    // the request wants. The raw call is used because the library's wrapper changes PEEK requests.
    let done = unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            u64::from(request),
            pid as libc::pid_t,
            address,
            data,
            0_u64,
            crate::untrapped::carried(),
        )
    };
    check("ptrace", done)
}

/// The calling process is traced by its parent from now on.
///
/// # Errors
/// `EPERM` when it is traced already.
pub fn trace_me() -> Result<()> {
    request(libc::PTRACE_TRACEME, 0, 0, 0)?;
    Ok(())
}

/// Attaches without stopping, with options.
///
/// # Errors
/// `EPERM` without the right or when it is traced already, `ESRCH`.
pub fn seize(pid: u32, options: u64) -> Result<()> {
    request(libc::PTRACE_SEIZE, pid, 0, options)?;
    Ok(())
}

/// Stops a seized tracee; the stop has [`EVENT_STOP`].
///
/// # Errors
/// `ESRCH`, `EIO` when it was not attached by [`seize`].
pub fn interrupt(pid: u32) -> Result<()> {
    request(libc::PTRACE_INTERRUPT, pid, 0, 0)?;
    Ok(())
}

/// Goes on, delivering `signal` (0: none).
///
/// # Errors
/// `ESRCH`.
pub fn cont(pid: u32, signal: i32) -> Result<()> {
    request(libc::PTRACE_CONT, pid, 0, signal as u64)?;
    Ok(())
}

/// Goes on until the next entry to or exit from a call.
///
/// # Errors
/// `ESRCH`.
pub fn cont_to_syscall(pid: u32, signal: i32) -> Result<()> {
    request(libc::PTRACE_SYSCALL, pid, 0, signal as u64)?;
    Ok(())
}

/// Lets go of a stopped tracee, delivering `signal` (0: none).
///
/// # Errors
/// `ESRCH`.
pub fn detach(pid: u32, signal: i32) -> Result<()> {
    request(libc::PTRACE_DETACH, pid, 0, signal as u64)?;
    Ok(())
}

/// Leaves a seized tracee in its group stop but lets it be woken by `SIGCONT`.
///
/// # Errors
/// `ESRCH`, `EIO`.
pub fn listen(pid: u32) -> Result<()> {
    request(libc::PTRACE_LISTEN, pid, 0, 0)?;
    Ok(())
}

/// Sets `OPTION_*`.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
pub fn set_options(pid: u32, options: u64) -> Result<()> {
    request(libc::PTRACE_SETOPTIONS, pid, 0, options)?;
    Ok(())
}

/// The general registers.
///
/// # Errors
/// `ESRCH`.
pub fn registers(pid: u32) -> Result<Registers> {
    let mut registers = MaybeUninit::<Registers>::zeroed();
    request(libc::PTRACE_GETREGS, pid, 0, registers.as_mut_ptr() as u64)?;
    // SAFETY: zeroed at first and filled by the kernel; all fields are integers.
    Ok(unsafe { registers.assume_init() })
}

/// Sets the general registers.
///
/// # Errors
/// `ESRCH`, `EIO` for values that the kernel does not accept.
pub fn set_registers(pid: u32, registers: &Registers) -> Result<()> {
    request(libc::PTRACE_SETREGS, pid, 0, std::ptr::from_ref(registers) as u64)?;
    Ok(())
}

/// The mask of blocked signals, bit n-1 for signal n.
///
/// # Errors
/// `ESRCH`.
pub fn signal_mask(pid: u32) -> Result<u64> {
    let mut mask = 0_u64;
    request(libc::PTRACE_GETSIGMASK, pid, 8, (&raw mut mask) as u64)?;
    Ok(mask)
}

/// Sets the mask of blocked signals.
///
/// # Errors
/// `ESRCH`.
pub fn set_signal_mask(pid: u32, mask: u64) -> Result<()> {
    request(libc::PTRACE_SETSIGMASK, pid, 8, (&raw const mask) as u64)?;
    Ok(())
}

/// The value that belongs to the last event: the new pid, the exit status, the former thread id.
///
/// # Errors
/// `ESRCH`.
pub fn event_message(pid: u32) -> Result<u64> {
    let mut message = 0_u64;
    request(libc::PTRACE_GETEVENTMSG, pid, 0, (&raw mut message) as u64)?;
    Ok(message)
}

/// What a tracee does at a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyscallInfo {
    /// Not in a call.
    None,
    /// About to execute a call.
    Entry {
        /// Its number.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// A call has just been executed.
    Exit {
        /// What it returns; negative: an errno.
        value: i64,
    },
    /// Stopped by a seccomp filter.
    Seccomp {
        /// Number of the call.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
}

/// What the tracee does (`PTRACE_GET_SYSCALL_INFO`, Linux 5.3).
///
/// # Errors
/// `ESRCH`.
pub fn syscall_info(pid: u32) -> Result<SyscallInfo> {
    // struct ptrace_syscall_info: op, padding, arch; ip; sp; then the union.
    let mut info = [0_u64; 11];
    let size = size_of_val(&info) as u64;
    request(libc::PTRACE_GET_SYSCALL_INFO, pid, size, info.as_mut_ptr() as u64)?;
    let arguments = [info[4], info[5], info[6], info[7], info[8], info[9]];
    Ok(match info[0] as u8 {
        1 => SyscallInfo::Entry { number: info[3], arguments },
        2 => SyscallInfo::Exit { value: info[3] as i64 },
        3 => SyscallInfo::Seccomp { number: info[3], arguments },
        _ => SyscallInfo::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{self, WaitState};

    #[test]
    fn a_child_is_stopped_read_and_let_go() {
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        if seize(pid, OPTION_EXIT_KILL).is_err_and(|error| error.errno == libc::EPERM) {
            println!("SKIPPED: may not trace children here");
            child.kill().unwrap();
            child.wait().unwrap();
            return;
        }
        interrupt(pid).unwrap();
        let stop = process::wait(pid as i32, libc::__WALL, 0).unwrap().unwrap();
        assert_eq!(stop.state, WaitState::Stopped(libc::SIGTRAP, EVENT_STOP));
        let registers = registers(pid).unwrap();
        set_registers(pid, &registers).unwrap();
        let mask = signal_mask(pid).unwrap();
        set_signal_mask(pid, mask | 1 << (libc::SIGTERM - 1)).unwrap();
        assert_eq!(signal_mask(pid).unwrap(), mask | 1 << (libc::SIGTERM - 1));
        set_signal_mask(pid, mask).unwrap();
        syscall_info(pid).unwrap();
        detach(pid, 0).unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert_eq!(cont(pid, 0).unwrap_err().errno, libc::ESRCH);
    }
}
