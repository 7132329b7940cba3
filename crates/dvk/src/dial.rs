//! Making the connections to a peer, and making them again when they are cut.

use crate::core::frame::{Frame, Kind};
use crate::core::hello::HelloError;
use crate::core::link::{Goodbye, LinkError};
use crate::error::ConnectError;
use crate::ids::{Lane, NodeId};
use crate::listen::{HANDSHAKE, Reader, foreign_user, prepare, read};
use crate::node::{Range, Shared};
use crate::peer::Peer;
use crate::stream::Stream;
use crate::tls::TlsStream;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Time between two attempts inside a machine,
const AGAIN: Duration = Duration::from_millis(10);
/// and between hosts.
const AGAIN_HOST: Duration = Duration::from_millis(200);
/// A host that does not answer a connection for so long is tried anew.
const CONNECT: Duration = Duration::from_secs(3);
/// A dialer whose lane the peer's own connection serves looks this often whether it still does.
const LOOK: Duration = Duration::from_millis(500);

/// Makes connections that neither a path nor an address leads to (a forwarded channel): every call
/// gives a new one. Whoever gives it vouches that only the wanted node can be at its other end.
pub type Connector = Arc<dyn Fn() -> std::io::Result<UnixStream> + Send + Sync>;

/// Where another node takes connections.
#[derive(Clone)]
pub enum LinkAddress {
    /// A unix socket of this machine.
    Unix(PathBuf),
    /// TLS over TCP.
    Tcp(SocketAddr),
    /// Somebody makes the connections.
    Through(Connector),
}

impl From<&Path> for LinkAddress {
    fn from(path: &Path) -> Self {
        LinkAddress::Unix(path.to_owned())
    }
}

impl From<&str> for LinkAddress {
    fn from(path: &str) -> Self {
        LinkAddress::Unix(path.into())
    }
}

impl From<&PathBuf> for LinkAddress {
    fn from(path: &PathBuf) -> Self {
        LinkAddress::Unix(path.clone())
    }
}

impl From<PathBuf> for LinkAddress {
    fn from(path: PathBuf) -> Self {
        LinkAddress::Unix(path)
    }
}

impl From<SocketAddr> for LinkAddress {
    fn from(address: SocketAddr) -> Self {
        LinkAddress::Tcp(address)
    }
}

impl std::fmt::Display for LinkAddress {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinkAddress::Unix(path) => path.display().fmt(out),
            LinkAddress::Tcp(address) => address.fmt(out),
            LinkAddress::Through(_) => out.write_str("a forwarded connection"),
        }
    }
}

impl LinkAddress {
    fn range(&self) -> Range {
        match self {
            // A forwarded connection ends with the program that forwards it: there is no other.
            LinkAddress::Unix(_) | LinkAddress::Through(_) => Range::Machine,
            LinkAddress::Tcp(_) => Range::Network,
        }
    }

    fn again(&self) -> Duration {
        match self {
            LinkAddress::Unix(_) | LinkAddress::Through(_) => AGAIN,
            LinkAddress::Tcp(_) => AGAIN_HOST,
        }
    }

    /// One connection to a node, on which nothing of the link was said yet.
    fn open(&self, shared: &Shared, peer: NodeId) -> Result<Stream, ConnectError> {
        let failed = |error| ConnectError::Socket { path: self.to_string(), error };
        match self {
            LinkAddress::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                if let Some(uid) = foreign_user(&stream) {
                    return Err(ConnectError::WrongUser { path: self.to_string(), uid });
                }
                Ok(Stream::Unix(stream))
            }
            LinkAddress::Through(connector) => connector().map(Stream::Unix).map_err(failed),
            LinkAddress::Tcp(address) => {
                let tls = shared.tls().ok_or(ConnectError::NoCredentials)?;
                let socket = TcpStream::connect_timeout(address, CONNECT).map_err(failed)?;
                prepare(&socket).map_err(failed)?;
                let stream = TlsStream::connect(&tls, peer, socket).map_err(|error| {
                    if error.kind() == std::io::ErrorKind::InvalidData {
                        return ConnectError::Tls { address: self.to_string(), error };
                    }
                    failed(error)
                })?;
                if stream.peer().is_none_or(|shown| shared.revoked.has(&shown)) {
                    let error = HelloError::Revoked { node: peer };
                    return Err(ConnectError::Handshake { node: peer, error });
                }
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    }
}

/// The threads, one for each lane, that make a peer's connections.
struct Dialer {
    peer: Arc<Peer>,
    address: LinkAddress,
    until: Instant,
    /// Why there will be no session.
    failure: Mutex<Option<ConnectError>>,
    /// Threads that have not ended.
    running: Mutex<usize>,
}

pub(crate) fn connect(
    shared: &Arc<Shared>,
    id: NodeId,
    address: &LinkAddress,
    timeout: Duration,
) -> Result<(), ConnectError> {
    let until = Instant::now() + timeout;
    if id == shared.config.id {
        return Err(ConnectError::Handshake { node: id, error: HelloError::Ourselves(id) });
    }
    let peer = shared.peer_or_new(id, address.range())?;
    let dialer = Arc::new(Dialer {
        peer: Arc::clone(&peer),
        address: address.clone(),
        until,
        failure: Mutex::new(None),
        running: Mutex::new(Lane::ALL.len()),
    });
    // While an earlier session's threads wind up, its end is waited for.
    while !peer.start_dialing() {
        let open = peer.wait_open(Instant::now() + AGAIN, || false);
        if open {
            return Ok(());
        }
        if Instant::now() >= until || shared.is_closed() {
            return Err(ConnectError::TimedOut { node: id });
        }
    }
    for lane in Lane::ALL {
        let dialer = Arc::clone(&dialer);
        shared.spawn("dvk-dial", move |shared| {
            dialer.run(shared, lane);
            let mut running = dialer.running.lock().unwrap();
            *running -= 1;
            if *running == 0 {
                dialer.peer.stop_dialing();
            }
        });
    }
    let stop = || dialer.failure.lock().unwrap().is_some() || *dialer.running.lock().unwrap() == 0;
    if peer.wait_open(until, stop) {
        return Ok(());
    }
    if shared.is_closed() {
        return Err(ConnectError::Closed);
    }
    let failure = dialer.failure.lock().unwrap().take();
    Err(failure.unwrap_or(ConnectError::TimedOut { node: id }))
}

impl Dialer {
    fn run(&self, shared: &Arc<Shared>, lane: Lane) {
        let mut session = None;
        loop {
            let current = self.peer.incarnation();
            if session.is_some() && current.is_none() {
                return;
            }
            session = session.or(current);
            let over = session.is_none() && Instant::now() >= self.until;
            if over || shared.is_closed() || self.failure.lock().unwrap().is_some() {
                return;
            }
            // The peer's own connection serves as well as ours.
            if self.peer.is_open(lane) {
                self.peer.wait_not_open(lane, LOOK);
                continue;
            }
            if let Err(error) = self.once(shared, lane) {
                let mut failure = self.failure.lock().unwrap();
                // A socket that is not there yet, or not any more, may come (again); and what was
                // said in the dark while a session was there is no reason to end it.
                let passing = matches!(error, ConnectError::Socket { .. })
                    || (session.is_some() && matches!(error, ConnectError::Tls { .. }));
                if !passing || (session.is_none() && Instant::now() >= self.until) {
                    failure.get_or_insert(error);
                }
            }
            self.pause(shared);
        }
    }

    /// Waits before the next attempt; not longer than the node lives.
    fn pause(&self, shared: &Shared) {
        let until = Instant::now() + self.address.again();
        while !shared.is_closed() && Instant::now() < until {
            std::thread::sleep(AGAIN);
        }
    }

    /// One connection from its beginning to its end.
    fn once(&self, shared: &Arc<Shared>, lane: Lane) -> Result<(), ConnectError> {
        let failed = |error| ConnectError::Socket { path: self.address.to_string(), error };
        let stream = self.address.open(shared, self.peer.id())?;
        stream.set_read_timeout(Some(HANDSHAKE)).map_err(failed)?;
        let stream = Arc::new(stream);
        let connection = shared.connection_number();
        self.peer.connected(shared, lane, connection, &stream);
        let mut reader = Reader::new(Arc::clone(&stream));
        let greeted = match reader.next() {
            Ok(Some(frame)) => self.peer.received(shared, lane, connection, frame),
            Ok(None) => match reader.failure.take() {
                // What it thinks of our certificate comes after the handshake (RFC 8446, 4.4.2.4).
                Some(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    let address = self.address.to_string();
                    stream.shutdown();
                    self.peer.closed(shared, lane, connection);
                    return Err(ConnectError::Tls { address, error });
                }
                _ => Err(LinkError::Superseded),
            },
            Err(_) => Err(LinkError::Hello(HelloError::NotALink)),
        };
        match greeted {
            Ok(()) => {}
            Err(error) => {
                if let LinkError::Hello(HelloError::Ended { .. }) = error {
                    let frame = Frame::control(Kind::Goodbye, Goodbye::Ended as u8, 0, Vec::new());
                    stream.last_word(&frame.encode());
                }
                stream.shutdown();
                self.peer.closed(shared, lane, connection);
                return match error {
                    LinkError::Hello(error) => {
                        Err(ConnectError::Handshake { node: self.peer.id(), error })
                    }
                    // The other side closed without a word: its own connection came first, or it
                    // ends. Another attempt will tell.
                    LinkError::Superseded | LinkError::Lane(_) => Ok(()),
                };
            }
        }
        stream.set_read_timeout(None).map_err(failed)?;
        if let Err(reason) = read(shared, &self.peer, connection, lane, &mut reader) {
            shared.refuse_connection(reason);
        }
        Ok(())
    }
}
