//! One other node: the link's state machine, its connections, and who writes.
//!
//! Whoever has something to send writes it itself if nobody writes at the moment; otherwise the one
//! who does takes it along, so that frames coalesce into one call under load. Writes never block: a
//! full socket is left to the lane's flusher thread, so that readers and handlers are never held up
//! by the other side's slowness.
//!
//! Locks, in this order: a lane's delivery, the peer's state, the exchange.

use crate::batch;
use crate::core::exchange::Command;
use crate::core::frame::{Frame, Kind};
use crate::core::hello::Hello;
use crate::core::lane::Packet;
use crate::core::link::{DownReason, LaneStatistics, Link, LinkConfig, LinkError, Output};
use crate::deliver::Waiter;
use crate::ids::{Lane, NodeId};
use crate::node::{NodeEvent, Shared};
use crate::stream::{Stream, WOULD_BLOCK};
use dvs_sys::socket;
use std::io::IoSlice;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The flusher looks this often whether its connection still matters, ms.
const FLUSH_WAIT: u32 = 200;

pub(crate) struct Peer {
    id: NodeId,
    state: Mutex<State>,
    changed: Condvar,
    lanes: [LaneIo; Lane::ALL.len()],
}

struct State {
    link: Link,
    streams: [Option<(u64, Arc<Stream>)>; Lane::ALL.len()],
    /// Somebody writes on the lane, or its flusher will.
    writing: [bool; Lane::ALL.len()],
    /// We make this peer's connections at present.
    dialing: bool,
    leaving: bool,
}

#[derive(Default)]
struct LaneIo {
    /// Held from the link's acceptance of a frame until the exchange has it: when a connection was
    /// replaced, the readers of the old and the new one must not overtake each other.
    delivery: Mutex<()>,
    writer: Mutex<Writer>,
    flush: Mutex<bool>,
    flush_wanted: Condvar,
}

/// A batch that is being written; its place is where `offset` bytes are gone already.
#[derive(Default)]
struct Writer {
    stream: Option<(u64, Arc<Stream>)>,
    batch: Vec<Arc<Packet>>,
    offset: usize,
    /// The stream may hold back a part of what it took over.
    unflushed: bool,
}

enum Wrote {
    All,
    Part,
    Failed,
}

impl Writer {
    fn write(&mut self) -> Wrote {
        let Some((_, stream)) = &self.stream else { return Wrote::Failed };
        while !self.batch.is_empty() {
            let mut pieces = Vec::with_capacity(self.batch.len() * 2);
            let mut skip = self.offset;
            for packet in &self.batch {
                for piece in [&packet.header[..], &packet.body[..]] {
                    let gone = skip.min(piece.len());
                    skip -= gone;
                    if gone < piece.len() {
                        pieces.push(IoSlice::new(&piece[gone..]));
                    }
                }
            }
            self.unflushed = true;
            match stream.send_now(&pieces) {
                Ok(sent) => self.offset += sent,
                Err(error) if error.errno == WOULD_BLOCK => return Wrote::Part,
                Err(_) => return Wrote::Failed,
            }
            let mut whole = 0;
            for packet in &self.batch {
                if self.offset < packet.wire_len() {
                    break;
                }
                self.offset -= packet.wire_len();
                whole += 1;
            }
            self.batch.drain(..whole);
        }
        match stream.flush_now() {
            Ok(()) => {
                self.unflushed = false;
                Wrote::All
            }
            Err(error) if error.errno == WOULD_BLOCK => Wrote::Part,
            Err(_) => Wrote::Failed,
        }
    }
}

/// What is left to do when the peer's lock is released.
#[must_use]
#[derive(Default)]
struct After {
    writes: Vec<Lane>,
    closes: Vec<Arc<Stream>>,
    commands: Vec<Command<Waiter>>,
    gone: Vec<u64>,
}

impl Peer {
    pub(crate) fn new(config: LinkConfig, id: NodeId) -> Self {
        let state = State {
            link: Link::new(config, id),
            streams: Default::default(),
            writing: Default::default(),
            dialing: false,
            leaving: false,
        };
        Peer { id, state: Mutex::new(state), changed: Condvar::new(), lanes: Default::default() }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn incarnation(&self) -> Option<u64> {
        self.lock().link.incarnation()
    }

    pub(crate) fn has_room(&self, lane: Lane) -> bool {
        self.lock().link.has_room(lane)
    }

    pub(crate) fn statistics(&self, lane: Lane) -> LaneStatistics {
        self.lock().link.statistics(lane)
    }

    pub(crate) fn is_open(&self, lane: Lane) -> bool {
        self.lock().link.is_open(lane)
    }

    /// Whether we may begin to make this peer's connections; true once until `stop_dialing`.
    pub(crate) fn start_dialing(&self) -> bool {
        !std::mem::replace(&mut self.lock().dialing, true)
    }

    pub(crate) fn stop_dialing(&self) {
        self.lock().dialing = false;
        self.changed.notify_all();
    }

    /// Waits until all lanes are open, `stop` says so, or the time is over. True if they are.
    pub(crate) fn wait_open(&self, until: Instant, mut stop: impl FnMut() -> bool) -> bool {
        let mut state = self.lock();
        loop {
            if Lane::ALL.iter().all(|lane| state.link.is_open(*lane)) {
                return true;
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() || state.leaving || stop() {
                return false;
            }
            // Short, because `stop` may change without a word.
            state =
                self.changed.wait_timeout(state, rest.min(Duration::from_millis(20))).unwrap().0;
        }
    }

    /// Waits until a lane is not open, or the time is over.
    pub(crate) fn wait_not_open(&self, lane: Lane, time: Duration) {
        let state = self.lock();
        if state.link.is_open(lane) && !state.leaving {
            drop(self.changed.wait_timeout(state, time).unwrap());
        }
    }

    /// Gives the peer up if it has proved to be itself by a certificate that is revoked now.
    pub(crate) fn check_revoked(&self, shared: &Arc<Shared>) {
        let state = self.lock();
        let mut shown = state.streams.iter().flatten().filter_map(|(_, stream)| stream.tls());
        let revoked = shown.any(|tls| tls.peer().is_none_or(|shown| shared.revoked.has(&shown)));
        drop(state);
        if revoked {
            self.give_up(shared, DownReason::Revoked);
        }
    }

    /// A connection that we made.
    pub(crate) fn connected(
        &self,
        shared: &Arc<Shared>,
        lane: Lane,
        connection: u64,
        stream: &Arc<Stream>,
    ) {
        let mut state = self.lock();
        if state.leaving {
            stream.shutdown();
            return;
        }
        let mut after = After::default();
        let outputs = state.link.connected(lane, connection, shared.now());
        self.apply(shared, &mut state, outputs, &mut after);
        state.streams[lane.index()] = Some((connection, Arc::clone(stream)));
        drop(state);
        self.finish(shared, after);
    }

    /// A connection that the peer made.
    pub(crate) fn accepted(
        &self,
        shared: &Arc<Shared>,
        connection: u64,
        hello: &Hello,
        stream: &Arc<Stream>,
    ) -> Result<(), LinkError> {
        let mut state = self.lock();
        if state.leaving {
            return Err(LinkError::Superseded);
        }
        let mut after = After::default();
        let result = state.link.accepted(connection, hello, shared.now());
        let result = result.map(|outputs| {
            self.apply(shared, &mut state, outputs, &mut after);
            state.streams[hello.lane.index()] = Some((connection, Arc::clone(stream)));
        });
        drop(state);
        self.changed.notify_all();
        self.finish(shared, after);
        result
    }

    /// A frame that came by a connection.
    pub(crate) fn received(
        &self,
        shared: &Arc<Shared>,
        lane: Lane,
        connection: u64,
        frame: Frame,
    ) -> Result<(), LinkError> {
        let changes = matches!(frame.header.kind, Kind::Hello | Kind::Goodbye);
        let delivery = self.lanes[lane.index()].delivery.lock().unwrap();
        let mut state = self.lock();
        let received = state.link.received(lane, connection, frame, shared.now())?;
        let incarnation = state.link.incarnation();
        let mut after = After::default();
        self.apply(shared, &mut state, received.outputs, &mut after);
        drop(state);
        let mut commands = Vec::new();
        let delivered = received.frame.is_some();
        if let (Some(frame), Some(incarnation)) = (received.frame, incarnation) {
            let mut exchange = shared.exchange.lock().unwrap();
            exchange.remote(self.id, incarnation, lane, frame, &mut commands);
        }
        drop(delivery);
        if changes {
            self.changed.notify_all();
        }
        self.finish(shared, after);
        shared.run(commands);
        if !delivered {
            shared.room_changed();
        }
        Ok(())
    }

    /// A connection ended.
    pub(crate) fn closed(&self, shared: &Arc<Shared>, lane: Lane, connection: u64) {
        let mut state = self.lock();
        state.link.closed(lane, connection, shared.now());
        if let Some((current, stream)) = &state.streams[lane.index()]
            && *current == connection
        {
            stream.shutdown();
            state.streams[lane.index()] = None;
        }
        drop(state);
        self.changed.notify_all();
        shared.timer.due(shared.deadline(shared.config.reconnect));
    }

    /// Sends a data frame in the session with a life; nothing happens if it is over.
    pub(crate) fn send(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        incarnation: u64,
        lane: Lane,
        frame: Frame,
    ) {
        let mut state = self.lock();
        if state.link.incarnation() != Some(incarnation) {
            return;
        }
        let write = state.link.send(lane, frame).unwrap_or(false);
        if !write || state.writing[lane.index()] || batch::postpone(shared, self, lane) {
            return;
        }
        state.writing[lane.index()] = true;
        drop(state);
        self.write(shared, lane, false);
    }

    /// Writes what is there, if nobody does at the moment.
    pub(crate) fn flush(&self, shared: &Arc<Shared>, lane: Lane) {
        let write = !std::mem::replace(&mut self.lock().writing[lane.index()], true);
        if write {
            self.write(shared, lane, false);
        }
    }

    pub(crate) fn tick(&self, shared: &Arc<Shared>, now: u64) {
        let mut state = self.lock();
        let mut after = After::default();
        let outputs = state.link.tick(now);
        self.apply(shared, &mut state, outputs, &mut after);
        drop(state);
        self.finish(shared, after);
    }

    pub(crate) fn give_up(&self, shared: &Arc<Shared>, reason: DownReason) {
        let mut state = self.lock();
        let mut after = After::default();
        let outputs = state.link.give_up(reason, shared.now());
        self.apply(shared, &mut state, outputs, &mut after);
        drop(state);
        self.changed.notify_all();
        self.finish(shared, after);
    }

    /// The peer broke the rules on its current connection: its life is given up.
    pub(crate) fn protocol_error(&self, shared: &Arc<Shared>, lane: Lane, connection: u64) {
        let state = self.lock();
        let current = state.streams[lane.index()].as_ref().map(|(current, _)| *current);
        drop(state);
        if current == Some(connection) {
            self.give_up(shared, DownReason::Protocol);
        }
    }

    /// The own node ends.
    pub(crate) fn leave(&self, shared: &Arc<Shared>) {
        let mut state = self.lock();
        let mut after = After::default();
        state.leaving = true;
        let outputs = state.link.leave();
        self.apply(shared, &mut state, outputs, &mut after);
        drop(state);
        self.finish(shared, after);
        self.give_up(shared, DownReason::Closed);
        let mut state = self.lock();
        for (_, stream) in state.streams.iter_mut().filter_map(Option::take) {
            stream.shutdown();
        }
        drop(state);
        for lane in &self.lanes {
            *lane.flush.lock().unwrap() = true;
            lane.flush_wanted.notify_all();
        }
        self.changed.notify_all();
    }

    pub(crate) fn cut(&self) {
        for (_, stream) in self.lock().streams.iter().flatten() {
            stream.shutdown();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Begins to carry the link's outputs out. Comings and goings reach the exchange before anybody
    /// else can use the link.
    fn apply(
        &self,
        shared: &Arc<Shared>,
        state: &mut State,
        outputs: Vec<Output>,
        after: &mut After,
    ) {
        for output in outputs {
            match output {
                Output::Up { incarnation } => {
                    shared.exchange.lock().unwrap().peer_up(self.id, incarnation);
                    shared.emit(NodeEvent::NodeUp { node: self.id, incarnation });
                }
                Output::Down { incarnation, reason } => {
                    let mut exchange = shared.exchange.lock().unwrap();
                    exchange.peer_down(self.id, incarnation, &mut after.commands);
                    drop(exchange);
                    after.gone.push(incarnation);
                    shared.emit(NodeEvent::NodeDown { node: self.id, incarnation, reason });
                }
                Output::Write(lane) => {
                    if !std::mem::replace(&mut state.writing[lane.index()], true) {
                        after.writes.push(lane);
                    }
                }
                Output::Close { lane, connection } => {
                    if let Some((current, stream)) = &state.streams[lane.index()]
                        && *current == connection
                    {
                        after.closes.push(Arc::clone(stream));
                    }
                }
            }
        }
    }

    fn finish(&self, shared: &Arc<Shared>, after: After) {
        for lane in after.writes {
            self.write(shared, lane, false);
        }
        for stream in after.closes {
            // Its reader sees the end and says so.
            stream.shutdown();
        }
        for incarnation in after.gone {
            shared.node_gone(self.id, incarnation);
        }
        shared.run(after.commands);
    }

    /// Writes what the lane has. The caller has set the lane's `writing`, which this gives back or
    /// hands to the flusher.
    fn write(&self, shared: &Arc<Shared>, lane: Lane, may_wait: bool) {
        let io = &self.lanes[lane.index()];
        let mut writer = io.writer.lock().unwrap();
        loop {
            if writer.batch.is_empty() && !writer.unflushed {
                let mut state = self.lock();
                let Some((connection, batch)) = state.link.take_batch(lane, shared.now()) else {
                    state.writing[lane.index()] = false;
                    return;
                };
                let stream = state.streams[lane.index()].clone();
                drop(state);
                writer.stream = stream.filter(|(current, _)| *current == connection);
                writer.batch = batch;
                writer.offset = 0;
            }
            match writer.write() {
                Wrote::All => {}
                Wrote::Part if !may_wait => {
                    *io.flush.lock().unwrap() = true;
                    io.flush_wanted.notify_one();
                    return;
                }
                Wrote::Part => {
                    if let Some((_, stream)) = &writer.stream {
                        let _ = socket::wait_writable(&**stream, FLUSH_WAIT);
                    }
                }
                Wrote::Failed => {
                    writer.batch.clear();
                    writer.unflushed = false;
                    if let Some((connection, _)) = writer.stream.take() {
                        self.closed(shared, lane, connection);
                    }
                }
            }
        }
    }

    /// The thread that waits for a full socket.
    pub(crate) fn run_flusher(&self, shared: &Arc<Shared>, lane: Lane) {
        let io = &self.lanes[lane.index()];
        loop {
            let mut wanted = io.flush.lock().unwrap();
            while !*wanted && !shared.is_closed() {
                wanted = io.flush_wanted.wait(wanted).unwrap();
            }
            if shared.is_closed() {
                return;
            }
            *wanted = false;
            drop(wanted);
            self.write(shared, lane, true);
        }
    }
}
