//! A small file-system server for tests: a tree in memory under one lock, with leases and recalls
//! that are waited for, locks, and a reply cache. Each call runs on its caller's thread.
//!
//! It is deliberately strict: every change is recalled from every other client, and a cancellation
//! of a request that it does not know is forgotten.

use dvs_fs::messages::{
    AttributeChanges, Attributes, ClientId, Credentials, DirectoryEntry, Entry, Handle, InodeId,
    Lease, LockFamily, LockKind, LockOwner, LockRange, Notice, Operation, Outcome, PROTOCOL, ROOT,
    Reply, Request, Stale, Time, TimeChange,
};
use dvs_fs_client::{Client, FsTransport, TransportError};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const LEASE: u32 = 30_000;

enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, u64>),
    Link(Vec<u8>),
    Special,
}

struct Object {
    attributes: Attributes,
    content: Content,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    parent: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Owner(ClientId, LockOwner, LockFamily);

#[derive(Clone, Copy)]
struct Lock {
    owner: Owner,
    start: u64,
    end: u64,
    kind: LockKind,
    pid: u32,
}

#[derive(Default)]
struct State {
    objects: HashMap<u64, Object>,
    last: u64,
    handle: u64,
    locks: HashMap<u64, Vec<Lock>>,
    waiting: HashMap<Owner, Vec<Owner>>,
    waiting_requests: HashSet<(ClientId, u64)>,
    cancelled: HashSet<(ClientId, u64)>,
    notices: HashSet<u64>,
    notice: u64,
    /// Objects and names whose change is not yet acknowledged: nobody gets a lease on them.
    changing: Vec<Stale>,
    replies: HashMap<(ClientId, u64), Reply>,
    executed: HashMap<(ClientId, u64), u32>,
    clients: HashMap<ClientId, Weak<Client>>,
    requests: HashMap<&'static str, u64>,
    time: u64,
}

/// The server.
pub struct Stub {
    state: Mutex<State>,
    changed: Condvar,
    /// Longest wait for a recall; reached only if something is wrong.
    pub recall_timeouts: AtomicU64,
}

/// One client's way to it.
pub struct Link {
    stub: Arc<Stub>,
    /// Lose every n-th reply (0: none).
    pub lose: AtomicU64,
    count: AtomicU64,
    /// The server is gone.
    pub gone: AtomicBool,
}

impl FsTransport for Link {
    fn call(&self, request: Request) -> Result<Reply, TransportError> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(TransportError::Gone);
        }
        let reply = self.stub.call(&request);
        let lose = self.lose.load(Ordering::Relaxed);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        if lose != 0 && count % lose == lose - 1 {
            return Err(TransportError::Lost);
        }
        Ok(reply)
    }

    fn post(&self, request: Request) {
        if !self.gone.load(Ordering::Relaxed) {
            self.stub.call(&request);
        }
    }
}

type Done = Result<Outcome, i32>;

impl Stub {
    pub fn new() -> Arc<Stub> {
        let stub = Arc::new(Stub {
            state: Mutex::default(),
            changed: Condvar::new(),
            recall_timeouts: AtomicU64::new(0),
        });
        {
            let mut state = stub.state.lock().unwrap();
            let root = Credentials { uid: 0, gid: 0, pid: 0, umask: 0 };
            let number = state.make(root, 0o040_755, 0, Content::Directory(BTreeMap::new()), 1);
            assert_eq!(number, ROOT.number);
            state.object(ROOT).unwrap().attributes.links = 2;
        }
        stub
    }

    /// A transport for one client; [`Stub::join`] must follow.
    pub fn link(self: &Arc<Stub>) -> Arc<Link> {
        Arc::new(Link {
            stub: Arc::clone(self),
            lose: AtomicU64::new(0),
            count: AtomicU64::new(0),
            gone: AtomicBool::new(false),
        })
    }

    /// Notices go to this client from now on.
    pub fn join(&self, client: &Arc<Client>) {
        self.state.lock().unwrap().clients.insert(client.id(), Arc::downgrade(client));
    }

    /// How many requests of a kind were executed.
    pub fn count(&self, kind: &str) -> u64 {
        self.state.lock().unwrap().requests.get(kind).copied().unwrap_or(0)
    }

    /// Requests that were executed more than once.
    pub fn repeated(&self) -> usize {
        self.state.lock().unwrap().executed.values().filter(|count| **count > 1).count()
    }

    fn call(&self, request: &Request) -> Reply {
        let mut state = self.state.lock().unwrap();
        let key = (request.client, request.sequence);
        if let Some(reply) = state.replies.get(&key) {
            return reply.clone();
        }
        state.replies.retain(|(client, sequence), _| {
            *client != request.client || *sequence > request.answered
        });
        *state.executed.entry(key).or_default() += 1;
        *state.requests.entry(kind(&request.operation)).or_default() += 1;
        let result = self.execute(state, request);
        let reply = Reply { sequence: request.sequence, result };
        self.state.lock().unwrap().replies.insert(key, reply.clone());
        reply
    }

    fn execute(&self, mut state: MutexGuard<'_, State>, request: &Request) -> Done {
        match &request.operation {
            Operation::RecallDone { notice } => {
                state.notices.remove(notice);
                self.changed.notify_all();
                Ok(Outcome::Done)
            }
            Operation::Cancel { sequence } => {
                let key = (request.client, *sequence);
                if state.waiting_requests.contains(&key) {
                    state.cancelled.insert(key);
                    self.changed.notify_all();
                }
                Ok(Outcome::Done)
            }
            Operation::SetLock { inode, owner, family, lock, wait, .. } => {
                let owner = Owner(request.client, *owner, *family);
                self.set_lock(state, request, *inode, owner, lock, *wait)
            }
            operation => {
                let mut stale = Vec::new();
                let result = state.apply(request, operation, &mut stale);
                if matches!(operation, Operation::Flush { .. } | Operation::Release { .. }) {
                    self.changed.notify_all();
                }
                if !stale.is_empty() {
                    self.recall(state, request.client, &stale);
                }
                result
            }
        }
    }

    /// Recalls from all other clients and waits until they have obeyed.
    fn recall(&self, mut state: MutexGuard<'_, State>, from: ClientId, stale: &[Stale]) {
        let others: Vec<Arc<Client>> = state
            .clients
            .iter()
            .filter(|(id, _)| **id != from)
            .filter_map(|(_, client)| client.upgrade())
            .collect();
        let mut numbers = Vec::new();
        state.changing.extend(stale.iter().cloned());
        for _ in &others {
            state.notice += 1;
            let number = state.notice;
            state.notices.insert(number);
            numbers.push(number);
        }
        drop(state);
        for (client, number) in others.iter().zip(&numbers) {
            client.deliver(Notice::Recall { number: *number, stale: stale.to_vec() });
        }
        let end = Instant::now() + Duration::from_secs(20);
        let mut state = self.state.lock().unwrap();
        while numbers.iter().any(|number| state.notices.contains(number)) {
            if Instant::now() > end {
                self.recall_timeouts.fetch_add(1, Ordering::Relaxed);
                break;
            }
            state = self.changed.wait_timeout(state, Duration::from_millis(100)).unwrap().0;
        }
        for what in stale {
            let at = state.changing.iter().position(|other| other == what).unwrap();
            state.changing.swap_remove(at);
        }
    }

    fn set_lock(
        &self,
        mut state: MutexGuard<'_, State>,
        request: &Request,
        inode: InodeId,
        owner: Owner,
        wish: &LockRange,
        wait: bool,
    ) -> Done {
        let key = (request.client, request.sequence);
        let end = Instant::now() + Duration::from_secs(100);
        let result = loop {
            let conflicts = state.conflicts(inode, owner, wish);
            if conflicts.is_empty() {
                state.put_lock(inode, owner, wish);
                break Ok(Outcome::Done);
            }
            if !wait {
                break Err(libc::EAGAIN);
            }
            if state.cancelled.contains(&key) || Instant::now() > end {
                break Err(libc::EINTR);
            }
            if owner.2 == LockFamily::Record && state.would_wait_for(&conflicts, owner) {
                break Err(libc::EDEADLK);
            }
            state.waiting.insert(owner, conflicts);
            state.waiting_requests.insert(key);
            state = self.changed.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
        };
        state.waiting.remove(&owner);
        state.waiting_requests.remove(&key);
        state.cancelled.remove(&key);
        self.changed.notify_all();
        result
    }
}

fn kind(operation: &Operation) -> &'static str {
    match operation {
        Operation::Lookup { .. } => "lookup",
        Operation::GetAttributes { .. } => "attributes",
        Operation::Read { .. } => "read",
        Operation::Write { .. } => "write",
        Operation::Forget { .. } => "forget",
        Operation::Open { .. } => "open",
        Operation::Flush { .. } => "flush",
        Operation::SetLock { .. } => "lock",
        _ => "other",
    }
}

impl State {
    fn now(&mut self) -> Time {
        // Strictly rising, as a server's clock must be for what it changes.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        self.time = now.max(self.time + 1);
        Time {
            seconds: (self.time / 1_000_000_000) as i64,
            nanoseconds: (self.time % 1_000_000_000) as u32,
        }
    }

    fn make(
        &mut self,
        who: Credentials,
        mode: u32,
        rdev: u32,
        content: Content,
        parent: u64,
    ) -> u64 {
        let now = self.now();
        self.last += 1;
        let size = if let Content::Link(target) = &content { target.len() as u64 } else { 0 };
        let attributes = Attributes {
            inode: InodeId { number: self.last, generation: 0 },
            mode,
            links: if matches!(content, Content::Directory(_)) { 2 } else { 1 },
            uid: who.uid,
            gid: who.gid,
            rdev,
            size,
            blocks: 0,
            accessed: now,
            modified: now,
            changed: now,
        };
        let object = Object { attributes, content, xattrs: BTreeMap::new(), parent };
        self.objects.insert(self.last, object);
        self.last
    }

    fn object(&mut self, inode: InodeId) -> Result<&mut Object, i32> {
        self.objects.get_mut(&inode.number).ok_or(libc::ESTALE)
    }

    fn names(&mut self, inode: InodeId) -> Result<&mut BTreeMap<Vec<u8>, u64>, i32> {
        match &mut self.object(inode)?.content {
            Content::Directory(names) => Ok(names),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn lease(&self, what: &Stale) -> Lease {
        let covered = |changing: &Stale| match (changing, what) {
            (Stale::Content(a) | Stale::Attributes(a), Stale::Attributes(b)) => a == b,
            (a, b) => a == b,
        };
        if self.changing.iter().any(covered) {
            return Lease::NONE;
        }
        Lease { milliseconds: LEASE, epoch: 0 }
    }

    fn entry(&self, parent: InodeId, name: &[u8], number: Option<u64>) -> Entry {
        let attributes = number.and_then(|number| Some(self.objects.get(&number)?.attributes));
        Entry {
            attributes,
            name_lease: self.lease(&Stale::Name(parent, name.to_vec())),
            in_kernel: false,
            attributes_lease: attributes
                .map_or(Lease::NONE, |it| self.lease(&Stale::Attributes(it.inode))),
        }
    }

    fn touch(&mut self, inode: InodeId, content: bool) {
        let now = self.now();
        if let Ok(object) = self.object(inode) {
            object.attributes.changed = now;
            if content {
                object.attributes.modified = now;
            }
        }
    }

    fn add(&mut self, parent: InodeId, name: &[u8], number: u64, stale: &mut Vec<Stale>) -> Done {
        self.names(parent)?.insert(name.to_vec(), number);
        self.touch(parent, true);
        stale.push(Stale::Name(parent, name.to_vec()));
        stale.push(Stale::Attributes(parent));
        Ok(Outcome::Entry(self.entry(parent, name, Some(number))))
    }

    fn free(&mut self, parent: InodeId, name: &[u8]) -> Result<(), i32> {
        if self.names(parent)?.contains_key(name) { Err(libc::EEXIST) } else { Ok(()) }
    }

    fn remove(
        &mut self,
        parent: InodeId,
        name: &[u8],
        directory: bool,
        stale: &mut Vec<Stale>,
    ) -> Result<(), i32> {
        let number = *self.names(parent)?.get(name).ok_or(libc::ENOENT)?;
        let object = self.objects.get_mut(&number).unwrap();
        match (&object.content, directory) {
            (Content::Directory(names), true) if !names.is_empty() => return Err(libc::ENOTEMPTY),
            (Content::Directory(_), false) => return Err(libc::EISDIR),
            (Content::Directory(_), true) => object.attributes.links = 0,
            (_, true) => return Err(libc::ENOTDIR),
            (_, false) => object.attributes.links -= 1,
        }
        let inode = object.attributes.inode;
        if directory {
            self.object(parent)?.attributes.links -= 1;
        }
        self.names(parent)?.remove(name);
        self.touch(parent, true);
        self.touch(inode, false);
        stale.push(Stale::Name(parent, name.to_vec()));
        stale.push(Stale::Attributes(parent));
        stale.push(Stale::Attributes(inode));
        Ok(())
    }

    fn truncate(&mut self, inode: InodeId, size: u64, stale: &mut Vec<Stale>) -> Result<(), i32> {
        let object = self.object(inode)?;
        let Content::File(bytes) = &mut object.content else { return Err(libc::EINVAL) };
        bytes.resize(usize::try_from(size).map_err(|_| libc::EFBIG)?, 0);
        object.attributes.size = size;
        object.attributes.blocks = size.div_ceil(512);
        self.touch(inode, true);
        stale.push(Stale::Content(inode));
        Ok(())
    }

    fn change(
        &mut self,
        inode: InodeId,
        changes: &AttributeChanges,
        stale: &mut Vec<Stale>,
    ) -> Result<(), i32> {
        if let Some(size) = changes.size {
            self.truncate(inode, size, stale)?;
        }
        let now = self.now();
        let a = &mut self.object(inode)?.attributes;
        a.mode = changes.mode.map_or(a.mode, |mode| a.mode & libc::S_IFMT | mode);
        a.uid = changes.uid.unwrap_or(a.uid);
        a.gid = changes.gid.unwrap_or(a.gid);
        let pick = |change: Option<TimeChange>, old| match change {
            None => old,
            Some(TimeChange::Now) => now,
            Some(TimeChange::To(time)) => time,
        };
        a.accessed = pick(changes.accessed, a.accessed);
        a.modified = pick(changes.modified, a.modified);
        a.changed = now;
        if changes.kill_privileges {
            a.mode &= if a.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
        }
        stale.push(Stale::Attributes(inode));
        Ok(())
    }

    fn handle(&mut self) -> Handle {
        self.handle += 1;
        Handle(self.handle)
    }

    fn opened(&mut self, inode: InodeId) -> (Handle, Lease) {
        (self.handle(), self.lease(&Stale::Content(inode)))
    }

    #[allow(clippy::too_many_lines)]
    fn apply(&mut self, request: &Request, operation: &Operation, stale: &mut Vec<Stale>) -> Done {
        let who = request.credentials;
        match operation {
            Operation::Hello { protocol } if *protocol == PROTOCOL => Ok(Outcome::Welcome {
                root: self.entry(ROOT, b"", Some(ROOT.number)),
                server_incarnation: 1,
            }),
            Operation::Hello { .. } => Err(libc::EPROTO),
            Operation::Goodbye => {
                self.clients.remove(&request.client);
                for locks in self.locks.values_mut() {
                    locks.retain(|lock| lock.owner.0 != request.client);
                }
                Ok(Outcome::Done)
            }
            Operation::Lookup { parent, name } => {
                let number = self.names(*parent)?.get(name).copied();
                Ok(Outcome::Entry(self.entry(*parent, name, number)))
            }
            Operation::GetAttributes { inode } => {
                let attributes = self.object(*inode)?.attributes;
                Ok(Outcome::Attributes(attributes, self.lease(&Stale::Attributes(*inode))))
            }
            Operation::SetAttributes { inode, changes, .. } => {
                self.change(*inode, changes, stale)?;
                Ok(Outcome::Attributes(self.object(*inode)?.attributes, Lease::NONE))
            }
            Operation::ReadLink { inode } => match &self.object(*inode)?.content {
                Content::Link(target) => Ok(Outcome::Data(target.clone())),
                _ => Err(libc::EINVAL),
            },
            Operation::MakeNode { parent, name, mode, rdev } => {
                self.free(*parent, name)?;
                let content = match mode & libc::S_IFMT {
                    0 | libc::S_IFREG => Content::File(Vec::new()),
                    _ => Content::Special,
                };
                let mode = if mode & libc::S_IFMT == 0 { mode | libc::S_IFREG } else { *mode };
                let number = self.make(who, mode, *rdev, content, parent.number);
                self.add(*parent, name, number, stale)
            }
            Operation::MakeDirectory { parent, name, mode } => {
                self.free(*parent, name)?;
                let content = Content::Directory(BTreeMap::new());
                let number = self.make(who, mode | libc::S_IFDIR, 0, content, parent.number);
                self.object(*parent)?.attributes.links += 1;
                self.add(*parent, name, number, stale)
            }
            Operation::MakeSymbolicLink { parent, name, target } => {
                self.free(*parent, name)?;
                let content = Content::Link(target.clone());
                let number = self.make(who, libc::S_IFLNK | 0o777, 0, content, parent.number);
                self.add(*parent, name, number, stale)
            }
            Operation::Link { inode, parent, name } => {
                self.free(*parent, name)?;
                self.object(*inode)?.attributes.links += 1;
                self.touch(*inode, false);
                stale.push(Stale::Attributes(*inode));
                self.add(*parent, name, inode.number, stale)
            }
            Operation::Unlink { parent, name } => {
                self.remove(*parent, name, false, stale)?;
                Ok(Outcome::Done)
            }
            Operation::RemoveDirectory { parent, name } => {
                self.remove(*parent, name, true, stale)?;
                Ok(Outcome::Done)
            }
            Operation::Rename { parent, name, new_parent, new_name, flags } => {
                self.rename((*parent, name), (*new_parent, new_name), *flags, stale)
            }
            Operation::Open { inode, flags } => {
                if flags & libc::O_TRUNC.cast_unsigned() != 0 {
                    self.truncate(*inode, 0, stale)?;
                }
                self.object(*inode)?;
                let (handle, content) = self.opened(*inode);
                Ok(Outcome::Opened { handle, content })
            }
            Operation::Create { parent, name, mode, flags } => {
                let number = match self.names(*parent)?.get(name) {
                    Some(_) if flags & libc::O_EXCL.cast_unsigned() != 0 => {
                        return Err(libc::EEXIST);
                    }
                    Some(number) => {
                        let number = *number;
                        if flags & libc::O_TRUNC.cast_unsigned() != 0 {
                            let inode = InodeId { number, generation: 0 };
                            self.truncate(inode, 0, stale)?;
                        }
                        number
                    }
                    None => {
                        let mode = mode & 0o7777 | libc::S_IFREG;
                        let content = Content::File(Vec::new());
                        let number = self.make(who, mode, 0, content, parent.number);
                        self.add(*parent, name, number, stale)?;
                        number
                    }
                };
                let entry = self.entry(*parent, name, Some(number));
                let (handle, content) = self.opened(InodeId { number, generation: 0 });
                Ok(Outcome::Created { entry, handle, content })
            }
            Operation::CreateUnnamed { parent, mode, .. } => {
                let mode = mode & 0o7777 | libc::S_IFREG;
                let number = self.make(who, mode, 0, Content::File(Vec::new()), parent.number);
                self.objects.get_mut(&number).unwrap().attributes.links = 0;
                let entry = self.entry(*parent, b"", Some(number));
                let (handle, content) = self.opened(InodeId { number, generation: 0 });
                Ok(Outcome::Created { entry, handle, content })
            }
            Operation::Read { inode, offset, length, .. } => {
                let Content::File(bytes) = &self.object(*inode)?.content else {
                    return Err(libc::EISDIR);
                };
                let start = (*offset as usize).min(bytes.len());
                let end = start.saturating_add(*length as usize).min(bytes.len());
                Ok(Outcome::Data(bytes[start..end].to_vec()))
            }
            Operation::Write { inode, offset, append, kill_privileges, data, .. } => {
                let object = self.object(*inode)?;
                let Content::File(bytes) = &mut object.content else { return Err(libc::EINVAL) };
                let start = if *append { bytes.len() } else { *offset as usize };
                let end = start + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(data);
                let size = bytes.len() as u64;
                object.attributes.size = size;
                object.attributes.blocks = size.div_ceil(512);
                if *kill_privileges {
                    object.attributes.mode &= !0o6000;
                }
                self.touch(*inode, true);
                stale.push(Stale::Content(*inode));
                Ok(Outcome::Written { length: data.len() as u32, size })
            }
            Operation::Flush { inode, owner, .. } => {
                let owner = Owner(request.client, *owner, LockFamily::Record);
                self.unlock(*inode, owner);
                Ok(Outcome::Done)
            }
            Operation::Release { inode, owner, .. } => {
                if let Some(owner) = owner {
                    self.unlock(*inode, Owner(request.client, *owner, LockFamily::Flock));
                }
                Ok(Outcome::Done)
            }
            Operation::Fsync { .. } | Operation::Forget { .. } => Ok(Outcome::Done),
            Operation::ReadDirectory { inode, cookie, plus, .. } => {
                self.list(*inode, *cookie, *plus)
            }
            Operation::StatFileSystem { .. } => Ok(Outcome::FileSystem {
                block_size: 4096,
                blocks: 1 << 20,
                free: 1 << 19,
                available: 1 << 19,
                files: 1 << 20,
                files_free: 1 << 19,
            }),
            Operation::GetXattr { inode, name } => {
                let value = self.object(*inode)?.xattrs.get(name).cloned();
                value.map(Outcome::Data).ok_or(libc::ENODATA)
            }
            Operation::ListXattr { inode } => {
                let names = self.object(*inode)?.xattrs.keys();
                let list = names.flat_map(|name| name.iter().copied().chain([0])).collect();
                Ok(Outcome::Data(list))
            }
            Operation::SetXattr { inode, name, value, flags } => {
                let xattrs = &mut self.object(*inode)?.xattrs;
                match (flags.cast_signed(), xattrs.contains_key(name)) {
                    (libc::XATTR_CREATE, true) => return Err(libc::EEXIST),
                    (libc::XATTR_REPLACE, false) => return Err(libc::ENODATA),
                    _ => xattrs.insert(name.clone(), value.clone()),
                };
                self.touch(*inode, false);
                stale.push(Stale::Attributes(*inode));
                Ok(Outcome::Done)
            }
            Operation::RemoveXattr { inode, name } => {
                self.object(*inode)?.xattrs.remove(name).ok_or(libc::ENODATA)?;
                self.touch(*inode, false);
                stale.push(Stale::Attributes(*inode));
                Ok(Outcome::Done)
            }
            Operation::Allocate { inode, offset, length, mode, .. } => {
                self.allocate(*inode, *offset, *length, *mode, stale)
            }
            Operation::Seek { inode, offset, whence, .. } => {
                let size = self.object(*inode)?.attributes.size;
                if *offset >= size {
                    return Err(libc::ENXIO);
                }
                let data = whence.cast_signed() == libc::SEEK_DATA;
                Ok(Outcome::Offset(if data { *offset } else { size }))
            }
            Operation::CopyRange { from, to, length } => {
                let Content::File(bytes) = &self.object(from.0)?.content else {
                    return Err(libc::EINVAL);
                };
                let start = (from.2 as usize).min(bytes.len());
                let end = start.saturating_add(*length as usize).min(bytes.len());
                let data = bytes[start..end].to_vec();
                let write = Operation::Write {
                    inode: to.0,
                    handle: to.1,
                    offset: to.2,
                    append: false,
                    kill_privileges: false,
                    data,
                };
                self.apply(request, &write, stale)
            }
            Operation::TestLock { inode, owner, lock, .. } => {
                let owner = Owner(request.client, *owner, LockFamily::Record);
                let locks = self.locks.entry(inode.number).or_default();
                let found = locks.iter().find(|held| conflict(held, owner, lock));
                Ok(Outcome::Lock(found.map(|held| LockRange {
                    start: held.start,
                    end: held.end,
                    kind: held.kind,
                    pid: held.pid,
                })))
            }
            _ => Err(libc::ENOSYS),
        }
    }

    fn rename(
        &mut self,
        (parent, name): (InodeId, &[u8]),
        (new_parent, new_name): (InodeId, &[u8]),
        flags: u32,
        stale: &mut Vec<Stale>,
    ) -> Done {
        let number = *self.names(parent)?.get(name).ok_or(libc::ENOENT)?;
        let other = self.names(new_parent)?.get(new_name).copied();
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        if flags & libc::RENAME_NOREPLACE != 0 && other.is_some() {
            return Err(libc::EEXIST);
        }
        if exchange && other.is_none() {
            return Err(libc::ENOENT);
        }
        if other == Some(number) {
            return Ok(Outcome::Done);
        }
        let is_directory =
            |state: &State, it| matches!(state.objects[&it].content, Content::Directory(_));
        if let (Some(other), false) = (other, exchange) {
            let directory = is_directory(self, other);
            if directory != is_directory(self, number) {
                return Err(if directory { libc::EISDIR } else { libc::ENOTDIR });
            }
            self.remove(new_parent, new_name, directory, stale)?;
        }
        self.names(parent)?.remove(name);
        self.names(new_parent)?.insert(new_name.to_vec(), number);
        let mut moved = vec![(number, new_parent)];
        if let (Some(other), true) = (other, exchange) {
            self.names(parent)?.insert(name.to_vec(), other);
            moved.push((other, parent));
        }
        for (number, to) in moved {
            let object = self.objects.get_mut(&number).unwrap();
            let from = InodeId { number: object.parent, generation: 0 };
            object.parent = to.number;
            let inode = object.attributes.inode;
            if is_directory(self, number) && from != to {
                self.object(from)?.attributes.links -= 1;
                self.object(to)?.attributes.links += 1;
            }
            self.touch(inode, false);
            stale.push(Stale::Attributes(inode));
        }
        self.touch(parent, true);
        self.touch(new_parent, true);
        stale.extend([
            Stale::Name(parent, name.to_vec()),
            Stale::Name(new_parent, new_name.to_vec()),
            Stale::Attributes(parent),
            Stale::Attributes(new_parent),
        ]);
        Ok(Outcome::Done)
    }

    fn list(&mut self, inode: InodeId, cookie: u64, plus: bool) -> Done {
        let names: Vec<(Vec<u8>, u64)> =
            self.names(inode)?.iter().map(|(name, number)| (name.clone(), *number)).collect();
        let parent = self.object(inode)?.parent;
        let dots = [(b".".to_vec(), inode.number), (b"..".to_vec(), parent)];
        // A position by name, so that removals do not shift it: good enough for small directories.
        let entries = dots
            .into_iter()
            .chain(names)
            .enumerate()
            .filter(|(at, _)| *at as u64 >= cookie)
            .take(100)
            .map(|(at, (name, number))| {
                let dot = at < 2;
                let kind = self.objects[&number].attributes.mode & libc::S_IFMT;
                let entry = (plus && !dot).then(|| self.entry(inode, &name, Some(number)));
                DirectoryEntry { name, cookie: at as u64 + 1, inode: number, kind, entry }
            })
            .collect();
        Ok(Outcome::Directory(entries))
    }

    fn allocate(
        &mut self,
        inode: InodeId,
        offset: u64,
        length: u64,
        mode: u32,
        stale: &mut Vec<Stale>,
    ) -> Done {
        let object = self.object(inode)?;
        let Content::File(bytes) = &mut object.content else { return Err(libc::EINVAL) };
        let (start, end) = (offset as usize, (offset + length) as usize);
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        match mode.cast_signed() {
            0 => {
                let size = bytes.len().max(end) as u64;
                self.truncate(inode, size, stale)?;
            }
            mode if mode == keep => {}
            mode if mode == libc::FALLOC_FL_PUNCH_HOLE | keep
                || mode == libc::FALLOC_FL_ZERO_RANGE | keep =>
            {
                let end = end.min(bytes.len());
                if start < end {
                    bytes[start..end].fill(0);
                }
                self.touch(inode, true);
                stale.push(Stale::Content(inode));
            }
            libc::FALLOC_FL_ZERO_RANGE => {
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].fill(0);
                let size = bytes.len() as u64;
                self.truncate(inode, size, stale)?;
            }
            _ => return Err(libc::EOPNOTSUPP),
        }
        Ok(Outcome::Done)
    }

    fn conflicts(&self, inode: InodeId, owner: Owner, wish: &LockRange) -> Vec<Owner> {
        let locks = self.locks.get(&inode.number).map_or(&[][..], Vec::as_slice);
        locks.iter().filter(|held| conflict(held, owner, wish)).map(|held| held.owner).collect()
    }

    fn would_wait_for(&self, conflicts: &[Owner], owner: Owner) -> bool {
        let mut todo = conflicts.to_vec();
        let mut seen = HashSet::new();
        while let Some(next) = todo.pop() {
            if next == owner {
                return true;
            }
            if seen.insert(next) {
                todo.extend(self.waiting.get(&next).into_iter().flatten());
            }
        }
        false
    }

    fn unlock(&mut self, inode: InodeId, owner: Owner) {
        if let Some(locks) = self.locks.get_mut(&inode.number) {
            locks.retain(|lock| lock.owner != owner);
        }
    }

    fn put_lock(&mut self, inode: InodeId, owner: Owner, wish: &LockRange) {
        let locks = self.locks.entry(inode.number).or_default();
        let mut rest = Vec::new();
        for held in std::mem::take(locks) {
            if held.owner != owner || held.end < wish.start || held.start > wish.end {
                rest.push(held);
                continue;
            }
            if held.start < wish.start {
                rest.push(Lock { end: wish.start - 1, ..held });
            }
            if held.end > wish.end {
                rest.push(Lock { start: wish.end + 1, ..held });
            }
        }
        if wish.kind != LockKind::Unlock {
            let (start, end) = (wish.start, wish.end);
            rest.push(Lock { owner, start, end, kind: wish.kind, pid: wish.pid });
        }
        *locks = rest;
    }
}

fn conflict(held: &Lock, owner: Owner, wish: &LockRange) -> bool {
    wish.kind != LockKind::Unlock
        && held.owner != owner
        && held.owner.2 == owner.2
        && held.start <= wish.end
        && wish.start <= held.end
        && (held.kind == LockKind::Write || wish.kind == LockKind::Write)
}
