//! The keeper of a container: a small process outside the guest's pid and user namespaces and outside
//! its cgroup, which builds the container, holds it together, and ends it.
//!
//! It is made in two steps, so that a daemon can have one prepared before anybody asks: [`build`]
//! prepares everything that no wish of the user changes, [`finish`] does the rest at the start.
//!
//! It has one thread and is started from a sealed copy of the binary with its socket to the daemon as
//! standard input. It ends the container when the daemon says so or is gone, and when pid 1 or the
//! launcher has died. Should the keeper itself be killed, the launcher and pid 1 die with it (parent
//! death signals), and with pid 1 everything in the container.
//!
//! ```text
//! daemon -- keeper -- launcher (in the container's namespaces, except that it has no pid there)
//!                        |-- pid 1 (reaps; holds nothing)
//!                        `-- programs
//! ```

mod build;
mod finish;
mod fuse;
mod root;

use crate::cgroup::{self, Cgroups};
use crate::frame::{self, FrameError};
use crate::messages::{FromKeeper, ToKeeper};
use crate::network::Handles;
use crate::spec::ContainerSpec;
use dvs_sys::descriptor::{self, Poll};
use dvs_sys::error::SysError;
use dvs_sys::process::{self, SingleThreaded};
use dvs_sys::signals::SignalFd;
use dvs_sys::untrapped::Untrapped;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Longest wait for the first message.
const START_TIMEOUT: u32 = 10_000;
/// After this long without an end the file system is cut off, so that processes that wait for it can
/// die.
const ABORT_AFTER: Duration = Duration::from_millis(300);
/// Longest wait for the processes of a container to end.
const END_LIMIT: Duration = Duration::from_secs(8);
/// Pause between two looks at processes that are ending, where no signal tells.
const END_PAUSE: u32 = 20;

/// A step of the build failed.
#[derive(Debug, Clone)]
pub(crate) struct BuildError {
    /// What was tried.
    pub(crate) step: String,
    /// errno, 0 if none.
    pub(crate) errno: i32,
}

impl BuildError {
    pub(crate) fn new(step: impl Into<String>, errno: i32) -> Self {
        BuildError { step: step.into(), errno }
    }
}

/// Gives a failed call the name of the step that it was part of.
pub(crate) trait Step<T> {
    fn step(self, step: &str) -> Result<T, BuildError>;
}

impl<T> Step<T> for Result<T, SysError> {
    fn step(self, step: &str) -> Result<T, BuildError> {
        self.map_err(|error| BuildError::new(format!("{step}: {}", error.call), error.errno))
    }
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, step: &str) -> Result<T, BuildError> {
        self.map_err(|error| BuildError::new(step, error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

impl<T> Step<T> for Result<T, FrameError> {
    fn step(self, step: &str) -> Result<T, BuildError> {
        self.map_err(|error| BuildError::new(format!("{step}: {error}"), 0))
    }
}

/// Runs a keeper whose socket is standard input; returns the exit code of the process.
#[must_use]
pub fn main() -> i32 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!(
                "dvs keeper: {}: {}",
                error.step,
                std::io::Error::from_raw_os_error(error.errno)
            );
            1
        }
    }
}

fn run() -> Result<(), BuildError> {
    let alone = SingleThreaded::check().step("keepers have one thread")?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned().step("take the socket")?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.step("open /dev/null")?;
    descriptor::replace_standard(0, null.as_fd()).step("close standard input")?;
    drop(null);
    // A group of its own, so that signals of a terminal do not reach it. EPERM: leads one already.
    let _ = process::new_session();
    let _ = process::set_name(c"dvs-keeper");
    process::set_umask(0o022);
    process::set_child_subreaper().step("become a reaper")?;
    // Nothing but SIGKILL ends a keeper. No filter yet, so no cookie is needed.
    Untrapped { cookie: 0 }.set_signal_mask(u64::MAX).step("block signals")?;
    let signals = SignalFd::new(&[libc::SIGCHLD]).step("watch children")?;

    if !descriptor::wait_readable(socket.as_fd(), Some(START_TIMEOUT)).unwrap_or(false) {
        return Err(BuildError::new("no message from the daemon", libc::ETIMEDOUT));
    }
    let (message, _) = frame::receive::<ToKeeper>(socket.as_fd()).step("first message")?;
    let ToKeeper::Prepare(spec) = message else {
        return Err(BuildError::new("first message", libc::EPROTO));
    };
    Keeper { alone, socket, signals }.keep(&spec)
}

/// A container as its keeper knows it.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// pid 1, outside.
    pub(crate) init: u32,
    pub(crate) init_pidfd: OwnedFd,
    pub(crate) launcher: u32,
    /// Kept open until the end: with the last one closed, trapped calls would fail with `ENOSYS`
    /// between the death of the daemon and that of the guest.
    pub(crate) listener: OwnedFd,
    /// `/dev/pts/ptmx` of the container, by path only (`O_PATH`).
    pub(crate) multiplexer: OwnedFd,
    /// The network of a DC.
    pub(crate) network: Option<Handles>,
    pub(crate) launcher_socket: OwnedFd,
    /// `/dev/fuse` of the root. Not kept: with its last descriptor the file system must end.
    pub(crate) fuse: Option<OwnedFd>,
    pub(crate) warnings: Vec<String>,
}

struct Keeper {
    alone: SingleThreaded,
    socket: OwnedFd,
    signals: SignalFd,
}

impl Keeper {
    fn keep(&self, spec: &ContainerSpec) -> Result<(), BuildError> {
        spec.validate().map_err(|sentence| BuildError::new(sentence, libc::EINVAL))?;
        let cgroups = Cgroups::create(&spec.name, &spec.limits);
        let mut fuse = None;
        match build::prepare(self.alone, self.socket.as_fd(), spec, &cgroups, &mut fuse) {
            Ok(mut prepared) => {
                let result = self
                    .hand_over(&mut prepared, &cgroups)
                    .and_then(|()| self.watch(&prepared, &cgroups));
                let left = self.end(fuse, &cgroups);
                // The daemon may be gone.
                let _ = frame::send(self.socket.as_fd(), &FromKeeper::Ended { left }, &[]);
                result
            }
            Err(error) => {
                let _ = self.end(fuse, &cgroups);
                let failed = FromKeeper::Failed { step: error.step.clone(), errno: error.errno };
                // Where the daemon is told, it tells the user; else this process does.
                frame::send(self.socket.as_fd(), &failed, &[]).map_err(|_| error)
            }
        }
    }

    fn hand_over(&self, prepared: &mut Prepared, cgroups: &Cgroups) -> Result<(), BuildError> {
        let message = FromKeeper::Prepared {
            init: prepared.init,
            launcher: prepared.launcher,
            warnings: cgroups.warnings.iter().chain(&prepared.warnings).cloned().collect(),
            cgroups: cgroups.paths(),
        };
        let fuse = prepared.fuse.take();
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![
            prepared.listener.as_fd(),
            prepared.launcher_socket.as_fd(),
            prepared.init_pidfd.as_fd(),
            prepared.multiplexer.as_fd(),
        ];
        descriptors.extend(prepared.network.iter().flat_map(Handles::borrow));
        descriptors.extend(fuse.iter().map(AsFd::as_fd));
        frame::send(self.socket.as_fd(), &message, &descriptors).step("hand the container over")
    }

    /// Waits until the container is to be ended.
    fn watch(&self, prepared: &Prepared, cgroups: &Cgroups) -> Result<(), BuildError> {
        loop {
            // Pid 1 is a child of the launcher, so no signal tells of its end.
            let mut entries = [
                Poll::readable(self.socket.as_fd()),
                Poll::readable(self.signals.as_fd()),
                Poll::readable(prepared.init_pidfd.as_fd()),
            ];
            descriptor::poll(&mut entries, None).step("wait")?;
            let [socket, signals, init] = entries.map(|entry| entry.ready != 0);
            if init || signals && self.launcher_has_ended(prepared) {
                return Ok(());
            }
            if socket {
                match frame::receive::<ToKeeper>(self.socket.as_fd()) {
                    Ok((ToKeeper::Freeze(frozen), _)) => {
                        let errno = cgroups.freeze(frozen).err().unwrap_or(0);
                        frame::send(self.socket.as_fd(), &FromKeeper::Frozen(errno), &[])
                            .step("answer")?;
                    }
                    Ok((ToKeeper::End, _)) | Err(_) => return Ok(()),
                    Ok((ToKeeper::Prepare(_), _)) => {}
                }
            }
        }
    }

    /// Takes the ends of children; whether the launcher was among them.
    fn launcher_has_ended(&self, prepared: &Prepared) -> bool {
        while matches!(self.signals.take(), Ok(Some(_))) {}
        let mut ended = false;
        while let Ok(Some(waited)) = process::wait(-1, libc::WNOHANG | libc::__WALL, 0) {
            ended |= waited.pid == prepared.launcher;
        }
        ended
    }

    /// Ends all children (pid 1 takes the whole container with it) and removes the cgroups. What is
    /// left, one sentence each.
    fn end(&self, fuse: Option<u32>, cgroups: &Cgroups) -> Vec<String> {
        let begin = Instant::now();
        let _ = cgroups.freeze(false);
        let mut aborted = false;
        let mut left = Vec::new();
        loop {
            // The launcher first by being our child; pid 1 and the rest when they have become so.
            for child in children() {
                let _ = process::kill(child as i32, libc::SIGKILL);
            }
            match process::wait(-1, libc::WNOHANG | libc::__WALL, 0) {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                // No children: all gone.
                Err(_) => break,
            }
            if begin.elapsed() > ABORT_AFTER && !aborted {
                aborted = true;
                if let Some(minor) = fuse {
                    fuse::abort(self.alone, minor);
                }
            }
            if begin.elapsed() > END_LIMIT {
                left.push(
                    "processes of the container do not end (a file system or device holds them)"
                        .to_owned(),
                );
                break;
            }
            let _ = descriptor::wait_readable(self.signals.as_fd(), Some(END_PAUSE));
            while matches!(self.signals.take(), Ok(Some(_))) {}
        }
        left.extend(cgroup::remove(&cgroups.paths()));
        left
    }
}

/// The children of this process.
fn children() -> Vec<u32> {
    let own = process::id();
    let text = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
    text.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
