//! A node: the exchange, its peers and its threads.

use crate::core::exchange::{Command, Exchange, ExchangeStatistics, Key};
use crate::core::link::{DownReason, LaneStatistics, LinkConfig};
use crate::dc::{Dc, DcShared};
use crate::deliver::{self, Handler, Task, Waiter, Work};
use crate::dial::LinkAddress;
use crate::error::ConnectError;
use crate::ids::{Address, DcId, Lane, NodeId};
use crate::peer::Peer;
use crate::timer::Timer;
use crate::tls::{Credentials, CredentialsError, Fingerprint, Revoked, Tls, Visitor};
use crate::{dial, listen};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most peers of one node.
pub const MAX_PEERS: usize = 1024;
/// Something is written on every connection at least this often.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A peer that was silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// A peer that has not come back so long after its connections were cut is given up. Short,
/// because unix sockets are cut by the end of the process only.
const RECONNECT: Duration = Duration::from_millis(200);
/// Between hosts a network can swallow everything without a word: beats are frequent,
const HOST_HEARTBEAT: Duration = Duration::from_secs(1);
/// a connection that brings nothing for so long is made anew,
const HOST_STALE: Duration = Duration::from_secs(4);
/// and a peer that does not come back is waited for so long.
const HOST_RECONNECT: Duration = Duration::from_secs(20);

/// How a node is made.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The node.
    pub id: NodeId,
    /// The cluster; nodes of different ones refuse each other.
    pub cluster: [u8; 16],
    /// This life of the node: not 0, and higher than that of every earlier life.
    pub incarnation: u64,
    /// Proof of identity that all nodes of the cluster show; empty where sockets tell who is there.
    pub proof: Vec<u8>,
    /// Something is written on every connection at least this often.
    pub heartbeat: Duration,
    /// A peer that was silent for so long is given up.
    pub silence: Duration,
    /// A peer that has not come back so long after a cut is given up.
    pub reconnect: Duration,
    /// The same three, and how long a connection may bring nothing, for peers on other hosts.
    pub hosts: HostTimes,
}

/// Times of links between hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTimes {
    /// Something is written on every connection at least this often.
    pub heartbeat: Duration,
    /// A connection that has brought nothing for so long is made anew.
    pub stale: Duration,
    /// A peer that has not come back so long after a cut is given up.
    pub reconnect: Duration,
}

impl Default for HostTimes {
    fn default() -> Self {
        HostTimes { heartbeat: HOST_HEARTBEAT, stale: HOST_STALE, reconnect: HOST_RECONNECT }
    }
}

/// Where a peer is, which decides the times of its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// On this machine.
    Machine,
    /// Across a network.
    Network,
}

impl NodeConfig {
    /// The usual times.
    #[must_use]
    pub fn new(id: impl Into<NodeId>, cluster: [u8; 16], incarnation: u64) -> Self {
        NodeConfig {
            id: id.into(),
            cluster,
            incarnation,
            proof: Vec::new(),
            heartbeat: HEARTBEAT,
            silence: SILENCE,
            reconnect: RECONNECT,
            hosts: HostTimes::default(),
        }
    }
}

/// What happens to the links of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// A session with a life of a node began.
    NodeUp {
        /// The node.
        node: NodeId,
        /// Its life.
        incarnation: u64,
    },
    /// It ended for good.
    NodeDown {
        /// The node.
        node: NodeId,
        /// Its life.
        incarnation: u64,
        /// Why.
        reason: DownReason,
    },
    /// A connection was refused or dropped.
    Refused {
        /// What was wrong with it, for the log.
        reason: String,
    },
}

type Observer = Arc<dyn Fn(&NodeEvent) + Send + Sync>;

/// A node of the cluster in this process. Cheap to clone; the last handle's end closes it.
#[derive(Clone)]
pub struct Node {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    start: Instant,
    pub(crate) exchange: Mutex<Exchange<Waiter>>,
    pub(crate) handlers: RwLock<HashMap<Key, Arc<Handler>>>,
    pub(crate) dcs: Mutex<BTreeMap<DcId, Arc<DcShared>>>,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    pub(crate) timer: Timer,
    tasks: Mutex<Option<Sender<Task>>>,
    observers: Mutex<Vec<Observer>>,
    pub(crate) closed: AtomicBool,
    next_connection: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) listeners: Mutex<Vec<listen::Listener>>,
    /// How many threads wait for room; they are woken when there may be some.
    room_waiters: AtomicUsize,
    room: (Mutex<()>, Condvar),
    pub(crate) refused_connections: AtomicU64,
    /// Connections that have not said yet who they are.
    pub(crate) strangers: AtomicUsize,
    tls: RwLock<Option<Arc<Tls>>>,
    pub(crate) revoked: Revoked,
}

impl Node {
    /// Starts a node without peers.
    #[must_use]
    pub fn new(config: NodeConfig) -> Self {
        let (tasks, queue) = channel();
        let shared = Arc::new(Shared {
            exchange: Mutex::new(Exchange::new(config.id, config.incarnation)),
            config,
            start: Instant::now(),
            handlers: RwLock::default(),
            dcs: Mutex::default(),
            peers: RwLock::default(),
            timer: Timer::default(),
            tasks: Mutex::new(Some(tasks)),
            observers: Mutex::default(),
            closed: AtomicBool::new(false),
            next_connection: AtomicU64::new(1),
            threads: Mutex::default(),
            listeners: Mutex::default(),
            room_waiters: AtomicUsize::new(0),
            room: Default::default(),
            refused_connections: AtomicU64::new(0),
            strangers: AtomicUsize::new(0),
            tls: RwLock::default(),
            revoked: Revoked::default(),
        });
        shared.spawn("dvk-timer", crate::timer::run);
        shared.spawn("dvk-tasks", move |shared| deliver::run_tasks(shared, &queue));
        Node { handle: Arc::new(Handle { shared }) }
    }

    /// The node's number.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.shared().config.id
    }

    /// Its life.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.shared().config.incarnation
    }

    /// Takes connections of other nodes at a unix socket. A socket that nobody listens at any more
    /// is replaced. Only processes of our own uid, or root's, get in.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(&self, path: impl AsRef<Path>) -> Result<(), ConnectError> {
        listen::listen(self.shared(), path.as_ref())
    }

    /// Gives the node its certificate, or a new one: what is connected from now on is connected by
    /// it. `visitor` answers those who have none and want to join.
    ///
    /// # Errors
    /// When the certificate and the key are none, or do not fit.
    pub fn set_credentials(
        &self,
        credentials: &Credentials,
        visitor: Option<Visitor>,
    ) -> Result<(), CredentialsError> {
        let tls = Tls::new(credentials, visitor)?;
        *self.shared().tls.write().unwrap() = Some(Arc::new(tls));
        Ok(())
    }

    /// Certificates that are accepted no more: peers that have shown one are given up.
    pub fn set_revoked(&self, revoked: BTreeSet<Fingerprint>) {
        self.shared().revoked.set(revoked);
        for peer in self.shared().all_peers() {
            peer.check_revoked(self.shared());
        }
    }

    /// Takes connections of nodes on other hosts; returns the address with the port, which the
    /// system chooses where it is 0. Only nodes with a certificate of the cluster get in.
    ///
    /// # Errors
    /// When the node has no credentials, or the address cannot be used.
    pub fn listen_tcp(&self, address: SocketAddr) -> Result<SocketAddr, ConnectError> {
        listen::listen_tcp(self.shared(), address)
    }

    /// Takes one connection that came another way. The caller vouches that only a node of the
    /// cluster can be at its other end.
    pub fn adopt(&self, connection: UnixStream) {
        listen::adopt(self.shared(), connection);
    }

    /// Connects to another node, all lanes, and waits until the session is there. The connections
    /// are made again when they are cut. When the session ends (the peer left, died, or was given
    /// up), so does this; call again for its next life.
    ///
    /// # Errors
    /// When there is no session within the time.
    pub fn connect(
        &self,
        peer: impl Into<NodeId>,
        address: impl Into<LinkAddress>,
        timeout: Duration,
    ) -> Result<(), ConnectError> {
        dial::connect(self.shared(), peer.into(), &address.into(), timeout)
    }

    /// Opens a container on this node. Its names are kept by its home node; `home` must be the same
    /// on all nodes. Opening it again gives the same one.
    #[must_use]
    pub fn dc(&self, id: DcId, home: impl Into<NodeId>) -> Dc {
        Dc::open(self.shared(), id, home.into())
    }

    /// Calls back, on a thread of its own and in order, when peers come and go.
    pub fn on_peer(&self, observer: impl Fn(&NodeEvent) + Send + Sync + 'static) {
        self.shared().observers.lock().unwrap().push(Arc::new(observer));
    }

    /// The nodes that there is a session with, and their lives.
    #[must_use]
    pub fn peers(&self) -> Vec<(NodeId, u64)> {
        let peers = self.shared().peers.read().unwrap();
        peers.iter().filter_map(|(id, peer)| Some((*id, peer.incarnation()?))).collect()
    }

    /// Gives a peer up: calls to it fail, it is told, and its present life cannot come back.
    pub fn give_up(&self, peer: impl Into<NodeId>) {
        if let Some(peer) = self.shared().peer(peer.into()) {
            peer.give_up(self.shared(), DownReason::Asked);
        }
    }

    /// Cuts the connections of a peer as a broken network would; they are made again. For tests.
    pub fn cut(&self, peer: impl Into<NodeId>) {
        if let Some(peer) = self.shared().peer(peer.into()) {
            peer.cut();
        }
    }

    /// Figures of a lane to a peer.
    #[must_use]
    pub fn link_statistics(&self, peer: impl Into<NodeId>, lane: Lane) -> Option<LaneStatistics> {
        Some(self.shared().peer(peer.into())?.statistics(lane))
    }

    /// Figures of the exchange.
    #[must_use]
    pub fn statistics(&self) -> ExchangeStatistics {
        self.shared().exchange.lock().unwrap().statistics()
    }

    /// Connections that were refused or dropped because of what came by them.
    #[must_use]
    pub fn refused_connections(&self) -> u64 {
        self.shared().refused_connections.load(Ordering::Relaxed)
    }

    /// Says goodbye to the peers, fails what waits, ends all threads and waits for them (but not
    /// for the calling one, if it is one of them).
    pub fn close(&self) {
        self.shared().close();
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Node").field("config", &self.shared().config).finish_non_exhaustive()
    }
}

impl Shared {
    /// Nanoseconds of this node's monotonic clock: the time of all events.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn deadline(&self, timeout: Duration) -> u64 {
        self.now().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn connection_number(&self) -> u64 {
        self.next_connection.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || body(&shared));
        let mut threads = self.threads.lock().unwrap();
        threads.retain(|thread| !thread.is_finished());
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                drop(threads);
                self.emit(NodeEvent::Refused { reason: format!("thread {name}: {error}") });
            }
        }
    }

    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.read().unwrap().clone()
    }

    pub(crate) fn link_config(&self, range: Range) -> LinkConfig {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let HostTimes { heartbeat, stale, reconnect } = self.config.hosts;
        let machine = LinkConfig {
            cluster: self.config.cluster,
            node: self.config.id,
            incarnation: self.config.incarnation,
            proof: self.config.proof.clone(),
            heartbeat: nanoseconds(self.config.heartbeat),
            stale: u64::MAX,
            silence: nanoseconds(self.config.silence),
            reconnect: nanoseconds(self.config.reconnect),
        };
        match range {
            Range::Machine => machine,
            Range::Network => LinkConfig {
                heartbeat: nanoseconds(heartbeat),
                stale: nanoseconds(stale),
                reconnect: nanoseconds(reconnect),
                ..machine
            },
        }
    }

    pub(crate) fn peer(&self, id: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().unwrap().get(&id).cloned()
    }

    pub(crate) fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().unwrap().values().cloned().collect()
    }

    pub(crate) fn peer_or_new(
        self: &Arc<Self>,
        id: NodeId,
        range: Range,
    ) -> Result<Arc<Peer>, ConnectError> {
        if let Some(peer) = self.peer(id) {
            return Ok(peer);
        }
        let mut peers = self.peers.write().unwrap();
        // Under the lock, so that no peer is added after `close` took them all.
        if self.is_closed() {
            return Err(ConnectError::Closed);
        }
        if let Some(peer) = peers.get(&id) {
            return Ok(Arc::clone(peer));
        }
        if peers.len() >= MAX_PEERS {
            return Err(ConnectError::TooManyPeers);
        }
        let peer = Arc::new(Peer::new(self.link_config(range), id));
        peers.insert(id, Arc::clone(&peer));
        drop(peers);
        for lane in Lane::ALL {
            let peer = Arc::clone(&peer);
            self.spawn("dvk-flush", move |shared| peer.run_flusher(shared, lane));
        }
        Ok(peer)
    }

    /// Carries the exchange's commands out. No lock may be held.
    pub(crate) fn run(self: &Arc<Self>, commands: Vec<Command<Waiter>>) {
        for command in commands {
            match command {
                Command::Transmit { node, incarnation, lane, frame } => {
                    if let Some(peer) = self.peer(node) {
                        peer.send(self, incarnation, lane, frame);
                    }
                }
                Command::Finish { waiter, result } => waiter.finish(result),
                Command::Received { waiter, result } => waiter.received(result),
                Command::Drain(key) => deliver::perform(Work::Drain(Arc::clone(self), key)),
                Command::Stale(address) => self.stale(&address),
            }
        }
        self.room_changed();
    }

    fn stale(&self, address: &Address) {
        let dc = self.dcs.lock().unwrap().get(&address.dc).cloned();
        if let Some(dc) = dc {
            dc.stale(address);
        }
    }

    pub(crate) fn has_room(&self, node: NodeId, lane: Lane) -> bool {
        self.peer(node).is_none_or(|peer| peer.has_room(lane))
    }

    /// Waits until a refused message may fit; returns early now and then.
    pub(crate) fn wait_for_room(&self, deadline: u64) {
        const LOOK_AGAIN: Duration = Duration::from_millis(5);
        crate::batch::flush();
        self.room_waiters.fetch_add(1, Ordering::SeqCst);
        let guard = self.room.0.lock().unwrap();
        let rest = Duration::from_nanos(deadline.saturating_sub(self.now()));
        drop(self.room.1.wait_timeout(guard, rest.min(LOOK_AGAIN)).unwrap());
        self.room_waiters.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn room_changed(&self) {
        if self.room_waiters.load(Ordering::Relaxed) > 0 {
            self.room.1.notify_all();
        }
    }

    /// Puts a task into the queue of the task thread.
    pub(crate) fn later(&self, task: Task) {
        if let Some(tasks) = &*self.tasks.lock().unwrap() {
            // Fails only when the thread has ended with the node.
            let _ = tasks.send(task);
        }
    }

    pub(crate) fn emit(&self, event: NodeEvent) {
        self.later(Task::Event(event));
    }

    pub(crate) fn observe(&self, event: &NodeEvent) {
        let observers = self.observers.lock().unwrap().clone();
        for observer in observers {
            observer(event);
        }
    }

    pub(crate) fn refuse_connection(&self, reason: String) {
        self.refused_connections.fetch_add(1, Ordering::Relaxed);
        self.emit(NodeEvent::Refused { reason });
    }

    /// A session ended: names of that life are void. The exchange knows already.
    pub(crate) fn node_gone(self: &Arc<Self>, node: NodeId, incarnation: u64) {
        let dcs: Vec<Arc<DcShared>> = self.dcs.lock().unwrap().values().cloned().collect();
        for dc in dcs {
            dc.node_gone(self, node, incarnation);
        }
    }

    fn close(self: &Arc<Self>) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        for listener in self.listeners.lock().unwrap().drain(..) {
            listener.stop();
        }
        let dcs: Vec<Arc<DcShared>> =
            std::mem::take(&mut *self.dcs.lock().unwrap()).into_values().collect();
        for dc in dcs {
            dc.close(self);
        }
        let peers: Vec<Arc<Peer>> =
            std::mem::take(&mut *self.peers.write().unwrap()).into_values().collect();
        for peer in peers {
            peer.leave(self);
        }
        self.timer.wake();
        self.tasks.lock().unwrap().take();
        self.handlers.write().unwrap().clear();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap());
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() {
                // A thread that panicked has said so already.
                let _ = thread.join();
            }
        }
        self.observers.lock().unwrap().clear();
    }
}
