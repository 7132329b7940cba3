//! Seeded simulation of the core with several clients that cache under leases, over a network that
//! delays, reorders, repeats and cuts, and a tree whose work takes any time.
//!
//! The clients are models of a kernel with its client: they keep names and attributes for as long as
//! their leases say, and pages of files as long as nobody recalls them. Every change writes a value of
//! its own, so that whatever a client reads can be placed in the order in which the tree was changed.
//!
//! Invariants, each with its test or check:
//! - *Coherence*: what a client reads from its cache is never older than an acknowledged change.
//! - *Once*: no request is done twice at the tree.
//! - *Liveness*: when the network is whole, every request of a living client is answered.
//! - *Nothing left*: when all clients are gone, nothing is held, at the core or at the tree.

use super::{Command, Core, Done, Event, Load};
use crate::messages::{
    AttributeChanges, Attributes, ClientId, Credentials, Entry, Handle, InodeId, Lease, Notice,
    Operation, Outcome, PROTOCOL, ROOT, Reply, Request, Stale, Time, TimeChange,
};
use crate::server::execute;
use crate::test_random::Random;
use crate::tree::memory::MemoryTree;
use crate::tree::{FileToken, Life, Tree};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const CLIENTS: u16 = 4;
const NAMES: [&[u8]; 3] = [b"a", b"b", b"c"];
const STEPS: usize = 6000;
const ROUNDS: usize = 10;

/// What is cached and changed: the existence of a name, the mtime of a file, its first eight bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Thing {
    Name(Vec<u8>),
    Mtime(InodeId),
    Content(InodeId),
}

/// A request that has no answer yet.
#[derive(Debug, Clone)]
struct Asked {
    request: Request,
    sent: u64,
    /// The client's count of staleness when it was sent.
    mark: u64,
    /// Order of the change that it made at the tree.
    changed: Vec<(Thing, u64)>,
}

/// One client and the kernel above it.
#[derive(Debug)]
struct Client {
    id: ClientId,
    sequence: u64,
    asked: BTreeMap<u64, Asked>,
    welcome: bool,
    /// Cut off: nothing arrives or leaves.
    cut: bool,
    /// Name, and until when.
    names: HashMap<Vec<u8>, (Option<InodeId>, u64)>,
    known: BTreeSet<InodeId>,
    references: HashMap<InodeId, u64>,
    mtimes: HashMap<InodeId, (Time, u64)>,
    pages: HashMap<InodeId, u64>,
    open: Vec<(Handle, InodeId)>,
    /// Staleness by count, to tell late answers.
    stale: Vec<Stale>,
    /// Recalls that are not done yet.
    recalls: Vec<(u64, Vec<Stale>)>,
}

#[derive(Debug)]
enum Message {
    Request(Request),
    Reply(ClientId, Reply),
    Notice(ClientId, Notice),
}

struct Work {
    ticket: u64,
    client: ClientId,
    sequence: u64,
    credentials: Credentials,
    operation: Operation,
    files: [Option<FileToken>; 2],
}

struct World {
    random: Random,
    now: u64,
    core: Core,
    tree: MemoryTree,
    clients: Vec<Client>,
    next_incarnation: u64,
    network: Vec<Message>,
    work: Vec<Work>,
    finished: Vec<Event>,
    /// Requests by who asked what, to find what they changed.
    tickets: HashMap<u64, (ClientId, u64)>,
    executed: BTreeSet<(ClientId, u64)>,
    /// Order of each value that the tree has had, by thing.
    orders: HashMap<Thing, HashMap<u64, u64>>,
    last_order: u64,
    acknowledged: HashMap<Thing, u64>,
    value: u64,
    fenced: usize,
    cached_reads: usize,
    /// Kernels that need the directory's lock to forget a name.
    locking_kernels: bool,
}

impl World {
    fn new(random: Random, life: Life, locking_kernels: bool) -> Self {
        let mut world = World {
            random,
            now: 1_000,
            core: Core::new(1, locking_kernels.then_some(super::CIRCLE_PATIENCE)),
            tree: MemoryTree::new(life),
            clients: Vec::new(),
            next_incarnation: 0,
            network: Vec::new(),
            work: Vec::new(),
            finished: Vec::new(),
            tickets: HashMap::new(),
            executed: BTreeSet::new(),
            orders: HashMap::new(),
            last_order: 0,
            acknowledged: HashMap::new(),
            value: 0,
            fenced: 0,
            cached_reads: 0,
            locking_kernels,
        };
        for node in 0..CLIENTS {
            world.clients.push(Client::new(ClientId { node, incarnation: 0 }));
            world.restart(usize::from(node));
        }
        world
    }

    fn restart(&mut self, index: usize) {
        self.next_incarnation += 1;
        let node = index as u16;
        self.clients[index] = Client::new(ClientId { node, incarnation: self.next_incarnation });
        self.ask(index, Operation::Hello { protocol: PROTOCOL });
    }

    fn ask(&mut self, index: usize, operation: Operation) {
        let client = &mut self.clients[index];
        client.sequence += 1;
        let answered = client.asked.keys().next().map_or(client.sequence - 1, |first| first - 1);
        let request = Request {
            client: client.id,
            sequence: client.sequence,
            answered,
            credentials: Credentials { uid: 0, gid: 0, pid: 1, umask: 0 },
            operation,
        };
        let mark = client.stale.len() as u64;
        let asked = Asked { request: request.clone(), sent: self.now, mark, changed: Vec::new() };
        client.asked.insert(client.sequence, asked);
        self.network.push(Message::Request(request));
    }

    fn step_core(&mut self, event: Event) {
        let commands = self.core.step(self.now, event);
        for command in commands {
            match command {
                Command::Reply(client, reply) => self.network.push(Message::Reply(client, reply)),
                Command::Notify(client, notice) => {
                    self.network.push(Message::Notice(client, notice));
                }
                Command::Execute { ticket, credentials, operation, files } => {
                    let (client, sequence) = self.tickets[&ticket];
                    let work = Work { ticket, client, sequence, credentials, operation, files };
                    self.work.push(work);
                }
                Command::Close(file) => self.tree.close(file),
                Command::Forget(inode, count) => self.tree.forget(inode, count),
                Command::Fenced(client) => {
                    self.fenced += 1;
                    if let Some(index) = self.index(client) {
                        // Whoever runs the client ends its programs: it reads no more.
                        self.restart(index);
                    }
                }
            }
        }
    }

    fn index(&self, client: ClientId) -> Option<usize> {
        self.clients.iter().position(|other| other.id == client)
    }

    /// The tree does one piece of work, at some moment after it was asked and before it is told.
    fn do_work(&mut self, index: usize) {
        let work = self.work.swap_remove(index);
        let now = Time { seconds: self.now as i64, nanoseconds: 0 };
        let result = execute::run(&self.tree, work.credentials, now, &work.operation, work.files);
        if !matches!(work.operation, Operation::Read { .. } | Operation::GetAttributes { .. }) {
            let first = self.executed.insert((work.client, work.sequence));
            assert!(first, "{:?} ran twice", work.operation);
        }
        let mut changed = Vec::new();
        match (&work.operation, &result) {
            (Operation::Create { name, .. }, Ok(Done::Opened(opened))) => {
                let inode = opened.found.attributes.inode;
                changed.push((Thing::Name(name.clone()), inode.number));
            }
            (Operation::Unlink { name, .. }, Ok(_)) => {
                changed.push((Thing::Name(name.clone()), 0));
            }
            (Operation::Rename { name, new_name, .. }, Ok(Done::Renamed(renamed))) => {
                let moved = renamed.moved.map_or(0, |inode| inode.number);
                if name != new_name && renamed.other != renamed.moved {
                    changed.push((Thing::Name(name.clone()), 0));
                    changed.push((Thing::Name(new_name.clone()), moved));
                }
            }
            (Operation::SetAttributes { inode, .. }, Ok(Done::Found(found))) => {
                let value = found.attributes.modified.seconds as u64;
                changed.push((Thing::Mtime(*inode), value));
            }
            (Operation::Write { inode, data, .. }, Ok(Done::Wrote(_))) => {
                changed.push((Thing::Content(*inode), value_of(data)));
                // A write sets the mtime as well, to the time of day.
                changed.push((Thing::Mtime(*inode), self.now));
            }
            _ => {}
        }
        let mut orders = Vec::new();
        for (thing, value) in changed {
            self.last_order += 1;
            self.orders.entry(thing.clone()).or_default().insert(value, self.last_order);
            orders.push((thing, self.last_order));
        }
        if let Some(client) = self.index(work.client)
            && let Some(asked) = self.clients[client].asked.get_mut(&work.sequence)
        {
            asked.changed = orders;
        }
        self.finished.push(Event::Executed { ticket: work.ticket, result });
    }

    /// A value that comes from a cache must be at least as new as every acknowledged change.
    fn check(&mut self, client: ClientId, thing: &Thing, value: u64) {
        self.cached_reads += 1;
        let acknowledged = self.acknowledged.get(thing).copied().unwrap_or(0);
        let order = self.orders.get(thing).and_then(|orders| orders.get(&value)).copied();
        let order = order.unwrap_or(0);
        assert!(
            order >= acknowledged,
            "{client:?} reads {value} of {thing:?} from its cache: order {order}, \
             but {acknowledged} has been acknowledged (at {})",
            self.now
        );
    }

    /// Reads everything that every client may still have in its cache.
    fn check_all(&mut self) {
        if self.locking_kernels {
            // Changes may have been answered early.
            return;
        }
        let mut reads = Vec::new();
        for client in &self.clients {
            for (name, (inode, until)) in &client.names {
                if self.now < *until {
                    let value = inode.map_or(0, |inode| inode.number);
                    reads.push((client.id, Thing::Name(name.clone()), value));
                }
            }
            for (inode, (mtime, until)) in &client.mtimes {
                if self.now < *until {
                    reads.push((client.id, Thing::Mtime(*inode), mtime.seconds as u64));
                }
            }
            for (inode, value) in &client.pages {
                if client.open.iter().any(|(_, open)| open == inode) {
                    reads.push((client.id, Thing::Content(*inode), *value));
                }
            }
        }
        for (client, thing, value) in reads {
            self.check(client, &thing, value);
        }
    }

    fn deliver(&mut self, index: usize) {
        let message = self.network.swap_remove(index);
        let client = match &message {
            Message::Request(request) => request.client,
            Message::Reply(client, _) | Message::Notice(client, _) => *client,
        };
        let Some(at) = self.index(client) else {
            // Of an earlier life: requests can still arrive.
            if let Message::Request(request) = message {
                self.admit(request);
            }
            return;
        };
        if self.clients[at].cut {
            self.network.push(message);
            return;
        }
        match message {
            Message::Request(request) => {
                if self.random.percent(10) {
                    self.network.push(Message::Request(request.clone()));
                }
                self.admit(request);
            }
            Message::Reply(_, reply) => self.take_reply(at, reply),
            Message::Notice(_, Notice::Recall { number, stale }) => {
                let client = &mut self.clients[at];
                client.stale.extend(stale.iter().cloned());
                client.recalls.push((number, stale));
                self.do_recalls(at);
            }
        }
    }

    fn admit(&mut self, request: Request) {
        let asked = (request.client, request.sequence);
        let before = self.core.next_ticket;
        self.tickets.insert(before + 1, asked);
        self.step_core(Event::Request(request));
    }

    /// Gives up what is recalled; pages only when no read of them is under way (their lock is held).
    fn do_recalls(&mut self, at: usize) {
        let recalls = std::mem::take(&mut self.clients[at].recalls);
        for (number, stale) in recalls {
            let client = &mut self.clients[at];
            let locked = |stale: &Stale| match stale {
                Stale::Content(inode) => client.asked.values().any(|asked| {
                    matches!(&asked.request.operation,
                        Operation::Read { inode: read, .. } if read == inode)
                }),
                Stale::Name(..) => {
                    self.locking_kernels
                        && client.asked.values().any(|asked| {
                            matches!(
                                asked.request.operation,
                                Operation::Create { .. }
                                    | Operation::Unlink { .. }
                                    | Operation::Rename { .. }
                            )
                        })
                }
                Stale::Attributes(_) => false,
            };
            if stale.iter().any(locked) {
                client.recalls.push((number, stale));
                continue;
            }
            for stale in &stale {
                client.give_up(stale);
            }
            self.ask(at, Operation::RecallDone { notice: number });
        }
    }

    fn take_reply(&mut self, at: usize, reply: Reply) {
        let client = &mut self.clients[at];
        let Some(asked) = client.asked.remove(&reply.sequence) else { return };
        let fresh =
            |stale: &Stale, client: &Client| !client.stale[asked.mark as usize..].contains(stale);
        let until = |lease: Lease| match lease.milliseconds {
            u32::MAX => u64::MAX,
            length => asked.sent + u64::from(length),
        };
        for (thing, order) in &asked.changed {
            let acknowledged = self.acknowledged.entry(thing.clone()).or_default();
            *acknowledged = (*acknowledged).max(*order);
        }
        let learn = |client: &mut Client, attributes: &Attributes, lease: Lease| {
            let inode = attributes.inode;
            client.known.insert(inode);
            let stale = [Stale::Attributes(inode), Stale::Content(inode)];
            if lease.milliseconds > 0 && stale.iter().all(|stale| fresh(stale, client)) {
                client.mtimes.insert(inode, (attributes.modified, until(lease)));
            }
        };
        let learn_entry = |client: &mut Client, name: &[u8], entry: &Entry| {
            if let Some(attributes) = &entry.attributes {
                *client.references.entry(attributes.inode).or_default() += 1;
                learn(client, attributes, entry.attributes_lease);
            }
            let stale = Stale::Name(ROOT, name.to_vec());
            if entry.name_lease.milliseconds > 0 && fresh(&stale, client) {
                let inode = entry.attributes.map(|attributes| attributes.inode);
                client.names.insert(name.to_vec(), (inode, until(entry.name_lease)));
            }
        };
        let request = &asked.request.operation;
        // What a client changes itself, its kernel knows to be stale, in late answers too.
        let mut own = Vec::new();
        for (thing, _) in &asked.changed {
            let stale = match thing {
                Thing::Name(name) => Stale::Name(ROOT, name.clone()),
                Thing::Mtime(inode) => Stale::Attributes(*inode),
                Thing::Content(inode) => {
                    // The page holds what was written, unless it is older than what is there now.
                    client.pages.remove(inode);
                    continue;
                }
            };
            client.give_up(&stale);
            own.push(stale);
        }
        match (request, reply.result) {
            (Operation::Hello { .. }, Ok(Outcome::Welcome { .. })) => client.welcome = true,
            (Operation::Lookup { name, .. }, Ok(Outcome::Entry(entry))) => {
                learn_entry(client, name, &entry);
            }
            (Operation::GetAttributes { .. }, Ok(Outcome::Attributes(attributes, lease))) => {
                learn(client, &attributes, lease);
            }
            (Operation::Create { name, .. }, Ok(Outcome::Created { entry, handle, .. })) => {
                learn_entry(client, name, &entry);
                if let Some(attributes) = entry.attributes {
                    client.open.push((handle, attributes.inode));
                }
            }
            (Operation::SetAttributes { .. }, Ok(Outcome::Attributes(attributes, lease))) => {
                learn(client, &attributes, lease);
            }
            (Operation::Open { inode, .. }, Ok(Outcome::Opened { handle, content })) => {
                client.open.push((handle, *inode));
                if content.milliseconds == 0 {
                    client.pages.remove(inode);
                }
            }
            (Operation::Read { inode, .. }, Ok(Outcome::Data(data))) => {
                client.pages.insert(*inode, value_of(&data));
            }
            (_, Err(libc::ESTALE)) if !matches!(request, Operation::Hello { .. }) => {
                if let Operation::GetAttributes { inode } | Operation::Open { inode, .. } = request
                {
                    client.known.remove(inode);
                }
            }
            _ => {}
        }
        client.stale.extend(own);
        self.do_recalls(at);
        self.check_all();
    }

    /// A client does something new.
    fn act(&mut self, at: usize) {
        let client = &self.clients[at];
        if !client.welcome || client.asked.len() > 6 {
            return;
        }
        let name = NAMES[self.random.below(NAMES.len() as u64) as usize].to_vec();
        let inode = (!client.known.is_empty()).then(|| {
            let which = self.random.below(client.known.len() as u64) as usize;
            *client.known.iter().nth(which).unwrap_or(&ROOT)
        });
        let open = (!client.open.is_empty())
            .then(|| client.open[self.random.below(client.open.len() as u64) as usize]);
        self.value += 1;
        let value = self.value;
        let parent = ROOT;
        // A kernel changes a directory one name at a time.
        let changes_names = client.asked.values().any(|asked| {
            matches!(
                asked.request.operation,
                Operation::Create { .. } | Operation::Unlink { .. } | Operation::Rename { .. }
            )
        });
        // A page is locked while it is read or written.
        let page_is_free = |inode: InodeId| {
            !client.asked.values().any(|asked| {
                matches!(&asked.request.operation,
                    Operation::Read { inode: i, .. } | Operation::Write { inode: i, .. }
                        if *i == inode)
            })
        };
        let page = open.filter(|(_, inode)| page_is_free(*inode));
        let owned = inode.filter(|inode| client.references.contains_key(inode));
        let operation = match self.random.below(14) {
            0..=2 => Operation::Lookup { parent, name },
            3 if !changes_names => {
                let flags = (libc::O_RDWR | libc::O_EXCL) as u32;
                Operation::Create { parent, name, mode: 0o644, flags }
            }
            4 if !changes_names => Operation::Unlink { parent, name },
            5 if !changes_names => {
                let new_name = NAMES[self.random.below(NAMES.len() as u64) as usize].to_vec();
                Operation::Rename { parent, name, new_parent: ROOT, new_name, flags: 0 }
            }
            6 => {
                let Some(inode) = owned else { return };
                let flags = if self.random.percent(50) { libc::O_RDWR } else { libc::O_RDONLY };
                Operation::Open { inode, flags: flags as u32 }
            }
            7..=8 => {
                let Some((handle, inode)) = page else { return };
                Operation::Read { inode, handle, offset: 0, length: 8 }
            }
            9 => {
                let Some((handle, inode)) = page else { return };
                let data = value.to_le_bytes().to_vec();
                let (append, kill_privileges) = (false, false);
                Operation::Write { inode, handle, offset: 0, append, kill_privileges, data }
            }
            10 => {
                let Some(inode) = owned else { return };
                // Values that no time of day has.
                let seconds = (1 << 40) + value as i64;
                let time = TimeChange::To(Time { seconds, nanoseconds: 0 });
                let changes =
                    AttributeChanges { modified: Some(time), ..AttributeChanges::default() };
                Operation::SetAttributes { inode, handle: None, changes }
            }
            11 => {
                let Some(inode) = owned else { return };
                Operation::GetAttributes { inode }
            }
            12 => {
                let Some((handle, inode)) = open else { return };
                // Not while something is under way on it.
                let busy = client.asked.values().any(|asked| {
                    matches!(&asked.request.operation,
                        Operation::Read { handle: h, .. } | Operation::Write { handle: h, .. }
                            if *h == handle)
                });
                if busy {
                    return;
                }
                self.clients[at].open.retain(|(other, _)| *other != handle);
                Operation::Release { inode, handle, owner: None }
            }
            _ => {
                // The kernel forgets what it has no file open of, and nothing under way.
                let Some(inode) = owned else { return };
                let client = &mut self.clients[at];
                if client.open.iter().any(|(_, open)| *open == inode)
                    || client.asked.values().any(|asked| !is_notice(&asked.request.operation))
                {
                    return;
                }
                let Some(count) = client.references.remove(&inode) else { return };
                client.known.remove(&inode);
                client.mtimes.remove(&inode);
                client.pages.remove(&inode);
                client.names.retain(|_, (named, _)| *named != Some(inode));
                Operation::Forget { inodes: vec![(inode, count)] }
            }
        };
        self.ask(at, operation);
    }

    fn tick(&mut self) {
        if self.core.next_deadline().is_some_and(|due| due <= self.now) {
            self.step_core(Event::Tick);
        }
        if self.random.percent(2) {
            self.step_core(Event::Tick);
        }
    }

    fn step(&mut self, faults: bool) {
        let at = self.random.below(u64::from(CLIENTS)) as usize;
        match self.random.below(100) {
            0..=29 => self.act(at),
            30..=69 if !self.network.is_empty() => {
                let index = self.random.below(self.network.len() as u64) as usize;
                self.deliver(index);
            }
            70..=81 if !self.work.is_empty() => {
                let index = self.random.below(self.work.len() as u64) as usize;
                self.do_work(index);
            }
            82..=93 if !self.finished.is_empty() => {
                let index = self.random.below(self.finished.len() as u64) as usize;
                let event = self.finished.swap_remove(index);
                self.step_core(event);
            }
            94..=97 => self.now += self.random.below(20),
            98 if faults => match self.random.below(6) {
                0 => self.clients[at].cut = true,
                1..=3 => self.clients[at].cut = false,
                4 => {
                    // The node has died, and that is certain: its programs are gone.
                    let id = self.clients[at].id;
                    self.restart(at);
                    self.step_core(Event::ClientGone(id));
                }
                // Long enough for leases to end, in steps that a timer would take.
                _ => {
                    let end = self.now + self.random.below(40_000);
                    while let Some(due) = self.core.next_deadline().filter(|due| *due <= end) {
                        self.now = self.now.max(due);
                        self.step_core(Event::Tick);
                        self.check_all();
                    }
                    self.now = end;
                }
            },
            _ => {}
        }
        self.tick();
        if self.random.percent(10) {
            self.check_all();
        }
    }

    /// The network is whole: everything that was asked is answered.
    fn settle(&mut self) {
        for client in &mut self.clients {
            client.cut = false;
        }
        let mut rounds = 0;
        while !self.network.is_empty() || !self.work.is_empty() || !self.finished.is_empty() {
            rounds += 1;
            assert!(rounds < 100_000, "the network does not come to rest");
            if !self.network.is_empty() {
                let index = self.random.below(self.network.len() as u64) as usize;
                self.deliver(index);
            }
            if !self.work.is_empty() {
                self.do_work(0);
            }
            if !self.finished.is_empty() {
                let event = self.finished.swap_remove(0);
                self.step_core(event);
            }
            if self.network.is_empty() && self.work.is_empty() && self.finished.is_empty() {
                // Only circles are left, and they are broken in time.
                let fenced = self.fenced;
                self.now += super::CIRCLE_PATIENCE;
                self.step_core(Event::Tick);
                assert_eq!(self.fenced, fenced, "a client that answers is not fenced");
            }
        }
        self.check_all();
        for client in &self.clients {
            assert!(client.asked.is_empty(), "unanswered: {:?}", client.asked);
            assert!(client.recalls.is_empty(), "recalls are left");
        }
        let load = self.core.load();
        assert_eq!(load.operations, (0, 0));
    }

    /// All clients go; nothing is left of them.
    fn end(mut self) {
        let ids: Vec<ClientId> = self.clients.iter().map(|client| client.id).collect();
        for id in ids {
            self.step_core(Event::ClientGone(id));
        }
        assert_eq!(self.core.load(), Load::default());
        assert!(self.core.pending.is_empty() && self.core.recalls.is_empty());
        assert!(self.core.writers.is_empty() && self.core.next_deadline().is_none());
        assert_eq!(self.tree.held(), (0, 0), "references and open files are left at the tree");
    }
}

fn is_notice(operation: &Operation) -> bool {
    matches!(operation, Operation::Forget { .. } | Operation::RecallDone { .. })
}

fn value_of(data: &[u8]) -> u64 {
    data.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Client {
    fn new(id: ClientId) -> Self {
        Client {
            id,
            sequence: 0,
            asked: BTreeMap::new(),
            welcome: false,
            cut: false,
            names: HashMap::new(),
            known: BTreeSet::new(),
            references: HashMap::new(),
            mtimes: HashMap::new(),
            pages: HashMap::new(),
            open: Vec::new(),
            stale: Vec::new(),
            recalls: Vec::new(),
        }
    }

    fn give_up(&mut self, stale: &Stale) {
        match stale {
            Stale::Name(_, name) => {
                self.names.remove(name);
            }
            Stale::Attributes(inode) => {
                self.mtimes.remove(inode);
            }
            Stale::Content(inode) => {
                self.mtimes.remove(inode);
                self.pages.remove(inode);
            }
        }
    }
}

fn run(name: &str, life: Life, locking_kernels: bool, faults: bool) {
    let mut random = Random::from_environment(name);
    let (mut fenced, mut cached_reads) = (0, 0);
    for _ in 0..ROUNDS {
        let seed = Random::new(random.next());
        let mut world = World::new(seed, life, locking_kernels);
        for _ in 0..STEPS {
            world.step(faults);
        }
        world.settle();
        fenced += world.fenced;
        cached_reads += world.cached_reads;
        world.end();
    }
    assert!(cached_reads > 1000, "the clients did not cache: {cached_reads}");
    if faults && life != Life::Shared {
        assert!(fenced > 0, "no client was ever fenced");
    }
}

#[test]
fn no_cache_is_older_than_an_acknowledged_change() {
    run("coherence", Life::Private, false, false);
}

#[test]
fn no_cache_is_older_when_links_are_cut_and_nodes_die() {
    run("coherence with faults", Life::Private, false, true);
}

#[test]
fn no_cache_is_older_under_short_leases() {
    run("short leases", Life::Shared, false, true);
}

#[test]
fn no_cache_is_older_under_endless_leases() {
    run("endless leases", Life::Image, false, true);
}

/// Kernels that need a directory's lock to forget one of its names (an image's) come to wait for each other; nobody is
/// fenced for it and everything is answered. (Coherence has the gap that [`super`] names, so this world
/// only checks that it comes to rest.)
#[test]
fn kernels_that_wait_for_each_other_come_free() {
    let mut random = Random::from_environment("circles");
    for _ in 0..ROUNDS {
        let seed = Random::new(random.next());
        let mut world = World::new(seed, Life::Image, true);
        for _ in 0..STEPS / 4 {
            world.step(false);
        }
        world.settle();
        assert_eq!(world.fenced, 0);
        world.end();
    }
}
