//! Many connections over one byte stream, such as the standard input and output of `ssh`.
//!
//! ```text
//!  0  u8  kind      4  u32 channel      little-endian
//!  1  u8  zero      8  body
//!  2  u16 bytes of the body
//! ```
//! Either end opens channels, the one with odd numbers, the other with even ones. Each direction of a
//! channel has a window, as in SSH's connection protocol (RFC 4254, 5.2): one that nobody reads holds
//! up no other. A channel ends in both directions at once; the links above know what was lost.

use super::Map;
use std::collections::VecDeque;

/// Bytes of a header.
pub const MUX_HEADER: usize = 8;
/// Most bytes of a body.
pub const MUX_BODY: usize = 32 << 10;
/// Bytes that may be under way on a channel, each way.
pub const MUX_WINDOW: usize = 512 << 10;
/// Most channels at a time.
pub const MUX_CHANNELS: usize = 1024;

/// Which end of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MuxEnd {
    /// Opens channels with odd numbers.
    First,
    /// Opens channels with even numbers.
    Second,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// A new channel; body: u16, where to.
    Open = 1,
    /// Bytes of a channel.
    Data = 2,
    /// The other side may send more; body: u32, so many bytes.
    Window = 3,
    /// The channel has ended.
    Close = 4,
}

/// The other end broke the rules; the stream is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MuxError {
    /// A header with a kind or length that there is not.
    #[error("bytes that are no frame of forwarded connections")]
    Frame,
    /// More than the window allows.
    #[error("forwarded connection {0} brings more than was asked for")]
    Flood(u32),
    /// A number that is taken, or not its own to give.
    #[error("forwarded connection {0} was opened against the rules")]
    Number(u32),
    /// Bound.
    #[error("more than {MUX_CHANNELS} forwarded connections")]
    Full,
}

/// What a frame brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MuxEvent {
    /// The other end opened a channel.
    Opened {
        /// Its number.
        channel: u32,
        /// Where it is to lead.
        target: u16,
    },
    /// Bytes for a channel.
    Data {
        /// Its number.
        channel: u32,
        /// They.
        bytes: Vec<u8>,
    },
    /// A channel may send more.
    Room,
    /// A channel has ended.
    Closed {
        /// Its number.
        channel: u32,
    },
}

#[derive(Debug)]
struct Channel {
    /// Bytes that we may send.
    room: usize,
    /// Bytes that the other end may send.
    granted: usize,
    /// Bytes consumed and not granted again.
    consumed: usize,
}

/// One end: which channels there are, and who may send how much.
#[derive(Debug)]
pub struct Mux {
    end: MuxEnd,
    next: u32,
    channels: Map<u32, Channel>,
    /// Channels that we closed, whose last bytes may still come.
    closed: VecDeque<u32>,
    input: Vec<u8>,
}

impl Mux {
    /// Without channels.
    #[must_use]
    pub fn new(end: MuxEnd) -> Self {
        let next = match end {
            MuxEnd::First => 1,
            MuxEnd::Second => 2,
        };
        Mux { end, next, channels: Map::default(), closed: VecDeque::new(), input: Vec::new() }
    }

    /// Opens a channel; its number and the frame to be written.
    ///
    /// # Errors
    /// When there are too many.
    pub fn open(&mut self, target: u16) -> Result<(u32, Vec<u8>), MuxError> {
        if self.channels.len() >= MUX_CHANNELS {
            return Err(MuxError::Full);
        }
        let channel = self.next;
        // Numbers are not used again; a link that makes a connection every millisecond would need
        // weeks to come to the end of them.
        self.next = self.next.checked_add(2).ok_or(MuxError::Full)?;
        self.channels.insert(channel, Channel::new());
        Ok((channel, frame(Kind::Open, channel, &target.to_le_bytes())))
    }

    /// How many bytes a channel may send now; `None`: it has ended.
    #[must_use]
    pub fn room(&self, channel: u32) -> Option<usize> {
        self.channels.get(&channel).map(|channel| channel.room.min(MUX_BODY))
    }

    /// Takes bytes of a channel over, as many as it may send; the frame to be written, and how many
    /// they are. `None`: it has ended.
    pub fn send(&mut self, channel: u32, bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
        let state = self.channels.get_mut(&channel)?;
        let take = bytes.len().min(state.room).min(MUX_BODY);
        state.room -= take;
        Some((frame(Kind::Data, channel, bytes.get(..take)?), take))
    }

    /// Bytes of a channel were passed on. A frame that is to be written, if it is time.
    pub fn consumed(&mut self, channel: u32, bytes: usize) -> Option<Vec<u8>> {
        let state = self.channels.get_mut(&channel)?;
        state.consumed += bytes;
        if state.consumed < MUX_WINDOW / 4 {
            return None;
        }
        let more = std::mem::take(&mut state.consumed);
        state.granted += more;
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        Some(frame(Kind::Window, channel, &more.to_le_bytes()))
    }

    /// Ends a channel; a frame that is to be written, unless the other end knows.
    pub fn close(&mut self, channel: u32) -> Option<Vec<u8>> {
        self.channels.remove(&channel)?;
        if self.closed.len() >= MUX_CHANNELS {
            self.closed.pop_front();
        }
        self.closed.push_back(channel);
        Some(frame(Kind::Close, channel, &[]))
    }

    /// Bytes from the other end.
    ///
    /// # Errors
    /// When they break the rules.
    pub fn received(&mut self, bytes: &[u8]) -> Result<Vec<MuxEvent>, MuxError> {
        self.input.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut start = 0;
        while let Some((kind, channel, length)) = header(self.input.get(start..))? {
            let body = start + MUX_HEADER;
            let Some(body) = self.input.get(body..body + length).map(<[u8]>::to_vec) else { break };
            start += MUX_HEADER + length;
            events.extend(self.step(kind, channel, body)?);
        }
        self.input.drain(..start);
        Ok(events)
    }

    fn step(
        &mut self,
        kind: Kind,
        number: u32,
        body: Vec<u8>,
    ) -> Result<Option<MuxEvent>, MuxError> {
        if kind == Kind::Open {
            let odd = number % 2 == 1;
            let theirs = odd == (self.end == MuxEnd::Second);
            if !theirs || self.channels.contains_key(&number) || self.closed.contains(&number) {
                return Err(MuxError::Number(number));
            }
            if self.channels.len() >= MUX_CHANNELS {
                return Err(MuxError::Full);
            }
            let target = body.try_into().map(u16::from_le_bytes).map_err(|_| MuxError::Frame)?;
            self.channels.insert(number, Channel::new());
            return Ok(Some(MuxEvent::Opened { channel: number, target }));
        }
        let Some(channel) = self.channels.get_mut(&number) else {
            // What was under way when we closed it.
            return Ok(None);
        };
        match kind {
            Kind::Data => {
                channel.granted =
                    channel.granted.checked_sub(body.len()).ok_or(MuxError::Flood(number))?;
                Ok(Some(MuxEvent::Data { channel: number, bytes: body }))
            }
            Kind::Window => {
                let more = body.try_into().map(u32::from_le_bytes).map_err(|_| MuxError::Frame)?;
                let more = usize::try_from(more).unwrap_or(usize::MAX);
                let room = channel.room.saturating_add(more);
                if room > MUX_WINDOW {
                    return Err(MuxError::Flood(number));
                }
                channel.room = room;
                Ok(Some(MuxEvent::Room))
            }
            Kind::Close => {
                self.channels.remove(&number);
                Ok(Some(MuxEvent::Closed { channel: number }))
            }
            Kind::Open => Err(MuxError::Frame),
        }
    }
}

impl Channel {
    fn new() -> Self {
        Channel { room: MUX_WINDOW, granted: MUX_WINDOW, consumed: 0 }
    }
}

fn frame(kind: Kind, channel: u32, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut frame = Vec::with_capacity(MUX_HEADER + body.len());
    frame.extend_from_slice(&[kind as u8, 0]);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&channel.to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

fn header(input: Option<&[u8]>) -> Result<Option<(Kind, u32, usize)>, MuxError> {
    let Some(header) = input.and_then(|input| input.first_chunk::<MUX_HEADER>()) else {
        return Ok(None);
    };
    let [kind, zero, l0, l1, c0, c1, c2, c3] = *header;
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    let kind = match (kind, length) {
        (1, 2) => Kind::Open,
        (2, 1..=MUX_BODY) => Kind::Data,
        (3, 4) => Kind::Window,
        (4, 0) => Kind::Close,
        _ => return Err(MuxError::Frame),
    };
    if zero != 0 {
        return Err(MuxError::Frame);
    }
    Ok(Some((kind, u32::from_le_bytes([c0, c1, c2, c3]), length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn ends() -> (Mux, Mux) {
        (Mux::new(MuxEnd::First), Mux::new(MuxEnd::Second))
    }

    #[test]
    fn channels_carry_bytes_both_ways_and_end() {
        let (mut one, mut two) = ends();
        let (channel, open) = one.open(7).unwrap();
        assert_eq!(two.received(&open), Ok(vec![MuxEvent::Opened { channel, target: 7 }]));
        let (frame, 3) = two.send(channel, b"abc").unwrap() else { panic!("all of it") };
        // In two pieces.
        assert_eq!(one.received(&frame[..5]), Ok(vec![]));
        let bytes = b"abc".to_vec();
        assert_eq!(one.received(&frame[5..]), Ok(vec![MuxEvent::Data { channel, bytes }]));
        let close = one.close(channel).unwrap();
        assert_eq!(one.close(channel), None);
        // What is under way meanwhile is void.
        let (late, _) = two.send(channel, b"late").unwrap();
        assert_eq!(one.received(&late), Ok(vec![]));
        assert_eq!(two.received(&close), Ok(vec![MuxEvent::Closed { channel }]));
        assert_eq!(two.send(channel, b"x"), None);
        assert_eq!(two.open(1).unwrap().0 % 2, 0);
    }

    #[test]
    fn a_channel_that_nobody_reads_holds_up_no_other() {
        let (mut one, mut two) = ends();
        let (first, open) = one.open(1).unwrap();
        two.received(&open).unwrap();
        let (second, open) = one.open(1).unwrap();
        two.received(&open).unwrap();
        let block = vec![1; MUX_BODY];
        let mut sent = 0;
        while one.room(first) != Some(0) {
            let (frame, taken) = one.send(first, &block).unwrap();
            two.received(&frame).unwrap();
            sent += taken;
        }
        assert_eq!(sent, MUX_WINDOW);
        assert_eq!(one.room(second), Some(MUX_BODY));
        let window = two.consumed(first, MUX_WINDOW / 2).unwrap();
        assert_eq!(one.received(&window), Ok(vec![MuxEvent::Room]));
        assert_eq!(one.room(first), Some(MUX_BODY));
        assert_eq!(two.consumed(first, 1), None, "small steps are put together");
    }

    #[test]
    fn who_breaks_the_rules_is_found_out() {
        let (mut one, mut two) = ends();
        let (channel, open) = one.open(1).unwrap();
        two.received(&open).unwrap();
        assert_eq!(two.received(&open), Err(MuxError::Number(channel)), "opened twice");
        let (_, mut two) = ends();
        assert_eq!(
            two.received(&frame(Kind::Open, 2, &[1, 0])),
            Err(MuxError::Number(2)),
            "not its own number"
        );
        let (_, mut two) = ends();
        two.received(&frame(Kind::Open, 1, &[1, 0])).unwrap();
        let data = frame(Kind::Data, 1, &vec![0; MUX_BODY]);
        for _ in 0..MUX_WINDOW / MUX_BODY {
            two.received(&data).unwrap();
        }
        assert_eq!(two.received(&frame(Kind::Data, 1, &[0])), Err(MuxError::Flood(1)));
        let (_, mut two) = ends();
        two.received(&frame(Kind::Open, 1, &[1, 0])).unwrap();
        assert_eq!(
            two.received(&frame(Kind::Window, 1, &1_u32.to_le_bytes())),
            Err(MuxError::Flood(1)),
            "more room than there is"
        );
        for bad in [[9, 0, 0, 0, 0, 0, 0, 0], [4, 1, 0, 0, 1, 0, 0, 0], [2, 0, 1, 128, 1, 0, 0, 0]]
        {
            assert_eq!(ends().0.received(&bad), Err(MuxError::Frame));
        }
        let (_, mut two) = ends();
        for number in 0..u32::try_from(MUX_CHANNELS).unwrap() {
            two.received(&frame(Kind::Open, number * 2 + 1, &[1, 0])).unwrap();
        }
        assert_eq!(two.received(&frame(Kind::Open, 1_000_001, &[1, 0])), Err(MuxError::Full));
        assert_eq!(two.open(1), Err(MuxError::Full));
    }

    #[test]
    fn random_bytes_never_panic() {
        for seed in 0..500 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut mux = Mux::new(MuxEnd::Second);
            let mut bytes = frame(Kind::Open, 1, &[1, 0]);
            for _ in 0..random.random_range(0..20) {
                let kind =
                    [Kind::Open, Kind::Data, Kind::Window, Kind::Close][random.random_range(0..4)];
                let body: Vec<u8> =
                    (0..random.random_range(0..6)).map(|_| random.random()).collect();
                bytes.extend(frame(kind, random.random_range(0..5), &body));
            }
            for _ in 0..random.random_range(0..3) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            for piece in bytes.chunks(random.random_range(1..40)) {
                if mux.received(piece).is_err() {
                    break;
                }
            }
        }
    }
}
