//! Making a caller its ghost: ptrace for the moment of conversion only.
//!
//! The caller waits in its trapped execve. It is seized and asked to stop, the ghost's binary is put
//! into its descriptor table, and the trapped call is answered "start again". At the stop that follows,
//! before the call is repeated, its registers are changed to an `execveat` of the ghost with the
//! caller's own argument vector. Nothing is written to its memory, which a `vfork` parent may share.
//! The kernel's own exec then ends the other threads, releases a `vfork` parent, closes what is to be
//! closed and keeps the arguments for `ps`.

use super::Personality;
use crate::image::ExecArguments;
use dvs_sys::error::SysError;
use dvs_sys::process::{self, WaitState};
use dvs_sys::ptrace::{self, EVENT_EXEC, EVENT_STOP, SyscallInfo};
use std::os::fd::AsFd;

/// Errno with which the kernel repeats a call, whatever handlers ran meanwhile.
const ERESTARTNOINTR: i32 = 513;
/// Most stops of one caller before it is given up.
const MAX_STOPS: usize = 10_000;

/// How a conversion went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conversion {
    /// The ghost's program has been executed; its first report follows.
    Ghost,
    /// Nothing was changed, or the caller executes the program itself.
    Own,
    /// The caller is gone.
    Gone,
}

/// A caller about to be converted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    /// Thread that called, outside.
    pub(crate) thread: u32,
    /// Notification of its call.
    pub(crate) call: u64,
    /// Addresses of its call's arguments.
    pub(crate) exec: ExecArguments,
    /// Address of an empty string in its memory.
    pub(crate) empty_string: u64,
}

impl Personality {
    /// Converts a caller. Must run to its end on one thread, whose only tracee this is.
    pub(crate) fn convert(&self, caller: &Caller) -> Conversion {
        match self.prepare_caller(caller) {
            Ok(descriptor) => self.carry_through(caller, descriptor),
            Err(_) => Conversion::Own,
        }
    }

    fn prepare_caller(&self, caller: &Caller) -> Result<i32, SysError> {
        ptrace::seize(caller.thread, ptrace::OPTION_EXEC | ptrace::OPTION_SYSCALL_GOOD)?;
        let added = self.listener.add_descriptor(caller.call, self.ghost.as_fd(), None, true);
        let prepared = added.and_then(|descriptor| {
            ptrace::interrupt(caller.thread)?;
            self.listener.fail(caller.call, ERESTARTNOINTR)?;
            Ok(descriptor)
        });
        if prepared.is_err() {
            // The call goes on natively; a seized thread can be let go only from a stop.
            let _ = ptrace::interrupt(caller.thread);
            let _ = self.listener.proceed(caller.call);
            while let Ok(stop) = process::wait(-1, libc::__WALL | libc::__WNOTHREAD, 0) {
                let Some(stop) = stop else { continue };
                let over = matches!(stop.state, WaitState::Exited(_) | WaitState::Killed(..));
                if over || ptrace::detach(stop.pid, 0).is_ok() {
                    break;
                }
            }
        }
        prepared
    }

    fn carry_through(&self, caller: &Caller, descriptor: i32) -> Conversion {
        let mut changed = false;
        let mut entered = false;
        for _ in 0..MAX_STOPS {
            // Of this thread's tracees alone: the kernel renames a thread that executes to its process.
            let stop = match process::wait(-1, libc::__WALL | libc::__WNOTHREAD, 0) {
                Ok(Some(stop)) => stop,
                Ok(None) => continue,
                Err(_) => return Conversion::Gone,
            };
            let task = stop.pid;
            let next = match stop.state {
                WaitState::Exited(_) | WaitState::Killed(..) => return Conversion::Gone,
                WaitState::Continued => continue,
                WaitState::Stopped(libc::SIGTRAP, EVENT_EXEC) => {
                    // One that is being killed cannot be detached, and its parent does not see its end
                    // before its tracer has: the next wait does.
                    if ptrace::detach(task, 0).is_ok() {
                        return Conversion::Ghost;
                    }
                    Ok(())
                }
                WaitState::Stopped(libc::SIGTRAP, EVENT_STOP) if !changed => {
                    changed = true;
                    self.execute(task, caller, Some(descriptor))
                        .and_then(|()| ptrace::cont_to_syscall(task, 0))
                }
                WaitState::Stopped(libc::SIGTRAP, EVENT_STOP) => ptrace::cont_to_syscall(task, 0),
                // Stopped as its whole group is: it stays so until it is continued.
                WaitState::Stopped(_, EVENT_STOP) => ptrace::listen(task),
                WaitState::Stopped(signal, _) if signal == libc::SIGTRAP | 0x80 => {
                    match ptrace::syscall_info(task) {
                        Ok(SyscallInfo::Entry { number, arguments }) => {
                            entered = self.is_ghosts_exec(number, arguments);
                            ptrace::cont_to_syscall(task, 0)
                        }
                        Ok(SyscallInfo::Exit { .. }) if entered => {
                            // The kernel could not execute the ghost (memory, limits): the caller
                            // executes its program itself and sees what it would have seen.
                            let done = self
                                .execute(task, caller, None)
                                .and_then(|()| ptrace::detach(task, 0));
                            if done.is_ok() {
                                return Conversion::Own;
                            }
                            done
                        }
                        Ok(_) => ptrace::cont_to_syscall(task, 0),
                        Err(error) => Err(error),
                    }
                }
                WaitState::Stopped(_, event) if event != 0 => ptrace::cont_to_syscall(task, 0),
                // A signal is about to be delivered: as it would be natively, just before the exec.
                WaitState::Stopped(signal, _) => ptrace::cont_to_syscall(task, signal),
            };
            if next.is_err() {
                // It died meanwhile; the next wait says so.
                continue;
            }
        }
        let _ = ptrace::detach(caller.thread, 0);
        Conversion::Own
    }

    fn is_ghosts_exec(&self, number: u64, arguments: [u64; 6]) -> bool {
        number == libc::SYS_execveat as u64 && arguments[4] == self.exec_flags(true)
    }

    /// `execveat`'s flags with the cookie that the filter lets pass.
    fn exec_flags(&self, empty_path: bool) -> u64 {
        let flags = if empty_path { libc::AT_EMPTY_PATH as u64 } else { 0 };
        flags | u64::from(self.config.exec_cookie) << 32
    }

    /// Changes a stopped thread's next call: the ghost's exec, or without a descriptor its own one
    /// past the trap. The thread stands behind its `syscall` instruction, of two bytes.
    fn execute(&self, task: u32, caller: &Caller, ghost: Option<i32>) -> Result<(), SysError> {
        let mut registers = ptrace::registers(task)?;
        // No call to restart: the kernel must not touch what is set here.
        registers.orig_rax = u64::MAX;
        registers.rax = libc::SYS_execveat as u64;
        registers.rdi = ghost.unwrap_or(libc::AT_FDCWD) as u32 as u64;
        registers.rsi = if ghost.is_some() { caller.empty_string } else { caller.exec.path };
        registers.rdx = caller.exec.arguments;
        registers.r10 = caller.exec.environment;
        registers.r8 = self.exec_flags(ghost.is_some());
        registers.rip = registers.rip.wrapping_sub(2);
        ptrace::set_registers(task, &registers)
    }
}
