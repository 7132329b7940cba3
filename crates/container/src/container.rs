//! The daemon's end of a container: starting it, what it consists of, ending it.

use crate::frame;
use crate::handle::{EventSink, Launcher};
use crate::messages::{FromKeeper, ToKeeper};
use crate::network::Handles;
use crate::prepared::{END_TIMEOUT, Keeper, Prepared, wait_for_end};
use crate::spec::ContainerSpec;
use dvs_sys::descriptor;
use dvs_sys::process;
use dvs_sys::seccomp::Listener;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How a keeper is run.
#[derive(Debug, Clone)]
pub struct KeeperProgram {
    /// Its binary, a sealed memfd.
    pub binary: Arc<OwnedFd>,
    /// Arguments after the program's name.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
}

/// The copy of the running program, made once per process.
static COPY: OnceLock<Arc<OwnedFd>> = OnceLock::new();

impl KeeperProgram {
    /// A sealed copy of the running program. Only what is loaded is copied: debug information is many
    /// times as long.
    ///
    /// # Errors
    /// What reading the own binary and writing memory give.
    pub fn copy() -> std::io::Result<OwnedFd> {
        let source = std::fs::File::open("/proc/self/exe")?;
        let length = loaded_length(&source)?;
        Ok(descriptor::sealed_copy(c"dvs-keeper", source.take(length))?)
    }

    /// Takes a copy that another process has made for the one of this process, if there is none yet:
    /// daemons that are forked together need only one.
    pub fn adopt(binary: OwnedFd) {
        let _ = COPY.set(Arc::new(binary));
    }

    /// The running program itself, copied and sealed once per process, as `dvs internal keeper`.
    ///
    /// # Errors
    /// What reading the own binary and writing memory give.
    pub fn own() -> std::io::Result<Self> {
        let binary = match COPY.get() {
            Some(copy) => Arc::clone(copy),
            None => {
                let copy = Arc::new(KeeperProgram::copy()?);
                Arc::clone(COPY.get_or_init(|| copy))
            }
        };
        Ok(KeeperProgram {
            binary,
            arguments: vec!["internal".to_owned(), "keeper".to_owned()],
            environment: Vec::new(),
        })
    }
}

/// How much of an executable its program headers tell to load (elf(5)); all of it where that cannot
/// be told.
fn loaded_length(file: &std::fs::File) -> std::io::Result<u64> {
    let all = file.metadata()?.len();
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)?;
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    };
    let half = |at: usize| word(&head, at) & 0xffff;
    let (offset, size, count) = (word(&head, 32), half(54), half(56));
    if !head.starts_with(b"\x7fELF\x02\x01") || size != 56 || count > 64 {
        return Ok(all);
    }
    let mut headers = vec![0; usize::try_from(size * count).unwrap_or(0)];
    file.read_exact_at(&mut headers, offset)?;
    let ends =
        headers.chunks_exact(56).map(|header| word(header, 8).saturating_add(word(header, 32)));
    Ok(ends.max().filter(|end| *end > 0).map_or(all, |end| end.min(all)))
}

/// A container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The description is wrong.
    #[error("{0}")]
    Spec(String),
    /// The keeper could not be run.
    #[error("cannot run the keeper of the container: {0}")]
    Keeper(std::io::Error),
    /// A step of the build failed; nothing is left.
    #[error("cannot build the container ({step}): {}", std::io::Error::from_raw_os_error(*errno))]
    Build {
        /// What was tried.
        step: String,
        /// errno.
        errno: i32,
    },
    /// The keeper went away or spoke nonsense.
    #[error("the keeper of the container is gone: {0}")]
    Lost(String),
}

/// A container could not be ended completely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the container has not ended completely: {}", left.join("; "))]
pub struct EndError {
    /// What is left, one sentence each.
    pub left: Vec<String>,
}

/// A running container. Ends when dropped.
#[derive(Debug)]
pub struct Container {
    /// Where trapped calls are reported.
    pub listener: Listener,
    /// Starts programs.
    pub launcher: Launcher,
    /// Names pid 1; readable when the container has ended.
    pub init_pidfd: OwnedFd,
    /// `/dev/pts/ptmx` of the container, by path only: to be opened anew as `/proc/self/fd/N`.
    pub multiplexer: OwnedFd,
    /// Its part of the DC's network, if it has one.
    pub network: Option<Handles>,
    /// Pid of pid 1 outside.
    pub init: u32,
    /// Pid of the launcher.
    pub launcher_pid: u32,
    /// What could not be set up, and what that means for the user.
    pub warnings: Vec<String>,
    /// Cgroup folders of the container.
    pub cgroups: Vec<String>,
    pub(crate) keeper: Mutex<Keeper>,
}

impl Container {
    /// Starts a container. With a FUSE root `serve_fuse` is called before anything looks into it, and
    /// must serve the descriptor on other threads; with a bound root it is not called. `events` is
    /// called by a thread of the container.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left then.
    pub fn start(
        spec: &ContainerSpec,
        program: &KeeperProgram,
        serve_fuse: impl FnOnce(OwnedFd),
        events: EventSink,
    ) -> Result<Container, StartError> {
        Prepared::new(spec, program)?.finish(spec, serve_fuse, events)
    }

    /// Ends the container: all its processes, mounts and cgroups. Repeated calls give the first
    /// answer. Bounded, also when a process of the guest hangs in its file system.
    ///
    /// # Errors
    /// What is left.
    pub fn end(&self) -> Result<(), EndError> {
        let mut keeper = self.keeper.lock().unwrap();
        if let Some(result) = &keeper.ended {
            return result.clone();
        }
        let mut left = keeper.end();
        // The keeper may have been killed: make sure from here.
        if !wait_for_end(&self.init_pidfd, Duration::ZERO) {
            let _ = process::pidfd_send_signal(self.init_pidfd.as_fd(), libc::SIGKILL);
            if !wait_for_end(&self.init_pidfd, END_TIMEOUT) {
                left.push(format!("pid 1 of the container (process {}) does not end", self.init));
            }
        }
        left.extend(crate::cgroup::remove(&self.cgroups));
        self.launcher.close();
        // The thread that calls the event sink cannot wait for itself.
        if let Some(reader) = keeper.reader.take()
            && reader.thread().id() != std::thread::current().id()
        {
            let _ = reader.join();
        }
        let result = if left.is_empty() { Ok(()) } else { Err(EndError { left }) };
        keeper.ended = Some(result.clone());
        result
    }

    /// Whether pid 1 still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !wait_for_end(&self.init_pidfd, Duration::ZERO)
    }

    /// Stops everything in the container, or lets it go on: by its cgroup freezer (launcher included;
    /// the guest sees nothing), or, in a container without limits, which has none, by `SIGSTOP` and
    /// `SIGCONT` to all processes of the guest.
    ///
    /// # Errors
    /// errno; `ESHUTDOWN` when the container has ended.
    pub fn freeze(&self, frozen: bool) -> Result<(), i32> {
        match self.freeze_by_cgroup(frozen) {
            Err(libc::EOPNOTSUPP) => {
                let signal = if frozen { libc::SIGSTOP } else { libc::SIGCONT };
                match self.launcher.signal(-1, signal, None) {
                    // Nobody there to be stopped.
                    Err(libc::ESRCH) => Ok(()),
                    result => result,
                }
            }
            result => result,
        }
    }

    fn freeze_by_cgroup(&self, frozen: bool) -> Result<(), i32> {
        let keeper = self.keeper.lock().unwrap();
        if keeper.ended.is_some() {
            return Err(libc::ESHUTDOWN);
        }
        if self.cgroups.is_empty() {
            return Err(libc::EOPNOTSUPP);
        }
        frame::send(keeper.socket.as_fd(), &ToKeeper::Freeze(frozen), &[])
            .map_err(|_| libc::ESHUTDOWN)?;
        match keeper.receive(END_TIMEOUT) {
            Ok(FromKeeper::Frozen(0)) => Ok(()),
            Ok(FromKeeper::Frozen(errno)) => Err(errno),
            _ => Err(libc::ESHUTDOWN),
        }
    }

    /// The processes of the container, pid 1 included: (pid outside, pid inside).
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub fn processes(&self) -> std::io::Result<Vec<(u32, u32)>> {
        crate::pids::of_container(self.init, self.launcher_pid)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
