//! Datagrams to the outside: a socket for each flow, answered by one thread for all.

use super::packet::{MAX_DATAGRAM, Unreachable, datagram, unreachable};
use crate::member::Member;
use dvs_sys::error::SysError;
use dvs_sys::poll::Epoll;
use std::collections::HashMap;
use std::net::{SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most flows at a time; the one that was quiet longest makes room.
pub const MAX_FLOWS: usize = 512;
/// A flow that is quiet so long is over.
const QUIET: Duration = Duration::from_secs(120);
/// Bytes of the first frame that are kept for telling that nobody is there.
const KEPT: usize = 24 + 60 + 8;
/// How often the thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(500);

/// A program's port and where it sends to.
type Flow = (u16, SocketAddrV4);

struct Open {
    socket: Arc<UdpSocket>,
    number: u64,
    used: Instant,
    first: Vec<u8>,
}

#[derive(Default)]
struct Table {
    flows: HashMap<Flow, Open>,
    by_number: HashMap<u64, Flow>,
    next: u64,
}

impl Table {
    fn remove(&mut self, flow: Flow) {
        if let Some(open) = self.flows.remove(&flow) {
            self.by_number.remove(&open.number);
        }
    }

    fn make_room(&mut self) {
        let quiet: Vec<Flow> = self
            .flows
            .iter()
            .filter(|(_, open)| open.used.elapsed() > QUIET)
            .map(|(flow, _)| *flow)
            .collect();
        quiet.into_iter().for_each(|flow| self.remove(flow));
        if self.flows.len() >= MAX_FLOWS {
            let oldest = self.flows.iter().min_by_key(|(_, open)| open.used);
            if let Some(flow) = oldest.map(|(flow, _)| *flow) {
                self.remove(flow);
            }
        }
    }
}

/// Flows of one container.
pub(crate) struct Datagrams {
    table: Mutex<Table>,
    epoll: Epoll,
}

impl Datagrams {
    pub(crate) fn new() -> Result<Self, SysError> {
        Ok(Datagrams { table: Mutex::default(), epoll: Epoll::new()? })
    }

    pub(crate) fn end(&self) {
        *self.table.lock().unwrap() = Table::default();
    }

    /// The socket of a flow, made if there is none.
    fn socket(&self, flow: Flow, frame: &[u8]) -> std::io::Result<Arc<UdpSocket>> {
        let mut table = self.table.lock().unwrap();
        if let Some(open) = table.flows.get_mut(&flow) {
            open.used = Instant::now();
            return Ok(Arc::clone(&open.socket));
        }
        let socket = Arc::new(UdpSocket::bind("0.0.0.0:0")?);
        socket.connect(flow.1)?;
        socket.set_nonblocking(true)?;
        table.make_room();
        table.next += 1;
        let number = table.next;
        self.epoll.add(&*socket, libc::EPOLLIN as u32, number)?;
        let first = frame.iter().copied().take(KEPT).collect();
        let open = Open { socket: Arc::clone(&socket), number, used: Instant::now(), first };
        table.flows.insert(flow, open);
        table.by_number.insert(number, flow);
        Ok(socket)
    }
}

impl Member {
    /// A program's datagram to the outside.
    pub(crate) fn send_outside(&self, flow: Flow, data: &[u8], frame: &[u8]) {
        let sent = self.datagrams.socket(flow, frame).and_then(|socket| socket.send(data));
        let Err(error) = sent else { return };
        let what = match error.raw_os_error() {
            Some(libc::ENETUNREACH) => Unreachable::Network,
            Some(libc::EHOSTUNREACH) => Unreachable::Host,
            Some(libc::ECONNREFUSED) => Unreachable::Port,
            _ => return,
        };
        if let Some(answer) = unreachable(self.here(), what, frame) {
            self.give(&answer);
        }
    }

    /// Takes answers from outside until the member ends.
    pub(crate) fn receive_from_outside(&self) {
        let mut events = Vec::new();
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        while !self.is_stopped() {
            events.clear();
            if self.datagrams.epoll.wait(&mut events, Some(LOOK)).is_err() {
                return;
            }
            for event in &events {
                self.take_answers(event.key, &mut buffer);
            }
        }
    }

    fn take_answers(&self, number: u64, buffer: &mut [u8]) {
        let found = {
            let mut table = self.datagrams.table.lock().unwrap();
            let Some(flow) = table.by_number.get(&number).copied() else { return };
            table.flows.get_mut(&flow).map(|open| {
                open.used = Instant::now();
                (flow, Arc::clone(&open.socket), open.first.clone())
            })
        };
        let Some((flow, socket, first)) = found else { return };
        loop {
            let answer = match socket.recv(buffer) {
                Ok(length) => {
                    let data = buffer.get(..length).unwrap_or_default();
                    datagram(self.here(), flow.1, flow.0, data)
                }
                Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
                    unreachable(self.here(), Unreachable::Port, &first)
                }
                Err(_) => return,
            };
            if let Some(answer) = answer {
                self.give(&answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_bounded_and_the_quietest_goes() {
        let datagrams = Datagrams::new().unwrap();
        let to = "127.0.0.1:9".parse().unwrap();
        let first = datagrams.socket((0, to), b"frame").unwrap();
        for port in 1..=MAX_FLOWS as u16 {
            datagrams.socket((port, to), b"frame").unwrap();
        }
        let table = datagrams.table.lock().unwrap();
        assert_eq!((table.flows.len(), table.by_number.len()), (MAX_FLOWS, MAX_FLOWS));
        assert!(!table.flows.contains_key(&(0, to)));
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
