//! The real server behind an in-process transport.

use dvs_fs::messages::{ClientId, Notice, Operation, Reply, Request};
use dvs_fs::tree::Tree;
use dvs_fs::tree::host::HostTree;
use dvs_fs::{FileServer, Notifier, SystemClock, TreeConfig};
use dvs_fs_client::{Client, FsTransport, TransportError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// The clients of a server, by their identity.
#[derive(Default)]
pub struct Clients {
    all: Mutex<HashMap<ClientId, Weak<Client>>>,
    /// Clients that did not obey in time; there must be none.
    pub fenced: AtomicU64,
}

impl Notifier for Clients {
    fn notify(&self, client: ClientId, notice: Notice) {
        let client = self.all.lock().unwrap().get(&client).and_then(Weak::upgrade);
        if let Some(client) = client {
            client.deliver(notice);
        }
    }

    fn fenced(&self, _: ClientId) {
        self.fenced.fetch_add(1, Ordering::Relaxed);
    }
}

/// The server.
pub struct Real {
    server: FileServer,
    pub clients: Arc<Clients>,
    /// Requests for locks so far.
    pub locks: AtomicU64,
}

impl Real {
    pub fn new(tree: Arc<dyn Tree>) -> Arc<Real> {
        let clients = Arc::<Clients>::default();
        let clock = Arc::new(SystemClock);
        let server = FileServer::with_tree(tree, clock, Arc::clone(&clients) as _);
        Arc::new(Real { server, clients, locks: AtomicU64::new(0) })
    }

    /// The tree that a configuration describes.
    pub fn host(config: &TreeConfig) -> Arc<Real> {
        Real::new(Arc::new(HostTree::open(config).unwrap()))
    }

    pub fn join(&self, client: &Arc<Client>) {
        self.clients.all.lock().unwrap().insert(client.id(), Arc::downgrade(client));
    }
}

impl FsTransport for Real {
    fn call(&self, request: Request) -> Result<Reply, TransportError> {
        if matches!(request.operation, Operation::SetLock { .. }) {
            self.locks.fetch_add(1, Ordering::Relaxed);
        }
        let (sender, receiver) = channel();
        let sink = Box::new(move |reply| drop(sender.send(reply)));
        self.server.handle(request, sink);
        // A session that ended answers nothing any more.
        receiver.recv_timeout(Duration::from_secs(100)).map_err(|_| TransportError::Gone)
    }

    fn post(&self, request: Request) {
        self.server.handle(request, Box::new(drop));
    }
}
