//! The protocol of FIFOs between nodes, without threads, descriptors or time: see [`super`].
//!
//! What is asked of the surroundings ([`World`]) is answered at once. A want or claim is never
//! forgotten while a thread waits in its open: an answer that came to nothing leads to a new question.

use std::collections::{BTreeMap, BTreeSet};

use super::{FifoId, FifoMessage, FifoRefusal, MAX_FIFOS, Opener};
use crate::messages::StreamId;

/// FIFOs that are looked at for being out of use whenever a new one is read.
const SWEPT: usize = 2;

/// What the core asks and tells.
pub(crate) trait World {
    /// Sends a message, perhaps to this node.
    fn post(&mut self, to: u16, fifo: FifoId, what: FifoMessage);
    /// Lets an opening go on, or fail.
    fn answer(&mut self, ask: u64, answer: Result<(), FifoRefusal>);
    /// Whether a thread is still in the call in which it opens.
    fn is_opening(&mut self, opener: &Opener) -> bool;
    /// Whether somebody has the real FIFO open for reading (or waits for a writer).
    fn has_reader(&mut self, fifo: FifoId) -> bool;
    /// Whether somebody has the writers' end open.
    fn has_writer(&mut self, fifo: FifoId) -> bool;
    /// Opens the real FIFO for the writers of a node; `None`: nobody reads it.
    fn connect(&mut self, fifo: FifoId, writer: u16) -> Option<(StreamId, u64)>;
    /// Begins to empty the writers' end into a stream, and keeps it from ending (see `guard`).
    fn join(&mut self, fifo: FifoId, reader: u16, stream: StreamId, credit: u64) -> bool;
    /// Keeps the stream from ending for want of writers until `unguard`; false: it has ended.
    fn guard(&mut self, fifo: FifoId) -> bool;
    /// The stream may end.
    fn unguard(&mut self, fifo: FifoId);
    /// A stream that is not wanted (any more) is ended.
    fn decline(&mut self, reader: u16, stream: StreamId);
}

/// A FIFO that is read here.
#[derive(Debug, Default)]
struct Reader {
    openers: Vec<Opener>,
    asks: Vec<u64>,
    /// The registrar knows this node as the reader's.
    owned: bool,
    claiming: bool,
    /// Nodes whose writers wait until a reader has got into its open.
    connecting: BTreeSet<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The registrar was asked; `told`: nobody reads yet.
    Wanted { told: bool },
    /// The reader's node was asked.
    Connecting(u16),
    /// The stream.
    Open(u16, StreamId),
}

/// A FIFO that is written here.
#[derive(Debug)]
struct Writer {
    openers: Vec<Opener>,
    asks: Vec<u64>,
    stage: Stage,
}

/// What the registrar knows of a FIFO.
#[derive(Debug, Default)]
struct Registered {
    reader: Option<u16>,
    /// Nodes that wait for a reader.
    pending: BTreeSet<u16>,
    /// Nodes that want to read while another one may.
    claims: Vec<u16>,
}

/// All FIFOs of one node.
#[derive(Debug)]
pub(crate) struct Core {
    here: u16,
    registrar: u16,
    readers: BTreeMap<FifoId, Reader>,
    /// Where the last look for FIFOs out of use ended.
    swept: FifoId,
    writers: BTreeMap<FifoId, Writer>,
    register: BTreeMap<FifoId, Registered>,
}

fn replace(openers: &mut Vec<Opener>, opener: Opener) {
    openers.retain(|other| other.thread != opener.thread);
    openers.push(opener);
}

impl Core {
    pub(crate) fn new(here: u16, registrar: u16) -> Core {
        Core {
            here,
            registrar,
            readers: BTreeMap::new(),
            swept: FifoId { number: 0, generation: 0 },
            writers: BTreeMap::new(),
            register: BTreeMap::new(),
        }
    }

    /// FIFOs that are read here, as far as is known.
    #[cfg(test)]
    pub(crate) fn known(&self) -> usize {
        self.readers.len()
    }

    /// A thread is about to open the real FIFO, for reading (and perhaps writing too).
    pub(crate) fn reader_opens(
        &mut self,
        world: &mut dyn World,
        fifo: FifoId,
        opener: Opener,
        ask: u64,
    ) {
        if !self.readers.contains_key(&fifo) {
            self.sweep(world);
            if self.readers.len() >= MAX_FIFOS {
                world.answer(ask, Err(FifoRefusal::TooMany));
                return;
            }
        }
        let reader = self.readers.entry(fifo).or_default();
        replace(&mut reader.openers, opener);
        if reader.owned {
            world.answer(ask, Ok(()));
            return;
        }
        reader.asks.push(ask);
        if !reader.claiming {
            reader.claiming = true;
            world.post(self.registrar, fifo, FifoMessage::Claim);
        }
    }

    /// Gives up some FIFOs that nobody reads any more: nothing tells when the last reader goes.
    fn sweep(&mut self, world: &mut dyn World) {
        use std::ops::Bound::{Excluded, Unbounded};
        let behind = self.readers.range((Excluded(self.swept), Unbounded)).map(|(fifo, _)| *fifo);
        let before = self.readers.range(..=self.swept).map(|(fifo, _)| *fifo);
        let some: Vec<FifoId> = behind.chain(before).take(SWEPT).collect();
        for fifo in some {
            self.swept = fifo;
            let idle = self.readers.get(&fifo).is_some_and(|reader| {
                reader.owned && reader.openers.is_empty() && reader.connecting.is_empty()
            });
            if idle && !world.has_reader(fifo) {
                self.readers.remove(&fifo);
                world.post(self.registrar, fifo, FifoMessage::Yielded(true));
            }
        }
    }

    /// A thread is about to open the writers' end.
    pub(crate) fn writer_opens(
        &mut self,
        world: &mut dyn World,
        fifo: FifoId,
        opener: Opener,
        ask: u64,
    ) {
        if self.writers.len() >= MAX_FIFOS && !self.writers.contains_key(&fifo) {
            world.answer(ask, Err(FifoRefusal::TooMany));
            return;
        }
        let Some(writer) = self.writers.get_mut(&fifo) else {
            let stage = Stage::Wanted { told: false };
            let writer = Writer { openers: vec![opener], asks: vec![ask], stage };
            self.writers.insert(fifo, writer);
            world.post(self.registrar, fifo, FifoMessage::Want);
            return;
        };
        replace(&mut writer.openers, opener);
        match writer.stage {
            Stage::Open(..) if world.guard(fifo) => world.answer(ask, Ok(())),
            Stage::Open(..) => {
                world.unguard(fifo);
                writer.stage = Stage::Wanted { told: false };
                writer.asks.push(ask);
                world.post(self.registrar, fifo, FifoMessage::Want);
            }
            // The kernel lets it wait, or fail if it does not want to.
            Stage::Wanted { told: true } => world.answer(ask, Ok(())),
            Stage::Wanted { told: false } | Stage::Connecting(_) => writer.asks.push(ask),
        }
    }

    /// A stream from the writers' end is over: nobody writes, or nobody reads.
    pub(crate) fn stream_over(
        &mut self,
        world: &mut dyn World,
        fifo: FifoId,
        reader: u16,
        stream: StreamId,
    ) {
        let Some(writer) = self.writers.get_mut(&fifo) else { return };
        if writer.stage != Stage::Open(reader, stream) {
            return;
        }
        world.unguard(fifo);
        if writer.is_used(world, fifo) {
            writer.stage = Stage::Wanted { told: false };
            world.post(self.registrar, fifo, FifoMessage::Want);
        } else {
            self.drop_writer(world, fifo);
        }
    }

    fn drop_writer(&mut self, world: &mut dyn World, fifo: FifoId) {
        world.unguard(fifo);
        for ask in self.writers.remove(&fifo).into_iter().flat_map(|writer| writer.asks) {
            world.answer(ask, Ok(()));
        }
    }

    /// A message about a FIFO.
    pub(crate) fn message(
        &mut self,
        world: &mut dyn World,
        from: u16,
        fifo: FifoId,
        what: FifoMessage,
    ) {
        match what {
            FifoMessage::Claim => self.claim(world, from, fifo),
            FifoMessage::Yielded(yields) => self.yielded(world, from, fifo, yields),
            FifoMessage::Want => self.want(world, from, fifo),
            FifoMessage::Withdraw => {
                if let Some(registered) = self.register.get_mut(&fifo) {
                    registered.pending.remove(&from);
                }
                self.tidy(fifo);
            }
            FifoMessage::Claimed(result) if from == self.registrar => {
                self.claimed(world, fifo, result);
            }
            FifoMessage::YieldAsked if from == self.registrar => self.yield_asked(world, fifo),
            FifoMessage::Connect => {
                if self.readers.len() >= MAX_FIFOS && !self.readers.contains_key(&fifo) {
                    world.post(from, fifo, FifoMessage::NoReader);
                    return;
                }
                self.readers.entry(fifo).or_default().connecting.insert(from);
                self.attempt(world, fifo);
            }
            FifoMessage::Waiting if from == self.registrar => {
                if let Some(writer) = self.writers.get_mut(&fifo)
                    && let Stage::Wanted { told } = &mut writer.stage
                {
                    *told = true;
                    for ask in writer.asks.drain(..) {
                        world.answer(ask, Ok(()));
                    }
                }
            }
            FifoMessage::Offer(reader) if from == self.registrar => {
                self.offered(world, fifo, reader);
            }
            FifoMessage::Granted { stream, credit } => {
                self.granted(world, from, fifo, stream, credit);
            }
            FifoMessage::NoReader => {
                if let Some(writer) = self.writers.get_mut(&fifo)
                    && writer.stage == Stage::Connecting(from)
                {
                    writer.stage = Stage::Wanted { told: false };
                    world.post(self.registrar, fifo, FifoMessage::Want);
                }
            }
            // Not from whom it must come.
            FifoMessage::Claimed(_)
            | FifoMessage::YieldAsked
            | FifoMessage::Waiting
            | FifoMessage::Offer(_) => {}
        }
    }

    fn claimed(&mut self, world: &mut dyn World, fifo: FifoId, result: Result<(), u16>) {
        let Some(reader) = self.readers.get_mut(&fifo).filter(|reader| reader.claiming) else {
            return;
        };
        reader.claiming = false;
        reader.owned = result.is_ok();
        if result.is_err() {
            reader.openers.clear();
        }
        for ask in reader.asks.drain(..) {
            world.answer(ask, result.map_err(FifoRefusal::ReadElsewhere));
        }
        self.attempt(world, fifo);
    }

    fn yield_asked(&mut self, world: &mut dyn World, fifo: FifoId) {
        let kept = self.readers.get_mut(&fifo).is_some_and(|reader| {
            reader.openers.retain(|opener| world.is_opening(opener));
            // Not asked while a reader waits in its open: the look would wake it.
            reader.owned && (!reader.openers.is_empty() || world.has_reader(fifo))
        });
        if let Some(reader) = self.readers.get_mut(&fifo) {
            reader.owned = kept;
        }
        world.post(self.registrar, fifo, FifoMessage::Yielded(!kept));
        self.attempt(world, fifo);
    }

    /// Lets in the writers that wait, if there is a reader; sends them away if there is none.
    fn attempt(&mut self, world: &mut dyn World, fifo: FifoId) {
        let Some(reader) = self.readers.get_mut(&fifo) else { return };
        if reader.claiming {
            return;
        }
        if reader.owned && !reader.connecting.is_empty() {
            reader.openers.retain(|opener| world.is_opening(opener));
            // Looked at after that, so that whoever has left its open since is seen as a reader.
            reader.connecting.retain(|writer| match world.connect(fifo, *writer) {
                Some((stream, credit)) => {
                    world.post(*writer, fifo, FifoMessage::Granted { stream, credit });
                    false
                }
                None => true,
            });
            if !reader.openers.is_empty() {
                // One is on its way into the FIFO: see `tick`.
                return;
            }
        }
        let refused = std::mem::take(&mut reader.connecting);
        if !refused.is_empty() && std::mem::take(&mut reader.owned) {
            // Told before those who will ask again.
            world.post(self.registrar, fifo, FifoMessage::Yielded(true));
        }
        for writer in refused {
            world.post(writer, fifo, FifoMessage::NoReader);
        }
        if !reader.owned && reader.openers.is_empty() && reader.asks.is_empty() {
            self.readers.remove(&fifo);
        }
    }

    fn offered(&mut self, world: &mut dyn World, fifo: FifoId, reader: u16) {
        let Some(writer) = self.writers.get_mut(&fifo) else {
            return;
        };
        if !matches!(writer.stage, Stage::Wanted { .. }) {
            return;
        }
        if writer.is_used(world, fifo) {
            writer.stage = Stage::Connecting(reader);
            world.post(reader, fifo, FifoMessage::Connect);
        } else {
            self.drop_writer(world, fifo);
        }
    }

    fn granted(
        &mut self,
        world: &mut dyn World,
        from: u16,
        fifo: FifoId,
        stream: StreamId,
        credit: u64,
    ) {
        let writer = self.writers.get_mut(&fifo);
        let Some(writer) = writer.filter(|writer| writer.stage == Stage::Connecting(from)) else {
            world.decline(from, stream);
            return;
        };
        if world.join(fifo, from, stream, credit) {
            writer.stage = Stage::Open(from, stream);
            for ask in writer.asks.drain(..) {
                world.answer(ask, Ok(()));
            }
            writer.openers.retain(|opener| world.is_opening(opener));
            if writer.openers.is_empty() {
                world.unguard(fifo);
            }
        } else {
            world.decline(from, stream);
            self.drop_writer(world, fifo);
        }
    }

    // The registrar.

    fn claim(&mut self, world: &mut dyn World, from: u16, fifo: FifoId) {
        if self.register.len() >= MAX_FIFOS && !self.register.contains_key(&fifo) {
            world.post(from, fifo, FifoMessage::Claimed(Err(self.here)));
            return;
        }
        let registered = self.register.entry(fifo).or_default();
        match registered.reader {
            Some(reader) if reader != from => {
                if registered.claims.is_empty() {
                    world.post(reader, fifo, FifoMessage::YieldAsked);
                }
                if !registered.claims.contains(&from) {
                    registered.claims.push(from);
                }
            }
            _ => {
                registered.reader = Some(from);
                world.post(from, fifo, FifoMessage::Claimed(Ok(())));
                for writer in std::mem::take(&mut registered.pending) {
                    world.post(writer, fifo, FifoMessage::Offer(from));
                }
            }
        }
    }

    fn yielded(&mut self, world: &mut dyn World, from: u16, fifo: FifoId, yields: bool) {
        let Some(registered) = self.register.get_mut(&fifo) else { return };
        if registered.reader != Some(from) {
            return;
        }
        let claims = std::mem::take(&mut registered.claims);
        if yields {
            registered.reader = None;
            for node in claims {
                self.claim(world, node, fifo);
            }
            self.tidy(fifo);
        } else {
            for node in claims {
                world.post(node, fifo, FifoMessage::Claimed(Err(from)));
            }
        }
    }

    fn want(&mut self, world: &mut dyn World, from: u16, fifo: FifoId) {
        if self.register.len() >= MAX_FIFOS && !self.register.contains_key(&fifo) {
            // Waits like one without a reader.
            world.post(from, fifo, FifoMessage::Waiting);
            return;
        }
        let registered = self.register.entry(fifo).or_default();
        if let Some(reader) = registered.reader {
            world.post(from, fifo, FifoMessage::Offer(reader));
        } else {
            registered.pending.insert(from);
            world.post(from, fifo, FifoMessage::Waiting);
        }
    }

    fn tidy(&mut self, fifo: FifoId) {
        let idle =
            |it: &Registered| it.reader.is_none() && it.pending.is_empty() && it.claims.is_empty();
        if self.register.get(&fifo).is_some_and(idle) {
            self.register.remove(&fifo);
        }
    }

    /// Looks at the threads that are opening; true: to be called again in a moment.
    pub(crate) fn tick(&mut self, world: &mut dyn World) -> bool {
        let opening = |readers: &BTreeMap<FifoId, Reader>| -> Vec<FifoId> {
            let busy = |it: &Reader| !it.openers.is_empty() || !it.connecting.is_empty();
            readers.iter().filter(|(_, it)| busy(it)).map(|(fifo, _)| *fifo).collect()
        };
        for fifo in opening(&self.readers) {
            self.attempt(world, fifo);
            if let Some(reader) = self.readers.get_mut(&fifo) {
                reader.openers.retain(|opener| world.is_opening(opener));
            }
        }
        let writers: Vec<FifoId> = self
            .writers
            .iter()
            .filter(|(_, writer)| !writer.openers.is_empty())
            .map(|(fifo, _)| *fifo)
            .collect();
        for fifo in writers {
            self.writer_tick(world, fifo);
        }
        !opening(&self.readers).is_empty()
            || self.writers.values().any(|writer| !writer.openers.is_empty())
    }

    fn writer_tick(&mut self, world: &mut dyn World, fifo: FifoId) {
        let Some(writer) = self.writers.get_mut(&fifo) else { return };
        writer.openers.retain(|opener| world.is_opening(opener));
        if !writer.openers.is_empty() {
            return;
        }
        match writer.stage {
            // All have got in, or never will: from now on the stream ends with the last of them.
            Stage::Open(..) => world.unguard(fifo),
            Stage::Wanted { .. } if !world.has_writer(fifo) => {
                world.post(self.registrar, fifo, FifoMessage::Withdraw);
                self.drop_writer(world, fifo);
            }
            // Decided when the answer comes.
            Stage::Wanted { .. } | Stage::Connecting(_) => {}
        }
    }

    /// A node is gone; its streams are over and reported as such.
    pub(crate) fn node_gone(&mut self, world: &mut dyn World, node: u16) {
        let fifos: Vec<FifoId> = self.register.keys().copied().collect();
        for fifo in fifos {
            if let Some(registered) = self.register.get_mut(&fifo) {
                registered.pending.remove(&node);
                registered.claims.retain(|claim| *claim != node);
            }
            self.yielded(world, node, fifo, true);
            self.tidy(fifo);
        }
        for reader in self.readers.values_mut() {
            reader.connecting.remove(&node);
        }
        for (fifo, writer) in &mut self.writers {
            if writer.stage == Stage::Connecting(node) {
                writer.stage = Stage::Wanted { told: false };
                world.post(self.registrar, *fifo, FifoMessage::Want);
            }
        }
    }
}

impl Writer {
    /// Whether anybody writes or is about to.
    fn is_used(&mut self, world: &mut dyn World, fifo: FifoId) -> bool {
        self.openers.retain(|opener| world.is_opening(opener));
        // Not asked while a writer waits in its open: the look would wake it.
        !self.openers.is_empty() || world.has_writer(fifo)
    }
}
