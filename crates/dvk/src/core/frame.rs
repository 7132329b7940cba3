//! Frames of a link: a header of 48 bytes, little-endian, and a body of bounded length.
//!
//! ```text
//!  0  u32 bytes of the body      8  u64 sequence (0: control)   32  u64 destination endpoint
//!  4  u8  kind                  16  u64 container               40  u64 request
//!  5  u8  status                24  u64 source endpoint         48  body
//!  6  u16 zero
//! ```
//! Which node a frame comes from is not in it: the link it came by says so, nobody can forge it.

use crate::ids::DcId;

/// Bytes of a header.
pub const HEADER: usize = 48;
/// Most bytes of one message (a block of 2 MiB with room for its description).
pub const MAX_MESSAGE: usize = (2 << 20) + (64 << 10);
/// Most bytes of the body of a control frame.
pub const MAX_CONTROL: usize = 512;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First frame of a connection, body: [`super::hello::Hello`].
    Hello = 1,
    /// All frames up to sequence number `request` have come.
    Ack = 2,
    /// Nothing to say, but alive.
    Heartbeat = 3,
    /// The connection ends on purpose; `status` is a [`super::link::Goodbye`].
    Goodbye = 4,
    /// A message that nobody waits for.
    Post = 16,
    /// A message whose sender waits for an answer.
    Call = 17,
    /// A message whose sender waits until it is received.
    Send = 18,
    /// The answer to the call or send `request`; `status` is a [`Status`].
    Reply = 19,
    /// Pending bits (`request`) at the destination.
    Notify = 20,
    /// The sender of call or send `request` waits no longer.
    Cancel = 21,
    /// The endpoint `source` has consumed `destination` posts of `request` bytes in all.
    Credit = 22,
    /// The endpoint `source` is gone.
    Gone = 23,
}

impl Kind {
    fn parse(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Hello,
            2 => Kind::Ack,
            3 => Kind::Heartbeat,
            4 => Kind::Goodbye,
            16 => Kind::Post,
            17 => Kind::Call,
            18 => Kind::Send,
            19 => Kind::Reply,
            20 => Kind::Notify,
            21 => Kind::Cancel,
            22 => Kind::Credit,
            23 => Kind::Gone,
            _ => return None,
        })
    }

    /// Control frames have no sequence number and are not sent again.
    #[must_use]
    pub fn is_control(self) -> bool {
        matches!(self, Kind::Hello | Kind::Ack | Kind::Heartbeat | Kind::Goodbye)
    }
}

/// How a call ended at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Answered; for a send: received.
    Done = 0,
    /// No such endpoint here.
    NoEndpoint = 1,
    /// The container is not open here, or not to the sender's node.
    NoDc = 2,
    /// Too many messages wait at the endpoint.
    Busy = 3,
    /// The server dropped the request.
    Dropped = 4,
    /// The answer was longer than a message may be.
    TooLarge = 5,
    /// The sender has no right to call the endpoint.
    Denied = 6,
}

impl Status {
    /// The status that a byte stands for; unknown ones (of later versions) count as dropped.
    #[must_use]
    pub fn parse(byte: u8) -> Status {
        match byte {
            0 => Status::Done,
            1 => Status::NoEndpoint,
            2 => Status::NoDc,
            3 => Status::Busy,
            5 => Status::TooLarge,
            6 => Status::Denied,
            _ => Status::Dropped,
        }
    }
}

/// Header of a frame, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Meaning depends on the kind; otherwise 0.
    pub status: u8,
    /// Position in the lane, from 1; 0 for control frames.
    pub sequence: u64,
    /// The container.
    pub dc: DcId,
    /// Number of the endpoint that it comes from.
    pub source: u64,
    /// Number of the endpoint that it goes to.
    pub destination: u64,
    /// Meaning depends on the kind.
    pub request: u64,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its body.
    pub body: Vec<u8>,
}

impl Frame {
    /// A control frame.
    #[must_use]
    pub fn control(kind: Kind, status: u8, request: u64, body: Vec<u8>) -> Frame {
        let header =
            Header { kind, status, sequence: 0, dc: DcId(0), source: 0, destination: 0, request };
        Frame { header, body }
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        HEADER + self.body.len()
    }

    /// The header as it is sent.
    #[must_use]
    pub fn encode_header(&self) -> [u8; HEADER] {
        let header = &self.header;
        let length = u32::try_from(self.body.len()).unwrap_or(u32::MAX);
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&length.to_le_bytes());
        bytes[4] = header.kind as u8;
        bytes[5] = header.status;
        bytes[8..16].copy_from_slice(&header.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&header.dc.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&header.source.to_le_bytes());
        bytes[32..40].copy_from_slice(&header.destination.to_le_bytes());
        bytes[40..48].copy_from_slice(&header.request.to_le_bytes());
        bytes
    }

    /// The whole frame as it is sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.wire_len());
        bytes.extend_from_slice(&self.encode_header());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Why bytes are not a frame. The connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Body longer than its kind allows.
    #[error("a frame of {0} bytes is longer than the limit")]
    TooLong(u32),
    /// Unknown kind.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// Bits that must be zero are not, or a sequence number does not fit its kind.
    #[error("malformed header of a frame")]
    Header,
}

/// Takes frames out of a stream of bytes that comes in pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    header: [u8; HEADER],
    have: usize,
    pending: Option<(Header, usize)>,
    body: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { header: [0; HEADER], have: 0, pending: None, body: Vec::new() }
    }
}

impl Decoder {
    /// Consumes bytes from the front of `input` and returns the next complete frame; `None` when
    /// all is consumed. After an error the decoder must be thrown away with its connection.
    ///
    /// # Errors
    /// When the bytes are no frame.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if self.pending.is_none() {
            let take = input.len().min(HEADER - self.have);
            let (bytes, rest) = input.split_at(take);
            self.header[self.have..self.have + take].copy_from_slice(bytes);
            self.have += take;
            *input = rest;
            if self.have < HEADER {
                return Ok(None);
            }
            let (header, length) = parse(&self.header)?;
            self.body = Vec::with_capacity(length);
            self.pending = Some((header, length));
        }
        let Some((header, length)) = self.pending else { return Ok(None) };
        let take = input.len().min(length - self.body.len());
        let (bytes, rest) = input.split_at(take);
        self.body.extend_from_slice(bytes);
        *input = rest;
        if self.body.len() < length {
            return Ok(None);
        }
        self.pending = None;
        self.have = 0;
        Ok(Some(Frame { header, body: std::mem::take(&mut self.body) }))
    }
}

fn parse(bytes: &[u8; HEADER]) -> Result<(Header, usize), FrameError> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let kind = Kind::parse(bytes[4]).ok_or(FrameError::Kind(bytes[4]))?;
    let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let limit = if kind.is_control() { MAX_CONTROL } else { MAX_MESSAGE };
    if length as usize > limit {
        return Err(FrameError::TooLong(length));
    }
    let header = Header {
        kind,
        status: bytes[5],
        sequence: word(8),
        dc: DcId(word(16)),
        source: word(24),
        destination: word(32),
        request: word(40),
    };
    if bytes[6] != 0 || bytes[7] != 0 || kind.is_control() != (header.sequence == 0) {
        return Err(FrameError::Header);
    }
    Ok((header, length as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn frame(sequence: u64, body: Vec<u8>) -> Frame {
        let header = Header {
            kind: Kind::Call,
            status: 0,
            sequence,
            dc: DcId(7),
            source: 1 << 48,
            destination: 2,
            request: 99,
        };
        Frame { header, body }
    }

    #[test]
    fn frames_survive_any_cut_of_the_stream() {
        let frames = [frame(1, vec![]), frame(2, vec![1; 1000]), frame(3, vec![2])];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for size in [1, 2, 7, 47, 48, 49, 1000, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for mut piece in bytes.chunks(size) {
                while let Some(frame) = decoder.next(&mut piece).unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames);
        }
    }

    #[test]
    fn limits_are_checked_before_memory_is_taken() {
        let mut bytes = frame(1, vec![]).encode();
        bytes[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            Decoder::default().next(&mut bytes.as_slice()),
            Err(FrameError::TooLong(u32::MAX))
        );
        let mut control = Frame::control(Kind::Ack, 0, 1, vec![]).encode();
        control[0..4].copy_from_slice(&513u32.to_le_bytes());
        assert_eq!(Decoder::default().next(&mut control.as_slice()), Err(FrameError::TooLong(513)));
        let mut kind = frame(1, vec![]).encode();
        kind[4] = 200;
        assert_eq!(Decoder::default().next(&mut kind.as_slice()), Err(FrameError::Kind(200)));
        let mut zero = frame(1, vec![]).encode();
        zero[8] = 0;
        assert_eq!(Decoder::default().next(&mut zero.as_slice()), Err(FrameError::Header));
    }

    #[test]
    fn random_bytes_never_panic_nor_give_oversized_frames() {
        for seed in 0..2000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut bytes = frame(1, vec![3; random.random_range(0..200)]).encode();
            for _ in 0..random.random_range(0..6) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            bytes.extend((0..random.random_range(0..300)).map(|_| random.random::<u8>()));
            let mut decoder = Decoder::default();
            let mut input = bytes.as_slice();
            while let Ok(Some(frame)) = decoder.next(&mut input) {
                assert!(frame.body.len() <= MAX_MESSAGE);
            }
        }
    }
}
