//! Taking connections, and reading from them.

use crate::batch;
use crate::core::frame::{Decoder, Frame, Kind};
use crate::core::hello::{Hello, HelloError};
use crate::core::link::{Goodbye, LinkError};
use crate::error::ConnectError;
use crate::ids::Lane;
use crate::node::Shared;
use crate::peer::Peer;
use dvs_sys::descriptor::{Poll, peer_credentials, poll};
use dvs_sys::process::effective_ids;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    path: PathBuf,
}

impl Listener {
    pub(crate) fn stop(self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = self.stop.shutdown(Shutdown::Both);
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
    let (stop, stopped) = UnixStream::pair().map_err(failed)?;
    let mut listeners = shared.listeners.lock().unwrap();
    if shared.is_closed() {
        return Err(ConnectError::Closed);
    }
    listeners.push(Listener { stop, path: path.to_owned() });
    drop(listeners);
    shared.spawn("dvk-listen", move |shared| accept(shared, &listener, &stopped));
    Ok(())
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener, stopped: &UnixStream) {
    let unknown = Arc::new(AtomicUsize::new(0));
    while !shared.is_closed() {
        let mut entries = [Poll::readable(listener.as_fd()), Poll::readable(stopped.as_fd())];
        if poll(&mut entries, None).is_err() || entries[1].ready != 0 {
            return;
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // No descriptors left, most likely: the connection stays in the queue meanwhile.
                shared.refuse_connection(format!("accept: {error}"));
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if unknown.load(Ordering::Acquire) >= MAX_UNKNOWN {
            shared.refuse_connection("too many connections without a handshake".into());
            continue;
        }
        unknown.fetch_add(1, Ordering::AcqRel);
        let unknown = Arc::clone(&unknown);
        shared.spawn("dvk-read", move |shared| {
            let greeted = greet(shared, stream);
            unknown.fetch_sub(1, Ordering::AcqRel);
            match greeted {
                Ok((peer, connection, lane, mut reader)) => {
                    if let Err(reason) = read(shared, &peer, connection, lane, &mut reader) {
                        shared.refuse_connection(reason);
                    }
                }
                Err(reason) => shared.refuse_connection(reason),
            }
        });
    }
}

/// The uid of the process at the other end, unless it is ours or root's.
pub(crate) fn foreign_user(stream: &UnixStream) -> Option<u32> {
    let uid = peer_credentials(stream.as_fd()).map_or(u32::MAX, |peer| peer.uid);
    (uid != 0 && uid != effective_ids().0).then_some(uid)
}

type Greeted = (Arc<Peer>, u64, Lane, Reader);

fn greet(shared: &Arc<Shared>, stream: UnixStream) -> Result<Greeted, String> {
    if let Some(uid) = foreign_user(&stream) {
        return Err(format!("connection of uid {uid}, which is neither ours nor root"));
    }
    let failed = |error: std::io::Error| format!("connection without a handshake: {error}");
    stream.set_nonblocking(false).map_err(failed)?;
    stream.set_read_timeout(Some(HANDSHAKE)).map_err(failed)?;
    let stream = Arc::new(stream);
    let mut reader = Reader::new(Arc::clone(&stream));
    let frame = reader.next()?.ok_or("connection without a handshake")?;
    let hello = Hello::parse(&frame).map_err(|error| error.to_string())?;
    let config = &shared.config;
    hello.check(&config.cluster, config.id, &config.proof).map_err(|error| error.to_string())?;
    let peer = shared.peer_or_new(hello.node).map_err(|error| error.to_string())?;
    stream.set_read_timeout(None).map_err(failed)?;
    let connection = shared.connection_number();
    if let Err(error) = peer.accepted(shared, connection, &hello, &stream) {
        if let LinkError::Hello(HelloError::Ended { .. }) = error {
            let frame = Frame::control(Kind::Goodbye, Goodbye::Ended as u8, 0, Vec::new());
            let _ = (&*stream).write_all(&frame.encode());
        }
        return Err(format!("connection of node {}: {error}", hello.node));
    }
    Ok((peer, connection, hello.lane, reader))
}

/// Frames from a socket.
pub(crate) struct Reader {
    stream: Arc<UnixStream>,
    decoder: Decoder,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Reader {
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        let decoder = Decoder::default();
        Reader { stream, decoder, buffer: vec![0; READ], start: 0, end: 0 }
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
            match (&*self.stream).read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => (self.start, self.end) = (0, length),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(None),
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
    let _ = reader.stream.shutdown(Shutdown::Both);
    peer.closed(shared, lane, connection);
    result
}
