//! Nodes joined by TLS over the loopback, and a network between them that can break.

use crate::common::{CLUSTER, DC, LONG, eventually};
use dvs_dvk::tls::{Authority, CERTIFICATE_LIFE, Credentials, NodeKey};
use dvs_dvk::{Dc, HostTimes, Node, NodeConfig, NodeId};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) const ANY: &str = "127.0.0.1:0";

pub(crate) fn credentials(authority: &Authority, node: u16) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let issued = authority.issue(NodeId(node), &key.public(), CERTIFICATE_LIFE).unwrap();
    Credentials {
        cluster: CLUSTER,
        node: NodeId(node),
        certificate: issued.certificate,
        key: key.private(),
        authority: authority.certificate().to_vec(),
    }
}

/// Times that a busy machine does not reach by itself.
pub(crate) fn config(id: u16) -> NodeConfig {
    let hosts = HostTimes {
        heartbeat: Duration::from_millis(100),
        stale: Duration::from_secs(5),
        reconnect: LONG,
    };
    NodeConfig { hosts, ..NodeConfig::new(id, CLUSTER, 1) }
}

pub(crate) struct Hosts {
    pub(crate) authority: Authority,
    pub(crate) nodes: Vec<Node>,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Hosts {
    /// Nodes 1 to `count` that listen; not connected.
    pub(crate) fn new(count: u16) -> Self {
        Hosts::with(count, config)
    }

    pub(crate) fn with(count: u16, config: impl Fn(u16) -> NodeConfig) -> Self {
        let authority = Authority::create(CLUSTER).unwrap();
        let mut hosts = Hosts { authority, nodes: Vec::new(), addresses: Vec::new() };
        for id in 1..=count {
            let node = Node::new(config(id));
            node.set_credentials(&credentials(&hosts.authority, id), None).unwrap();
            hosts.addresses.push(node.listen_tcp(ANY.parse().unwrap()).unwrap());
            hosts.nodes.push(node);
        }
        let _ = hosts.dc(0);
        hosts
    }

    /// The container on a node; its home is the first one.
    pub(crate) fn dc(&self, index: usize) -> Dc {
        self.nodes[index].dc(DC, 1)
    }
}

/// What the network does to what it is given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Forwards it.
    Fair,
    /// Keeps it, without a word to anybody.
    Silent,
}

/// A network: a port that leads to another address.
pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    shared: Arc<NetworkShared>,
    acceptor: Option<JoinHandle<()>>,
}

struct NetworkShared {
    to: SocketAddr,
    weather: Mutex<Weather>,
    changed: Condvar,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    made: AtomicUsize,
}

impl Network {
    pub(crate) fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind(ANY).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(NetworkShared {
            to,
            weather: Mutex::new(Weather::Fair),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
            made: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accepting.accept(&listener));
        Network { address, shared, acceptor: Some(acceptor) }
    }

    pub(crate) fn set(&self, weather: Weather) {
        *self.shared.weather.lock().unwrap() = weather;
        self.shared.changed.notify_all();
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections that were made so far.
    pub(crate) fn made(&self) -> usize {
        self.shared.made.load(Ordering::SeqCst)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.set(Weather::Fair);
        self.cut();
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl NetworkShared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while let Ok((near, _)) = listener.accept() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let Ok(far) = TcpStream::connect(self.to) else { continue };
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            self.made.fetch_add(1, Ordering::SeqCst);
            for (from, to) in [(&near, &far), (&far, &near)] {
                self.open.lock().unwrap().push(from.try_clone().unwrap());
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let shared = Arc::clone(self);
                std::thread::spawn(move || shared.forward(from, to));
            }
        }
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16384];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut weather = self.weather.lock().unwrap();
            while *weather == Weather::Silent {
                weather = self.changed.wait(weather).unwrap();
            }
            drop(weather);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Waits until a node has counted at least so many refused connections.
pub(crate) fn refused(node: &Node, count: u64) {
    eventually("they are refused and counted", || node.refused_connections() >= count);
}
