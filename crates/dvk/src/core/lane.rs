//! One lane of a link: an ordered, lossless stream of frames over connections that may be cut.
//!
//! Every data frame has a sequence number and is kept until the other side acknowledged it. After a
//! cut each side says what it has received, and the other one goes on from there.

use super::frame::{Frame, HEADER, Kind};
use super::hello::Hello;
use std::collections::VecDeque;
use std::sync::Arc;

/// Above this many bytes not acknowledged, new posts and calls are refused as busy.
pub const BUFFER_BYTES: usize = 64 << 20;
/// Above this many frames not acknowledged, new posts and calls are refused as busy.
pub const BUFFER_FRAMES: usize = 64 << 10;
/// Answers and control messages are not refused; a peer that takes nothing is given up at
/// this multiple of the bounds above.
pub const OVERRUN: usize = 16;
/// An acknowledgement is due after this many frames,
pub const ACK_FRAMES: u64 = 64;
/// or this many bytes, or the next tick.
pub const ACK_BYTES: usize = 256 << 10;
/// Most frames of one batch to write (half of the kernel's limit of pieces of one call).
pub const BATCH_FRAMES: usize = 256;
/// A batch ends after the frame that brings it above this many bytes.
pub const BATCH_BYTES: usize = 256 << 10;

/// A frame as it is written.
#[derive(Debug)]
pub struct Packet {
    /// Header, encoded.
    pub header: [u8; HEADER],
    /// Body.
    pub body: Vec<u8>,
}

impl Packet {
    /// Encodes a frame.
    #[must_use]
    pub fn new(frame: Frame) -> Self {
        Packet { header: frame.encode_header(), body: frame.body }
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        HEADER + self.body.len()
    }
}

/// What a frame from the peer means to the lane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// The next data frame.
    Data(Frame),
    /// Nothing to deliver.
    Nothing,
}

/// The peer broke the rules of the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// A frame is missing.
    #[error("frame {found} came instead of {expected}")]
    Gap {
        /// Sequence number that was due.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// An acknowledgement of what was never sent, or was acknowledged and forgotten.
    #[error("impossible acknowledgement of frame {0}")]
    Ack(u64),
    /// A frame that has no place here.
    #[error("a frame that has no place here")]
    Unexpected,
}

#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// Current connection; data of any other one is void.
    pub(crate) connection: Option<u64>,
    /// Whether we made that connection.
    pub(crate) ours: bool,
    /// Both handshakes are through.
    pub(crate) open: bool,
    /// Since when there is no open connection.
    pub(crate) lost_since: Option<u64>,
    pub(crate) last_heard: u64,
    pub(crate) last_written: u64,
    hello_due: Option<Hello>,
    ack_due: bool,
    heartbeat_due: bool,
    goodbye_due: Option<u8>,
    unacknowledged: VecDeque<Arc<Packet>>,
    bytes: usize,
    /// Sequence number of the front of `unacknowledged`, less one.
    acknowledged: u64,
    /// Frames up to this one are written to the current connection.
    written: u64,
    received: u64,
    received_frames: u64,
    received_bytes: usize,
    pub(crate) duplicates: u64,
    pub(crate) resent: u64,
    pub(crate) sent_frames: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) delivered: u64,
    pub(crate) delivered_bytes: u64,
    pub(crate) connections: u64,
}

impl Lane {
    /// A lane of a new session that has no connection yet.
    pub(crate) fn new(now: u64) -> Self {
        Lane { lost_since: Some(now), last_heard: now, last_written: now, ..Lane::default() }
    }

    pub(crate) fn received_so_far(&self) -> u64 {
        self.received
    }

    pub(crate) fn attach(&mut self, connection: u64, ours: bool, now: u64) {
        self.connection = Some(connection);
        self.ours = ours;
        self.open = false;
        self.ack_due = false;
        self.heartbeat_due = false;
        // A farewell that was not written in time was meant for the connection before.
        self.goodbye_due = None;
        self.last_heard = now;
        self.last_written = now;
        if self.lost_since.is_none() {
            self.lost_since = Some(now);
        }
    }

    pub(crate) fn greet(&mut self, hello: Hello) {
        self.hello_due = Some(hello);
    }

    /// The peer's handshake is through; it has received our frames up to `received`.
    pub(crate) fn resume(&mut self, received: u64, now: u64) -> Result<(), LaneError> {
        self.acknowledge(received)?;
        self.resent += self.written.saturating_sub(received);
        self.written = received;
        self.open = true;
        self.connections += 1;
        self.lost_since = None;
        self.last_heard = now;
        Ok(())
    }

    pub(crate) fn detach(&mut self, now: u64) {
        self.connection = None;
        self.open = false;
        self.hello_due = None;
        if self.lost_since.is_none() {
            self.lost_since = Some(now);
        }
    }

    pub(crate) fn say_goodbye(&mut self, reason: u8) {
        self.goodbye_due = Some(reason);
    }

    pub(crate) fn has_room(&self) -> bool {
        self.bytes < BUFFER_BYTES && self.unacknowledged.len() < BUFFER_FRAMES
    }

    pub(crate) fn is_overrun(&self) -> bool {
        self.bytes > BUFFER_BYTES * OVERRUN || self.unacknowledged.len() > BUFFER_FRAMES * OVERRUN
    }

    pub(crate) fn buffered(&self) -> (usize, usize) {
        (self.unacknowledged.len(), self.bytes)
    }

    pub(crate) fn push(&mut self, mut frame: Frame) {
        frame.header.sequence = self.acknowledged + self.unacknowledged.len() as u64 + 1;
        let packet = Packet::new(frame);
        self.bytes += packet.wire_len();
        self.unacknowledged.push_back(Arc::new(packet));
    }

    fn acknowledge(&mut self, sequence: u64) -> Result<(), LaneError> {
        if sequence < self.acknowledged
            || sequence - self.acknowledged > self.unacknowledged.len() as u64
        {
            return Err(LaneError::Ack(sequence));
        }
        while self.acknowledged < sequence {
            let Some(packet) = self.unacknowledged.pop_front() else { break };
            self.bytes -= packet.wire_len();
            self.acknowledged += 1;
        }
        self.written = self.written.max(self.acknowledged);
        Ok(())
    }

    pub(crate) fn accept(&mut self, frame: Frame, now: u64) -> Result<Accepted, LaneError> {
        self.last_heard = now;
        match frame.header.kind {
            Kind::Ack => self.acknowledge(frame.header.request).map(|()| Accepted::Nothing),
            Kind::Heartbeat => Ok(Accepted::Nothing),
            Kind::Hello | Kind::Goodbye => Err(LaneError::Unexpected),
            _ if frame.header.sequence <= self.received => {
                self.duplicates += 1;
                Ok(Accepted::Nothing)
            }
            _ if frame.header.sequence != self.received + 1 => {
                Err(LaneError::Gap { expected: self.received + 1, found: frame.header.sequence })
            }
            _ => {
                self.received += 1;
                self.delivered += 1;
                self.delivered_bytes += frame.wire_len() as u64;
                self.received_frames += 1;
                self.received_bytes += frame.wire_len();
                if self.received_frames >= ACK_FRAMES || self.received_bytes >= ACK_BYTES {
                    self.ack_due = true;
                }
                Ok(Accepted::Data(frame))
            }
        }
    }

    /// True when something became due.
    pub(crate) fn tick(&mut self, now: u64, heartbeat: u64) -> bool {
        if !self.open {
            return false;
        }
        self.ack_due |= self.received_frames > 0;
        self.heartbeat_due |= now.saturating_sub(self.last_written) >= heartbeat;
        self.ack_due || self.heartbeat_due
    }

    pub(crate) fn owes_ack(&self) -> bool {
        self.ack_due
    }

    pub(crate) fn has_output(&self) -> bool {
        self.connection.is_some()
            && (self.hello_due.is_some()
                || self.goodbye_due.is_some()
                || (self.open && (self.ack_due || self.heartbeat_due || self.unwritten() > 0)))
    }

    fn unwritten(&self) -> usize {
        let total = self.acknowledged + self.unacknowledged.len() as u64;
        usize::try_from(total.saturating_sub(self.written)).unwrap_or(usize::MAX)
    }

    /// What is to be written next; empty when nothing is.
    pub(crate) fn take_batch(&mut self, now: u64) -> Vec<Arc<Packet>> {
        let mut batch = Vec::new();
        let mut control = |frame| batch.push(Arc::new(Packet::new(frame)));
        if let Some(hello) = self.hello_due.take() {
            control(hello.frame());
        }
        if let Some(reason) = self.goodbye_due.take() {
            control(Frame::control(Kind::Goodbye, reason, 0, Vec::new()));
        }
        if self.open {
            if self.ack_due {
                self.ack_due = false;
                self.received_frames = 0;
                self.received_bytes = 0;
                control(Frame::control(Kind::Ack, 0, self.received, Vec::new()));
            } else if self.heartbeat_due {
                control(Frame::control(Kind::Heartbeat, 0, 0, Vec::new()));
            }
            self.heartbeat_due = false;
            let start = usize::try_from(self.written - self.acknowledged).unwrap_or(usize::MAX);
            let mut bytes = 0;
            for packet in self.unacknowledged.iter().skip(start).take(BATCH_FRAMES) {
                bytes += packet.wire_len();
                batch.push(Arc::clone(packet));
                self.written += 1;
                self.sent_frames += 1;
                self.sent_bytes += packet.wire_len() as u64;
                if bytes >= BATCH_BYTES {
                    break;
                }
            }
        }
        if !batch.is_empty() {
            self.last_written = now;
        }
        batch
    }
}

impl Lane {
    /// The connection goes on in the first session with a new life of the peer. A handshake of ours
    /// that is still due must not speak of the old one.
    pub(crate) fn hand_over(&mut self, to: &mut Lane) {
        to.connection = self.connection;
        to.ours = self.ours;
        to.hello_due =
            self.hello_due.take().map(|hello| Hello { peer_incarnation: 0, received: 0, ..hello });
    }
}
