//! The launcher: a process outside the guest's pid namespace and inside its others, which makes the
//! guest's programs, holds and releases them, and reports how they end.
//!
//! One thread. Guests cannot address it (it has no pid in their namespace), trace it or read it (it
//! is non-dumpable and was forked outside their user namespace). Requests may be malformed: each is
//! checked before anything happens, and a bad one is answered and forgotten.

pub mod core;
pub mod inside;
pub mod plan;
pub mod script;

use self::core::{Command, Core, Made, Told, Usage};
use self::plan::Plan;
use self::script::{Base, Outside};
use crate::frame::{self, FrameError};
use crate::launch::{
    Bytes, LaunchId, LaunchSpec, LaunchStep, LauncherEvent, LauncherRequest, OPEN_FLAGS,
    SignalSender,
};
use dvs_sys::birth::Birth;
use dvs_sys::descriptor::{self, Poll};
use dvs_sys::process::{self, SingleThreaded, WaitState, Waited};
use dvs_sys::ptrace;
use dvs_sys::signals::SignalFd;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

/// Most changes of children looked at before requests get their turn.
const MAX_CHANGES: usize = 256;

/// What a launcher works with.
#[derive(Debug)]
pub struct Launcher {
    alone: SingleThreaded,
    base: Base,
    socket: OwnedFd,
    children: SignalFd,
    last_pid: File,
    core: Core,
    /// Children that may not have got to their exec, by pid outside.
    births: HashMap<u32, Birth>,
    /// Pipes that are closed by the exec of programs that are not traced.
    pipes: HashMap<u32, OwnedFd>,
}

/// The daemon has gone.
struct Gone;

impl Launcher {
    /// A launcher that takes requests from `socket`. All signals must be blocked.
    ///
    /// # Errors
    /// What making the descriptor for `SIGCHLD` says.
    pub fn new(
        alone: SingleThreaded,
        base: Base,
        socket: OwnedFd,
        last_pid: File,
    ) -> dvs_sys::error::Result<Launcher> {
        let children = SignalFd::new(&[libc::SIGCHLD])?;
        let core = Core::default();
        let (births, pipes) = (HashMap::new(), HashMap::new());
        Ok(Launcher { alone, base, socket, children, last_pid, core, births, pipes })
    }

    /// Works until the daemon is gone.
    pub fn run(&mut self) {
        let mut more = false;
        while self.turn(&mut more).is_ok() {}
    }

    fn turn(&mut self, more: &mut bool) -> Result<(), Gone> {
        let waiting: Vec<u32> = self.pipes.keys().copied().collect();
        let mut entries =
            vec![Poll::readable(self.socket.as_fd()), Poll::readable(self.children.as_fd())];
        let pipes = waiting.iter().filter_map(|pid| self.pipes.get(pid));
        entries.extend(pipes.map(|pipe| Poll::readable(pipe.as_fd())));
        let timeout = if *more { Some(0) } else { None };
        descriptor::poll(&mut entries, timeout).map_err(|_| Gone)?;
        let mut ready = entries.iter().map(|entry| entry.ready != 0);
        let (request, children) = (ready.next() == Some(true), ready.next() == Some(true));
        let reported: Vec<u32> =
            waiting.iter().zip(ready).filter(|(_, ready)| *ready).map(|(pid, _)| *pid).collect();
        for pid in reported {
            self.executed(pid)?;
        }
        if children || *more {
            *more = self.look_at_children()?;
        }
        if request { self.answer() } else { Ok(()) }
    }

    /// The pipe of a child has been closed, by its exec or its end.
    fn executed(&mut self, host_pid: u32) -> Result<(), Gone> {
        self.pipes.remove(&host_pid);
        let told = self.told(host_pid);
        let commands = self.core.executed(host_pid, told);
        if !self.core.is_starting(host_pid) {
            self.births.remove(&host_pid);
        }
        self.perform(commands)
    }

    fn told(&self, host_pid: u32) -> Told {
        self.births.get(&host_pid).map(script::told).unwrap_or_default()
    }

    /// Looks at children that have changed; whether there may be more.
    fn look_at_children(&mut self) -> Result<bool, Gone> {
        while self.children.take().map_err(|_| Gone)?.is_some() {}
        let flags = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED | libc::__WALL;
        for _ in 0..MAX_CHANGES {
            match process::wait(-1, flags, self.base.calls.cookie) {
                Ok(Some(waited)) => self.child_changed(&waited)?,
                // Nothing more, or no children at all.
                Ok(None) | Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn child_changed(&mut self, waited: &Waited) -> Result<(), Gone> {
        let commands = match waited.state {
            WaitState::Exited(_) | WaitState::Killed(..) => {
                let told = self.told(waited.pid);
                self.births.remove(&waited.pid);
                self.pipes.remove(&waited.pid);
                self.core.ended(waited.pid, usage(waited), told)
            }
            WaitState::Stopped(_, ptrace::EVENT_EXEC) if self.core.is_starting(waited.pid) => {
                let told = self.told(waited.pid);
                self.births.remove(&waited.pid);
                self.core.stopped(waited.pid, waited.state, told)
            }
            state => self.core.stopped(waited.pid, state, Told::default()),
        };
        self.perform(commands)
    }

    fn answer(&mut self) -> Result<(), Gone> {
        let (request, passed) = match frame::receive::<LauncherRequest>(self.socket.as_fd()) {
            Ok(received) => received,
            Err(error) if error.recoverable() => return self.report(&LauncherEvent::Rejected),
            Err(_) => return Err(Gone),
        };
        match request {
            LauncherRequest::Launch { id, spec } => self.launch(id, *spec, &passed),
            LauncherRequest::Release { id } => {
                let commands = self.core.release(id);
                self.perform(commands)
            }
            LauncherRequest::Abort { id } => {
                let commands = self.core.abort(id);
                self.perform(commands)
            }
            LauncherRequest::Signal { request, target, signal, sender } => {
                let errno = self.signal(target, signal, sender).err().unwrap_or(0);
                self.report(&LauncherEvent::Signalled { request, errno })
            }
            LauncherRequest::Open { request, path, flags } => {
                let opened = open(&path, flags);
                let event = LauncherEvent::Opened {
                    request,
                    errno: opened.as_ref().err().map_or(0, |e| *e),
                };
                let fds: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
                self.report_with(&event, &fds)
            }
            LauncherRequest::Order { id, number, signal, sender } => {
                self.order(id, number, signal, sender)
            }
            LauncherRequest::AimPids { request, next } => {
                let last = inside::aim_pids(self.alone, self.base.calls, &self.last_pid, next);
                self.report(&LauncherEvent::Pids { request, last })
            }
        }
    }

    fn signal(&self, target: i32, signal: i32, sender: Option<SignalSender>) -> Result<(), i32> {
        let result = inside::signal(self.base.calls, target, signal, sender);
        // No room for the process that would send it: a known program can be reached from here; its
        // sender then shows as 0.
        if let (Err(libc::EAGAIN), Some(host_pid)) = (result, self.core.host_pid(target)) {
            let sent = self.base.calls.kill(host_pid as i32, signal);
            return sent.map_err(|error| error.errno);
        }
        result
    }

    /// Carries an order out. The kernel changes a process's state at once when it sends `SIGCONT`, so
    /// looking before and after tells the order's effect from what the program did by itself.
    fn order(
        &mut self,
        id: LaunchId,
        number: u32,
        signal: i32,
        sender: SignalSender,
    ) -> Result<(), Gone> {
        if let Some((host_pid, _)) = self.core.running(id) {
            self.look_at(host_pid)?;
        }
        let Some((host_pid, pid)) = self.core.running(id) else { return Ok(()) };
        self.core.ordered(id, number, signal);
        if signal == libc::SIGSTOP {
            let _ = self.base.calls.kill(host_pid as i32, signal);
        } else if let Some(pid) = pid {
            let _ = self.signal(pid as i32, signal, Some(sender));
            self.look_at(host_pid)?;
        }
        self.core.order_done(id);
        Ok(())
    }

    /// Looks at one child.
    fn look_at(&mut self, host_pid: u32) -> Result<(), Gone> {
        let flags = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED | libc::__WALL;
        match process::wait(host_pid as i32, flags, self.base.calls.cookie) {
            Ok(Some(waited)) => self.child_changed(&waited),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn launch(&mut self, id: LaunchId, spec: LaunchSpec, passed: &[OwnedFd]) -> Result<(), Gone> {
        match self.make(id, spec, passed) {
            Ok(()) => Ok(()),
            Err((step, errno)) => self.report(&LauncherEvent::Failed { id, errno, step }),
        }
    }

    fn make(
        &mut self,
        id: LaunchId,
        spec: LaunchSpec,
        passed: &[OwnedFd],
    ) -> Result<(), (LaunchStep, i32)> {
        let request = |errno| (LaunchStep::Request, errno);
        self.core.admit(id).map_err(request)?;
        let plan = Plan::new(spec, passed.len()).map_err(request)?;
        let cloned = |error: dvs_sys::error::SysError| (LaunchStep::Clone, error.errno);
        let targets = plan.targets();
        let sources = passed
            .iter()
            .map(|fd| Outside::new(fd.as_fd(), &targets))
            .collect::<Result<Vec<_>, _>>()
            .map_err(cloned)?;
        let (pid, hold, traced) = (plan.pid, plan.hold, plan.traced());
        let (blocked_signals, oom_score) = (plan.blocked_signals, plan.oom_score);
        let pipe = if traced { None } else { Some(descriptor::pipe().map_err(cloned)?) };
        let writer = pipe.as_ref().map(|(_, writer)| Outside::new(writer.as_fd(), &targets));
        let writer = writer.transpose().map_err(cloned)?;
        let birth = script::script(&self.base, plan, &sources)?.run(pid).map_err(cloned)?;
        drop((writer, sources));
        let host_pid = birth.child();
        self.births.insert(host_pid, birth);
        if let Some((reader, _writer)) = pipe {
            self.pipes.insert(host_pid, reader);
        }
        self.core.made(Made { id, host_pid, pid, hold, traced, blocked_signals, oom_score });
        Ok(())
    }

    fn perform(&mut self, commands: Vec<Command>) -> Result<(), Gone> {
        for command in commands {
            // Requests to a process that has died meanwhile fail with ESRCH; its end follows.
            match command {
                Command::Bind(pid) => {
                    let options = ptrace::OPTION_EXIT_KILL | ptrace::OPTION_EXEC;
                    if ptrace::set_options(pid, options).is_err() {
                        // Unbound it might run twice after a crash: rather not at all.
                        let _ = self.base.calls.kill(pid as i32, libc::SIGKILL);
                    }
                }
                Command::Continue(pid, signal) => {
                    let _ = ptrace::cont(pid, signal);
                }
                Command::SetMask(pid, mask) => {
                    let _ = ptrace::set_signal_mask(pid, mask);
                }
                Command::SetOomScore(pid, score) => {
                    // The guest's own /proc: the launcher sees its mounts.
                    let file = std::fs::OpenOptions::new()
                        .write(true)
                        .open(format!("/proc/{pid}/oom_score_adj"));
                    let _ = file.and_then(|mut file| file.write_all(score.to_string().as_bytes()));
                }
                Command::Detach(pid) => {
                    let _ = ptrace::detach(pid, 0);
                }
                Command::Kill(pid, signal) => {
                    let _ = self.base.calls.kill(pid as i32, signal);
                }
                Command::Report(event) => self.report(&event)?,
            }
        }
        Ok(())
    }

    fn report(&self, event: &LauncherEvent) -> Result<(), Gone> {
        self.report_with(event, &[])
    }

    fn report_with(&self, event: &LauncherEvent, fds: &[BorrowedFd<'_>]) -> Result<(), Gone> {
        match frame::send(self.socket.as_fd(), event, fds) {
            Ok(()) => Ok(()),
            Err(FrameError::Closed | FrameError::Socket(_)) => Err(Gone),
            // Events are small and carry one descriptor at most.
            Err(_) => Ok(()),
        }
    }
}

/// Opens a file of the guest's tree without waiting for anything but the tree itself.
fn open(path: &Bytes, flags: i32) -> Result<File, i32> {
    if flags & OPEN_FLAGS != OPEN_FLAGS || path.0.first() != Some(&b'/') {
        return Err(libc::EINVAL);
    }
    let access = flags & libc::O_ACCMODE;
    let mut options = std::fs::OpenOptions::new();
    options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY);
    options.custom_flags(flags & (OPEN_FLAGS | libc::O_NOFOLLOW | libc::O_PATH));
    let opened = options.open(std::ffi::OsStr::from_bytes(&path.0));
    opened.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

fn usage(waited: &Waited) -> Usage {
    Usage { status: waited.status, cpu: waited.cpu, max_resident: waited.max_resident }
}
