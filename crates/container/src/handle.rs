//! The daemon's end of a launcher: requests from any thread, answers and events from one reader.

use crate::frame;
use crate::launch::{
    Bytes, LaunchId, LaunchSpec, LaunchStep, LauncherEvent, LauncherRequest, OPEN_FLAGS,
    SignalSender,
};
use dvs_sys::descriptor;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Longest wait for a launch; a program whose files do not come in this time is given up.
pub const LAUNCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the answer to any other request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the launcher to take a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);

/// A program that exists: runs, or is held at its exec stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launched {
    /// The number for it.
    pub id: LaunchId,
    /// Its pid inside the container.
    pub pid: u32,
    /// Its pid for the daemon.
    pub host_pid: u32,
}

/// A program could not be started; nothing is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the program could not be started ({step:?}): {}", std::io::Error::from_raw_os_error(*errno))]
pub struct LaunchError {
    /// errno, positive. `ETIMEDOUT`: given up after [`LAUNCH_TIMEOUT`]; `ESHUTDOWN`: the container
    /// has ended.
    pub errno: i32,
    /// The step that failed.
    pub step: LaunchStep,
}

impl LaunchError {
    fn new(errno: i32) -> Self {
        LaunchError { errno, step: LaunchStep::Request }
    }
}

/// What happens in a container, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// `Exited`, `Stopped` or `Continued` of a program.
    Program(LauncherEvent),
    /// The container has ended; no further event follows.
    Gone,
}

type RequestReply = Box<dyn FnOnce(Result<Answered, i32>) + Send>;
type LaunchReply = Box<dyn FnOnce(Result<Launched, LaunchError>) + Send>;
/// Callback for events; called by the reader thread, which must not be blocked for long.
pub type EventSink = Box<dyn FnMut(ContainerEvent) + Send>;

/// Starts, releases and ends programs of one container, and sends signals inside. Cheap to clone.
#[derive(Clone)]
pub struct Launcher {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Launcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launcher").finish_non_exhaustive()
    }
}

struct Shared {
    socket: OwnedFd,
    /// Held while a frame is written, so that frames do not mix.
    writing: Mutex<()>,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
}

/// What an answer brings.
enum Answered {
    Number(u32),
    File(OwnedFd),
}

#[derive(Default)]
struct Waiting {
    launches: HashMap<LaunchId, LaunchReply>,
    requests: HashMap<u64, RequestReply>,
    closed: bool,
}

impl Launcher {
    /// Speaks to the launcher at the other end; `events` is called by a new thread, whose handle is
    /// returned.
    pub(crate) fn new(
        socket: OwnedFd,
        mut events: EventSink,
    ) -> std::io::Result<(Launcher, std::thread::JoinHandle<()>)> {
        descriptor::set_send_timeout(socket.as_fd(), SEND_TIMEOUT)?;
        let shared = Arc::new(Shared {
            socket,
            writing: Mutex::new(()),
            waiting: Mutex::new(Waiting::default()),
            next: AtomicU64::new(1),
        });
        let reader = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("launcher".to_owned()).spawn(move || {
            reader.read_events(&mut events);
        })?;
        Ok((Launcher { shared }, thread))
    }

    /// A number for a program that will be launched with [`Launcher::launch_as`].
    #[must_use]
    pub fn next_id(&self) -> LaunchId {
        LaunchId(self.shared.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Starts a program (or prepares it, with `hold`) and waits until it exists.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(
        &self,
        spec: LaunchSpec,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Launched, LaunchError> {
        self.launch_as(self.next_id(), spec, descriptors)
    }

    /// The same under a number of [`Launcher::next_id`], so that an exit that is reported before this
    /// call returns can be recognized.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch_as(
        &self,
        id: LaunchId,
        spec: LaunchSpec,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Launched, LaunchError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.launch_then(id, spec, descriptors, move |result| {
            // The receiver is gone only after a timeout.
            let _ = sender.send(result);
        });
        receiver.recv_timeout(LAUNCH_TIMEOUT).unwrap_or_else(|_| {
            self.abort(id);
            Err(LaunchError::new(libc::ETIMEDOUT))
        })
    }

    /// Starts a program without waiting; `reply` is called exactly once, by the reader thread or (when
    /// the request cannot be sent) by this one.
    pub fn launch_then(
        &self,
        id: LaunchId,
        spec: LaunchSpec,
        descriptors: &[BorrowedFd<'_>],
        reply: impl FnOnce(Result<Launched, LaunchError>) + Send + 'static,
    ) {
        {
            let mut waiting = self.shared.waiting.lock().unwrap();
            if waiting.closed {
                drop(waiting);
                return reply(Err(LaunchError::new(libc::ESHUTDOWN)));
            }
            waiting.launches.insert(id, Box::new(reply));
        }
        let request = LauncherRequest::Launch { id, spec: Box::new(spec) };
        if let Err(errno) = self.shared.send(&request, descriptors) {
            let reply = self.shared.waiting.lock().unwrap().launches.remove(&id);
            if let Some(reply) = reply {
                reply(Err(LaunchError::new(errno)));
            }
        }
    }

    /// Lets a held program go on. Nothing happens when it is not held (any more).
    pub fn release(&self, id: LaunchId) {
        let _ = self.shared.send(&LauncherRequest::Release { id }, &[]);
    }

    /// Ends a program that is held or being started; it never runs and its exit is not reported. A
    /// program that runs already is left alone.
    pub fn abort(&self, id: LaunchId) {
        if let Some(reply) = self.shared.waiting.lock().unwrap().launches.remove(&id) {
            reply(Err(LaunchError::new(libc::ECANCELED)));
        }
        let _ = self.shared.send(&LauncherRequest::Abort { id }, &[]);
    }

    /// Sends a signal from inside the container: to a process (> 0), a group (< -1) or everything but
    /// pid 1 (-1), in the container's pids. Signal 0 only tests.
    ///
    /// # Errors
    /// errno: `ESRCH`, `EPERM`, `EINVAL`; `ETIMEDOUT`, `ESHUTDOWN`.
    pub fn signal(
        &self,
        target: i32,
        signal: i32,
        sender: Option<SignalSender>,
    ) -> Result<(), i32> {
        self.ask(|request| LauncherRequest::Signal { request, target, signal, sender }).map(|_| ())
    }

    /// The same without waiting; `done` is called once, by the reader thread or (when nothing can be
    /// sent) by this one. Signals and orders of one thread are carried out in their order.
    pub fn signal_then(
        &self,
        target: i32,
        signal: i32,
        sender: Option<SignalSender>,
        done: impl FnOnce(Result<(), i32>) + Send + 'static,
    ) {
        let build = |request| LauncherRequest::Signal { request, target, signal, sender };
        self.ask_then(build, Box::new(|result| done(result.map(|_| ()))));
    }

    /// Has a running program stop or go on without a report, see [`LauncherRequest::Order`].
    pub fn order(&self, id: LaunchId, number: u32, signal: i32, sender: SignalSender) {
        let _ = self.shared.send(&LauncherRequest::Order { id, number, signal, sender }, &[]);
    }

    /// Chooses the number that the next process of the container gets if it is free, and those after
    /// it; returns the number before it.
    ///
    /// # Errors
    /// errno, as [`Launcher::signal`].
    pub fn aim_pids(&self, next: u32) -> Result<u32, i32> {
        self.ask_number(|request| LauncherRequest::AimPids { request, next: Some(next) })
    }

    /// The pid that was given out last in the container (`ns_last_pid`).
    ///
    /// # Errors
    /// errno, as [`Launcher::signal`].
    pub fn last_pid(&self) -> Result<u32, i32> {
        self.ask_number(|request| LauncherRequest::AimPids { request, next: None })
    }

    /// Opens a file of the guest's tree with the rights of the container's root; `flags` are completed
    /// by [`OPEN_FLAGS`], so that only the tree itself is waited for.
    ///
    /// # Errors
    /// errno; also as [`Launcher::signal`].
    pub fn open(&self, path: &[u8], flags: i32) -> Result<OwnedFd, i32> {
        let path = Bytes::from(path.to_vec());
        let flags = flags | OPEN_FLAGS;
        match self.ask(|request| LauncherRequest::Open { request, path, flags })? {
            Answered::File(fd) => Ok(fd),
            Answered::Number(_) => Err(libc::EPROTO),
        }
    }

    fn ask_number(&self, build: impl FnOnce(u64) -> LauncherRequest) -> Result<u32, i32> {
        match self.ask(build)? {
            Answered::Number(number) => Ok(number),
            Answered::File(_) => Err(libc::EPROTO),
        }
    }

    fn ask(&self, build: impl FnOnce(u64) -> LauncherRequest) -> Result<Answered, i32> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let number = self.ask_then(
            build,
            Box::new(move |result| {
                // The receiver is gone only after a timeout.
                let _ = sender.send(result);
            }),
        );
        let result = receiver.recv_timeout(REQUEST_TIMEOUT).unwrap_or(Err(libc::ETIMEDOUT));
        self.shared.waiting.lock().unwrap().requests.remove(&number);
        result
    }

    fn ask_then(&self, build: impl FnOnce(u64) -> LauncherRequest, reply: RequestReply) -> u64 {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut waiting = self.shared.waiting.lock().unwrap();
            if waiting.closed {
                drop(waiting);
                reply(Err(libc::ESHUTDOWN));
                return number;
            }
            waiting.requests.insert(number, reply);
        }
        if let Err(errno) = self.shared.send(&build(number), &[]) {
            let reply = self.shared.waiting.lock().unwrap().requests.remove(&number);
            if let Some(reply) = reply {
                reply(Err(errno));
            }
        }
        number
    }

    /// Closes the connection; the reader thread ends.
    pub(crate) fn close(&self) {
        descriptor::shut_down(self.shared.socket.as_fd());
    }

    /// Sends bytes that may be no request, to see the launcher survive them.
    ///
    /// # Errors
    /// errno.
    #[doc(hidden)]
    pub fn send_raw(&self, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), i32> {
        let _writing = self.shared.writing.lock().unwrap();
        frame::send_raw(self.shared.socket.as_fd(), body, descriptors).map_err(|_| libc::EIO)
    }
}

impl Shared {
    fn send(&self, request: &LauncherRequest, descriptors: &[BorrowedFd<'_>]) -> Result<(), i32> {
        let _writing = self.writing.lock().unwrap();
        frame::send(self.socket.as_fd(), request, descriptors).map_err(|error| match error {
            frame::FrameError::TooLong(_) | frame::FrameError::TooMany(_) => libc::E2BIG,
            frame::FrameError::Malformed => libc::EINVAL,
            frame::FrameError::Closed => libc::ESHUTDOWN,
            frame::FrameError::Socket(error) => {
                // Part of a frame may be out: the stream is out of step, and the launcher is stuck.
                descriptor::shut_down(self.socket.as_fd());
                error.errno
            }
        })
    }

    fn read_events(&self, events: &mut EventSink) {
        loop {
            match frame::receive::<LauncherEvent>(self.socket.as_fd()) {
                Ok((event, passed)) => self.dispatch(event, passed, events),
                Err(error) if error.recoverable() => {}
                Err(_) => break,
            }
        }
        let (launches, requests) = {
            let mut waiting = self.waiting.lock().unwrap();
            waiting.closed = true;
            (std::mem::take(&mut waiting.launches), std::mem::take(&mut waiting.requests))
        };
        for reply in launches.into_values() {
            reply(Err(LaunchError::new(libc::ESHUTDOWN)));
        }
        for reply in requests.into_values() {
            reply(Err(libc::ESHUTDOWN));
        }
        events(ContainerEvent::Gone);
    }

    fn dispatch(&self, event: LauncherEvent, passed: Vec<OwnedFd>, events: &mut EventSink) {
        let launch_done = |id: LaunchId, result| {
            let reply = self.waiting.lock().unwrap().launches.remove(&id);
            // None: given up or aborted meanwhile; the launcher ends it.
            if let Some(reply) = reply {
                reply(result);
            }
        };
        let request_done = |request: u64, result| {
            let reply = self.waiting.lock().unwrap().requests.remove(&request);
            if let Some(reply) = reply {
                reply(result);
            }
        };
        match event {
            LauncherEvent::Launched { id, pid, host_pid } => {
                launch_done(id, Ok(Launched { id, pid, host_pid }));
            }
            LauncherEvent::Failed { id, errno, step } => {
                launch_done(id, Err(LaunchError { errno, step }));
            }
            LauncherEvent::Signalled { request, errno } => {
                let done = if errno == 0 { Ok(Answered::Number(0)) } else { Err(errno) };
                request_done(request, done);
            }
            LauncherEvent::Opened { request, errno } => {
                let opened = match passed.into_iter().next() {
                    Some(fd) if errno == 0 => Ok(Answered::File(fd)),
                    _ => Err(if errno == 0 { libc::EPROTO } else { errno }),
                };
                request_done(request, opened);
            }
            LauncherEvent::Pids { request, last } => {
                request_done(request, last.map(Answered::Number));
            }
            LauncherEvent::Rejected => {}
            event => events(ContainerEvent::Program(event)),
        }
    }
}
