//! Making the connections to a peer, and making them again when they are cut.

use crate::core::frame::{Frame, Kind};
use crate::core::hello::HelloError;
use crate::core::link::{Goodbye, LinkError};
use crate::error::ConnectError;
use crate::ids::{Lane, NodeId};
use crate::listen::{HANDSHAKE, Reader, foreign_user, read};
use crate::node::Shared;
use crate::peer::Peer;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Time between two attempts.
const AGAIN: Duration = Duration::from_millis(10);

/// The threads, one for each lane, that make a peer's connections.
struct Dialer {
    peer: Arc<Peer>,
    path: PathBuf,
    until: Instant,
    /// Why there will be no session.
    failure: Mutex<Option<ConnectError>>,
    /// Threads that have not ended.
    running: Mutex<usize>,
}

pub(crate) fn connect(
    shared: &Arc<Shared>,
    id: NodeId,
    path: &Path,
    timeout: Duration,
) -> Result<(), ConnectError> {
    let until = Instant::now() + timeout;
    if id == shared.config.id {
        return Err(ConnectError::Handshake { node: id, error: HelloError::Ourselves(id) });
    }
    let peer = shared.peer_or_new(id)?;
    let dialer = Arc::new(Dialer {
        peer: Arc::clone(&peer),
        path: path.to_owned(),
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
            if !self.peer.is_open(lane)
                && let Err(error) = self.once(shared, lane)
            {
                let mut failure = self.failure.lock().unwrap();
                // A socket that is not there yet, or not any more, may come (again).
                if !matches!(error, ConnectError::Socket { .. }) || Instant::now() >= self.until {
                    failure.get_or_insert(error);
                }
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// One connection from its beginning to its end.
    fn once(&self, shared: &Arc<Shared>, lane: Lane) -> Result<(), ConnectError> {
        let path = self.path.display().to_string();
        let failed = |error| ConnectError::Socket { path: path.clone(), error };
        let stream = UnixStream::connect(&self.path).map_err(failed)?;
        if let Some(uid) = foreign_user(&stream) {
            return Err(ConnectError::WrongUser { path, uid });
        }
        stream.set_read_timeout(Some(HANDSHAKE)).map_err(failed)?;
        let stream = Arc::new(stream);
        let connection = shared.connection_number();
        self.peer.connected(shared, lane, connection, &stream);
        let mut reader = Reader::new(Arc::clone(&stream));
        let greeted = match reader.next() {
            Ok(Some(frame)) => self.peer.received(shared, lane, connection, frame),
            Ok(None) => Err(LinkError::Superseded),
            Err(_) => Err(LinkError::Hello(HelloError::NotALink)),
        };
        match greeted {
            Ok(()) => {}
            Err(error) => {
                if let LinkError::Hello(HelloError::Ended { .. }) = error {
                    let frame = Frame::control(Kind::Goodbye, Goodbye::Ended as u8, 0, Vec::new());
                    let _ = (&*stream).write_all(&frame.encode());
                }
                let _ = stream.shutdown(std::net::Shutdown::Both);
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
