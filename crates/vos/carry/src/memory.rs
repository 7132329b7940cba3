//! A transport inside one process, for tests: FIFO for each pair of nodes, every message encoded and
//! decoded as on a link, nodes can be cut off.

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Weak};

use crate::messages::CarryMessage;
use crate::transport::{CarryTransport, NodeGone};
use crate::{Carrier, NoAttacher};

/// How messages reach their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// In the posting thread.
    Inline,
    /// By a thread of each receiving node.
    Threaded,
}

/// Some carriers joined in memory.
#[derive(Debug)]
pub struct MemoryNetwork {
    delivery: Delivery,
    nodes: Mutex<HashMap<u16, Node>>,
}

#[derive(Debug)]
struct Node {
    carrier: Weak<Carrier>,
    inbox: Option<Sender<(u16, Vec<u8>)>>,
}

#[derive(Debug)]
struct Port {
    node: u16,
    network: Weak<MemoryNetwork>,
}

impl MemoryNetwork {
    /// Without nodes.
    #[must_use]
    pub fn new(delivery: Delivery) -> Arc<MemoryNetwork> {
        Arc::new(MemoryNetwork { delivery, nodes: Mutex::default() })
    }

    /// The way out of a node.
    #[must_use]
    pub fn port(self: &Arc<Self>, node: u16) -> Arc<dyn CarryTransport> {
        Arc::new(Port { node, network: Arc::downgrade(self) })
    }

    /// Messages to `node` go to this carrier from now on.
    pub fn join(&self, node: u16, carrier: &Arc<Carrier>) {
        let weak = Arc::downgrade(carrier);
        let inbox = (self.delivery == Delivery::Threaded).then(|| {
            let (sender, receiver) = channel::<(u16, Vec<u8>)>();
            let carrier = Weak::clone(&weak);
            // Ends when the node leaves the network.
            std::thread::spawn(move || {
                for (from, bytes) in receiver {
                    let Some(carrier) = carrier.upgrade() else { return };
                    hand_over(&carrier, from, &bytes);
                }
            });
            sender
        });
        self.nodes.lock().unwrap().insert(node, Node { carrier: weak, inbox });
    }

    /// Makes a carrier without a file system and joins it.
    ///
    /// # Panics
    /// When the process has no descriptors or threads left.
    #[must_use]
    pub fn carrier(self: &Arc<Self>, node: u16) -> Arc<Carrier> {
        let config = crate::CarrierConfig::new(node);
        let carrier =
            Arc::new(Carrier::start(config, self.port(node), Arc::new(NoAttacher)).unwrap());
        self.join(node, &carrier);
        carrier
    }

    /// Cuts a node off and tells the others.
    pub fn kill(&self, node: u16) {
        let rest: Vec<Weak<Carrier>> = {
            let mut nodes = self.nodes.lock().unwrap();
            nodes.remove(&node);
            nodes.values().map(|other| Weak::clone(&other.carrier)).collect()
        };
        for carrier in rest.iter().filter_map(Weak::upgrade) {
            carrier.node_gone(node);
        }
    }
}

fn hand_over(carrier: &Carrier, from: u16, bytes: &[u8]) {
    if let Ok(message) = CarryMessage::decode(bytes) {
        carrier.deliver(from, message);
    }
}

impl CarryTransport for Port {
    fn post(&self, to: u16, message: CarryMessage) -> Result<(), NodeGone> {
        let network = self.network.upgrade().ok_or(NodeGone(to))?;
        let bytes = message.encode();
        let carrier = {
            let nodes = network.nodes.lock().unwrap();
            if !nodes.contains_key(&self.node) {
                return Err(NodeGone(to));
            }
            let node = nodes.get(&to).ok_or(NodeGone(to))?;
            if let Some(inbox) = &node.inbox {
                return inbox.send((self.node, bytes)).map_err(|_| NodeGone(to));
            }
            node.carrier.upgrade().ok_or(NodeGone(to))?
        };
        hand_over(&carrier, self.node, &bytes);
        Ok(())
    }
}
