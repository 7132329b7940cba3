//! The server's decisions, without any I/O, clock or thread: `step(now, event) -> commands`.
//!
//! The core admits requests (each runs once), lets the tree do them ([`Command::Execute`]), and decides
//! from what the tree reports ([`Event::Executed`]) who must give up what before the answer may go
//! out. The rule that everything here serves:
//!
//! > When a change is acknowledged, no client can still read the older state from a cache.
//!
//! - A change is done at the tree, then recalled from every *other* client that may hold the old state;
//!   the answer waits until each has confirmed, or its lease is over.
//! - What is granted was true all the time: an answer grants a lease only if nothing that it speaks of
//!   has changed between the admission of its request and its own departure, and no recall of it is
//!   outstanding. Else it carries [`Lease::NONE`].
//! - A client that holds pages of an open file, or the image for ever, and does not give them up within
//!   [`FENCE_AFTER`] is fenced: its session ends, and whoever runs it must end its programs.
//! - Kernels hold a directory's lock while they change it, and need it to give up its names. Two clients
//!   that change one directory at the same moment could so wait for each other. Therefore kernels keep no
//!   names (their daemons do, which need no lock), except where there is one client for ever
//!   ([`Core::one_client`]), and those of images, which do not change in an ordinary run. What is left are
//!   these, and pages of files that two kernels write through their caches. Such a circle is found
//!   and broken after [`CIRCLE_PATIENCE`] by answering its youngest change early; until the client that
//!   this sets free has done what it was asked, the rule above does not hold for that one name or file.
//!   Where clients can give up anything at any time (without the lock) this is not needed and can be
//!   turned off.
//!
//! The record of leases is from Gray and Cheriton, "Leases" (SOSP 1989), with recalls as in NFSv4
//! delegations (RFC 8881, 10.2).

mod circles;
pub mod interest;
pub mod locks;
mod requests;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod subject;

use crate::messages::{
    ClientId, Credentials, DirectoryEntry, Handle, InodeId, Lease, Notice, Operation, Reply,
    Request, Stale,
};
use crate::tree::{Capacity, FileToken, Found, Life, Looked, Opened, Renamed, Wrote};
use interest::{Instant, Interests, NEVER};
use locks::Locks;
use session::Session;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use subject::Subject;

/// Lease of what only the server changes, milliseconds.
pub const PRIVATE_LEASE: u32 = 30_000;
/// Lease of what the host can change as well, milliseconds: so long can a change of the host stay
/// unseen.
pub const SHARED_LEASE: u32 = 1_000;
/// How long a client that must answer a recall has time for it, milliseconds.
pub const FENCE_AFTER: Instant = 30_000;
/// How long two changes may wait for each other, milliseconds.
pub const CIRCLE_PATIENCE: Instant = 5;
/// How often what is over is swept out, milliseconds.
pub const SWEEP_EVERY: Instant = 30_000;
/// Most ended clients that are remembered.
pub const MAX_ENDED: usize = 1024;
/// Most clients at a time; more are refused with `EUSERS`.
pub const MAX_CLIENTS: usize = 1024;

/// An operation at the tree.
pub type Ticket = u64;

/// What happens to the core.
#[derive(Debug)]
pub enum Event {
    /// A client's request came.
    Request(Request),
    /// The tree has done an operation, or failed with an errno.
    Executed {
        /// Of [`Command::Execute`].
        ticket: Ticket,
        /// What came of it.
        result: Result<Done, i32>,
    },
    /// The client will not be heard of again.
    ClientGone(ClientId),
    /// Time has passed.
    Tick,
}

/// What the tree has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Something that has no result.
    Nothing,
    /// The root or an object's attributes.
    Found(Found),
    /// A name was looked up.
    Looked(Looked),
    /// An object was opened.
    Opened(Opened),
    /// Bytes.
    Data(Vec<u8>),
    /// Content was changed.
    Wrote(Wrote),
    /// Names of a directory, each with what a lookup said where that was asked for.
    Directory(Vec<(DirectoryEntry, Option<Looked>)>),
    /// A position.
    Offset(u64),
    /// The file system's size.
    Capacity(Capacity),
    /// A name of this object was removed.
    Removed(Option<InodeId>),
    /// A name moved.
    Renamed(Renamed),
}

/// What the core wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Answer a request.
    Reply(ClientId, Reply),
    /// Tell a client.
    Notify(ClientId, Notice),
    /// Let the tree do an operation; report [`Event::Executed`].
    Execute {
        /// To report.
        ticket: Ticket,
        /// On whose behalf.
        credentials: Credentials,
        /// What.
        operation: Operation,
        /// The open files it names.
        files: [Option<FileToken>; 2],
    },
    /// Close a file at the tree.
    Close(FileToken),
    /// References that the tree gave have ended.
    Forget(InodeId, u64),
    /// The client did not answer: its session has ended, its programs must end.
    Fenced(ClientId),
}

/// An operation that the tree is doing.
#[derive(Debug)]
struct Running {
    client: ClientId,
    sequence: u64,
    subject: Subject,
    /// Number of the last change when it was admitted.
    stamp: u64,
}

/// A finished operation whose answer waits for recalls.
#[derive(Debug)]
struct Waiting {
    running: Running,
    result: Result<Done, i32>,
    /// What changed under it before it was finished: not to be granted.
    dirty: Vec<Stale>,
    recalls: BTreeSet<u64>,
    since: Instant,
    checked: bool,
}

/// A recall without its answer.
#[derive(Debug)]
struct Recall {
    client: ClientId,
    items: Vec<Stale>,
    /// For each item, whether the client's kernel needs a lock to give it up.
    needs_lock: Vec<bool>,
    due: Instant,
    /// At `due` the client is fenced; else what it holds has ended by itself.
    fence: bool,
    ticket: Ticket,
}

/// The state of one DC's file-system server.
#[derive(Debug)]
pub struct Core {
    incarnation: u64,
    /// How long changes may wait for each other; `None`: for ever.
    patience: Option<Instant>,
    /// There is, and will be, one client.
    one_client: bool,
    sessions: BTreeMap<ClientId, Session>,
    /// The last clients that ended: their late requests find no session, and make none.
    ended: VecDeque<ClientId>,
    interests: Interests,
    locks: Locks,
    next_ticket: Ticket,
    running: BTreeMap<Ticket, Running>,
    waiting: BTreeMap<Ticket, Waiting>,
    /// Requests that wait for a lock.
    blocked: BTreeMap<Ticket, (ClientId, u64)>,
    next_recall: u64,
    recalls: BTreeMap<u64, Recall>,
    /// What outstanding recalls are about.
    pending: HashMap<Stale, u32>,
    changes: u64,
    /// Number of the last change of each thing, as far back as a running operation can need it.
    changed: HashMap<Stale, u64>,
    /// Clients that have a file open for writing.
    writers: HashMap<InodeId, BTreeMap<ClientId, u32>>,
    /// References that the tree has given for each object.
    tree_references: HashMap<InodeId, u64>,
    swept: Instant,
}

/// How much a core holds, for statistics and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Clients.
    pub clients: usize,
    /// Open files.
    pub open: usize,
    /// Objects that clients refer to.
    pub objects: usize,
    /// Interests.
    pub interests: usize,
    /// Locks held and requests waiting for one.
    pub locks: (usize, usize),
    /// Operations at the tree, and changes that wait for recalls.
    pub operations: (usize, usize),
}

impl Core {
    /// A new server; `incarnation` tells its lives apart, `patience` is [`CIRCLE_PATIENCE`], or `None`
    /// where no client ever waits for a lock of its own before it answers a recall.
    #[must_use]
    pub fn new(incarnation: u64, patience: Option<Instant>) -> Self {
        Core {
            incarnation,
            patience,
            one_client: false,
            sessions: BTreeMap::new(),
            ended: VecDeque::new(),
            interests: Interests::default(),
            locks: Locks::default(),
            next_ticket: 0,
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            blocked: BTreeMap::new(),
            next_recall: 0,
            recalls: BTreeMap::new(),
            pending: HashMap::new(),
            changes: 0,
            changed: HashMap::new(),
            writers: HashMap::new(),
            tree_references: HashMap::new(),
            swept: 0,
        }
    }

    /// There will be no more than one client at a time: nobody else can make stale what its kernel
    /// keeps. A second one that greets ends this; what the first one's kernel was allowed to keep before
    /// ends with its leases.
    pub fn one_client(&mut self) {
        self.one_client = self.sessions.len() <= 1;
    }

    /// Takes an event; `now` never goes back.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        match event {
            Event::Request(request) => self.request(now, request, &mut out),
            Event::Executed { ticket, result } => self.executed(now, ticket, result, &mut out),
            Event::ClientGone(client) => self.end_client(now, client, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        out
    }

    /// When [`Event::Tick`] is due, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let recalls = self.recalls.values().map(|recall| recall.due);
        let circles = self
            .waiting
            .values()
            .filter(|waiting| !waiting.checked)
            .filter_map(|waiting| Some(waiting.since + self.patience?));
        recalls.chain(circles).min()
    }

    /// How much the core holds.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            clients: self.sessions.len(),
            open: self.sessions.values().map(|session| session.open.len()).sum(),
            objects: self.tree_references.len(),
            interests: self.interests.load(),
            locks: self.locks.load(),
            operations: (self.running.len(), self.waiting.len()),
        }
    }

    /// The tree has done an operation: recall what it made stale, then answer.
    fn executed(
        &mut self,
        now: Instant,
        ticket: Ticket,
        result: Result<Done, i32>,
        out: &mut Vec<Command>,
    ) {
        let Some(mut running) = self.running.remove(&ticket) else { return };
        let stale = match &result {
            Ok(Done::Opened(opened)) => running.subject.stale(&opened.effects, None),
            Ok(Done::Renamed(renamed)) => running.subject.stale(&[], Some(renamed)),
            Ok(Done::Removed(Some(inode))) => {
                running.subject.stale(&[crate::tree::Effect::Attributes(*inode)], None)
            }
            Ok(_) => running.subject.stale(&[], None),
            // A failed write may have written a part.
            Err(_) => match &running.subject {
                Subject::Write(..) | Subject::Change(..) => running.subject.stale(&[], None),
                _ => Vec::new(),
            },
        };
        let mut dirty = Vec::new();
        if !stale.is_empty() {
            dirty.extend(
                self.changed
                    .iter()
                    .filter(|(_, number)| **number > running.stamp)
                    .map(|(key, _)| key.clone()),
            );
            self.changes += 1;
            running.stamp = self.changes;
            for key in &stale {
                self.changed.insert(key.clone(), self.changes);
                if let Stale::Content(inode) = key {
                    self.changed.insert(Stale::Attributes(*inode), self.changes);
                }
            }
            self.prune_changes();
        }
        let recalls = self.recall(now, ticket, running.client, &stale, out);
        let waiting = Waiting { running, result, dirty, recalls, since: now, checked: false };
        if waiting.recalls.is_empty() {
            self.finish(now, waiting, out);
        } else {
            self.waiting.insert(ticket, waiting);
        }
    }

    /// Asks every other client that may hold something of this to give it up.
    fn recall(
        &mut self,
        now: Instant,
        ticket: Ticket,
        by: ClientId,
        stale: &[Stale],
        out: &mut Vec<Command>,
    ) -> BTreeSet<u64> {
        let mut conflicts: BTreeMap<ClientId, (Vec<Stale>, Vec<bool>, Instant)> = BTreeMap::new();
        for key in stale {
            for conflict in self.interests.conflicts(key, by, now) {
                let (items, needs_lock, until) = conflicts.entry(conflict.client).or_default();
                items.push(conflict.stale);
                needs_lock.push(conflict.needs_lock);
                *until = conflict.until.max(*until);
            }
        }
        let mut numbers = BTreeSet::new();
        for (client, (items, needs_lock, until)) in conflicts {
            self.next_recall += 1;
            let number = self.next_recall;
            for item in &items {
                self.interests.recalled(client, item, number);
                *self.pending.entry(item.clone()).or_default() += 1;
            }
            let last = now + FENCE_AFTER;
            let notice = Notice::Recall { number, stale: items.clone() };
            let (due, fence) = (until.min(last), until > last);
            let recall = Recall { client, items, needs_lock, due, fence, ticket };
            self.recalls.insert(number, recall);
            numbers.insert(number);
            out.push(Command::Notify(client, notice));
        }
        numbers
    }

    /// A recall is over: answered, or what it was about has ended.
    fn settle(&mut self, now: Instant, number: u64, out: &mut Vec<Command>) {
        let Some(recall) = self.recalls.remove(&number) else { return };
        for item in &recall.items {
            self.interests.given_up(recall.client, item, number);
            if let Some(count) = self.pending.get_mut(item) {
                *count -= 1;
                if *count == 0 {
                    self.pending.remove(item);
                }
            }
        }
        let Some(waiting) = self.waiting.get_mut(&recall.ticket) else { return };
        waiting.recalls.remove(&number);
        if waiting.recalls.is_empty()
            && let Some(waiting) = self.waiting.remove(&recall.ticket)
        {
            self.finish(now, waiting, out);
        }
    }

    /// Whether an operation's answer may grant a lease of this: nothing has changed since what it says
    /// was true, and nothing is being recalled.
    fn may_grant(&self, waiting: &Waiting, key: &Stale) -> bool {
        let changed = self.changed.get(key).is_some_and(|number| *number > waiting.running.stamp);
        let mut pending = self.pending.contains_key(key);
        if let Stale::Attributes(inode) = key {
            pending |= self.pending.contains_key(&Stale::Content(*inode));
        }
        !changed
            && !pending
            && !waiting.dirty.contains(key)
            && self.interests.has_room(waiting.running.client)
    }

    fn lease(&self, life: Life) -> (Lease, Option<Instant>) {
        let epoch = self.next_recall;
        match life {
            Life::Image => (Lease { epoch, ..Lease::FOREVER }, None),
            Life::Private => {
                (Lease { milliseconds: PRIVATE_LEASE, epoch }, Some(PRIVATE_LEASE.into()))
            }
            Life::Shared => {
                (Lease { milliseconds: SHARED_LEASE, epoch }, Some(SHARED_LEASE.into()))
            }
        }
    }

    fn grant_attributes(&mut self, now: Instant, waiting: &Waiting, found: &Found) -> Lease {
        let inode = found.attributes.inode;
        if !self.may_grant(waiting, &Stale::Attributes(inode)) {
            return Lease::NONE;
        }
        let (lease, length) = self.lease(found.life);
        let until = length.map_or(NEVER, |length| now + length);
        self.interests.hold_attributes(waiting.running.client, inode, until);
        lease
    }

    fn grant_name(
        &mut self,
        now: Instant,
        waiting: &Waiting,
        parent: InodeId,
        name: &[u8],
        life: Life,
    ) -> (Lease, bool) {
        if !self.may_grant(waiting, &Stale::Name(parent, name.to_vec())) {
            return (Lease::NONE, false);
        }
        let client = waiting.running.client;
        let (lease, length) = self.lease(life);
        let until = length.map_or(NEVER, |length| now + length);
        let in_kernel = life == Life::Image || self.one_client;
        self.interests.hold_name(client, parent, name, until, in_kernel);
        (lease, in_kernel)
    }

    /// Registers an open file for a client that is there.
    fn grant_content(
        &mut self,
        now: Instant,
        waiting: &Waiting,
        found: &Found,
        writes: bool,
    ) -> Lease {
        let (client, inode) = (waiting.running.client, found.attributes.inode);
        if found.attributes.mode & libc::S_IFMT == libc::S_IFDIR {
            return Lease::NONE;
        }
        let version = (&found.attributes).into();
        let shared = found.life == Life::Shared;
        let keep = self.interests.open_content(client, inode, now, version, shared);
        let mut direct = false;
        if writes {
            let writers = self.writers.entry(inode).or_default();
            direct = writers.keys().any(|other| *other != client);
            *writers.entry(client).or_default() += 1;
        }
        if direct {
            Lease::DIRECT
        } else if keep && self.may_grant(waiting, &Stale::Content(inode)) {
            self.lease(found.life).0
        } else {
            Lease::NONE
        }
    }

    /// Forgets changes that no operation under way can meet.
    fn prune_changes(&mut self) {
        const ROOM: usize = 256;
        if self.running.is_empty() && self.waiting.is_empty() {
            self.changed.clear();
        }
        if self.changed.len() <= ROOM {
            return;
        }
        let running = self.running.values().map(|running| running.stamp);
        let waiting = self.waiting.values().map(|waiting| waiting.running.stamp);
        // The operation that has just been finished is in neither map and has the newest stamp.
        let oldest = running.chain(waiting).min().unwrap_or(self.changes);
        self.changed.retain(|_, number| *number > oldest);
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Command>) {
        let due: Vec<u64> = self
            .recalls
            .iter()
            .filter(|(_, recall)| recall.due <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            match self.recalls.get(&number).map(|recall| (recall.client, recall.fence)) {
                Some((client, true)) => {
                    out.push(Command::Fenced(client));
                    self.end_client(now, client, out);
                }
                Some((_, false)) => self.settle(now, number, out),
                None => {}
            }
        }
        self.break_circles(now, out);
        if now >= self.swept + SWEEP_EVERY {
            self.swept = now;
            self.interests.expire(now);
        }
    }

    /// Everything of a client ends: open files, locks, references, leases, recalls.
    fn end_client(&mut self, now: Instant, client: ClientId, out: &mut Vec<Command>) {
        // Also one that was never heard of: its greeting may still be on the way.
        if !self.ended.contains(&client) {
            self.ended.push_back(client);
        }
        if self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
        }
        let Some(session) = self.sessions.remove(&client) else { return };
        let mut open: Vec<(Handle, session::Open)> = session.open.into_iter().collect();
        open.sort_by_key(|(handle, _)| *handle);
        for (_, open) in open {
            self.close(client, &open, out);
        }
        self.interests.end_client(client);
        self.blocked.retain(|_, (owner, _)| *owner != client);
        let granted = self.locks.release_client(client);
        self.grant_locks(granted, out);
        let mut objects: Vec<InodeId> = session.references.into_keys().collect();
        objects.sort();
        for inode in objects {
            self.forget_if_unused(inode, out);
        }
        let recalls: Vec<u64> = self
            .recalls
            .iter()
            .filter(|(_, recall)| recall.client == client)
            .map(|(number, _)| *number)
            .collect();
        for number in recalls {
            self.settle(now, number, out);
        }
    }

    fn close(&mut self, client: ClientId, open: &session::Open, out: &mut Vec<Command>) {
        if open.writes
            && let Some(writers) = self.writers.get_mut(&open.inode)
        {
            if let Some(count) = writers.get_mut(&client) {
                *count -= 1;
                if *count == 0 {
                    writers.remove(&client);
                }
            }
            if writers.is_empty() {
                self.writers.remove(&open.inode);
            }
        }
        out.push(Command::Close(open.file));
    }

    fn forget_if_unused(&mut self, inode: InodeId, out: &mut Vec<Command>) {
        if !self.sessions.values().any(|session| session.references.contains_key(&inode))
            && let Some(count) = self.tree_references.remove(&inode)
        {
            out.push(Command::Forget(inode, count));
        }
    }

    /// Answers requests whose locks have been granted.
    fn grant_locks(&mut self, tickets: Vec<Ticket>, out: &mut Vec<Command>) {
        for ticket in tickets {
            if let Some((client, sequence)) = self.blocked.remove(&ticket) {
                self.reply(client, sequence, Ok(crate::messages::Outcome::Done), true, out);
            }
        }
    }
}
