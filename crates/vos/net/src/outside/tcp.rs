//! Connections to the outside.

use super::packet::{Unreachable, refusal, turn_around, unreachable};
use crate::member::Member;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Most connections that are being made outside; with more, a program's kernel asks again later.
pub const MAX_CONNECTING: usize = 128;
/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 512;
/// How long a connection outside may take; then the program's own limit decides.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How long a connection outside waits to be taken by the program that asked.
const TAKE_LIMIT: Duration = Duration::from_secs(30);
/// Bytes read at once.
const BLOCK: usize = 64 << 10;

/// A program's port and where it wants to.
type Flow = (u16, SocketAddrV4);

enum State {
    Connecting,
    Ready(TcpStream, Instant),
}

/// Connections of one container.
#[derive(Default)]
pub(crate) struct Connections {
    flows: Mutex<HashMap<Flow, State>>,
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    next: u64,
    streams: HashMap<u64, [TcpStream; 2]>,
    ended: bool,
}

impl Connections {
    /// Ends all of them.
    pub(crate) fn end(&self) {
        self.flows.lock().unwrap().clear();
        let mut running = self.running.lock().unwrap();
        running.ended = true;
        for stream in running.streams.values().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether a new flow may begin; it is counted then.
    fn begin(&self, flow: Flow) -> bool {
        let mut flows = self.flows.lock().unwrap();
        flows.retain(|_, state| match state {
            State::Connecting => true,
            State::Ready(_, since) => since.elapsed() < TAKE_LIMIT,
        });
        let running = self.running.lock().unwrap();
        let full = flows.len() >= MAX_CONNECTING
            || running.streams.len() + flows.len() >= MAX_CONNECTIONS
            || running.ended;
        if full || flows.contains_key(&flow) {
            return false;
        }
        flows.insert(flow, State::Connecting);
        true
    }

    fn take(&self, flow: Flow) -> Option<TcpStream> {
        match self.flows.lock().unwrap().remove(&flow) {
            Some(State::Ready(stream, _)) => Some(stream),
            _ => None,
        }
    }
}

impl Member {
    /// A program asks for a connection to the outside by this frame.
    pub(crate) fn connect_outside(self: &Arc<Self>, flow: Flow, sequence: u32, frame: &[u8]) {
        if !self.connections.begin(flow) {
            return;
        }
        let (member, frame) = (Arc::downgrade(self), frame.to_vec());
        let spawned = std::thread::Builder::new().name("net-connect".into()).spawn(move || {
            let result = TcpStream::connect_timeout(&SocketAddr::V4(flow.1), CONNECT_LIMIT);
            if let Some(member) = member.upgrade() {
                member.connected_outside(flow, sequence, frame, result);
            }
        });
        if let Err(error) = spawned {
            log::warn!("no thread for a connection outside: {error}");
            self.connections.flows.lock().unwrap().remove(&flow);
        }
    }

    fn connected_outside(
        &self,
        flow: Flow,
        sequence: u32,
        mut frame: Vec<u8>,
        result: std::io::Result<TcpStream>,
    ) {
        let here = self.here();
        let error = {
            let mut flows = self.connections.flows.lock().unwrap();
            match result {
                Ok(stream) => {
                    flows.insert(flow, State::Ready(stream, Instant::now()));
                    None
                }
                Err(error) => {
                    flows.remove(&flow);
                    Some(error)
                }
            }
        };
        let answer = match error.as_ref().and_then(std::io::Error::raw_os_error) {
            None if error.is_none() => {
                turn_around(&mut frame, here);
                Some(frame)
            }
            Some(libc::ECONNREFUSED | libc::ECONNRESET) => {
                Some(refusal(here, flow.1, flow.0, sequence))
            }
            Some(libc::ENETUNREACH) => unreachable(here, Unreachable::Network, &frame),
            Some(libc::EHOSTUNREACH) => unreachable(here, Unreachable::Host, &frame),
            // Nobody answered: neither do we.
            _ => None,
        };
        if let Some(answer) = answer {
            self.give(&answer);
        }
    }

    /// Takes the programs' ends of connections that were made outside, until the member ends.
    pub(crate) fn accept_for_outside(self: &Arc<Self>, listener: &TcpListener) {
        while self.wait(listener) {
            let Ok((inside, peer)) = listener.accept() else { continue };
            let Ok(SocketAddr::V4(to)) = inside.local_addr() else { continue };
            // Without a connection of its own this is a program that found our port.
            let Some(outside) = self.connections.take((peer.port(), to)) else { continue };
            if let Err(error) = relay(&self.connections.running, inside, outside) {
                log::warn!("a connection outside: {error}");
            }
        }
    }
}

/// Carries bytes in both directions until both have ended.
fn relay(
    running: &Arc<Mutex<Running>>,
    inside: TcpStream,
    outside: TcpStream,
) -> std::io::Result<()> {
    inside.set_nonblocking(false)?;
    inside.set_nodelay(true)?;
    outside.set_nodelay(true)?;
    let number = {
        let mut running = running.lock().unwrap();
        if running.ended {
            return Ok(());
        }
        running.next += 1;
        let number = running.next;
        running.streams.insert(number, [inside.try_clone()?, outside.try_clone()?]);
        number
    };
    // The last direction to end forgets the connection.
    let done = Arc::new(Forget { running: Arc::downgrade(running), number });
    for (from, to) in [(inside.try_clone()?, outside.try_clone()?), (outside, inside)] {
        let done = Arc::clone(&done);
        std::thread::Builder::new().name("net-relay".into()).spawn(move || {
            carry(from, to);
            drop(done);
        })?;
    }
    Ok(())
}

struct Forget {
    running: Weak<Mutex<Running>>,
    number: u64,
}

impl Drop for Forget {
    fn drop(&mut self) {
        if let Some(running) = self.running.upgrade() {
            running.lock().unwrap().streams.remove(&self.number);
        }
    }
}

/// One direction.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut block = vec![0; BLOCK];
    loop {
        match from.read(&mut block) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(length) => {
                let bytes = block.get(..length).unwrap_or_default();
                if to.write_all(bytes).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // One end has failed: so does the other.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_and_asked_for_once() {
        let connections = Connections::default();
        let to = "192.0.2.9:80".parse().unwrap();
        for port in 0..MAX_CONNECTING as u16 {
            assert!(connections.begin((port, to)));
            assert!(!connections.begin((port, to)), "asked again");
        }
        assert!(!connections.begin((u16::MAX, to)));
        assert!(connections.take((0, to)).is_none(), "not made yet");
        connections.end();
        assert!(!connections.begin((0, to)), "ended");
    }

    #[test]
    fn both_directions_are_carried_and_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || {
            let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (one, listener.accept().unwrap().0)
        };
        let ((mut program, inside), (outside, mut server)) = (pair(), pair());
        let connections = Connections::default();
        relay(&connections.running, inside, outside).unwrap();
        program.write_all(b"question").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"question");
        server.write_all(b"answer").unwrap();
        drop(server);
        heard.clear();
        program.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"answer");
        let start = Instant::now();
        while !connections.running.lock().unwrap().streams.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "the connection is forgotten");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
