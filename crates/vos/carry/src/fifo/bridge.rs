//! The thread that carries the FIFO protocol through: it opens ends, starts streams and looks at
//! threads that are opening. It starts with the first FIFO that is opened.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use dvs_sys::pipe::{self, PipeFlags};

use super::core::{Core, World};
use super::{FifoEnd, FifoHost, FifoId, FifoMessage, FifoRefusal, Opener};
use crate::engine::Engine;
use crate::messages::{CarryMessage, StreamId};

/// Most events that wait. Openings beyond it are refused; a message of a peer beyond it is lost.
const MAX_EVENTS: usize = 65_536;
/// How soon threads that are opening are looked at again after something has happened.
const SOON: Duration = Duration::from_millis(1);
/// How soon at the latest.
const LATE: Duration = Duration::from_millis(64);
/// How long an opening waits for the protocol, before the kernel lets it wait for its other end.
const PATIENCE: Duration = Duration::from_secs(30);

const READ: i32 = libc::O_RDONLY | libc::O_NONBLOCK;
const WRITE: i32 = libc::O_WRONLY | libc::O_NONBLOCK;

enum Event {
    Reader(FifoId, Opener, u64),
    Writer(FifoId, Opener, u64),
    Message(u16, FifoId, FifoMessage),
    Over(FifoId, u16, StreamId),
    Gone(u16),
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    running: bool,
    stopped: bool,
    last_ask: u64,
    asks: HashMap<u64, SyncSender<Result<(), FifoRefusal>>>,
}

/// The FIFOs of one (node, DC).
pub(crate) struct Bridge {
    here: u16,
    registrar: u16,
    host: Arc<dyn FifoHost>,
    engine: Weak<Engine>,
    inbox: Mutex<Inbox>,
    wake: Condvar,
}

impl Bridge {
    pub(crate) fn new(
        here: u16,
        registrar: u16,
        host: Arc<dyn FifoHost>,
        engine: Weak<Engine>,
    ) -> Arc<Bridge> {
        let (inbox, wake) = (Mutex::default(), Condvar::new());
        Arc::new(Bridge { here, registrar, host, engine, inbox, wake })
    }

    /// Opens an end of a FIFO in the container.
    pub(crate) fn open(&self, fifo: FifoId, end: FifoEnd, flags: i32) -> Result<OwnedFd, i32> {
        self.host.open(fifo, end, flags)
    }

    /// A thread is about to open; returns when it may go on.
    pub(crate) fn opening(
        self: &Arc<Self>,
        fifo: FifoId,
        end: FifoEnd,
        opener: Opener,
    ) -> Result<(), FifoRefusal> {
        let (sender, receiver) = sync_channel(1);
        let ask = {
            let mut inbox = self.inbox.lock().unwrap();
            if inbox.stopped || inbox.asks.len() >= MAX_EVENTS {
                return Err(FifoRefusal::TooMany);
            }
            inbox.last_ask += 1;
            let ask = inbox.last_ask;
            inbox.asks.insert(ask, sender);
            ask
        };
        self.push(match end {
            FifoEnd::Real => Event::Reader(fifo, opener, ask),
            FifoEnd::Writers => Event::Writer(fifo, opener, ask),
        });
        let answer = receiver.recv_timeout(PATIENCE).unwrap_or(Err(FifoRefusal::TooMany));
        self.inbox.lock().unwrap().asks.remove(&ask);
        answer
    }

    pub(crate) fn message(self: &Arc<Self>, from: u16, fifo: FifoId, what: FifoMessage) {
        self.push(Event::Message(from, fifo, what));
    }

    pub(crate) fn node_gone(self: &Arc<Self>, node: u16) {
        // Nothing to be told of a node if no FIFO was ever used.
        if self.inbox.lock().unwrap().running {
            self.push(Event::Gone(node));
        }
    }

    pub(crate) fn stop(&self) {
        let mut inbox = self.inbox.lock().unwrap();
        inbox.stopped = true;
        inbox.events.clear();
        inbox.asks.clear();
        self.wake.notify_all();
    }

    fn push(self: &Arc<Self>, event: Event) {
        let mut inbox = self.inbox.lock().unwrap();
        // The end of a stream is never lost: their number is bounded elsewhere.
        let bounded = !matches!(event, Event::Over(..));
        if inbox.stopped || (bounded && inbox.events.len() >= MAX_EVENTS) {
            return;
        }
        inbox.events.push_back(event);
        if inbox.running {
            self.wake.notify_one();
            return;
        }
        let bridge = Arc::clone(self);
        let started = std::thread::Builder::new().name("carry-fifos".into()).spawn(move || {
            bridge.run();
        });
        // Without it openings wait for their time, and the next event tries again.
        inbox.running = started.is_ok();
    }

    fn run(self: &Arc<Self>) {
        if let Some(engine) = self.engine.upgrade() {
            engine.config.enter();
        }
        let mut core = Core::new(self.here, self.registrar);
        let mut doing = Doing { bridge: self, guards: HashMap::new() };
        let mut interval = SOON;
        let mut ticking = false;
        while let Some(event) = self.next(ticking.then_some(interval)) {
            match event {
                Some(event) => {
                    interval = SOON;
                    doing.step(&mut core, event);
                    ticking = true;
                }
                None => {
                    interval = (2 * interval).min(LATE);
                    ticking = core.tick(&mut doing);
                }
            }
        }
    }

    /// The next event, or nothing when the time is over; `None`: stopped.
    fn next(&self, patience: Option<Duration>) -> Option<Option<Event>> {
        let mut inbox = self.inbox.lock().unwrap();
        loop {
            if inbox.stopped {
                return None;
            }
            if let Some(event) = inbox.events.pop_front() {
                return Some(Some(event));
            }
            let Some(patience) = patience else {
                inbox = self.wake.wait(inbox).unwrap();
                continue;
            };
            let (again, result) = self.wake.wait_timeout(inbox, patience).unwrap();
            inbox = again;
            if result.timed_out() && inbox.events.is_empty() && !inbox.stopped {
                return Some(None);
            }
        }
    }
}

/// The surroundings of the core.
struct Doing<'a> {
    bridge: &'a Arc<Bridge>,
    /// Writers' ends held open so that their stream does not end.
    guards: HashMap<FifoId, OwnedFd>,
}

impl Doing<'_> {
    fn step(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Reader(fifo, opener, ask) => core.reader_opens(self, fifo, opener, ask),
            Event::Writer(fifo, opener, ask) => core.writer_opens(self, fifo, opener, ask),
            Event::Message(from, fifo, what) => core.message(self, from, fifo, what),
            Event::Over(fifo, reader, stream) => core.stream_over(self, fifo, reader, stream),
            Event::Gone(node) => core.node_gone(self, node),
        }
    }

    fn open(&self, fifo: FifoId, end: FifoEnd, flags: i32) -> Option<OwnedFd> {
        let opened = self.bridge.host.open(fifo, end, flags);
        if let Err(errno) = opened
            && errno != libc::ENXIO
            && errno != libc::ENOENT
        {
            log::warn!("FIFO {}: {end:?} cannot be opened: errno {errno}", fifo.number);
        }
        opened.ok()
    }
}

impl World for Doing<'_> {
    fn post(&mut self, to: u16, fifo: FifoId, what: FifoMessage) {
        log::trace!("FIFO {}: to node {to}: {what:?}", fifo.number);
        if let Some(engine) = self.bridge.engine.upgrade() {
            engine.send(to, CarryMessage::Fifo { fifo, what });
        }
    }

    fn answer(&mut self, ask: u64, answer: Result<(), FifoRefusal>) {
        let asker = self.bridge.inbox.lock().unwrap().asks.remove(&ask);
        if let Some(asker) = asker {
            // It waits, or has given up.
            let _ = asker.try_send(answer);
        }
    }

    fn is_opening(&mut self, opener: &Opener) -> bool {
        self.bridge.host.is_opening(opener)
    }

    fn has_reader(&mut self, fifo: FifoId) -> bool {
        self.open(fifo, FifoEnd::Real, WRITE).is_some()
    }

    fn has_writer(&mut self, fifo: FifoId) -> bool {
        let Some(end) = self.open(fifo, FifoEnd::Writers, READ) else { return false };
        let Ok((_reader, writer)) = pipe::pair(PipeFlags { nonblocking: true, packet: false })
        else {
            return true;
        };
        // Nothing and no writer: the end. Nothing yet: EAGAIN.
        !matches!(pipe::tee(&end, &writer, 1), Ok(0))
    }

    fn connect(&mut self, fifo: FifoId, writer: u16) -> Option<(StreamId, u64)> {
        let real = self.open(fifo, FifoEnd::Real, WRITE)?;
        let engine = self.bridge.engine.upgrade()?;
        engine.fifo_output(writer, real)
    }

    fn join(&mut self, fifo: FifoId, reader: u16, stream: StreamId, credit: u64) -> bool {
        let Some(engine) = self.bridge.engine.upgrade() else { return false };
        let Some(end) = self.open(fifo, FifoEnd::Writers, READ) else { return false };
        let Some(guard) = self.open(fifo, FifoEnd::Writers, WRITE) else { return false };
        self.guards.insert(fifo, guard);
        let bridge = Arc::clone(self.bridge);
        let over = Box::new(move || bridge.push(Event::Over(fifo, reader, stream)));
        engine.fifo_input((reader, stream), end, credit, over)
    }

    fn guard(&mut self, fifo: FifoId) -> bool {
        if !self.guards.contains_key(&fifo) {
            let Some(guard) = self.open(fifo, FifoEnd::Writers, WRITE) else { return false };
            self.guards.insert(fifo, guard);
        }
        // The end of the stream closes its reading end before it is told of; and with a writer there
        // it does not end for want of one.
        let reads = self.guards.get(&fifo).is_some_and(|guard| !crate::engine::no_reader(guard));
        if !reads {
            self.guards.remove(&fifo);
        }
        reads
    }

    fn unguard(&mut self, fifo: FifoId) {
        self.guards.remove(&fifo);
    }

    fn decline(&mut self, reader: u16, stream: StreamId) {
        if let Some(engine) = self.bridge.engine.upgrade() {
            engine.send(reader, CarryMessage::StreamEnd { stream });
        }
    }
}
