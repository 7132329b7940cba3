//! Taking connections, and reading from them.

use crate::batch;
use crate::core::frame::{Decoder, Frame, Kind};
use crate::core::hello::{Hello, HelloError};
use crate::core::link::{Goodbye, LinkError};
use crate::error::ConnectError;
use crate::ids::Lane;
use crate::node::{Range, Shared};
use crate::peer::Peer;
use crate::stream::Stream;
use crate::tls::{self, JOIN, LINK, TlsStream};
use dvs_sys::descriptor::{Poll, peer_credentials, poll};
use dvs_sys::process::effective_ids;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A connection has so long for its handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// Most connections whose handshake is not through.
const MAX_UNKNOWN: usize = 64;
/// Bytes read at a time.
const READ: usize = 128 << 10;

/// A listening socket; dropping the other end of `_stop` ends its thread.
pub(crate) struct Listener {
    stop: UnixStream,
    /// To be removed at the end.
    path: Option<PathBuf>,
}

impl Listener {
    pub(crate) fn stop(self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
        let _ = self.stop.shutdown(Shutdown::Both);
    }
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A connection of which nothing is known yet.
enum Fresh {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn accept(&self) -> std::io::Result<Fresh> {
        match self {
            Socket::Unix(listener) => listener.accept().map(|(stream, _)| Fresh::Unix(stream)),
            Socket::Tcp(listener) => listener.accept().map(|(stream, _)| Fresh::Tcp(stream)),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(listener) => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        }
    }
}

pub(crate) fn listen(shared: &Arc<Shared>, path: &Path) -> Result<(), ConnectError> {
    let failed = |error| ConnectError::Socket { path: path.display().to_string(), error };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(failed(error));
            }
            std::fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path)
        }
        other => other,
    }
    .map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    serve(shared, Socket::Unix(listener), Some(path.to_owned()), failed)
}

/// The address that it listens at: the port is chosen by the system where none was given.
pub(crate) fn listen_tcp(
    shared: &Arc<Shared>,
    address: SocketAddr,
) -> Result<SocketAddr, ConnectError> {
    let failed = |error| ConnectError::Socket { path: address.to_string(), error };
    if shared.tls().is_none() {
        return Err(ConnectError::NoCredentials);
    }
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    serve(shared, Socket::Tcp(listener), None, failed)?;
    Ok(bound)
}

fn serve(
    shared: &Arc<Shared>,
    socket: Socket,
    path: Option<PathBuf>,
    failed: impl Fn(std::io::Error) -> ConnectError,
) -> Result<(), ConnectError> {
    let (stop, stopped) = UnixStream::pair().map_err(failed)?;
    let mut listeners = shared.listeners.lock().unwrap();
    if shared.is_closed() {
        return Err(ConnectError::Closed);
    }
    listeners.push(Listener { stop, path });
    drop(listeners);
    shared.spawn("dvk-listen", move |shared| accept(shared, &socket, &stopped));
    Ok(())
}

fn accept(shared: &Arc<Shared>, listener: &Socket, stopped: &UnixStream) {
    while !shared.is_closed() {
        let mut entries = [Poll::readable(listener.as_fd()), Poll::readable(stopped.as_fd())];
        if poll(&mut entries, None).is_err() || entries[1].ready != 0 {
            return;
        }
        match listener.accept() {
            Ok(fresh) => welcome(shared, |shared| match fresh {
                Fresh::Unix(stream) => match foreign_user(&stream) {
                    Some(uid) => {
                        Err(format!("connection of uid {uid}, which is neither ours nor root"))
                    }
                    None => greet(shared, Stream::Unix(stream)).map(Some),
                },
                Fresh::Tcp(stream) => greet_host(shared, stream),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // No descriptors left, most likely: the connection stays in the queue meanwhile.
                shared.refuse_connection(format!("accept: {error}"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Takes a connection that the caller vouches for: only a node of the cluster can be at its other
/// end.
pub(crate) fn adopt(shared: &Arc<Shared>, stream: UnixStream) {
    welcome(shared, |shared| greet(shared, Stream::Unix(stream)).map(Some));
}

/// Gets to know a connection, and reads from it, on a thread of its own.
fn welcome(
    shared: &Arc<Shared>,
    greet: impl FnOnce(&Arc<Shared>) -> Result<Option<Greeted>, String> + Send + 'static,
) {
    if shared.strangers.fetch_add(1, Ordering::AcqRel) >= MAX_UNKNOWN {
        shared.strangers.fetch_sub(1, Ordering::AcqRel);
        shared.refuse_connection("too many connections without a handshake".into());
        return;
    }
    shared.spawn("dvk-read", move |shared| {
        let greeted = greet(shared);
        shared.strangers.fetch_sub(1, Ordering::AcqRel);
        match greeted {
            Ok(Some((peer, connection, lane, mut reader))) => {
                if let Err(reason) = read(shared, &peer, connection, lane, &mut reader) {
                    shared.refuse_connection(reason);
                }
            }
            Ok(None) => {}
            Err(reason) => shared.refuse_connection(reason),
        }
    });
}

/// The uid of the process at the other end, unless it is ours or root's.
pub(crate) fn foreign_user(stream: &UnixStream) -> Option<u32> {
    let uid = peer_credentials(stream.as_fd()).map_or(u32::MAX, |peer| peer.uid);
    (uid != 0 && uid != effective_ids().0).then_some(uid)
}

type Greeted = (Arc<Peer>, u64, Lane, Reader);

/// A connection from another host: a node's link, or the question of somebody who wants to join
/// (then there is nothing to read afterwards).
fn greet_host(shared: &Arc<Shared>, socket: TcpStream) -> Result<Option<Greeted>, String> {
    let from = socket.peer_addr().map_or_else(|_| "?".into(), |address| address.to_string());
    let failed = |error: std::io::Error| format!("connection from {from}: {error}");
    let tls = shared.tls().ok_or("no certificate")?;
    prepare(&socket).map_err(failed)?;
    let stream = TlsStream::accept(&tls, socket).map_err(failed)?;
    match stream.protocol() {
        protocol if protocol == JOIN => {
            tls::answer(&tls, &stream)
                .map_err(|error| format!("connection from {from}: {error}"))?;
            return Ok(None);
        }
        protocol if protocol == LINK => {}
        _ => return Err(format!("connection from {from}: it names no protocol of ours")),
    }
    let Some(shown) = stream.peer() else {
        return Err(format!("connection from {from}: it shows no certificate"));
    };
    let stream = Stream::Tls(Box::new(stream));
    if shared.revoked.has(&shown) {
        let frame = Frame::control(Kind::Goodbye, Goodbye::Revoked as u8, 0, Vec::new());
        stream.last_word(&frame.encode());
        return Err(format!("connection from {from}: its certificate is revoked"));
    }
    greet(shared, stream).map(Some).map_err(|error| format!("connection from {from}: {error}"))
}

/// What every connection between hosts needs, before a byte is sent.
pub(crate) fn prepare(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nonblocking(false)?;
    // Frames are put together before they are written; waiting for more would only delay them.
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(HANDSHAKE))?;
    // Of the handshake alone: later on writing never waits.
    socket.set_write_timeout(Some(HANDSHAKE))
}

fn greet(shared: &Arc<Shared>, stream: Stream) -> Result<Greeted, String> {
    let failed = |error: std::io::Error| format!("connection without a handshake: {error}");
    if let Stream::Unix(stream) = &stream {
        stream.set_nonblocking(false).map_err(failed)?;
    }
    stream.set_read_timeout(Some(HANDSHAKE)).map_err(failed)?;
    let stream = Arc::new(stream);
    let mut reader = Reader::new(Arc::clone(&stream));
    let frame = reader.next()?.ok_or("connection without a handshake")?;
    let hello = Hello::parse(&frame).map_err(|error| error.to_string())?;
    let config = &shared.config;
    hello.check(&config.cluster, config.id, &config.proof).map_err(|error| error.to_string())?;
    let range = match stream.tls() {
        Some(tls) if !tls.speaks_for(&config.cluster, hello.node) => {
            return Err(format!("its certificate does not speak for node {}", hello.node));
        }
        Some(_) => Range::Network,
        None => Range::Machine,
    };
    let peer = shared.peer_or_new(hello.node, range).map_err(|error| error.to_string())?;
    stream.set_read_timeout(None).map_err(failed)?;
    let connection = shared.connection_number();
    if let Err(error) = peer.accepted(shared, connection, &hello, &stream) {
        if let LinkError::Hello(HelloError::Ended { .. }) = error {
            let frame = Frame::control(Kind::Goodbye, Goodbye::Ended as u8, 0, Vec::new());
            stream.last_word(&frame.encode());
        }
        return Err(format!("connection of node {}: {error}", hello.node));
    }
    Ok((peer, connection, hello.lane, reader))
}

/// Frames from a socket.
pub(crate) struct Reader {
    stream: Arc<Stream>,
    decoder: Decoder,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Why the stream ended, if it ended badly.
    pub(crate) failure: Option<std::io::Error>,
}

impl Reader {
    pub(crate) fn new(stream: Arc<Stream>) -> Self {
        let decoder = Decoder::default();
        Reader { stream, decoder, buffer: vec![0; READ], start: 0, end: 0, failure: None }
    }

    /// The next frame; `None` at the end of the stream, however it came.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, String> {
        loop {
            let mut input = &self.buffer[self.start..self.end];
            let frame = self.decoder.next(&mut input).map_err(|error| error.to_string())?;
            self.start = self.end - input.len();
            if frame.is_some() {
                return Ok(frame);
            }
            // What was sent because of earlier frames must not wait for later ones.
            batch::flush();
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => (self.start, self.end) = (0, length),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure = Some(error);
                    return Ok(None);
                }
            }
        }
    }
}

/// Reads from a connection until it ends. An error is what a peer did wrong.
pub(crate) fn read(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    connection: u64,
    lane: Lane,
    reader: &mut Reader,
) -> Result<(), String> {
    let batch = batch::Open::new();
    let result = loop {
        let frame = match reader.next() {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(()),
            Err(reason) => {
                peer.protocol_error(shared, lane, connection);
                break Err(format!("connection of node {}: {reason}", peer.id()));
            }
        };
        match peer.received(shared, lane, connection, frame) {
            Ok(()) => {}
            Err(LinkError::Superseded) => break Ok(()),
            Err(error) => {
                if matches!(error, LinkError::Lane(_)) {
                    peer.protocol_error(shared, lane, connection);
                }
                break Err(format!("connection of node {}: {error}", peer.id()));
            }
        }
    };
    drop(batch);
    reader.stream.shutdown();
    peer.closed(shared, lane, connection);
    result
}
