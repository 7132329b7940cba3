//! The daemon's end of a control connection: who may speak, what is asked, what is answered.

use crate::client::check_hello;
use crate::host::{Host, Program};
use crate::hosts;
use crate::protocol::{Ended, Failure, Hello, Request, Response};
use crate::streams;
use crate::uplink;
use crate::wire::{self, WireError};
use dvs_sys::descriptor;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Most connections served at a time; more are closed at once.
pub(crate) const MAX_CONNECTIONS: usize = 512;
/// How long the other side may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Serves a connection on a thread of its own.
pub(crate) fn start(host: &Arc<Host>, stream: UnixStream) {
    if CONNECTIONS.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        log::warn!("more than {MAX_CONNECTIONS} connections: one is refused");
        return;
    }
    let host = Arc::clone(host);
    let spawned = std::thread::Builder::new().name("control".into()).spawn(move || {
        if let Err(error) = serve(&host, &stream) {
            log::debug!("control connection: {error}");
        }
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        log::error!("no thread for a connection: {error}");
    }
}

/// Whether a user may command a daemon: its own user, and root; a root daemon obeys root alone.
#[must_use]
pub(crate) fn may_command(daemon: u32, peer: u32) -> bool {
    peer == daemon || peer == 0
}

/// The way back to the command; programs that end use it from their own threads.
#[derive(Clone)]
pub(crate) struct Answers(Arc<Mutex<UnixStream>>);

impl Answers {
    pub(crate) fn send(
        &self,
        response: &Response,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        wire::send(&self.0.lock().unwrap_or_else(PoisonError::into_inner), response, fds)
    }
}

fn serve(host: &Arc<Host>, stream: &UnixStream) -> Result<(), WireError> {
    let peer = descriptor::peer_credentials(stream.as_fd()).map_err(std::io::Error::from)?;
    if !may_command(crate::folders::own_uid(), peer.uid) {
        log::warn!("user {} (process {}) was refused", peer.uid, peer.pid);
        return Ok(());
    }
    stream.set_read_timeout(Some(HELLO_PATIENCE))?;
    let (hello, _): (Hello, _) = wire::receive(stream)?;
    wire::send(stream, &Hello::ours(), &[])?;
    if let Err(failure) = check_hello(&hello, "the command") {
        log::warn!("{failure}");
        return Ok(());
    }
    stream.set_read_timeout(None)?;
    let answers = Answers(Arc::new(Mutex::new(stream.try_clone()?)));
    let mut running: Option<Arc<dyn Program>> = None;
    let result = converse(host, stream, &answers, &mut running);
    // However the conversation ends, what runs on it ends with it.
    if let Some(program) = running {
        program.abandon();
    }
    result
}

fn converse(
    host: &Arc<Host>,
    stream: &UnixStream,
    answers: &Answers,
    running: &mut Option<Arc<dyn Program>>,
) -> Result<(), WireError> {
    loop {
        let (request, descriptors) = match wire::receive::<Request>(stream) {
            Err(WireError::Closed) => return Ok(()),
            other => other?,
        };
        log::debug!("asked: {}", brief(&request));
        match request {
            Request::Signal { signal, group } => {
                if let Some(program) = running.as_ref() {
                    program.signal(signal, group);
                }
            }
            Request::EndNow => {
                if let Some(program) = running.as_ref() {
                    program.end_now();
                }
            }
            Request::Run(..) | Request::Exec(..) if running.is_some() => {
                let failure = Failure::new("one connection runs one program at a time");
                answers.send(&Response::Failed(failure), &[])?;
            }
            Request::Run(options, program) => {
                let notices = answers.clone();
                let notify = Box::new(move |text: String| {
                    if let Err(error) = notices.send(&Response::Notice(text), &[]) {
                        log::debug!("a notice was not delivered: {error}");
                    }
                });
                let started = host.run(*options, *program, descriptors, notify, false);
                *running = follow(answers, started)?;
            }
            Request::Exec(container, program) => {
                let started = host.exec_told(&container, *program, descriptors);
                *running = follow(answers, started)?;
            }
            Request::Manage(manage) => {
                let followed = streams::manage(host, manage, answers)?;
                // The earlier one is over, or nobody looks at it any more.
                if let Some(before) = followed.and_then(|followed| running.replace(followed)) {
                    before.abandon();
                }
            }
            Request::Stop { force } => {
                let stopped = host.may_stop(force);
                answers.send(&stopped.map_or_else(Response::Failed, |()| Response::Done), &[])?;
                if host.may_stop(force).is_ok() {
                    host.stop();
                }
            }
            Request::TakeIn(nodes) => {
                let taken = uplink::take_in_all(host, &nodes, descriptors);
                answers.send(&taken.map_or_else(Response::Failed, |()| Response::Done), &[])?;
            }
            plain => {
                let answer = answer(host, plain).unwrap_or_else(Response::Failed);
                answers.send(&answer, &[])?;
            }
        }
    }
}

/// Tells that a program runs, and, later and from another thread, how it ended.
fn follow(
    answers: &Answers,
    started: Result<Started, Failure>,
) -> Result<Option<Arc<dyn Program>>, WireError> {
    let started = match started {
        Ok(started) => started,
        Err(failure) => {
            answers.send(&Response::Failed(failure), &[])?;
            return Ok(None);
        }
    };
    let Started { container, pid, warnings, terminal, program } = started;
    let terminal: Vec<BorrowedFd<'_>> = terminal.iter().map(AsFd::as_fd).collect();
    let sent = answers.send(&Response::Started { container, pid, warnings }, &terminal);
    let (waited, answers) = (Arc::clone(&program), answers.clone());
    let spawned = std::thread::Builder::new().name("program".into()).spawn(move || {
        let ended: Ended = waited.wait();
        if let Err(error) = answers.send(&Response::Ended(ended), &[]) {
            log::debug!("nobody heard how the program ended: {error}");
        }
    });
    if let Err(error) = spawned {
        log::error!("no thread to follow a program: {error}");
        program.end_now();
    }
    if sent.is_err() {
        program.abandon();
    }
    sent.map(|()| Some(program))
}

/// A program that was started.
pub(crate) struct Started {
    /// Its container.
    pub(crate) container: String,
    /// Pid inside.
    pub(crate) pid: u32,
    /// For the user.
    pub(crate) warnings: Vec<String>,
    /// The other end of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// Itself.
    pub(crate) program: Arc<dyn Program>,
}

fn answer(host: &Arc<Host>, request: Request) -> Result<Response, Failure> {
    match request {
        Request::Node => Ok(Response::Node(host.info())),
        Request::Link(peers) => host.link(&peers).map(|()| Response::Done),
        Request::Processes(of) => host.processes(of.as_deref()).map(Response::Processes),
        Request::Containers => Ok(Response::Containers(host.containers())),
        Request::Cluster => Ok(Response::Nodes(hosts::nodes(host))),
        Request::Token { life, uses } => {
            hosts::membership(host)?.token(life, uses).map(Response::Token)
        }
        Request::RemoveNode(name) => hosts::remove(host, &name).map(|()| Response::Done),
        Request::Rotate => hosts::rotate(host).map(|()| Response::Done),
        Request::Remove(name) => host.remove(&name, true).map(|()| Response::Done),
        other => Err(Failure::new(format!("{} is no question", brief(&other)))),
    }
}

/// For the log: without arguments and environment, which may hold secrets.
fn brief(request: &Request) -> String {
    match request {
        Request::Run(options, program) => format!(
            "run {:?} on {:?} nodes: {} arguments",
            options.name,
            options.nodes,
            program.arguments.len()
        ),
        Request::Exec(name, program) => {
            format!("exec in {name}: {} arguments", program.arguments.len())
        }
        Request::Manage(crate::managing::ManageRequest::Run(options, program, _)) => {
            format!("run {:?} detached: {} arguments", options.name, program.arguments.len())
        }
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Text;

    #[test]
    fn a_root_daemon_obeys_root_alone() {
        assert!(may_command(0, 0) && !may_command(0, 1000));
        assert!(may_command(1000, 1000) && may_command(1000, 0) && !may_command(1000, 1001));
    }

    #[test]
    fn the_log_has_no_secrets() {
        let mut program = crate::protocol::ProgramOptions::default();
        program.environment.push(Text::from("TOKEN=hidden"));
        program.arguments.push(Text::from("--password=hidden"));
        assert!(!brief(&Request::Exec("web".into(), Box::new(program))).contains("hidden"));
    }
}
