//! From the device to the links and back.

use super::{Member, SendError, Transport};
use crate::outside::packet::{self, Packet};
use crate::switch::batch::{Batch, Frames};
use crate::switch::frame::{MAX_FRAME, Refused, To, arriving, leaving};
use crate::switch::queue::Queue;
use dvs_container::network::DcNetwork;
use dvs_sys::netdevice::{read_frame, write_frame};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Frames read before what was read is sent.
const READ_AT_ONCE: usize = 64;
/// How long the device is not read because a peer's queue is full; then frames for it are dropped.
const HOLD: Duration = Duration::from_millis(200);
/// How long one message may wait for room on its link.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Counts of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Sent to other nodes.
    pub sent: u64,
    /// Given to the device.
    pub received: u64,
    /// Dropped for want of room, or because a node is gone.
    pub dropped: u64,
    /// Dropped because they were not as they should be.
    pub refused: u64,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

#[derive(Default)]
struct Outgoing {
    queue: Queue,
    /// A thread sends what waits.
    sending: bool,
    lost: bool,
}

#[derive(Default)]
struct Peer {
    outgoing: Mutex<Outgoing>,
    room: Condvar,
}

pub(super) struct Wire {
    peers: BTreeMap<u16, Arc<Peer>>,
    counters: Arc<Counters>,
}

impl Wire {
    pub(super) fn new(network: &DcNetwork) -> Self {
        let others = network.members.iter().filter(|member| **member != network.node);
        let peers = others.map(|member| (*member, Arc::default())).collect();
        Wire { peers, counters: Arc::default() }
    }

    pub(super) fn traffic(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { sent, received, dropped, refused } = &*self.counters;
        Traffic {
            sent: get(sent),
            received: get(received),
            dropped: get(dropped),
            refused: get(refused),
        }
    }

    /// Nothing is sent to a node any more.
    pub(super) fn lost(&self, node: u16) {
        let Some(peer) = self.peers.get(&node) else { return };
        let mut outgoing = peer.outgoing.lock().unwrap();
        outgoing.lost = true;
        outgoing.queue.clear();
        peer.room.notify_all();
    }

    pub(super) fn wake(&self) {
        for node in self.peers.keys() {
            self.lost(*node);
        }
    }

    /// Sends a message, waiting at most [`HOLD`] for room.
    fn send(&self, transport: &Arc<dyn Transport>, node: u16, message: Vec<u8>, frames: u64) {
        let count = |counter: &AtomicU64| counter.fetch_add(frames, Ordering::Relaxed);
        let Some(peer) = self.peers.get(&node) else {
            count(&self.counters.refused);
            return;
        };
        let mut outgoing = peer.outgoing.lock().unwrap();
        if outgoing.lost {
            count(&self.counters.dropped);
            return;
        }
        let mut message = message;
        if !outgoing.sending {
            // The lock is held, so that nobody overtakes.
            match transport.send(node, message) {
                Ok(()) => {
                    count(&self.counters.sent);
                    return;
                }
                Err(SendError::Gone) => {
                    count(&self.counters.dropped);
                    return;
                }
                Err(SendError::Full(back)) => message = back,
            }
        }
        let deadline = Instant::now() + HOLD;
        while !outgoing.queue.has_room() && !outgoing.lost {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            outgoing = peer.room.wait_timeout(outgoing, left).unwrap().0;
        }
        if outgoing.lost || outgoing.queue.push(message).is_err() {
            count(&self.counters.dropped);
            return;
        }
        count(&self.counters.sent);
        if !outgoing.sending {
            outgoing.sending = true;
            let (peer, transport) = (Arc::clone(peer), Arc::clone(transport));
            let spawned = std::thread::Builder::new()
                .name("net-peer".into())
                .spawn(move || send_waiting(&peer, &*transport, node));
            if let Err(error) = spawned {
                log::warn!("no thread for waiting frames: {error}");
                outgoing.sending = false;
                outgoing.queue.clear();
            }
        }
    }
}

/// Sends what waits for a peer until nothing does.
fn send_waiting(peer: &Peer, transport: &dyn Transport, node: u16) {
    loop {
        let message = {
            let mut outgoing = peer.outgoing.lock().unwrap();
            let message = outgoing.queue.pop();
            outgoing.sending = message.is_some();
            peer.room.notify_all();
            message
        };
        let Some(message) = message else { return };
        if transport.send_within(node, message, SEND_LIMIT).is_err() {
            log::debug!("frames for node {node} were not sent");
        }
    }
}

impl Member {
    pub(super) fn read_device(self: &Arc<Self>) {
        let mut buffer = vec![0; MAX_FRAME + 1];
        let mut batches: BTreeMap<u16, (Batch, u64)> = BTreeMap::new();
        let flush = |batches: &mut BTreeMap<u16, (Batch, u64)>| {
            for (node, (batch, frames)) in batches.iter_mut() {
                if !batch.is_empty() {
                    let count = std::mem::take(frames);
                    self.wire.send(&self.transport, *node, batch.take(), count);
                }
            }
        };
        while self.wait(&self.device) {
            for _ in 0..READ_AT_ONCE {
                let length = match read_frame(&self.device, &mut buffer) {
                    Ok(length) => length,
                    Err(error) if error.errno == libc::EAGAIN => break,
                    Err(error) => {
                        // The device goes with its namespace.
                        log::debug!("the network device: {error}");
                        return;
                    }
                };
                let frame = buffer.get_mut(..length).unwrap_or_default();
                match leaving(frame, self.network.node) {
                    Ok(To::Outside) => self.leave(frame),
                    Ok(To::Node(node)) => {
                        let (batch, frames) = batches.entry(node).or_default();
                        batch.push(frame);
                        *frames += 1;
                        if batch.is_full() {
                            let count = std::mem::take(frames);
                            self.wire.send(&self.transport, node, batch.take(), count);
                        }
                    }
                    Err(reason) => self.refuse(reason),
                }
            }
            flush(&mut batches);
        }
    }

    /// Frames of another node, which the transport vouches for. Does not wait.
    pub fn deliver(&self, from: u16, message: &[u8]) {
        if self.is_stopped() {
            return;
        }
        for frame in Frames(message) {
            if let Err(reason) = arriving(frame, from, self.network.node) {
                self.refuse(reason);
                continue;
            }
            self.give(frame);
        }
    }

    /// Gives a frame to the device.
    pub(crate) fn give(&self, frame: &[u8]) {
        let counters = &self.wire.counters;
        let counter = match write_frame(&self.device, frame) {
            Ok(()) => &counters.received,
            Err(error) => {
                log::trace!("a frame for the device: {error}");
                &counters.dropped
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A frame for the outside.
    fn leave(self: &Arc<Self>, frame: &mut [u8]) {
        match packet::read(frame) {
            Some(Packet::Tcp { port, to, begins: true, sequence }) => {
                self.connect_outside((port, to), sequence, frame);
            }
            Some(Packet::Tcp { .. }) => {
                packet::turn_around(frame, self.network.node);
                self.give(frame);
            }
            Some(Packet::Udp { port, to, data }) => self.send_outside((port, to), data, frame),
            None => self.refuse(Refused::OtherProtocol),
        }
    }

    fn refuse(&self, reason: Refused) {
        log::trace!("a frame was dropped: {reason}");
        self.wire.counters.refused.fetch_add(1, Ordering::Relaxed);
    }
}
