//! Input streams: home to away, never over-read.
//!
//! What the body has not read must stay in home's pipe for the next reader (`seq 5 | while read x; do
//! cmd; done`). So home sends copies (tee(2)) and takes bytes out of its pipe only when the body has
//! really read them. Away the copies are put into a local pipe of one page: such a pipe is "full" with
//! any byte in it and becomes writable exactly when its last byte is read, which is the event that
//! tells consumption without a timer and without waking anybody for each byte of a shell's `read`.
//!
//! Cost: one round trip for each batch (at most [`INPUT_WINDOW`]), two local context switches for each
//! page. The end of the stream is told when all before it has been read.

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

/// Away: puts the copies into the body's pipe.
#[derive(Debug, Clone, Default)]
pub struct InputFeeder {
    received: u64,
    fed: u64,
    consumed: u64,
    reported: u64,
    unfed: VecDeque<Vec<u8>>,
    start: usize,
    ended: bool,
}

impl InputFeeder {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes arrived.
    pub fn data(&mut self, bytes: Vec<u8>) -> Result<(), Violation> {
        if self.ended {
            return Err(Violation("data after the end"));
        }
        if self.received + bytes.len() as u64 > self.reported + INPUT_WINDOW {
            return Err(Violation("input over the window"));
        }
        self.received += bytes.len() as u64;
        self.unfed.push_back(bytes);
        Ok(())
    }

    /// Nothing follows.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What to put into the pipe next: at most one page.
    #[must_use]
    pub fn next(&self) -> Option<&[u8]> {
        let chunk = self.unfed.front()?;
        chunk.get(self.start..chunk.len().min(self.start + MAX_RECORD))
    }

    /// So many bytes of [`InputFeeder::next`] are in the pipe.
    pub fn fed(&mut self, length: usize) {
        self.fed += length as u64;
        self.start += length;
        if self.unfed.front().is_some_and(|chunk| self.start >= chunk.len()) {
            self.unfed.pop_front();
            self.start = 0;
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
        feeder.data(vec![0; INPUT_WINDOW as usize]).unwrap();
        assert!(feeder.data(vec![0]).is_err());
    }

    #[test]
    fn only_what_was_read_is_reported() {
        let mut feeder = InputFeeder::new();
        feeder.data(b"line one\nline two\n".to_vec()).unwrap();
        assert_eq!(feeder.next().unwrap().len(), 18);
        feeder.fed(18);
        assert_eq!(feeder.look(9), None, "not worth a message");
        assert_eq!(feeder.report(), Some(9), "unless it is asked for");
        assert_eq!(feeder.look(0), Some(18));
    }
}
