//! How the parts of a container reach each other: every server's own transport, over DVK endpoints.

use super::post::Poster;
use dvs_carry::{CarryMessage, CarryTransport, NodeGone};
use dvs_dvk::{Address, CallError, Endpoint, Lane};
use dvs_fs::messages::{ClientId, Notice, Operation, Reply, Request};
use dvs_fs_client::{FsTransport, TransportError};
use dvs_linux::ports::{PeerError, Peers};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long a file operation may take: locks and full pipes are waited for as long as a program
/// wants; the end of the server's node ends the wait at once.
const FILE_PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Addresses of one service on the other nodes; known once all parts are there.
#[derive(Debug, Default)]
pub(crate) struct Directory(OnceLock<BTreeMap<u16, Address>>);

impl Directory {
    /// Learns them, once.
    pub(crate) fn learn(&self, addresses: BTreeMap<u16, Address>) {
        if self.0.set(addresses).is_err() {
            log::error!("the nodes of a container were named twice");
        }
    }

    pub(crate) fn of(&self, node: u16) -> Option<Address> {
        self.0.get()?.get(&node).copied()
    }
}

/// To the file-system server on another node.
pub(crate) struct RemoteFiles {
    endpoint: Endpoint,
    server: Address,
    poster: Arc<Poster>,
}

impl RemoteFiles {
    pub(crate) fn new(endpoint: Endpoint, server: Address) -> Self {
        let poster = Poster::new(endpoint.clone(), Lane::Small);
        RemoteFiles { endpoint, server, poster }
    }
}

/// The file-system protocol carries its own version.
fn encode(request: &Request) -> Vec<u8> {
    // Plain data into memory: it cannot fail; and an empty message is refused by the other side.
    postcard::to_stdvec(request).unwrap_or_default()
}

/// Contents take the lane for blocks, so that a lookup need not queue behind them.
fn lane_of(operation: &Operation) -> Lane {
    match operation {
        Operation::Read { .. } | Operation::Write { .. } | Operation::ReadDirectory { .. } => {
            Lane::Bulk
        }
        _ => Lane::Small,
    }
}

impl FsTransport for RemoteFiles {
    fn call(&self, request: Request) -> Result<Reply, TransportError> {
        let lane = lane_of(&request.operation);
        let body = encode(&request);
        let answer = self
            .endpoint
            .call_on(lane, &self.server, body, FILE_PATIENCE)
            .map_err(|error| transport_error(&error))?;
        dvs_fs::decode::decode_reply(&answer).map_err(|error| {
            log::error!("the file-system server's reply: {error}");
            TransportError::Gone
        })
    }

    fn post(&self, request: Request) {
        if let Err(error) = self.poster.post(&self.server, encode(&request)) {
            log::debug!("a message to the file-system server was not sent: {error}");
        }
    }
}

fn transport_error(error: &CallError) -> TransportError {
    match error {
        CallError::Busy { .. } | CallError::TimedOut { .. } | CallError::Dropped { .. } => {
            TransportError::Lost
        }
        other => {
            log::debug!("the file-system server cannot be reached: {other}");
            TransportError::Gone
        }
    }
}

/// Where the file-system server's notices go: by client, learnt from where its requests come from.
#[derive(Default)]
pub(crate) struct Clients {
    remote: Mutex<BTreeMap<ClientId, Address>>,
    poster: OnceLock<Arc<Poster>>,
    local: OnceLock<(ClientId, LocalDelivery)>,
    fenced: OnceLock<Box<dyn Fn(u16) + Send + Sync>>,
}

type LocalDelivery = Box<dyn Fn(Notice) + Send + Sync>;

/// Most clients of a server that are remembered.
const MAX_CLIENTS: usize = dvs_pm::messages::MAX_MEMBERS;

impl Clients {
    /// Notices to clients elsewhere are posted from here.
    pub(crate) fn post_from(&self, endpoint: Endpoint) {
        if self.poster.set(Poster::new(endpoint, Lane::Small)).is_err() {
            log::error!("the file-system server has two endpoints");
        }
    }

    /// The client on this node.
    pub(crate) fn local(&self, client: ClientId, deliver: LocalDelivery) {
        if self.local.set((client, deliver)).is_err() {
            log::error!("the file-system server has two clients here");
        }
    }

    /// Who ends the part of a node whose client did not obey.
    pub(crate) fn on_fenced(&self, end: Box<dyn Fn(u16) + Send + Sync>) {
        if self.fenced.set(end).is_err() {
            log::error!("the file-system server's fence was given twice");
        }
    }

    /// A client did not obey in time and is cut off.
    pub(crate) fn fenced(&self, client: ClientId) {
        log::error!("the file-system client of node {} is cut off", client.node);
        if let Some(end) = self.fenced.get() {
            end(client.node);
        }
    }

    /// A client speaks from this address. False: it claims another node, or there are too many.
    pub(crate) fn heard(&self, client: ClientId, from: Address) -> bool {
        if client.node != from.node.0 {
            return false;
        }
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if !remote.contains_key(&client) && remote.len() >= MAX_CLIENTS {
            return false;
        }
        remote.insert(client, from);
        true
    }

    /// The clients of a node, which are forgotten.
    pub(crate) fn forget_node(&self, node: u16) -> Vec<ClientId> {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<ClientId> =
            remote.keys().copied().filter(|client| client.node == node).collect();
        gone.iter().for_each(|client| {
            remote.remove(client);
        });
        gone
    }

    /// Sends a notice.
    pub(crate) fn notify(&self, client: ClientId, notice: Notice) {
        if let Some((local, deliver)) = self.local.get()
            && *local == client
        {
            deliver(notice);
            return;
        }
        let address =
            self.remote.lock().unwrap_or_else(PoisonError::into_inner).get(&client).copied();
        let (Some(address), Some(poster)) = (address, self.poster.get()) else {
            log::debug!("a notice for {client:?}, who is not known");
            return;
        };
        if let Err(error) = poster.post(&address, super::messages::encode(&notice)) {
            log::debug!("a notice for {client:?} was not sent: {error}");
        }
    }
}

/// To the carriers on other nodes.
pub(crate) struct CarryLinks {
    poster: Arc<Poster>,
    directory: Arc<Directory>,
}

impl CarryLinks {
    pub(crate) fn new(endpoint: Endpoint, directory: Arc<Directory>) -> Self {
        CarryLinks { poster: Poster::new(endpoint, Lane::Bulk), directory }
    }
}

impl CarryTransport for CarryLinks {
    fn post(&self, to: u16, message: CarryMessage) -> Result<(), NodeGone> {
        let address = self.directory.of(to).ok_or(NodeGone(to))?;
        self.poster.post(&address, message.encode()).map_err(|error| {
            log::debug!("carry to node {to}: {error}");
            NodeGone(to)
        })
    }
}

/// To the personalities on other nodes.
pub(crate) struct LinuxLinks {
    poster: Arc<Poster>,
    directory: Arc<Directory>,
}

impl LinuxLinks {
    pub(crate) fn new(endpoint: Endpoint, directory: Arc<Directory>) -> Self {
        LinuxLinks { poster: Poster::new(endpoint, Lane::Small), directory }
    }
}

impl Peers for LinuxLinks {
    fn call(&self, to: u16, message: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, PeerError> {
        let address = self.directory.of(to).ok_or(PeerError::Gone(to))?;
        self.poster.endpoint().call(&address, message, deadline).map_err(|error| {
            log::debug!("asking node {to}: {error}");
            match error {
                CallError::TimedOut { .. } | CallError::Busy { .. } => PeerError::TimedOut(to),
                _ => PeerError::Gone(to),
            }
        })
    }

    fn post(&self, to: u16, message: Vec<u8>) -> Result<(), PeerError> {
        let address = self.directory.of(to).ok_or(PeerError::Gone(to))?;
        self.poster.post(&address, message).map_err(|error| {
            log::debug!("telling node {to}: {error}");
            PeerError::Gone(to)
        })
    }
}
