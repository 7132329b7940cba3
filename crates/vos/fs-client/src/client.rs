//! The client: requests with identity, leases, recalls, attached descriptions.

use crate::attach::{AttachToken, Attached, RemoteDescription, Waiting, WaitingTable};
use crate::cache::{Cache, KeptName, Mark, Until};
use crate::deferred::{self, DeferredTable};
use crate::fifo::FifoNames;
use crate::notices::{self, Invalidator, Queue};
use crate::numbering::Numbering;
use crate::settle::settle;
use crate::transport::{FsTransport, TransportError};
use dvs_fs::messages::{
    Attributes, ClientId, Credentials, Entry, Handle, InodeId, Lease, Notice, Operation, Outcome,
    PROTOCOL, Request, Stale,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

/// Credentials of the client itself.
const OWN: Credentials = Credentials { uid: 0, gid: 0, pid: 0, umask: 0 };

/// Bounds of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientOptions {
    /// How often a request is sent before it is answered with `EIO`.
    pub attempts: u32,
    /// Pause before the second attempt; doubled with each further one.
    pub first_pause: Duration,
}

impl Default for ClientOptions {
    /// Eight attempts within about 1.3 s, on top of what the transport itself waits.
    fn default() -> Self {
        ClientOptions { attempts: 8, first_pause: Duration::from_millis(10) }
    }
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server did not answer.
    #[error("cannot reach the file-system server of this DC: {0}")]
    Unreachable(TransportError),
    /// The server refused.
    #[error("the file-system server refused this node (protocol {PROTOCOL}): {}; use one version of dvs on all nodes", std::io::Error::from_raw_os_error(*.0))]
    Refused(i32),
    /// The server answered something else than a welcome.
    #[error(
        "the file-system server did not answer the greeting; use one version of dvs on all nodes"
    )]
    Nonsense,
    /// A thread could not be started.
    #[error("cannot start a thread for the file-system client: {0}; raise the limit of threads")]
    Thread(#[from] std::io::Error),
}

/// An answer and how long its parts may be kept.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The server's outcome.
    pub outcome: Outcome,
    /// For the name, where the outcome has an entry.
    pub name: Until,
    /// Whether the kernel may keep the name as long.
    pub in_kernel: bool,
    /// For the attributes, where the outcome has some.
    pub attributes: Until,
    /// When this was so: see [`Client::name_changed`].
    pub mark: Mark,
}

/// An answer to a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The object; `None`: there is no such name.
    pub attributes: Option<Attributes>,
    /// How long the name may be kept.
    pub name: Until,
    /// Whether the kernel may keep the name as long.
    pub in_kernel: bool,
    /// How long the attributes may be kept.
    pub attributes_until: Until,
    /// When this was so: see [`Client::name_changed`].
    pub mark: Mark,
    /// Whether the server counted a reference (it answered; not the cache).
    pub counted: bool,
}

/// A client of the file-system server of one DC. All methods may be called from any thread.
pub struct Client {
    id: ClientId,
    transport: Arc<dyn FsTransport>,
    options: ClientOptions,
    numbering: Mutex<Numbering>,
    cache: Mutex<Cache>,
    attached: Mutex<WaitingTable>,
    deferred: Mutex<DeferredTable>,
    fifos: Mutex<FifoNames>,
    invalidator: RwLock<Option<Arc<dyn Invalidator>>>,
    queue: Arc<Queue>,
    gone: AtomicBool,
    start: Instant,
    root: Mutex<Option<Entry>>,
    server: AtomicU64,
}

impl Client {
    /// Greets the server and starts the thread that obeys recalls. Notices that arrive meanwhile may
    /// be given to [`Client::deliver`] as soon as this returns; the server sends none before it has
    /// granted a lease.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(
        transport: Arc<dyn FsTransport>,
        id: ClientId,
        options: ClientOptions,
    ) -> Result<Arc<Client>, ClientError> {
        let client = Arc::new(Client {
            id,
            transport,
            options,
            numbering: Mutex::default(),
            cache: Mutex::default(),
            attached: Mutex::default(),
            deferred: Mutex::default(),
            fifos: Mutex::default(),
            invalidator: RwLock::default(),
            queue: Arc::default(),
            gone: AtomicBool::new(false),
            start: Instant::now(),
            root: Mutex::default(),
            server: AtomicU64::new(0),
        });
        notices::start(Arc::downgrade(&client), Arc::clone(&client.queue))?;
        let sequence = client.open_number();
        let hello = Operation::Hello { protocol: PROTOCOL };
        match client.exchange(sequence, OWN, &hello).map_err(ClientError::Unreachable)? {
            Ok(Outcome::Welcome { root, server_incarnation }) => {
                *client.root.lock().unwrap() = Some(root);
                client.server.store(server_incarnation, Ordering::Relaxed);
                Ok(client)
            }
            Ok(_) => Err(ClientError::Nonsense),
            Err(errno) => Err(ClientError::Refused(errno)),
        }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Life of the server that welcomed it.
    #[must_use]
    pub fn server_incarnation(&self) -> u64 {
        self.server.load(Ordering::Relaxed)
    }

    /// The root's attributes as the welcome had them.
    #[must_use]
    pub fn root(&self) -> Option<Attributes> {
        self.root.lock().unwrap().and_then(|entry| entry.attributes)
    }

    /// Whether the server is gone for good; every operation then answers `EIO`.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Who keeps things beyond this cache. Given by a mount.
    pub fn set_invalidator(&self, invalidator: Option<Arc<dyn Invalidator>>) {
        *self.invalidator.write().unwrap() = invalidator;
    }

    pub(crate) fn invalidator(&self) -> Option<Arc<dyn Invalidator>> {
        self.invalidator.read().unwrap().clone()
    }

    /// Takes a notice of the server. Never blocks for long: what is stale is dropped from the cache
    /// at once; the kernel is told, and the server answered, by another thread.
    pub fn deliver(&self, notice: Notice) {
        let Notice::Recall { stale, .. } = &notice;
        {
            let mut cache = self.cache.lock().unwrap();
            for what in stale {
                cache.stale(what.clone());
            }
        }
        // A full queue: see `MAX_NOTICES`.
        let _ = self.queue.notice(notice);
    }

    /// Tells the server that this client's life is over: handles, locks and leases end.
    pub fn goodbye(&self) {
        self.tell(&Operation::Goodbye);
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Does an operation and waits for its answer.
    ///
    /// # Errors
    /// errno, positive: the server's, or `EIO` when it cannot be reached.
    pub fn perform(&self, credentials: Credentials, operation: Operation) -> Result<Answer, i32> {
        let sequence = self.open_number();
        self.perform_as(sequence, credentials, operation)
    }

    /// As [`Client::perform`], for an operation that may wait long: [`Client::cancel`] takes the
    /// sequence number, which [`Client::open_number`] gave.
    ///
    /// # Errors
    /// errno, positive.
    pub fn perform_as(
        &self,
        sequence: u64,
        credentials: Credentials,
        mut operation: Operation,
    ) -> Result<Answer, i32> {
        match self.open_deferred(&mut operation) {
            Ok(true) => {}
            Ok(false) => {
                self.close_number(sequence);
                return Ok(Answer {
                    outcome: Outcome::Done,
                    name: Until::Never,
                    in_kernel: false,
                    attributes: Until::Never,
                    mark: self.cache.lock().unwrap().mark(),
                });
            }
            Err(errno) => {
                self.close_number(sequence);
                return Err(errno);
            }
        }
        let (mark, sent) = (self.cache.lock().unwrap().mark(), self.now());
        let result = self.exchange(sequence, credentials, &operation).unwrap_or(Err(libc::EIO));
        settle(&mut self.cache.lock().unwrap(), mark, sent, &operation, result)
    }

    /// Opens a file. One of an image that was open before is opened at the server only when something
    /// is asked of its handle (see `deferred`).
    ///
    /// # Errors
    /// errno, positive.
    pub fn open(
        &self,
        credentials: Credentials,
        inode: InodeId,
        flags: u32,
    ) -> Result<(Handle, Lease), i32> {
        let (mark, granted) = {
            let cache = self.cache.lock().unwrap();
            (cache.mark(), cache.has_content(inode))
        };
        let reads = deferred::only_reads(flags);
        if granted && reads && !self.is_gone() {
            let handle = self.deferred.lock().unwrap().add(credentials, flags);
            if let Some(handle) = handle {
                return Ok((handle, Lease::FOREVER));
            }
        }
        let answer = self.perform(credentials, Operation::Open { inode, flags })?;
        let Outcome::Opened { handle, content } = answer.outcome else { return Err(libc::EIO) };
        if deferred::is_deferred(handle) {
            // A server that gives such numbers cannot be told apart from this table.
            return Err(libc::EOVERFLOW);
        }
        if reads && content.milliseconds == u32::MAX {
            self.cache.lock().unwrap().learn_content(mark, inode);
        }
        Ok((handle, content))
    }

    /// Opens at the server what an operation needs of files whose opening was put off. False: it closes
    /// one that was never opened there, and nothing is left to do.
    fn open_deferred(&self, operation: &mut Operation) -> Result<bool, i32> {
        let closes = matches!(operation, Operation::Release { .. });
        for (inode, handle) in deferred::handles(operation).into_iter().flatten() {
            if !deferred::is_deferred(*handle) {
                continue;
            }
            let file = {
                let mut table = self.deferred.lock().unwrap();
                if closes { table.remove(*handle) } else { table.get(*handle) }
            };
            let file = file.ok_or(libc::EBADF)?;
            let mut opened = file.opened.lock().unwrap();
            *handle = match *opened {
                Some(handle) => handle,
                None if closes => return Ok(false),
                None => {
                    let open = Operation::Open { inode, flags: file.flags };
                    let answer = self.perform(file.credentials, open)?;
                    let Outcome::Opened { handle, .. } = answer.outcome else {
                        return Err(libc::EIO);
                    };
                    *opened = Some(handle);
                    handle
                }
            };
        }
        Ok(true)
    }

    /// Looks a name up, in the cache or at the server.
    ///
    /// # Errors
    /// errno, positive; an absent name is no error.
    pub fn lookup(
        &self,
        credentials: Credentials,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Found, i32> {
        let now = self.now();
        let (kept, attributes, mark) = {
            let cache = self.cache.lock().unwrap();
            let kept = cache.name(now, parent, name);
            let attributes =
                kept.and_then(|kept| kept.inode).and_then(|inode| cache.attributes(now, inode));
            (kept, attributes, cache.mark())
        };
        let found = |kept: KeptName, attributes, attributes_until| Found {
            attributes,
            name: kept.until,
            in_kernel: kept.in_kernel,
            attributes_until,
            mark,
            counted: false,
        };
        match (kept, attributes) {
            (Some(kept @ KeptName { inode: None, .. }), _) => Ok(found(kept, None, Until::Never)),
            (Some(kept), Some((attributes, until))) => Ok(found(kept, Some(attributes), until)),
            _ => self.lookup_at_server(credentials, parent, name),
        }
    }

    /// Whether a name was recalled or changed since an answer. What is passed on to the kernel, to be
    /// kept there, must first be noted as kept there (so that a later recall reaches the kernel) and
    /// then be looked at once more with this (for a recall that came before).
    #[must_use]
    pub fn name_changed(&self, since: Mark, parent: InodeId, name: &[u8]) -> bool {
        self.cache.lock().unwrap().name_is_stale(since, parent, name)
    }

    /// Whether attributes or content were recalled or changed since an answer; see
    /// [`Client::name_changed`].
    #[must_use]
    pub fn attributes_changed(&self, since: Mark, inode: InodeId) -> bool {
        self.cache.lock().unwrap().attributes_are_stale(since, inode)
    }

    /// Looks a name up at the server, which then counts a reference.
    ///
    /// # Errors
    /// errno, positive; an absent name is no error.
    pub fn lookup_at_server(
        &self,
        credentials: Credentials,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Found, i32> {
        let operation = Operation::Lookup { parent, name: name.to_vec() };
        let answer = self.perform(credentials, operation)?;
        let Outcome::Entry(entry) = answer.outcome else { return Err(libc::EIO) };
        Ok(Found {
            attributes: entry.attributes,
            name: answer.name,
            in_kernel: answer.in_kernel,
            attributes_until: answer.attributes,
            mark: answer.mark,
            counted: entry.attributes.is_some(),
        })
    }

    /// Attributes, from the cache or from the server.
    ///
    /// # Errors
    /// errno, positive.
    pub fn attributes(
        &self,
        credentials: Credentials,
        inode: InodeId,
    ) -> Result<(Attributes, Until), i32> {
        if let Some(kept) = self.kept_attributes(inode) {
            return Ok(kept);
        }
        let answer = self.perform(credentials, Operation::GetAttributes { inode })?;
        let Outcome::Attributes(attributes, _) = answer.outcome else { return Err(libc::EIO) };
        Ok((attributes, answer.attributes))
    }

    /// The value of an extended attribute; that a usual one is absent is kept with the attributes.
    ///
    /// # Errors
    /// errno, positive.
    pub fn xattr(
        &self,
        credentials: Credentials,
        inode: InodeId,
        name: &[u8],
    ) -> Result<Vec<u8>, i32> {
        let (mark, absent) = {
            let cache = self.cache.lock().unwrap();
            (cache.mark(), cache.absent_xattr(self.now(), inode, name))
        };
        if let Some(errno) = absent {
            return Err(errno);
        }
        let operation = Operation::GetXattr { inode, name: name.to_vec() };
        match self.perform(credentials, operation) {
            Ok(Answer { outcome: Outcome::Data(value), .. }) => Ok(value),
            Ok(_) => Err(libc::EIO),
            Err(errno) => {
                if matches!(errno, libc::ENODATA | libc::EOPNOTSUPP) {
                    self.cache.lock().unwrap().learn_absent_xattr(mark, inode, name, errno);
                }
                Err(errno)
            }
        }
    }

    /// Attributes, if they are in the cache.
    #[must_use]
    pub fn kept_attributes(&self, inode: InodeId) -> Option<(Attributes, Until)> {
        self.cache.lock().unwrap().attributes(self.now(), inode)
    }

    /// How long something may still be kept.
    #[must_use]
    pub fn remaining(&self, until: Until) -> Duration {
        match until {
            Until::Never => Duration::ZERO,
            Until::Always => FOREVER,
            Until::At(time) => Duration::from_millis(time.saturating_sub(self.now())),
        }
    }

    /// The last references to objects are gone: how many each had at the server.
    pub fn forget(&self, inodes: &[(InodeId, u64)]) {
        {
            let mut cache = self.cache.lock().unwrap();
            for (inode, _) in inodes {
                cache.forget(*inode);
            }
        }
        if !inodes.is_empty() {
            self.queue.forget(inodes);
        }
    }

    /// The waiting operation with this sequence number is to be answered with `EINTR` now. This may
    /// be lost, and may overtake the operation on its way: repeat it until that is answered.
    pub fn cancel(&self, sequence: u64) {
        self.post(Operation::Cancel { sequence });
    }

    /// A sequence number for [`Client::perform_as`].
    #[must_use]
    pub fn open_number(&self) -> u64 {
        self.numbering.lock().unwrap().open()
    }

    /// Closes a number of [`Client::open_number`] that was not used.
    pub fn close_number(&self, sequence: u64) {
        self.numbering.lock().unwrap().close(sequence);
    }

    /// Something was changed past this client, and must not be kept.
    pub fn note_stale(&self, what: Stale) {
        self.cache.lock().unwrap().stale(what);
    }

    /// Gives a name under which `description` can be opened once, soon, through a mount of this
    /// client.
    ///
    /// # Errors
    /// `ENFILE`: too many wait to be opened.
    pub fn attach(
        &self,
        description: Arc<dyn RemoteDescription>,
        like: Attached,
    ) -> Result<AttachToken, i32> {
        let mut table = self.attached.lock().unwrap();
        let (token, over) = table.add(description, like, Instant::now(), rand::random());
        drop(table);
        for waiting in over {
            waiting.description.closed();
        }
        token
    }

    /// Takes a name back. A description that was not opened under it is told so by `closed`.
    pub fn detach(&self, token: &AttachToken) {
        let waiting = self.attached.lock().unwrap().remove(token);
        if let Some(waiting) = waiting {
            waiting.description.closed();
        }
    }

    pub(crate) fn take_attached(&self, name: &[u8]) -> Option<Waiting> {
        self.attached.lock().unwrap().take(name, Instant::now())
    }

    /// Opens an end of a FIFO (the writers' end, or itself) through `open`, which is given a path of the
    /// mount that is good once.
    ///
    /// # Errors
    /// `ENFILE` over [`crate::fifo::MAX_FIFO_NAMES`]; `ENOENT`: nobody has the FIFO here; those of
    /// `open`.
    pub fn open_fifo<T>(
        &self,
        fifo: InodeId,
        writers: bool,
        open: impl FnOnce(&[u8]) -> Result<T, i32>,
    ) -> Result<T, i32> {
        let name = self.fifos.lock().unwrap().add(fifo, writers, rand::random());
        let name = name.ok_or(libc::ENFILE)?;
        let opened = open(&[b"/", name.as_slice()].concat());
        self.take_fifo(&name);
        opened
    }

    pub(crate) fn take_fifo(&self, name: &[u8]) -> Option<(InodeId, bool)> {
        self.fifos.lock().unwrap().take(name)
    }

    /// Does an operation of the client's own whose answer says nothing.
    pub(crate) fn tell(&self, operation: &Operation) {
        let sequence = self.open_number();
        let _ = self.exchange(sequence, OWN, operation);
    }

    /// Milliseconds of this client's life.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn post(&self, operation: Operation) {
        if self.is_gone() {
            return;
        }
        let sequence = self.open_number();
        let request = self.request(sequence, OWN, operation);
        self.transport.post(request);
        // Closed only now, so that no request can say "answered" and overtake it.
        self.numbering.lock().unwrap().close(sequence);
    }

    fn request(&self, sequence: u64, credentials: Credentials, operation: Operation) -> Request {
        let answered = self.numbering.lock().unwrap().answered();
        Request { client: self.id, sequence, answered, credentials, operation }
    }

    /// Sends a request until it is answered or given up; its number is closed afterwards.
    fn exchange(
        &self,
        sequence: u64,
        credentials: Credentials,
        operation: &Operation,
    ) -> Result<Result<Outcome, i32>, TransportError> {
        let result = self.send(sequence, credentials, operation);
        self.numbering.lock().unwrap().close(sequence);
        result
    }

    fn send(
        &self,
        sequence: u64,
        credentials: Credentials,
        operation: &Operation,
    ) -> Result<Result<Outcome, i32>, TransportError> {
        let mut pause = self.options.first_pause;
        for attempt in 1..=self.options.attempts.max(1) {
            if self.is_gone() {
                return Err(TransportError::Gone);
            }
            match self.transport.call(self.request(sequence, credentials, operation.clone())) {
                Ok(reply) if reply.sequence == sequence => return Ok(reply.result),
                // Not the answer to this: a transport that does that cannot be relied on.
                Ok(_) => return Ok(Err(libc::EIO)),
                Err(TransportError::Gone) => {
                    self.gone.store(true, Ordering::Relaxed);
                    return Err(TransportError::Gone);
                }
                Err(TransportError::Lost) if attempt < self.options.attempts => {
                    std::thread::sleep(pause);
                    pause = pause.saturating_mul(2);
                }
                Err(TransportError::Lost) => {}
            }
        }
        Err(TransportError::Lost)
    }
}

/// What "for ever" is as a time.
pub const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Drop for Client {
    fn drop(&mut self) {
        self.queue.end();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("id", &self.id).finish_non_exhaustive()
    }
}
