//! What drives the streams of one node: their descriptors, one epoll thread, and the order of posts.
//!
//! Whoever brings an event (the epoll thread, the thread that delivers a message, a caller) takes the
//! lock and does the work itself, so a message does not pay for a change of threads. All work under
//! the lock is non-blocking. What it causes (messages, callbacks, operations that may block) is
//! collected in [`Effects`] and done after the lock is released; messages go through one queue that a
//! single thread empties at a time, which keeps their order.

mod away;
mod fifos;
mod files;
mod home;
mod locks;
mod offsets;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use dvs_sys::error::SysError;
use dvs_sys::pipe::{self, PAGE, PipeFlags};
use dvs_sys::poll::{Epoll, Event, EventFd};

use crate::CarrierConfig;
use crate::description::{Job, Workers};
use crate::messages::{
    CarryMessage, DescriptionId, DescriptionOperation, DescriptionOutcome, StreamId,
};
use crate::transport::{Attacher, CarryTransport};

pub(crate) use away::window_size;
pub use home::DrainOutcome;
pub(crate) use home::terminal_size;
pub(crate) use offsets::OpenFile;

/// Most streams of one node, both directions.
pub const MAX_STREAMS: usize = 65_536;
/// Most shared descriptions kept at home.
pub const MAX_DESCRIPTIONS: usize = 65_536;
/// Most operations on shared descriptions that wait for their reply.
pub const MAX_REQUESTS: usize = 65_536;
/// Size of the pipe that input is copied through; holds what one tee(2) gives.
const SCRATCH: usize = 1 << 20;
/// Key of the descriptor that wakes the epoll thread.
const WAKE: u64 = 0;

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const ONCE: u32 = libc::EPOLLONESHOT as u32;

/// What is left to do after the lock.
#[derive(Default)]
pub(crate) struct Effects {
    posts: Vec<(u16, CarryMessage)>,
    callbacks: Vec<Box<dyn FnOnce() + Send>>,
    jobs: Vec<Job>,
    closing: Vec<Job>,
}

impl Effects {
    fn post(&mut self, to: u16, message: CarryMessage) {
        self.posts.push((to, message));
    }

    /// Drops something with regular files in it, by a worker: closing a file of the DC's tree waits
    /// for its server, whose answer may need the very thread that we are in.
    pub(crate) fn close<T: Send + 'static>(&mut self, files: T) {
        self.closing.push(Box::new(move || drop(files)));
    }
}

/// Which stream a watched descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    Home(StreamId),
    Away(u16, StreamId),
}

struct Request {
    home: u16,
    reply: SyncSender<Result<DescriptionOutcome, i32>>,
}

/// Everything under the lock.
pub(crate) struct State {
    epoll: Arc<Epoll>,
    watched: HashMap<u64, Watched>,
    next_key: u64,
    buffer: Vec<u8>,
    scratch: (OwnedFd, OwnedFd),
    /// Like `scratch`, with room for one buffer.
    single: (OwnedFd, OwnedFd),
    home: home::Home,
    away: away::Away,
    requests: HashMap<u64, Request>,
    stopped: bool,
}

impl State {
    /// Watches a descriptor for a stream.
    fn watch(&mut self, fd: impl AsFd, events: u32, what: Watched) -> Result<u64, SysError> {
        let key = self.next_key;
        self.epoll.add(fd, events, key)?;
        self.next_key += 1;
        self.watched.insert(key, what);
        Ok(key)
    }

    fn streams(&self) -> usize {
        self.home.streams.len() + self.away.streams.len()
    }
}

#[derive(Default)]
struct Outbox {
    queue: VecDeque<(u16, CarryMessage)>,
    busy: bool,
}

/// The engine of one (node, DC).
pub(crate) struct Engine {
    pub(crate) config: CarrierConfig,
    state: Mutex<State>,
    outbox: Mutex<Outbox>,
    transport: Arc<dyn CarryTransport>,
    pub(crate) attacher: Arc<dyn Attacher>,
    workers: Arc<Workers>,
    epoll: Arc<Epoll>,
    wake: EventFd,
    next_request: AtomicU64,
    fifos: fifos::Fifos,
    this: Weak<Engine>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").field("node", &self.config.node).finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes it and starts its thread.
    pub(crate) fn start(
        config: CarrierConfig,
        transport: Arc<dyn CarryTransport>,
        attacher: Arc<dyn Attacher>,
    ) -> Result<Arc<Engine>, SysError> {
        let epoll = Arc::new(Epoll::new()?);
        let wake = EventFd::new()?;
        epoll.add(&wake, IN, WAKE)?;
        let scratch = pipe::pair(PipeFlags { nonblocking: true, packet: false })?;
        // A smaller one works too, in smaller steps.
        let _ = pipe::set_capacity(&scratch.1, SCRATCH);
        let single = pipe::pair(PipeFlags { nonblocking: true, packet: false })?;
        pipe::set_capacity(&single.1, PAGE)?;
        let engine = Arc::new_cyclic(|this| Engine {
            state: Mutex::new(State {
                epoll: Arc::clone(&epoll),
                watched: HashMap::new(),
                next_key: WAKE + 1,
                buffer: vec![0; SCRATCH],
                scratch,
                single,
                home: home::Home::new(config.node),
                away: away::Away::default(),
                requests: HashMap::new(),
                stopped: false,
            }),
            outbox: Mutex::default(),
            transport,
            attacher,
            workers: Workers::new(config.clone()),
            epoll,
            wake,
            next_request: AtomicU64::new(1),
            fifos: fifos::Fifos::default(),
            this: this.clone(),
            config,
        });
        let runner = Arc::clone(&engine);
        std::thread::Builder::new().name("carry".into()).spawn(move || runner.run()).map_err(
            |error| SysError::new("clone", error.raw_os_error().unwrap_or(libc::EAGAIN)),
        )?;
        Ok(engine)
    }

    pub(crate) fn weak(&self) -> Weak<Engine> {
        self.this.clone()
    }

    fn run(&self) {
        let mut events: Vec<Event> = Vec::new();
        loop {
            events.clear();
            if self.epoll.wait(&mut events, None).is_err() {
                // Only a broken epoll descriptor does this; without it nothing can move any more.
                self.stop();
                return;
            }
            for event in &events {
                if event.key == WAKE {
                    // Signalled by `stop` alone.
                    let _ = self.wake.clear();
                    if self.lock().stopped {
                        return;
                    }
                } else {
                    self.locked(|state, effects| state.happened(*event, effects));
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Does something under the lock, then what it caused.
    pub(crate) fn locked<T>(&self, work: impl FnOnce(&mut State, &mut Effects) -> T) -> T {
        let mut effects = Effects::default();
        let mut state = self.lock();
        let result = work(&mut state, &mut effects);
        if !effects.posts.is_empty() {
            // Queued while the state is locked: so the queue has the order of the work.
            self.outbox.lock().unwrap().queue.extend(effects.posts.drain(..));
        }
        drop(state);
        self.send_queued();
        for job in effects.jobs {
            if let Err(refused) = self.workers.submit(job) {
                // Dropping a job answers its request with EAGAIN.
                drop(refused);
            }
        }
        for job in effects.closing {
            self.workers.close(job);
        }
        for callback in effects.callbacks {
            callback();
        }
        result
    }

    /// Empties the outbox unless another thread (or a caller further up) is doing it.
    fn send_queued(&self) {
        let mut gone = Vec::new();
        {
            let mut outbox = self.outbox.lock().unwrap();
            if outbox.busy {
                return;
            }
            outbox.busy = true;
            while let Some((to, message)) = outbox.queue.pop_front() {
                drop(outbox);
                if to == self.config.node {
                    // A FIFO that is written and read here.
                    self.deliver(to, message);
                } else if self.transport.post(to, message).is_err() && !gone.contains(&to) {
                    gone.push(to);
                }
                outbox = self.outbox.lock().unwrap();
            }
            outbox.busy = false;
        }
        for node in gone {
            self.node_gone(node);
        }
    }

    /// A message from another node.
    pub(crate) fn deliver(&self, from: u16, message: CarryMessage) {
        if message.check().is_err() {
            return;
        }
        if let CarryMessage::Fifo { fifo, what } = message {
            if let Some(bridge) = self.fifos.get() {
                bridge.message(from, fifo, what);
            }
            return;
        }
        let this = self.weak();
        self.locked(|state, effects| match message {
            // See above.
            CarryMessage::Fifo { .. } => {}
            CarryMessage::StreamReady { stream } => state.home_ready(from, stream, effects),
            CarryMessage::StreamData { stream, records, bytes } => {
                // Output streams are numbered by us, input streams by the sender.
                if state.home_knows_output(from, stream) {
                    state.home_data(from, stream, records, bytes, effects);
                } else {
                    state.away_data(from, stream, &bytes, effects);
                }
            }
            CarryMessage::StreamCredit { stream, total } => {
                state.away_credit(from, stream, total, effects);
            }
            CarryMessage::StreamEnd { stream } => {
                if state.home_knows_output(from, stream) {
                    state.home_end(from, stream, effects);
                } else {
                    state.away_end(from, stream, effects);
                }
            }
            CarryMessage::StreamBroken { stream, consumed } => {
                if state.home_knows_input(from, stream) {
                    state.home_broken(from, stream, consumed);
                } else {
                    state.away_broken(from, stream, effects);
                }
            }
            CarryMessage::Consumed { stream, total } => {
                state.home_consumed(from, stream, total, effects);
            }
            CarryMessage::Drained { program } => state.home_drained(from, program, effects),
            CarryMessage::TerminalResized { stream, size } => {
                state.away_resized(from, stream, size);
            }
            CarryMessage::DescriptionRequest { request, description, operation } => {
                state.home_describe(from, request, description, operation, this, effects);
            }
            CarryMessage::DescriptionCancel { request } => {
                state.home_describe_cancelled(from, request, effects);
            }
            CarryMessage::DescriptionReply { request, result } => {
                if state.requests.get(&request).is_some_and(|waiting| waiting.home == from)
                    && let Some(waiting) = state.requests.remove(&request)
                {
                    let _ = waiting.reply.try_send(result);
                }
            }
            CarryMessage::DescriptionMoved { program, description, position } => {
                state.home_description_moved(from, program, description, position, this, effects);
            }
            CarryMessage::DescriptionDropped { description } => {
                state.home_description_dropped(from, description, effects);
            }
        });
    }

    /// Another node is gone: nothing more comes from it.
    pub(crate) fn node_gone(&self, node: u16) {
        self.locked(|state, effects| {
            state.home_node_gone(node, effects);
            state.away_node_gone(node, effects);
            state.requests.retain(|_, waiting| {
                if waiting.home == node {
                    let _ = waiting.reply.try_send(Err(libc::EIO));
                }
                waiting.home != node
            });
        });
        if let Some(bridge) = self.fifos.get() {
            bridge.node_gone(node);
        }
    }

    /// Posts a reply made by a worker.
    fn reply(&self, to: u16, request: u64, result: Result<DescriptionOutcome, i32>) {
        self.locked(|state, effects| {
            state.home.waiting_locks.remove(&(to, request));
            effects.post(to, CarryMessage::DescriptionReply { request, result });
        });
    }

    /// A number for one request.
    pub(crate) fn request_number(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// A request that waits at home shall be answered now.
    pub(crate) fn cancel(&self, home: u16, request: u64) {
        self.locked(|_, effects| effects.post(home, CarryMessage::DescriptionCancel { request }));
    }

    /// Asks home for one operation; the reply comes through the channel.
    pub(crate) fn ask(
        &self,
        home: u16,
        request: u64,
        description: DescriptionId,
        operation: DescriptionOperation,
    ) -> Result<Receiver<Result<DescriptionOutcome, i32>>, i32> {
        let (sender, receiver) = sync_channel(1);
        self.locked(|state, effects| {
            if state.stopped {
                return Err(libc::EIO);
            }
            if state.requests.len() >= MAX_REQUESTS {
                return Err(libc::EAGAIN);
            }
            state.requests.insert(request, Request { home, reply: sender });
            effects
                .post(home, CarryMessage::DescriptionRequest { request, description, operation });
            Ok(())
        })?;
        Ok(receiver)
    }

    pub(crate) fn description_dropped(&self, home: u16, description: DescriptionId) {
        self.locked(|state, effects| {
            if !state.stopped {
                effects.post(home, CarryMessage::DescriptionDropped { description });
            }
        });
    }

    /// Ends everything: descriptors are closed, waiters answered, the threads end.
    pub(crate) fn stop(&self) {
        self.locked(|state, effects| {
            if state.stopped {
                return;
            }
            state.stopped = true;
            state.home_stop(effects);
            state.away_stop(effects);
            state.watched.clear();
            state.requests.clear();
        });
        if let Some(bridge) = self.fifos.get() {
            bridge.stop();
        }
        self.workers.stop();
        let _ = self.wake.signal();
    }

    /// Streams and descriptions that are alive: (at home, away, descriptions).
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let state = self.lock();
        (state.home.streams.len(), state.away.streams.len(), state.home.descriptions.len())
    }
}

impl State {
    fn happened(&mut self, event: Event, effects: &mut Effects) {
        match self.watched.get(&event.key) {
            Some(&Watched::Home(stream)) => self.home_happened(stream, event.events, effects),
            Some(&Watched::Away(home, stream)) => self.away_pump(home, stream, effects),
            // Closed meanwhile.
            None => {}
        }
    }
}

/// Bytes that a pipe can take now at least, 0 when it is full.
fn room(fd: impl AsFd) -> Option<usize> {
    let fd = fd.as_fd();
    let events = dvs_sys::poll::one(fd, libc::POLLOUT, Some(std::time::Duration::ZERO)).ok()?;
    if events & libc::POLLERR != 0 {
        return None;
    }
    if events & libc::POLLOUT == 0 {
        return Some(0);
    }
    let capacity = pipe::capacity(fd).unwrap_or(PAGE);
    let used = pipe::available(fd).unwrap_or(capacity);
    Some(capacity.saturating_sub(used).max(PAGE))
}

/// Whether the readers of a pipe's write end are gone.
pub(crate) fn no_reader(fd: impl AsFd) -> bool {
    dvs_sys::poll::one(fd, 0, Some(std::time::Duration::ZERO))
        .is_ok_and(|events| events & libc::POLLERR != 0)
}
