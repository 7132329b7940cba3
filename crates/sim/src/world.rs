//! Virtual time, and a network that delays, loses, doubles, reorders and cuts.
//!
//! Two kinds of traffic: datagrams (any of these faults) and streams, which like TCP keep their
//! order but may be cut at any byte. Actors crash with all their state and streams and are replaced
//! by a new one.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Nanoseconds since the beginning of the run.
pub type Time = u64;
/// One millisecond.
pub const MILLISECOND: Time = 1_000_000;
/// A run that has not ended after so many events is stuck.
pub const MAX_EVENTS: u64 = 5_000_000;

/// Number of an actor.
pub type ActorId = usize;
/// Number of a stream, unique in a run.
pub type StreamId = u64;

/// What happens to an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<M> {
    /// It begins to live.
    Start,
    /// A timer that it set.
    Timer(u64),
    /// A datagram.
    Message {
        /// Who sent it.
        from: ActorId,
        /// What.
        message: M,
    },
    /// A stream is there.
    Opened {
        /// The stream.
        stream: StreamId,
        /// Who is at its other end.
        peer: ActorId,
        /// Whether this actor opened it.
        ours: bool,
    },
    /// Bytes of a stream.
    Data {
        /// The stream.
        stream: StreamId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A stream ended, or was not opened.
    Closed {
        /// The stream.
        stream: StreamId,
    },
}

#[derive(Debug)]
enum Command<M> {
    Send { to: ActorId, message: M },
    Timer { after: Time, id: u64 },
    Open { to: ActorId, stream: StreamId },
    Write { stream: StreamId, bytes: Vec<u8> },
    Close { stream: StreamId },
}

/// What an actor may do, and the randomness that it gets from outside.
#[derive(Debug)]
pub struct Context<'a, M> {
    /// The time.
    pub now: Time,
    /// Random numbers of the run.
    pub random: &'a mut StdRng,
    commands: Vec<Command<M>>,
    next_stream: &'a mut StreamId,
}

impl<M> Context<'_, M> {
    /// Sends a datagram.
    pub fn send(&mut self, to: ActorId, message: M) {
        self.commands.push(Command::Send { to, message });
    }

    /// Sets a timer; it dies with the actor.
    pub fn timer(&mut self, after: Time, id: u64) {
        self.commands.push(Command::Timer { after, id });
    }

    /// Opens a stream. Its number is good for writing at once.
    pub fn open(&mut self, to: ActorId) -> StreamId {
        let stream = *self.next_stream;
        *self.next_stream += 1;
        self.commands.push(Command::Open { to, stream });
        stream
    }

    /// Writes to a stream; nothing happens if it is closed.
    pub fn write(&mut self, stream: StreamId, bytes: Vec<u8>) {
        self.commands.push(Command::Write { stream, bytes });
    }

    /// Closes a stream for both ends. What is on its way is lost.
    pub fn close(&mut self, stream: StreamId) {
        self.commands.push(Command::Close { stream });
    }
}

/// One node: a pure state machine and what drives it.
pub trait Actor {
    /// What datagrams carry.
    type Message: Clone;

    /// Something happened.
    fn on_event(&mut self, event: Event<Self::Message>, context: &mut Context<'_, Self::Message>);
}

/// How bad the network is. Probabilities are per datagram or piece of a stream.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Time that traffic takes.
    pub delay: Range<Time>,
    /// A datagram is lost.
    pub loss: f64,
    /// A datagram comes twice.
    pub duplication: f64,
    /// A stream is cut while a piece is on its way.
    pub cut: f64,
}

impl Faults {
    /// Nothing but delay.
    pub const NONE: Faults =
        Faults { delay: 1000..MILLISECOND, loss: 0.0, duplication: 0.0, cut: 0.0 };
}

#[derive(Debug)]
struct Stream {
    ends: [ActorId; 2],
    /// When the last piece to each end arrives: later ones come later.
    arrival: [Time; 2],
}

struct Entry<M> {
    to: ActorId,
    life: u64,
    event: Event<M>,
}

/// A cluster of actors in a simulated network.
pub struct World<A: Actor> {
    now: Time,
    random: StdRng,
    /// The faults of the network; may be changed between events.
    pub faults: Faults,
    actors: Vec<(u64, Option<A>)>,
    queue: BTreeMap<(Time, u64), Entry<A::Message>>,
    next_entry: u64,
    next_stream: StreamId,
    streams: BTreeMap<StreamId, Stream>,
    separated: BTreeSet<(ActorId, ActorId)>,
    handled: u64,
}

impl<A: Actor> World<A> {
    /// An empty world.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        World {
            now: 0,
            random: StdRng::seed_from_u64(seed),
            faults,
            actors: Vec::new(),
            queue: BTreeMap::new(),
            next_entry: 0,
            next_stream: 1,
            streams: BTreeMap::new(),
            separated: BTreeSet::new(),
            handled: 0,
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// The run's random numbers.
    pub fn random(&mut self) -> &mut StdRng {
        &mut self.random
    }

    /// Adds an actor; it starts now.
    pub fn add(&mut self, actor: A) -> ActorId {
        let id = self.actors.len();
        self.actors.push((0, Some(actor)));
        self.enqueue(self.now, id, Event::Start);
        id
    }

    /// An actor that lives.
    #[must_use]
    pub fn actor(&self, id: ActorId) -> Option<&A> {
        self.actors.get(id)?.1.as_ref()
    }

    /// The same, to be changed.
    pub fn actor_mut(&mut self, id: ActorId) -> Option<&mut A> {
        self.actors.get_mut(id)?.1.as_mut()
    }

    /// Lets an actor do something now, as if an event had come.
    pub fn with(&mut self, id: ActorId, act: impl FnOnce(&mut A, &mut Context<'_, A::Message>)) {
        let Some((_, slot)) = self.actors.get_mut(id) else { return };
        let Some(mut actor) = slot.take() else { return };
        let mut context = Context {
            now: self.now,
            random: &mut self.random,
            commands: Vec::new(),
            next_stream: &mut self.next_stream,
        };
        act(&mut actor, &mut context);
        let commands = context.commands;
        self.actors[id].1 = Some(actor);
        for command in commands {
            self.carry_out(id, command);
        }
    }

    /// Kills an actor: its state, timers and streams are gone.
    pub fn crash(&mut self, id: ActorId) -> Option<A> {
        let (life, slot) = self.actors.get_mut(id)?;
        let actor = slot.take()?;
        *life += 1;
        let streams: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.ends.contains(&id))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in streams {
            self.cut(stream);
        }
        Some(actor)
    }

    /// A new life of an actor that crashed.
    pub fn restart(&mut self, id: ActorId, actor: A) {
        if let Some((_, slot)) = self.actors.get_mut(id) {
            *slot = Some(actor);
            self.enqueue(self.now, id, Event::Start);
        }
    }

    /// Separates two groups: streams between them are cut, nothing passes.
    pub fn separate(&mut self, ones: &[ActorId], others: &[ActorId]) {
        for one in ones {
            for other in others {
                self.separated.insert((*one.min(other), *one.max(other)));
            }
        }
        let cut: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, stream)| self.is_separated(stream.ends[0], stream.ends[1]))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in cut {
            self.cut(stream);
        }
    }

    /// Everything passes again.
    pub fn heal(&mut self) {
        self.separated.clear();
    }

    /// Cuts one stream, drawn at random.
    pub fn cut_any(&mut self) {
        let count = self.streams.len();
        if count > 0 {
            let at = self.random.random_range(0..count);
            if let Some(stream) = self.streams.keys().nth(at).copied() {
                self.cut(stream);
            }
        }
    }

    /// Handles the next event. False when there is none.
    ///
    /// # Panics
    /// After [`MAX_EVENTS`].
    pub fn step(&mut self) -> bool {
        let Some(((time, _), entry)) = self.queue.pop_first() else { return false };
        self.now = time;
        self.handled += 1;
        assert!(self.handled <= MAX_EVENTS, "the run does not come to an end");
        let Entry { to, life, event } = entry;
        if self.actors[to].0 != life {
            return true;
        }
        let stale = match &event {
            Event::Opened { stream, .. } | Event::Data { stream, .. } => {
                !self.streams.contains_key(stream)
            }
            _ => false,
        };
        if !stale {
            self.with(to, |actor, context| actor.on_event(event, context));
        }
        true
    }

    /// Handles all events up to a time.
    pub fn run_until(&mut self, time: Time) {
        while self.queue.first_key_value().is_some_and(|((next, _), _)| *next <= time) {
            self.step();
        }
        self.now = self.now.max(time);
    }

    fn is_separated(&self, one: ActorId, other: ActorId) -> bool {
        self.separated.contains(&(one.min(other), one.max(other)))
    }

    fn enqueue(&mut self, at: Time, to: ActorId, event: Event<A::Message>) {
        let life = self.actors[to].0;
        self.queue.insert((at, self.next_entry), Entry { to, life, event });
        self.next_entry += 1;
    }

    fn delay(&mut self) -> Time {
        self.random.random_range(self.faults.delay.clone())
    }

    fn cut(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else { return };
        for end in stream.ends {
            let at = self.now + self.delay();
            self.enqueue(at, end, Event::Closed { stream: id });
        }
    }

    fn carry_out(&mut self, from: ActorId, command: Command<A::Message>) {
        match command {
            Command::Timer { after, id } => self.enqueue(self.now + after, from, Event::Timer(id)),
            Command::Send { to, message } => {
                let copies = 1 + usize::from(self.random.random_bool(self.faults.duplication));
                for _ in 0..copies {
                    if self.is_separated(from, to) || self.random.random_bool(self.faults.loss) {
                        continue;
                    }
                    let at = self.now + self.delay();
                    self.enqueue(at, to, Event::Message { from, message: message.clone() });
                }
            }
            Command::Open { to, stream } => {
                let alive = self.actors.get(to).is_some_and(|(_, actor)| actor.is_some());
                let at = self.now + self.delay();
                if !alive || self.is_separated(from, to) {
                    self.enqueue(at, from, Event::Closed { stream });
                    return;
                }
                self.streams.insert(stream, Stream { ends: [from, to], arrival: [at; 2] });
                let ours = |peer, ours| Event::Opened { stream, peer, ours };
                self.enqueue(at, from, ours(to, true));
                self.enqueue(at, to, ours(from, false));
            }
            Command::Write { stream, bytes } => self.write(from, stream, &bytes),
            Command::Close { stream } => self.cut(stream),
        }
    }

    fn write(&mut self, from: ActorId, id: StreamId, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.random.random_bool(self.faults.cut) {
                self.cut(id);
            }
            let Some(stream) = self.streams.get(&id) else { return };
            let end = usize::from(stream.ends[0] == from);
            let (to, last) = (stream.ends[end], stream.arrival[end]);
            let take = self.random.random_range(1..=rest.len());
            let (piece, later) = rest.split_at(take);
            rest = later;
            let at = last.max(self.now + self.delay());
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.arrival[end] = at;
            }
            self.enqueue(at, to, Event::Data { stream: id, bytes: piece.to_vec() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends numbers in a stream and in datagrams, and writes down what comes.
    #[derive(Default)]
    struct Talker {
        peer: Option<ActorId>,
        bytes: Vec<u8>,
        messages: Vec<u32>,
        closed: bool,
    }

    impl Actor for Talker {
        type Message = u32;

        fn on_event(&mut self, event: Event<u32>, context: &mut Context<'_, u32>) {
            match event {
                Event::Start => {
                    if let Some(peer) = self.peer {
                        let stream = context.open(peer);
                        for number in 0..50u8 {
                            context.write(stream, vec![number; 3]);
                            context.send(peer, u32::from(number));
                        }
                    }
                }
                Event::Data { bytes, .. } => self.bytes.extend(bytes),
                Event::Message { message, .. } => self.messages.push(message),
                Event::Closed { .. } => self.closed = true,
                Event::Timer(_) | Event::Opened { .. } => {}
            }
        }
    }

    fn talk(seed: u64, faults: Faults) -> World<Talker> {
        let mut world = World::new(seed, faults);
        let listener = world.add(Talker::default());
        world.add(Talker { peer: Some(listener), ..Talker::default() });
        while world.step() {}
        world
    }

    #[test]
    fn streams_keep_their_order_and_datagrams_do_not() {
        let world = talk(1, Faults::NONE);
        let listener = world.actor(0).unwrap();
        let sent: Vec<u8> = (0..50).flat_map(|number| [number; 3]).collect();
        assert_eq!(listener.bytes, sent);
        assert_eq!(listener.messages.len(), 50);
        assert!(!listener.messages.is_sorted());
    }

    #[test]
    fn faults_happen_and_are_the_same_for_the_same_seed() {
        let faults = Faults { loss: 0.2, duplication: 0.2, cut: 0.02, ..Faults::NONE };
        let (mut lost, mut doubled, mut cut) = (false, false, false);
        for seed in 0..50 {
            let (one, two) = (talk(seed, faults.clone()), talk(seed, faults.clone()));
            let (one, two) = (one.actor(0).unwrap(), two.actor(0).unwrap());
            assert_eq!((&one.bytes, &one.messages), (&two.bytes, &two.messages));
            let sent: Vec<u8> = (0..50).flat_map(|number| [number; 3]).collect();
            assert!(sent.starts_with(&one.bytes), "a stream gives a beginning of what was sent");
            cut |= one.bytes.len() < sent.len() && one.closed;
            let distinct: BTreeSet<u32> = one.messages.iter().copied().collect();
            lost |= distinct.len() < 50;
            doubled |= distinct.len() < one.messages.len();
        }
        assert!(lost && doubled && cut);
    }

    #[test]
    fn what_is_separated_or_dead_hears_nothing() {
        let mut world: World<Talker> = World::new(1, Faults::NONE);
        let listener = world.add(Talker::default());
        world.separate(&[0], &[1]);
        world.add(Talker { peer: Some(listener), ..Talker::default() });
        while world.step() {}
        assert!(world.actor(0).unwrap().bytes.is_empty());
        assert!(world.actor(0).unwrap().messages.is_empty());
        assert!(world.actor(1).unwrap().closed, "the stream was refused");
        world.heal();
        world.crash(1).unwrap();
        world.restart(1, Talker { peer: Some(listener), ..Talker::default() });
        world.crash(0).unwrap();
        while world.step() {}
        assert!(world.actor(0).is_none());
        assert!(world.actor(1).unwrap().closed);
    }
}
