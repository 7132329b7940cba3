//! A distributed container as one node sees it: making endpoints and finding them by name.

use crate::cancel;
use crate::core::exchange::{Key, REGISTRY};
use crate::core::inbox::MessageKind;
use crate::core::registry::{Authority, Cache, RegistryReply, RegistryRequest, Role};
use crate::deliver::{Slot, in_handler};
use crate::endpoint::{Endpoint, call};
use crate::error::{CallError, NameError};
use crate::here::Here;
use crate::ids::{Address, DcId, Lane, NodeId};
use crate::message::{Message, ReplyTo};
use crate::node::Shared;
use crate::service;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Binding a name takes at most so long.
const BIND: Duration = Duration::from_secs(10);
/// While the home node is not connected, it is tried again this often.
const AGAIN: Duration = Duration::from_millis(10);
/// An answer of the registry may take so much longer than the wait that it was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// A container on this node. Cheap to clone.
#[derive(Clone)]
pub struct Dc {
    shared: Arc<Shared>,
    dc: Arc<DcShared>,
}

pub(crate) struct DcShared {
    id: DcId,
    home: NodeId,
    authority: Mutex<Authority<Asker>>,
    cache: Mutex<Cache>,
    /// Asks the registry. None if the container could not be opened.
    client: Option<Key>,
}

/// Who asked the registry.
enum Asker {
    Here(Arc<Slot<RegistryReply>>),
    /// Nobody waits for the answer.
    Nobody,
    Elsewhere(ReplyTo),
}

impl Asker {
    fn answer(self, reply: &RegistryReply) {
        match self {
            Asker::Here(slot) => slot.fill(reply.clone()),
            Asker::Nobody => {}
            Asker::Elsewhere(to) => to.reply(postcard::to_stdvec(reply).unwrap_or_default()),
        }
    }
}

impl std::fmt::Debug for Dc {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Dc({}, home {})", self.dc.id, self.dc.home)
    }
}

impl Dc {
    pub(crate) fn open(shared: &Arc<Shared>, id: DcId, home: NodeId) -> Dc {
        let mut dcs = shared.dcs.lock().unwrap();
        if let Some(dc) = dcs.get(&id) {
            return Dc { shared: Arc::clone(shared), dc: Arc::clone(dc) };
        }
        let mut exchange = shared.exchange.lock().unwrap();
        let mut client = None;
        let (mut registry, mut service) = (None, None);
        if !shared.is_closed() {
            exchange.open_dc(id);
            client = exchange.bind(id);
            service = exchange.bind_service(id);
            if home == shared.config.id {
                registry = exchange.bind_registry(id);
            }
        }
        drop(exchange);
        let dc = Arc::new(DcShared {
            id,
            home,
            authority: Mutex::default(),
            cache: Mutex::default(),
            client,
        });
        dcs.insert(id, Arc::clone(&dc));
        drop(dcs);
        let this = Dc { shared: Arc::clone(shared), dc };
        if let Some(key) = registry {
            this.serve(key);
        }
        if let Some(key) = service {
            let (shared, dc) = (Arc::downgrade(&this.shared), Arc::downgrade(&this.dc));
            let endpoint = this.dc.borrow(&this.shared, key);
            endpoint.set_handler(move |message| service::answer(&shared, &dc, message));
        }
        this
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> DcId {
        self.dc.id
    }

    /// The node that keeps its names.
    #[must_use]
    pub fn home(&self) -> NodeId {
        self.dc.home
    }

    /// From now on only these nodes, and this one, reach the container's endpoints here.
    pub fn restrict(&self, nodes: &[NodeId]) {
        let nodes: BTreeSet<NodeId> = nodes.iter().copied().collect();
        self.shared.exchange.lock().unwrap().restrict_dc(self.dc.id, nodes);
    }

    /// Makes an endpoint without a name.
    ///
    /// # Errors
    /// When the container or its node is closed, or there are too many endpoints.
    pub fn endpoint(&self) -> Result<Endpoint, NameError> {
        Ok(self.dc.make(&self.shared, self.key()?, None))
    }

    /// Makes an endpoint with a name; waits for the home node if it is elsewhere.
    ///
    /// # Errors
    /// The name is taken, or the registry cannot be asked.
    pub fn bind(&self, name: &str) -> Result<Endpoint, NameError> {
        self.bind_as(name, Role::Primary).map(|(endpoint, _)| endpoint)
    }

    /// Makes an endpoint that stands by for a name, and says who has it now: the endpoint itself if
    /// nobody else does. When all before it are gone it has the name, and receives a message whose
    /// [`crate::Message::is_promotion`] is true.
    ///
    /// # Errors
    /// Too many stand by, or the registry cannot be asked.
    pub fn bind_as(&self, name: &str, role: Role) -> Result<(Endpoint, Address), NameError> {
        let endpoint = self.dc.make(&self.shared, self.key()?, Some(name.into()));
        let address = endpoint.address();
        let request = RegistryRequest::Bind { name: name.into(), address, role };
        let holder = self.ask(request, BIND)?.unwrap_or(address);
        if role == Role::Replica {
            // Whom this node asked for before is not whom it would find now.
            self.dc.cache.lock().unwrap().stale(&holder);
        }
        Ok((endpoint, holder))
    }

    /// The address of the endpoint that has a name, waiting for it to be bound.
    ///
    /// # Errors
    /// Nobody has bound it in time, or the registry cannot be asked.
    pub fn resolve(&self, name: &str, timeout: Duration) -> Result<Address, NameError> {
        if let Some(address) = self.dc.cache.lock().unwrap().get(name) {
            return Ok(address);
        }
        let wait = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let request = RegistryRequest::Resolve { name: name.into(), wait };
        let address =
            self.ask(request, timeout)?.ok_or(NameError::Registry(CallError::Malformed))?;
        if address.node != self.shared.config.id {
            self.dc.cache.lock().unwrap().insert(name.into(), address);
        }
        Ok(address)
    }

    /// Closes the container on this node: its endpoints end, who waits hears so.
    pub fn close(&self) {
        self.shared.dcs.lock().unwrap().remove(&self.dc.id);
        self.dc.close(&self.shared);
    }

    fn key(&self) -> Result<Key, NameError> {
        let mut exchange = self.shared.exchange.lock().unwrap();
        match exchange.bind(self.dc.id) {
            Some(key) => Ok(key),
            None if exchange.is_open(self.dc.id) => Err(NameError::Full),
            None => Err(NameError::Registry(CallError::Closed)),
        }
    }

    fn ask(&self, request: RegistryRequest, timeout: Duration) -> RegistryReply {
        if in_handler() {
            return Err(NameError::Registry(CallError::InHandler));
        }
        let until = Instant::now() + timeout;
        if self.dc.home == self.shared.config.id {
            let slot = Slot::new();
            self.dc.request(&self.shared, request, Asker::Here(Arc::clone(&slot)));
            let port = self.client().map_err(NameError::Registry)?;
            return cancel::wait(&port, &slot, None, || Err(NameError::Cancelled));
        }
        loop {
            let error = match self.ask_home(&request, timeout.saturating_add(GRACE)) {
                Ok(reply) => return reply,
                Err(error) => error,
            };
            // The home node may not be connected yet, or not have opened the container yet.
            let early = matches!(
                error,
                CallError::NotConnected { .. }
                    | CallError::NoDc { .. }
                    | CallError::NoEndpoint { .. }
            );
            if self.shared.is_closed() {
                return Err(NameError::Registry(CallError::Closed));
            }
            if !early || Instant::now() >= until {
                return Err(NameError::Registry(error));
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn ask_home(
        &self,
        request: &RegistryRequest,
        timeout: Duration,
    ) -> Result<RegistryReply, CallError> {
        let port = self.client()?;
        let registry = self.dc.registry(&self.shared)?;
        let body = postcard::to_stdvec(request).map_err(|_| CallError::Malformed)?;
        let reply = call(&port, MessageKind::Call, Lane::Small, &registry, body, timeout)?;
        postcard::from_bytes(&reply).map_err(|_| CallError::Malformed)
    }

    fn client(&self) -> Result<Here, CallError> {
        let client = self.dc.client.ok_or(CallError::Closed)?;
        Ok(Here::new(&self.shared, &self.dc, client, None))
    }

    /// Answers other nodes' questions.
    fn serve(&self, key: Key) {
        let endpoint = self.dc.borrow(&self.shared, key);
        let shared: Weak<Shared> = Arc::downgrade(&self.shared);
        let dc = Arc::downgrade(&self.dc);
        endpoint.set_handler(move |mut message: Message| {
            let (Some(shared), Some(dc)) = (shared.upgrade(), dc.upgrade()) else { return };
            let Some(reply) = message.take_reply() else { return };
            debug_assert_eq!(message.kind, MessageKind::Call);
            // Without an answer the asker hears that its request was dropped.
            let Ok(request) = postcard::from_bytes(&message.body) else { return };
            let Address { node, incarnation, .. } = message.source;
            dc.request_from(&shared, node, incarnation, request, Asker::Elsewhere(reply));
        });
    }
}

impl DcShared {
    pub(crate) fn id(&self) -> DcId {
        self.id
    }

    fn make(self: &Arc<Self>, shared: &Arc<Shared>, key: Key, name: Option<String>) -> Endpoint {
        let port = Here::new(shared, self, key, name.clone());
        Endpoint::new(Box::new(port), Arc::clone(shared) as _, name, true)
    }

    /// A handle whose end does not end the endpoint, for the container's own ones.
    fn borrow(self: &Arc<Self>, shared: &Arc<Shared>, key: Key) -> Endpoint {
        let port = Here::new(shared, self, key, None);
        Endpoint::new(Box::new(port), Arc::clone(shared) as _, None, false)
    }

    fn registry(&self, shared: &Shared) -> Result<Address, CallError> {
        let node = self.home;
        let peer = shared.peer(node).and_then(|peer| peer.incarnation());
        let incarnation = peer.ok_or(CallError::NotConnected { node })?;
        Ok(Address { dc: self.id, node, incarnation, number: REGISTRY })
    }

    fn request(&self, shared: &Arc<Shared>, request: RegistryRequest, asker: Asker) {
        let (node, incarnation) = (shared.config.id, shared.config.incarnation);
        self.request_from(shared, node, incarnation, request, asker);
    }

    fn request_from(
        &self,
        shared: &Arc<Shared>,
        node: NodeId,
        incarnation: u64,
        request: RegistryRequest,
        asker: Asker,
    ) {
        let mut answers = Vec::new();
        let mut authority = self.authority.lock().unwrap();
        authority.request(shared.now(), node, incarnation, request, asker, &mut answers);
        let next = authority.next_deadline();
        let promoted = authority.take_promoted();
        drop(authority);
        for (asker, reply) in answers {
            asker.answer(&reply);
        }
        self.tell_promoted(shared, &promoted);
        if let Some(next) = next {
            shared.timer.due(next);
        }
    }

    /// Tells endpoints that they have a name now. One that cannot be reached is gone itself.
    fn tell_promoted(&self, shared: &Arc<Shared>, promoted: &[Address]) {
        let registry = Key { dc: self.id, number: REGISTRY };
        for address in promoted {
            let mut commands = Vec::new();
            let mut exchange = shared.exchange.lock().unwrap();
            let _ = exchange.notify(registry, address, 1, &mut commands);
            drop(exchange);
            shared.run(commands);
        }
    }

    /// Takes a name away without waiting.
    pub(crate) fn unbind_later(self: &Arc<Self>, shared: &Arc<Shared>, name: &str, of: Address) {
        let request = RegistryRequest::Unbind { name: name.into(), address: of };
        if self.home == shared.config.id {
            self.request(shared, request, Asker::Nobody);
            return;
        }
        let (Some(client), Ok(registry)) = (self.client, self.registry(shared)) else { return };
        let Ok(body) = postcard::to_stdvec(&request) else { return };
        // If it cannot be sent the node is gone, or will be: the registry forgets the name then.
        self.borrow(shared, client).call_with(Lane::Small, &registry, body, BIND, drop);
    }

    pub(crate) fn stale(&self, address: &Address) {
        self.cache.lock().unwrap().stale(address);
    }

    pub(crate) fn node_gone(&self, shared: &Arc<Shared>, node: NodeId, incarnation: u64) {
        let mut authority = self.authority.lock().unwrap();
        authority.node_gone(node, incarnation);
        let promoted = authority.take_promoted();
        drop(authority);
        self.tell_promoted(shared, &promoted);
        self.cache.lock().unwrap().node_gone(node, incarnation);
    }

    /// Returns when there is something to do next.
    pub(crate) fn tick(&self, now: u64) -> u64 {
        let mut answers = Vec::new();
        let mut authority = self.authority.lock().unwrap();
        authority.tick(now, &mut answers);
        let next = authority.next_deadline().unwrap_or(u64::MAX);
        drop(authority);
        for (asker, reply) in answers {
            asker.answer(&reply);
        }
        next
    }

    pub(crate) fn close(&self, shared: &Arc<Shared>) {
        let mut commands = Vec::new();
        shared.exchange.lock().unwrap().close_dc(self.id, &mut commands);
        shared.run(commands);
        let waiting = self.authority.lock().unwrap().close();
        for asker in waiting {
            asker.answer(&Err(NameError::Registry(CallError::Closed)));
        }
        let mut handlers = shared.handlers.write().unwrap();
        let gone: Vec<Key> = handlers.keys().filter(|key| key.dc == self.id).copied().collect();
        let gone: Vec<_> = gone.iter().filter_map(|key| handlers.remove(key)).collect();
        drop(handlers);
        // What the handlers own may own endpoints, whose end takes the lock again.
        drop(gone);
    }
}
