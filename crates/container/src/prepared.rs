//! A container that is made except for what only its user decides, and the process that keeps it.
//!
//! Most of the time of a start goes into namespaces, mounts and the exec of the keeper, which are the
//! same for every container. A daemon that stays does them before anybody asks and finishes one when
//! somebody does; a container with wishes of its own is prepared and finished in one go.

use crate::container::{Container, EndError, KeeperProgram, StartError};
use crate::frame;
use crate::handle::{EventSink, Launcher};
use crate::messages::{Finish, Finished, FromKeeper, ToKeeper};
use crate::network::Handles;
use crate::spec::{ContainerSpec, Network};
use dvs_sys::descriptor::{self, SocketKind};
use dvs_sys::process;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longest wait for each message of a keeper or launcher while it builds.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for a keeper to end its container; then it is ended from here.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A prepared container. Nothing is left of it when it is dropped.
#[derive(Debug)]
pub struct Prepared {
    spec: ContainerSpec,
    listener: OwnedFd,
    launcher: OwnedFd,
    init_pidfd: OwnedFd,
    multiplexer: OwnedFd,
    network: Option<Handles>,
    /// `/dev/fuse` of a FUSE root.
    fuse: Option<OwnedFd>,
    init: u32,
    launcher_pid: u32,
    warnings: Vec<String>,
    cgroups: Vec<String>,
    keeper: Keeper,
}

impl Prepared {
    /// Prepares a container. What [`Prepared::finish`] may still change counts only as a guess.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left then.
    pub fn new(spec: &ContainerSpec, program: &KeeperProgram) -> Result<Prepared, StartError> {
        spec.validate().map_err(StartError::Spec)?;
        let keeper = Keeper::spawn(program)?;
        let start = ToKeeper::Prepare(Box::new(spec.clone()));
        frame::send(keeper.socket.as_fd(), &start, &[]).map_err(lost)?;
        let (message, descriptors) = receive(keeper.socket.as_fd(), BUILD_TIMEOUT)?;
        let (init, launcher_pid, warnings, cgroups) = match message {
            FromKeeper::Prepared { init, launcher, warnings, cgroups } => {
                (init, launcher, warnings, cgroups)
            }
            FromKeeper::Failed { step, errno } => return Err(StartError::Build { step, errno }),
            _ => return Err(lost("unexpected message")),
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| lost("a descriptor is missing"));
        Ok(Prepared {
            spec: spec.clone(),
            listener: next()?,
            launcher: next()?,
            init_pidfd: next()?,
            multiplexer: next()?,
            network: match spec.network {
                Network::Dc(_) => {
                    let handles = Handles::from(&mut descriptors);
                    Some(handles.ok_or_else(|| lost("a descriptor is missing"))?)
                }
                Network::Loopback | Network::Host => None,
            },
            fuse: descriptors.next(),
            init,
            launcher_pid,
            warnings,
            cgroups,
            keeper,
        })
    }

    /// What it was prepared for.
    #[must_use]
    pub fn spec(&self) -> &ContainerSpec {
        &self.spec
    }

    /// Whether it can become this container: they differ only in host name, clocks, first pid, and,
    /// without limits, in the name.
    #[must_use]
    pub fn fits(&self, wanted: &ContainerSpec) -> bool {
        let own = ContainerSpec {
            hostname: wanted.hostname.clone(),
            clocks: wanted.clocks,
            first_pid: wanted.first_pid,
            // Only cgroups are named by it.
            name: if self.cgroups.is_empty() { &wanted.name } else { &self.spec.name }.clone(),
            ..self.spec.clone()
        };
        // Nobody has chosen the pids of one that was prepared without.
        own == *wanted && (wanted.first_pid.is_some() || self.spec.first_pid.is_none())
    }

    /// Whether it still waits: its processes can be killed like any others.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !wait_for_end(&self.init_pidfd, Duration::ZERO)
    }

    /// Its processes: keeper, launcher, pid 1, by their pids outside.
    #[must_use]
    pub fn processes(&self) -> [u32; 3] {
        [self.keeper.child.id(), self.launcher_pid, self.init]
    }

    /// Makes it the container that is wanted, which must fit; see [`Container::start`].
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left then.
    pub fn finish(
        mut self,
        wanted: &ContainerSpec,
        serve_fuse: impl FnOnce(OwnedFd),
        events: EventSink,
    ) -> Result<Container, StartError> {
        wanted.validate().map_err(StartError::Spec)?;
        if !self.fits(wanted) {
            return Err(StartError::Spec("the container was prepared for another one".into()));
        }
        let finish = Finish {
            hostname: wanted.hostname.clone(),
            clocks: wanted.clocks,
            first_pid: wanted.first_pid,
        };
        let finished = frame::send(self.launcher.as_fd(), &finish, &[]).map_err(lost);
        // Served while the launcher works: its looks into the file system wait for that.
        if let Some(fuse) = self.fuse.take() {
            serve_fuse(fuse);
        }
        let finished = finished.and_then(|()| receive(self.launcher.as_fd(), BUILD_TIMEOUT));
        let failed = match finished {
            Ok((Finished::Done(more), _)) => {
                self.warnings.extend(more);
                None
            }
            Ok((Finished::Failed { step, errno }, _)) => Some(StartError::Build { step, errno }),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            self.keeper.end();
            return Err(error);
        }
        let (launcher, reader) =
            Launcher::new(self.launcher, events).map_err(StartError::Keeper)?;
        self.keeper.reader = Some(reader);
        Ok(Container {
            listener: self.listener.into(),
            launcher,
            init_pidfd: self.init_pidfd,
            multiplexer: self.multiplexer,
            network: self.network,
            init: self.init,
            launcher_pid: self.launcher_pid,
            warnings: self.warnings,
            cgroups: self.cgroups,
            keeper: Mutex::new(self.keeper),
        })
    }
}

pub(crate) fn wait_for_end(pidfd: &OwnedFd, limit: Duration) -> bool {
    descriptor::wait_readable(pidfd.as_fd(), Some(milliseconds(limit))).unwrap_or(false)
}

fn milliseconds(limit: Duration) -> u32 {
    u32::try_from(limit.as_millis()).unwrap_or(u32::MAX)
}

fn lost(why: impl std::fmt::Display) -> StartError {
    StartError::Lost(why.to_string())
}

fn receive<T: serde::de::DeserializeOwned>(
    socket: BorrowedFd<'_>,
    limit: Duration,
) -> Result<(T, Vec<OwnedFd>), StartError> {
    match descriptor::wait_readable(socket, Some(milliseconds(limit))) {
        Ok(true) => frame::receive(socket).map_err(lost),
        Ok(false) => Err(lost("no answer in time")),
        Err(error) => Err(lost(error)),
    }
}

/// The process that keeps a container together. Ends, with all of its container, when dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) socket: OwnedFd,
    child: Child,
    pub(crate) reader: Option<std::thread::JoinHandle<()>>,
    /// The result of the container's end.
    pub(crate) ended: Option<Result<(), EndError>>,
    stopped: bool,
}

impl Keeper {
    fn spawn(program: &KeeperProgram) -> Result<Keeper, StartError> {
        let (ours, theirs) = descriptor::socket_pair(SocketKind::Stream)
            .map_err(|error| StartError::Keeper(error.into()))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.binary.as_raw_fd()));
        command
            .arg0("dvs-keeper")
            .args(&program.arguments)
            .env_clear()
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        let child = command.spawn().map_err(StartError::Keeper)?;
        // The command holds the keeper's end of the socket: without this its death would not be seen.
        drop(command);
        Ok(Keeper { socket: ours, child, reader: None, ended: None, stopped: false })
    }

    /// The next answer of the keeper.
    pub(crate) fn receive(&self, limit: Duration) -> Result<FromKeeper, StartError> {
        receive(self.socket.as_fd(), limit).map(|(message, _)| message)
    }

    /// Asks the keeper to end the container and waits for it; what it says is left.
    pub(crate) fn end(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        if frame::send(self.socket.as_fd(), &ToKeeper::End, &[]).is_ok() {
            let deadline = Instant::now() + END_TIMEOUT;
            while let Some(limit) = deadline.checked_duration_since(Instant::now()) {
                match self.receive(limit) {
                    Ok(FromKeeper::Ended { left: theirs }) => {
                        left = theirs;
                        break;
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
        self.stop();
        left
    }

    /// Ends the keeper itself: closes its connection, and kills it if that does not help.
    fn stop(&mut self) {
        self.stopped = true;
        descriptor::shut_down(self.socket.as_fd());
        let ended = process::pidfd_open(self.child.id())
            .is_ok_and(|pidfd| wait_for_end(&pidfd, END_TIMEOUT));
        if !ended {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if !self.stopped {
            self.stop();
        }
    }
}
