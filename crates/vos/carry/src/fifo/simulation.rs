//! The cores of three nodes over a network that keeps order between two nodes and nothing else, with
//! the kernel's pipes as a model, threads that open, close and die, and every event in random order.
//! `DVS_SEED` replays one seed, `DVS_SEEDS` says how many.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::core::{Core, World};
use super::{FifoId, FifoMessage, FifoRefusal, Opener};
use crate::messages::StreamId;
use crate::test_random::Random;

const NODES: u16 = 3;
const FIFO: FifoId = FifoId { number: 7, generation: 1 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum End {
    Real,
    Writers,
}

/// Opens of one pipe by us; those of threads are counted from the threads.
#[derive(Debug, Default, Clone)]
struct Ours {
    readers: usize,
    writers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its attributes are asked for; the protocol works.
    Asking,
    /// It may go on, and has not got into the FIFO.
    Entering,
    /// In the kernel, until the other end is there.
    Blocked,
    Has,
    Gone,
}

#[derive(Debug)]
struct Thread {
    node: u16,
    writes: bool,
    blocking: bool,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum Wire {
    Fifo(FifoMessage),
    End(StreamId),
    Broken(StreamId),
}

#[derive(Default)]
struct Model {
    threads: Vec<Thread>,
    ours: HashMap<(u16, End), Ours>,
    guards: Vec<u16>,
    wires: BTreeMap<(u16, u16), VecDeque<Wire>>,
    /// Streams where they are read: writer's node.
    outgoing: BTreeMap<(u16, StreamId), u16>,
    /// Streams where they are written: (node, reader's node, stream).
    incoming: Vec<(u16, u16, StreamId)>,
    over: VecDeque<(u16, u16, StreamId)>,
    streams: u64,
}

impl Model {
    fn readers(&self, node: u16, end: End) -> usize {
        let theirs = |it: &&Thread| {
            it.node == node && !it.writes && matches!(it.state, State::Blocked | State::Has)
        };
        let threads = if end == End::Real { self.threads.iter().filter(theirs).count() } else { 0 };
        threads + self.ours.get(&(node, end)).map_or(0, |ours| ours.readers)
    }

    fn writers(&self, node: u16, end: End) -> usize {
        let theirs = |it: &&Thread| {
            it.node == node && it.writes && matches!(it.state, State::Blocked | State::Has)
        };
        let writers = end == End::Writers;
        let threads = if writers { self.threads.iter().filter(theirs).count() } else { 0 };
        let guard = usize::from(writers && self.guards.contains(&node));
        threads + guard + self.ours.get(&(node, end)).map_or(0, |ours| ours.writers)
    }

    /// Somebody opened an end of a pipe: those who waited for it go on.
    fn wake(&mut self, node: u16, end: End, writers: bool) {
        for thread in &mut self.threads {
            let on = if thread.writes { End::Writers } else { End::Real };
            let waits = thread.state == State::Blocked && thread.node == node && on == end;
            if waits && thread.writes == writers {
                thread.state = State::Has;
            }
        }
    }

    /// The kernel's `fifo_open`.
    fn enter(&mut self, index: usize) {
        let Thread { node, writes, blocking, .. } = self.threads[index];
        let end = if writes { End::Writers } else { End::Real };
        let others = if writes { self.readers(node, end) } else { self.writers(node, end) };
        self.threads[index].state = match (others, writes, blocking) {
            (0, true, false) => State::Gone,
            (0, _, true) => State::Blocked,
            _ => State::Has,
        };
        if self.threads[index].state != State::Gone {
            self.wake(node, end, !writes);
        }
    }

    fn is_opening(&self, index: usize) -> bool {
        matches!(self.threads[index].state, State::Asking | State::Entering | State::Blocked)
    }

    fn post(&mut self, from: u16, to: u16, what: Wire) {
        self.wires.entry((from, to)).or_default().push_back(what);
    }

    fn end_incoming(&mut self, node: u16, reader: u16, stream: StreamId) {
        let before = self.incoming.len();
        self.incoming.retain(|it| *it != (node, reader, stream));
        if self.incoming.len() < before {
            self.ours.entry((node, End::Writers)).or_default().readers -= 1;
            self.over.push_back((node, reader, stream));
        }
    }

    fn end_outgoing(&mut self, reader: u16, stream: StreamId) -> Option<u16> {
        let writer = self.outgoing.remove(&(reader, stream))?;
        self.ours.entry((reader, End::Real)).or_default().writers -= 1;
        Some(writer)
    }
}

struct At<'a> {
    node: u16,
    model: &'a mut Model,
}

impl World for At<'_> {
    fn post(&mut self, to: u16, fifo: FifoId, what: FifoMessage) {
        assert_eq!(fifo, FIFO);
        self.model.post(self.node, to, Wire::Fifo(what));
    }

    fn answer(&mut self, ask: u64, answer: Result<(), FifoRefusal>) {
        let thread = &mut self.model.threads[ask as usize];
        if thread.state == State::Asking {
            thread.state = if answer.is_ok() { State::Entering } else { State::Gone };
        }
    }

    fn is_opening(&mut self, opener: &Opener) -> bool {
        self.model.is_opening(opener.thread as usize)
    }

    fn has_reader(&mut self, _: FifoId) -> bool {
        let reads = self.model.readers(self.node, End::Real) > 0;
        if reads {
            self.model.wake(self.node, End::Real, false);
        }
        reads
    }

    fn has_writer(&mut self, _: FifoId) -> bool {
        self.model.wake(self.node, End::Writers, true);
        self.model.writers(self.node, End::Writers) > 0
    }

    fn connect(&mut self, _: FifoId, writer: u16) -> Option<(StreamId, u64)> {
        if self.model.readers(self.node, End::Real) == 0 {
            return None;
        }
        self.model.streams += 1;
        let stream = StreamId(self.model.streams);
        self.model.outgoing.insert((self.node, stream), writer);
        self.model.ours.entry((self.node, End::Real)).or_default().writers += 1;
        self.model.wake(self.node, End::Real, false);
        Some((stream, 1))
    }

    fn join(&mut self, _: FifoId, reader: u16, stream: StreamId, _: u64) -> bool {
        self.model.ours.entry((self.node, End::Writers)).or_default().readers += 1;
        self.model.wake(self.node, End::Writers, true);
        self.model.guards.push(self.node);
        self.model.incoming.push((self.node, reader, stream));
        true
    }

    fn guard(&mut self, _: FifoId) -> bool {
        if self.model.readers(self.node, End::Writers) == 0 {
            return false;
        }
        if !self.model.guards.contains(&self.node) {
            self.model.guards.push(self.node);
        }
        true
    }

    fn unguard(&mut self, _: FifoId) {
        self.model.guards.retain(|node| *node != self.node);
    }

    fn decline(&mut self, reader: u16, stream: StreamId) {
        self.model.post(self.node, reader, Wire::End(stream));
    }
}

struct Cluster {
    model: Model,
    cores: Vec<Core>,
}

impl Cluster {
    fn new() -> Cluster {
        let cores = (1..=NODES).map(|node| Core::new(node, 1)).collect();
        Cluster { model: Model::default(), cores }
    }

    fn on<T>(&mut self, node: u16, work: impl FnOnce(&mut Core, &mut At<'_>) -> T) -> T {
        let mut world = At { node, model: &mut self.model };
        work(&mut self.cores[usize::from(node) - 1], &mut world)
    }

    fn opens(&mut self, node: u16, writes: bool, blocking: bool) {
        let index = self.model.threads.len();
        self.model.threads.push(Thread { node, writes, blocking, state: State::Asking });
        let opener = Opener { thread: index as u32, call: String::new() };
        self.on(node, |core, world| match writes {
            true => core.writer_opens(world, FIFO, opener, index as u64),
            false => core.reader_opens(world, FIFO, opener, index as u64),
        });
    }

    fn deliver(&mut self, pair: (u16, u16)) {
        let message = self.model.wires.get_mut(&pair).and_then(VecDeque::pop_front);
        if self.model.wires.get(&pair).is_some_and(VecDeque::is_empty) {
            self.model.wires.remove(&pair);
        }
        let (from, to) = pair;
        match message {
            Some(Wire::Fifo(what)) => {
                self.on(to, |core, world| core.message(world, from, FIFO, what));
            }
            Some(Wire::End(stream)) => {
                self.model.end_outgoing(to, stream);
            }
            Some(Wire::Broken(stream)) => self.model.end_incoming(to, from, stream),
            None => {}
        }
    }

    /// One of the things that pumps and the network do; false: nothing is left to do.
    fn work(&mut self, random: &mut Random) -> bool {
        let model = &mut self.model;
        let pairs: Vec<(u16, u16)> = model.wires.keys().copied().collect();
        let ended: Vec<_> = model
            .incoming
            .iter()
            .filter(|(node, ..)| model.writers(*node, End::Writers) == 0)
            .copied()
            .collect();
        let broken: Vec<_> = model
            .outgoing
            .keys()
            .filter(|(node, _)| model.readers(*node, End::Real) == 0)
            .copied()
            .collect();
        let entering: Vec<usize> = (0..model.threads.len())
            .filter(|index| model.threads[*index].state == State::Entering)
            .collect();
        let counts =
            [pairs.len(), ended.len(), broken.len(), entering.len(), model.over.len().min(1)];
        let total: usize = counts.iter().sum();
        if total == 0 {
            return false;
        }
        let mut choice = random.below(total);
        let mut kind = 0;
        while choice >= counts[kind] {
            choice -= counts[kind];
            kind += 1;
        }
        match kind {
            0 => self.deliver(pairs[choice]),
            1 => {
                let (node, reader, stream) = ended[choice];
                model.post(node, reader, Wire::End(stream));
                model.end_incoming(node, reader, stream);
            }
            2 => {
                let (reader, stream) = broken[choice];
                if let Some(writer) = model.end_outgoing(reader, stream) {
                    model.post(reader, writer, Wire::Broken(stream));
                }
            }
            3 => model.enter(entering[choice]),
            _ => {
                if let Some((node, reader, stream)) = model.over.pop_front() {
                    self.on(node, |core, world| core.stream_over(world, FIFO, reader, stream));
                }
            }
        }
        true
    }

    fn tick(&mut self, node: u16) -> bool {
        self.on(node, |core, world| core.tick(world))
    }

    /// Until nothing happens any more.
    fn settle(&mut self, random: &mut Random) {
        let mut steps = 0;
        for _ in 0..4 {
            while self.work(random) {
                steps += 1;
                assert!(steps < 10_000, "it never comes to rest: {:?}", self.model.threads);
            }
            (1..=NODES).for_each(|node| {
                self.tick(node);
            });
        }
        assert!(!self.work(random), "ticks alone change nothing for ever");
    }

    /// What must be true when nothing happens any more.
    fn check(&self) {
        let all = |writes: bool, state: State| {
            let wanted = move |it: &&Thread| it.writes == writes && it.state == state;
            self.model.threads.iter().filter(wanted).count()
        };
        assert_eq!(all(true, State::Asking) + all(false, State::Asking), 0, "no answer");
        let (readers, writers) = (all(false, State::Has), all(true, State::Has));
        let (waiting_readers, waiting_writers) =
            (all(false, State::Blocked), all(true, State::Blocked));
        assert!(
            waiting_writers == 0 || readers + waiting_readers == 0,
            "a writer waits although there is a reader: {:?}",
            self.model.threads
        );
        assert!(
            waiting_readers == 0 || writers + waiting_writers == 0,
            "a reader waits although there is a writer: {:?}",
            self.model.threads
        );
        let mut nodes: Vec<u16> = self
            .model
            .threads
            .iter()
            .filter(|it| !it.writes && matches!(it.state, State::Has | State::Blocked))
            .map(|it| it.node)
            .collect();
        nodes.dedup();
        assert!(nodes.windows(2).all(|two| two[0] == two[1]), "read on two nodes: {nodes:?}");
        if writers == 0 {
            let held: usize = (1..=NODES).map(|node| self.model.writers(node, End::Real)).sum();
            assert_eq!(held, 0, "the reader never sees the end: {:?}", self.model.threads);
        } else if readers > 0 {
            // Who writes on a node has a way into the FIFO.
            for thread in self.model.threads.iter().filter(|it| it.writes && it.state == State::Has)
            {
                assert!(
                    self.model.incoming.iter().any(|(node, ..)| *node == thread.node),
                    "a writer has lost its way: {:?}",
                    self.model.threads
                );
            }
        }
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("DVS_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => {
            let count = std::env::var("DVS_SEEDS").ok().and_then(|count| count.parse().ok());
            (0..count.unwrap_or(2000)).collect()
        }
    }
}

#[test]
fn ends_on_any_nodes_find_each_other() {
    for seed in seeds() {
        let mut random = Random(seed);
        let mut cluster = Cluster::new();
        for _ in 0..random.below(40) {
            match random.below(10) {
                0 | 1 => {
                    let node = 1 + random.below(usize::from(NODES)) as u16;
                    let (writes, blocking) = (random.below(2) == 0, random.below(4) > 0);
                    cluster.opens(node, writes, blocking);
                }
                2 => {
                    // Closed, or killed wherever it is.
                    let count = cluster.model.threads.len();
                    if count > 0 {
                        cluster.model.threads[random.below(count)].state = State::Gone;
                    }
                }
                3 => {
                    cluster.tick(1 + random.below(usize::from(NODES)) as u16);
                }
                4 => {
                    cluster.settle(&mut random);
                    cluster.check();
                }
                _ => {
                    cluster.work(&mut random);
                }
            }
        }
        cluster.settle(&mut random);
        cluster.check();
        for index in 0..cluster.model.threads.len() {
            cluster.model.threads[index].state = State::Gone;
        }
        cluster.settle(&mut random);
        cluster.check();
        assert!(cluster.model.incoming.is_empty() && cluster.model.outgoing.is_empty());
        assert!(cluster.model.guards.is_empty(), "seed {seed}");
    }
}

#[test]
fn a_second_reading_node_is_refused_and_later_not() {
    let mut random = Random(1);
    let mut cluster = Cluster::new();
    cluster.opens(2, false, true);
    cluster.settle(&mut random);
    cluster.opens(3, false, true);
    cluster.settle(&mut random);
    assert_eq!(cluster.model.threads[0].state, State::Blocked);
    assert_eq!(cluster.model.threads[1].state, State::Gone, "refused");
    cluster.opens(3, true, true);
    cluster.settle(&mut random);
    assert_eq!(cluster.model.threads[0].state, State::Has);
    assert_eq!(cluster.model.threads[2].state, State::Has);
    cluster.model.threads[0].state = State::Gone;
    cluster.settle(&mut random);
    cluster.opens(1, false, true);
    cluster.settle(&mut random);
    assert_eq!(cluster.model.threads[3].state, State::Has, "the writer is still there");
}

#[test]
fn the_loss_of_the_reading_node_makes_room_for_another() {
    let mut random = Random(2);
    let mut cluster = Cluster::new();
    cluster.opens(3, false, true);
    cluster.opens(2, true, true);
    cluster.settle(&mut random);
    assert_eq!(cluster.model.threads[1].state, State::Has);
    // The node and its streams.
    cluster.model.threads[0].state = State::Gone;
    cluster.model.outgoing.clear();
    cluster.model.ours.remove(&(3, End::Real));
    for (node, reader, stream) in cluster.model.incoming.clone() {
        cluster.model.end_incoming(node, reader, stream);
    }
    for node in [1, 2] {
        cluster.on(node, |core, world| core.node_gone(world, 3));
    }
    cluster.settle(&mut random);
    cluster.opens(1, false, true);
    cluster.settle(&mut random);
    assert_eq!(cluster.model.threads[2].state, State::Has);
}

#[test]
fn fifos_out_of_use_are_given_up() {
    struct Nothing(usize);
    impl World for Nothing {
        fn post(&mut self, _: u16, _: FifoId, what: FifoMessage) {
            self.0 += usize::from(what == FifoMessage::Yielded(true));
        }
        fn answer(&mut self, _: u64, answer: Result<(), FifoRefusal>) {
            assert_eq!(answer, Ok(()));
        }
        fn is_opening(&mut self, _: &Opener) -> bool {
            false
        }
        fn has_reader(&mut self, fifo: FifoId) -> bool {
            fifo.number == 3
        }
        fn has_writer(&mut self, _: FifoId) -> bool {
            false
        }
        fn connect(&mut self, _: FifoId, _: u16) -> Option<(StreamId, u64)> {
            None
        }
        fn join(&mut self, _: FifoId, _: u16, _: StreamId, _: u64) -> bool {
            false
        }
        fn guard(&mut self, _: FifoId) -> bool {
            false
        }
        fn unguard(&mut self, _: FifoId) {}
        fn decline(&mut self, _: u16, _: StreamId) {}
    }
    let mut world = Nothing(0);
    let mut core = Core::new(2, 1);
    let count = 3 * super::MAX_FIFOS as u64;
    for number in 1..=count {
        let fifo = FifoId { number, generation: 0 };
        let opener = Opener { thread: 1, call: String::new() };
        core.reader_opens(&mut world, fifo, opener, number);
        core.message(&mut world, 1, fifo, FifoMessage::Claimed(Ok(())));
        core.tick(&mut world);
    }
    assert!(core.known() <= 4, "{}", core.known());
    assert_eq!(world.0 as u64 + core.known() as u64, count, "all but those were given back");
}

#[test]
fn nobody_but_the_registrar_decides() {
    let mut random = Random(3);
    let mut cluster = Cluster::new();
    cluster.opens(2, true, true);
    cluster.settle(&mut random);
    for what in [
        FifoMessage::Offer(3),
        FifoMessage::Granted { stream: StreamId(9), credit: 5 },
        FifoMessage::Claimed(Ok(())),
        FifoMessage::YieldAsked,
        FifoMessage::NoReader,
    ] {
        cluster.on(2, |core, world| core.message(world, 3, FIFO, what));
        cluster.settle(&mut random);
        assert_eq!(cluster.model.threads[0].state, State::Blocked, "{what:?}");
    }
    assert!(cluster.model.incoming.is_empty());
}
