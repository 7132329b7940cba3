//! Input streams: home to away, never over-read.
//!
//! What the body has not read must stay in home's pipe for the next reader (`seq 5 | while read x; do
//! cmd; done`). So home sends copies (tee(2)) and takes bytes out of its pipe only when the body has
//! really read them. Away the copies are put into a local pipe that is exactly full with them: a pipe
//! of n slots, every slot used ([`layout`]). A full pipe becomes writable when its first slot is empty,
//! and that is the event that tells consumption, without a timer and without waking anybody for each
//! byte of a shell's `read`. What is left then is taken back by one atomic read and laid out anew.
//!
//! Cost: one round trip for each batch (at most [`INPUT_WINDOW`]) and one event for each page, or for
//! each read if those are larger. The end is told when all before it has been read.

use std::collections::VecDeque;

use super::Violation;
use crate::messages::MAX_RECORD;

/// Most bytes that are sent and not yet read by the body.
pub const INPUT_WINDOW: u64 = 64 << 10;
/// Bytes read by the body that are reported while more are there; keeps home's pipe moving.
const REPORT: u64 = 16 << 10;

/// Home: looks into the real pipe.
#[derive(Debug, Clone, Default)]
pub struct InputSender {
    ready: bool,
    sent: u64,
    consumed: u64,
    ended: bool,
}

impl InputSender {
    /// Nothing is sent before [`InputSender::ready`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The stand-in exists.
    pub fn ready(&mut self) {
        self.ready = true;
    }

    /// Bytes sent that are still in home's pipe, at its front.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        usize::try_from(self.sent - self.consumed).unwrap_or(usize::MAX)
    }

    /// How many bytes to copy from behind the outstanding ones, 0 for now none.
    #[must_use]
    pub fn wanted(&self) -> usize {
        let outstanding = self.sent - self.consumed;
        if !self.ready || self.ended || outstanding > INPUT_WINDOW / 2 {
            return 0;
        }
        usize::try_from(INPUT_WINDOW - outstanding).unwrap_or(0)
    }

    /// Whether to wait for the pipe to become readable. While something is outstanding it always is:
    /// then the next look follows a report of the body.
    #[must_use]
    pub fn wants_readable(&self) -> bool {
        self.wanted() > 0 && self.outstanding() == 0
    }

    /// So many bytes were copied and sent.
    pub fn sent(&mut self, length: usize) {
        self.sent += length as u64;
    }

    /// The body has read so many in all; returns how many to take out of the pipe.
    pub fn consumed(&mut self, total: u64) -> Result<usize, Violation> {
        if total > self.sent {
            return Err(Violation("consumed more than was sent"));
        }
        let more = total.saturating_sub(self.consumed);
        self.consumed += more;
        usize::try_from(more).map_err(|_| Violation("consumed too much at once"))
    }

    /// The pipe is empty and nobody writes; true: now the end is to be sent.
    pub fn end(&mut self) -> bool {
        if self.ended || self.outstanding() > 0 {
            return false;
        }
        self.ended = true;
        true
    }
}

/// Lengths of writes that put as many as possible of `total` bytes into a pipe and use all slots of
/// it; the number of slots is a power of two, at most `most_slots`.
///
/// A pipe starts a new slot for each write unless it fits into what is left of the last one. So full
/// pages alternate with the parts between which the rest is divided; a rest too small for that (a few
/// bytes) is left for later.
#[must_use]
pub fn layout(total: usize, most_slots: usize) -> Vec<usize> {
    let total = total.min(most_slots * MAX_RECORD);
    if total <= MAX_RECORD {
        return if total == 0 { Vec::new() } else { vec![total] };
    }
    let slots = total.div_ceil(MAX_RECORD).next_power_of_two();
    let pairs = slots / 2;
    let rest = total - pairs * MAX_RECORD;
    if rest < pairs {
        return vec![MAX_RECORD; pairs];
    }
    (0..pairs)
        .flat_map(|pair| {
            let part = rest / pairs + usize::from(pair < rest % pairs);
            [MAX_RECORD, part]
        })
        .collect()
}

/// Away: puts the copies into the body's pipe.
#[derive(Debug, Clone, Default)]
pub struct InputFeeder {
    received: u64,
    fed: u64,
    consumed: u64,
    reported: u64,
    unfed: VecDeque<u8>,
    ended: bool,
}

impl InputFeeder {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes arrived.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.ended {
            return Err(Violation("data after the end"));
        }
        if self.received + bytes.len() as u64 > self.reported + INPUT_WINDOW {
            return Err(Violation("input over the window"));
        }
        self.received += bytes.len() as u64;
        self.unfed.extend(bytes);
        Ok(())
    }

    /// Nothing follows.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Bytes that wait to be put into the pipe.
    pub fn unfed(&mut self) -> &[u8] {
        self.unfed.make_contiguous()
    }

    /// So many bytes of [`InputFeeder::unfed`] are in the pipe.
    pub fn fed(&mut self, length: usize) {
        let length = length.min(self.unfed.len());
        self.fed += length as u64;
        self.unfed.drain(..length);
    }

    /// These bytes, all that were in the pipe, were taken back.
    pub fn taken_back(&mut self, bytes: &[u8]) {
        self.fed = self.fed.saturating_sub(bytes.len() as u64);
        for &byte in bytes.iter().rev() {
            self.unfed.push_front(byte);
        }
    }

    /// So many bytes are in the pipe now; returns the total to report, if it is worth a message: all
    /// has been read, or a good part of the window.
    pub fn look(&mut self, available: usize) -> Option<u64> {
        self.consumed = self.fed.saturating_sub(available as u64).max(self.consumed);
        let all = self.consumed == self.received;
        if self.consumed > self.reported && (all || self.consumed - self.reported >= REPORT) {
            return self.report();
        }
        None
    }

    /// The total to report now, if it was not reported yet.
    pub fn report(&mut self) -> Option<u64> {
        if self.consumed == self.reported {
            return None;
        }
        self.reported = self.consumed;
        Some(self.reported)
    }

    /// Bytes that the body has really read.
    #[must_use]
    pub fn total_consumed(&self) -> u64 {
        self.consumed
    }

    /// Whether to wait until the local pipe has been emptied.
    #[must_use]
    pub fn wants_writable(&self) -> bool {
        self.consumed < self.received
    }

    /// Whether the local pipe is to be closed: everything is in it and nothing follows.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.ended && self.unfed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_before_the_stand_in_exists() {
        let mut sender = InputSender::new();
        assert_eq!(sender.wanted(), 0);
        sender.ready();
        assert_eq!(sender.wanted() as u64, INPUT_WINDOW);
    }

    #[test]
    fn the_end_waits_for_the_body() {
        let mut sender = InputSender::new();
        sender.ready();
        sender.sent(3);
        assert!(!sender.end());
        assert_eq!(sender.consumed(3), Ok(3));
        assert!(sender.end());
        assert!(!sender.end(), "once only");
    }

    #[test]
    fn impossible_totals_are_violations() {
        let mut sender = InputSender::new();
        sender.ready();
        sender.sent(3);
        assert!(sender.consumed(4).is_err());
        assert_eq!(sender.consumed(2), Ok(2));
        assert_eq!(sender.consumed(1), Ok(0), "an old total changes nothing");
        let mut feeder = InputFeeder::new();
        feeder.data(&[0; INPUT_WINDOW as usize]).unwrap();
        assert!(feeder.data(&[0]).is_err());
    }

    #[test]
    fn only_what_was_read_is_reported() {
        let mut feeder = InputFeeder::new();
        feeder.data(b"line one\nline two\n").unwrap();
        assert_eq!(feeder.unfed().len(), 18);
        feeder.fed(18);
        assert_eq!(feeder.look(9), None, "not worth a message");
        assert_eq!(feeder.report(), Some(9), "unless it is asked for");
        assert_eq!(feeder.look(0), Some(18));
    }

    #[test]
    fn what_is_taken_back_comes_first_again() {
        let mut feeder = InputFeeder::new();
        feeder.data(b"abcdef").unwrap();
        feeder.fed(4);
        assert_eq!(feeder.look(2), None);
        feeder.taken_back(b"cd");
        assert_eq!(feeder.unfed(), b"cdef");
        assert_eq!(feeder.look(0), None, "nothing more was read");
        feeder.fed(4);
        assert_eq!(feeder.look(0), Some(6));
    }

    #[test]
    fn a_layout_uses_every_slot() {
        for total in (1..=70_000).step_by(7).chain([4096, 4097, 8192, 8193, 16_384, 16_387]) {
            let writes = layout(total, 16);
            let sum: usize = writes.iter().sum();
            assert!(writes.len().is_power_of_two() && writes.len() <= 16, "{total}");
            assert!(sum <= total && total.min(16 * MAX_RECORD) - sum < 8, "{total}: {sum}");
            // The rule of pipe_write: the odd part of a write joins the last slot if it fits there.
            let (mut slots, mut last) = (0, MAX_RECORD);
            for write in writes {
                let odd = write % MAX_RECORD;
                assert!(write <= MAX_RECORD && write > 0);
                if odd == 0 || last + odd > MAX_RECORD {
                    slots += 1;
                    last = write;
                } else {
                    last += odd;
                }
            }
            assert!(usize::is_power_of_two(slots), "{total}: {slots} slots");
            assert_eq!(slots, layout(total, 16).len(), "{total}");
        }
        assert!(layout(0, 16).is_empty());
        assert_eq!(layout(100_000, 2), [4096, 4096]);
    }
}
