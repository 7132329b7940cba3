//! The life of a daemon: made ready, serving, ended with all that it runs.
//!
//! One thread waits for connections, signals and the end of the lifeline; every connection has a
//! thread of its own. Nothing here polls: an idle daemon sleeps in one system call.

use crate::client::check_hello;
use crate::control;
use crate::folders::{self, Folders, OwnedFolder, Session, control_socket, link_socket, reason};
use crate::host::Host;
use crate::journal;
use crate::protocol::{Failure, Hello, Request, Response};
use crate::uplink::Uplink;
use crate::wire;
use dvs_container::KeeperProgram;
use dvs_sys::descriptor::{self, Poll};
use dvs_sys::signals::{self, SignalFd};
use dvs_sys::{clock, namespace, process};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

/// Who a daemon is.
#[derive(Debug, Clone)]
pub struct DaemonConfig {
    /// Its folder: sockets, lock, log.
    pub folder: PathBuf,
    /// Where the files of containers go.
    pub state: PathBuf,
    /// Its name.
    pub name: String,
    /// Its number, unique in the cluster.
    pub id: u16,
    /// Number of the cluster.
    pub cluster: [u8; 16],
    /// It takes the host's place in a cluster of hosts (see [`crate::membership`]).
    pub member: bool,
    /// Folder of the session that it belongs to, if it lives for one command only.
    pub session: Option<PathBuf>,
    /// Seconds by which its monotonic and boot clocks are ahead, for tests: on one machine all
    /// clocks are the same, which would hide every mistake with them.
    pub clock_offset: i64,
}

/// What a daemon is born with.
#[derive(Debug, Default)]
pub struct Inherited {
    /// A connection to the command that started it.
    pub control: Option<OwnedFd>,
    /// Says end of file when the command is gone: the daemon ends.
    pub lifeline: Option<OwnedFd>,
    /// The sealed copy of the program that keepers run.
    pub keeper: Option<OwnedFd>,
}

/// Signals that end a daemon in order.
const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Runs a daemon until it is told to end; returns its exit code. To be called in a new process with
/// one thread (see [`crate::cluster`]).
#[must_use]
pub fn run(config: DaemonConfig, inherited: Inherited) -> i32 {
    run_with(config, inherited, None)
}

/// The same for a node whose only way to the others is a byte stream.
pub(crate) fn run_with(config: DaemonConfig, inherited: Inherited, uplink: Option<Uplink>) -> i32 {
    let Inherited { control, lifeline, keeper } = inherited;
    if let Some(keeper) = keeper {
        KeeperProgram::adopt(keeper);
    }
    let control = control.map(UnixStream::from);
    let folders = config.session.as_deref().map(|path| Folders::of_session(path, &config.state));
    match config.session.as_deref().map(Session::join).transpose() {
        Ok(session) => {
            let code = live(&config, control, lifeline.as_ref(), uplink);
            // By whoever ends last, also when the command was killed.
            if let (Some(session), Some(folders)) = (session, folders) {
                session.leave();
                folders.tidy();
            }
            code
        }
        Err(failure) => refuse(control, uplink, &failure),
    }
}

/// The lives of a daemon, one after the other; returns its exit code.
fn live(
    config: &DaemonConfig,
    mut control: Option<UnixStream>,
    lifeline: Option<&OwnedFd>,
    mut uplink: Option<Uplink>,
) -> i32 {
    loop {
        match Ready::make(config.clone()) {
            Ok(ready) => {
                if let Some(uplink) = uplink.take()
                    && let Err(error) = uplink.serve(&ready.host)
                {
                    log::error!("the stream to the command: {error}");
                    ready.host.stop();
                }
                // A new life is like a new start, except that the command that made the first is gone.
                if !ready.serve(control.take(), lifeline) {
                    return 0;
                }
            }
            Err(failure) => return refuse(control, uplink, &failure),
        }
    }
}

/// Tells whoever started it that it does not come up.
fn refuse(control: Option<UnixStream>, uplink: Option<Uplink>, failure: &Failure) -> i32 {
    log::error!("{failure}");
    if let Some(uplink) = uplink {
        uplink.fail(failure);
    }
    if let Some(control) = control {
        tell_failure(&control, failure);
    }
    1
}

struct Ready {
    host: Arc<Host>,
    folder: OwnedFolder,
    listener: UnixListener,
    signals: SignalFd,
}

impl Ready {
    fn make(config: DaemonConfig) -> Result<Self, Failure> {
        let what = |what: &str, error: dvs_sys::error::SysError| {
            Failure::new(format!("node {}: {what}: {error}", config.name))
        };
        for signal in ENDING {
            signals::set_default(signal).map_err(|error| what("signals", error))?;
        }
        signals::ignore(libc::SIGPIPE).map_err(|error| what("signals", error))?;
        signals::block(&ENDING).map_err(|error| what("signals", error))?;
        // What the command blocked for its own use.
        let others = [libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH, libc::SIGTSTP];
        signals::unblock(&others).map_err(|error| what("signals", error))?;
        let signals = SignalFd::new(&ENDING).map_err(|error| what("signals", error))?;
        process::set_umask(0o077);
        // Before the process becomes undumpable: then its own /proc files belong to root.
        if config.clock_offset != 0 {
            shift_clocks(config.clock_offset).map_err(|error| what("shifting its clock", error))?;
        }
        process::set_dumpable(false).map_err(|error| what("protecting the process", error))?;
        let title = std::ffi::CString::new(format!("dvs-{}", config.name)).unwrap_or_default();
        process::set_name(&title).map_err(|error| what("naming the process", error))?;
        std::env::set_current_dir("/")
            .map_err(|error| Failure::new(format!("cannot change to /: {}", reason(&error))))?;
        let folder = OwnedFolder::make(&config.folder)?.ok_or_else(|| {
            Failure::new(format!(
                "node {} runs already ({}); choose another name, or stop it: dvs node stop {}",
                config.name,
                config.folder.display(),
                config.name
            ))
        })?;
        journal::start(&config.name, &folder.path);
        let path = control_socket(&folder.path);
        folders::check_socket_path(&path)?;
        // A daemon that was killed leaves its sockets; the lock says that nobody uses them.
        for old in [path.clone(), link_socket(&folder.path)] {
            if let Err(error) = std::fs::remove_file(&old) {
                log::trace!("{}: {error}", old.display());
            }
        }
        let listener = UnixListener::bind(&path).map_err(|error| {
            Failure::new(format!("cannot listen at {}: {}", path.display(), reason(&error)))
        })?;
        let host = Host::make(config)?;
        Ok(Ready { host, folder, listener, signals })
    }

    /// Serves until it is told to end. True: a new life is to begin.
    fn serve(self, control: Option<UnixStream>, lifeline: Option<&OwnedFd>) -> bool {
        let Ready { host, folder, listener, signals } = self;
        log::info!("node {} serves at {}", host.config().name, folder.path.display());
        if let Some(control) = control {
            control::start(&host, control);
        }
        host.revive();
        loop {
            let mut waits = vec![
                Poll::readable(listener.as_fd()),
                Poll::readable(signals.as_fd()),
                Poll::readable(host.stopping()),
            ];
            waits.extend(lifeline.map(|fd| Poll::readable(fd.as_fd())));
            if let Err(error) = descriptor::poll(&mut waits, None) {
                log::error!("waiting for events: {error}");
                break;
            }
            let ready: Vec<bool> = waits.iter().map(|wait| wait.ready != 0).collect();
            let is = |index: usize| ready.get(index).copied().unwrap_or(false);
            if is(1) {
                log::info!("told to end by a signal: {:?}", signals.take());
                break;
            }
            if is(2) || is(3) {
                log::info!("told to end{}", if is(3) { ": the command is gone" } else { "" });
                break;
            }
            if is(0) {
                match listener.accept() {
                    Ok((stream, _)) => control::start(&host, stream),
                    Err(error) => log::warn!("accepting a connection: {error}"),
                }
            }
        }
        drop(listener);
        host.end();
        log::info!("node {} ends", host.config().name);
        drop(folder);
        host.is_renewing()
    }
}

/// Puts the whole process into a time namespace whose clocks are ahead.
fn shift_clocks(seconds: i64) -> dvs_sys::error::Result<()> {
    namespace::unshare(libc::CLONE_NEWTIME)?;
    namespace::write_time_offsets(seconds * 1_000_000_000, seconds * 1_000_000_000)?;
    namespace::enter_own_time_namespace()?;
    log::debug!("clocks shifted by {seconds} s: monotonic is {} ns", clock::monotonic());
    Ok(())
}

/// Answers the first question of the command with what went wrong.
fn tell_failure(control: &UnixStream, failure: &Failure) {
    let told = wire::receive::<Hello>(control).and_then(|(hello, _)| {
        if let Err(other) = check_hello(&hello, "the command") {
            log::debug!("{other}");
        }
        wire::send(control, &Hello::ours(), &[])?;
        wire::receive::<Request>(control)?;
        wire::send(control, &Response::Failed(failure.clone()), &[])
    });
    if let Err(error) = told {
        log::debug!("telling the command: {error}");
    }
}
