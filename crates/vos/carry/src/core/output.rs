//! Output streams: away to home.
//!
//! The credit follows the free room in home's pipe, and the size of the local pipe follows the credit
//! ([`OutputSender::slots`]): so a body can run ahead of a slow reader by one page more than natively,
//! and `seq 20000 | head -1` still dies of SIGPIPE, while a write of some pages into an empty pipe
//! arrives as one.
//!
//! Writes of at most `PIPE_BUF` bytes stay atomic: the local pipe is in packet mode, so each write is
//! a record; records travel with the bytes and are never split at home.

use std::collections::VecDeque;

use super::Violation;
use crate::messages::MAX_RECORD;

/// Most bytes that a sender may have under way, whatever room there is.
pub const MAX_WINDOW: u64 = 256 << 10;
/// Credit below which the receiver looks whether it can give more.
const LOW_CREDIT: u64 = 48 << 10;
/// Credit that is worth a message.
const WORTHWHILE: u64 = 8 << 10;
/// Credit below which a sender stops: the next record might not fit.
const STALLED: u64 = MAX_RECORD as u64;
/// Most slots of a local pipe: as a native pipe has.
pub const MAX_SLOTS: usize = 16;
/// Records that must have been seen before their size is judged.
const JUDGED_RECORDS: usize = 8;
/// Bytes after which a writer counts as one of bulk data.
const BULK: u64 = 1 << 20;
/// Room beyond a large write that must be free before it is written with one call; other writers
/// would have to fill it between two system calls for the write to be cut.
const MARGIN: usize = 4 * MAX_RECORD;

/// Away: takes records out of the body's pipe as credit allows.
#[derive(Debug, Clone)]
pub struct OutputSender {
    credit: u64,
    taken: u64,
    /// Records and bytes of late, to tell writers of small records.
    recent: (usize, usize),
    ended: bool,
}

impl OutputSender {
    /// With the credit that came with the descriptor.
    #[must_use]
    pub fn new(credit: u64) -> Self {
        OutputSender { credit: credit.min(MAX_WINDOW), taken: 0, recent: (0, 0), ended: false }
    }

    /// Whether a record may be taken out of the pipe now.
    #[must_use]
    pub fn may_take(&self) -> bool {
        !self.ended && self.credit - self.taken >= STALLED
    }

    /// A record was taken and will be sent.
    pub fn took(&mut self, length: usize) {
        self.taken += length as u64;
        self.recent = (self.recent.0 + 1, self.recent.1 + length);
        if self.recent.0 >= 4 * JUDGED_RECORDS {
            self.recent = (self.recent.0 / 2, self.recent.1 / 2);
        }
        debug_assert!(self.taken <= self.credit && length <= MAX_RECORD);
    }

    /// Nobody writes any more and the pipe is empty.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// More may be sent. Totals that go back or too far are not believed.
    pub fn credit(&mut self, total: u64) -> Result<(), Violation> {
        if total > self.taken + MAX_WINDOW {
            return Err(Violation("credit over the window"));
        }
        self.credit = self.credit.max(total);
        Ok(())
    }

    /// Everything written until now, when `available` bytes wait in the pipe.
    #[must_use]
    pub fn mark(&self, available: usize) -> u64 {
        self.taken + available as u64
    }

    /// Whether all that a mark stands for has been sent.
    #[must_use]
    pub fn passed(&self, mark: u64) -> bool {
        self.ended || self.taken >= mark
    }

    /// Bytes that may be taken now.
    #[must_use]
    pub fn most(&self) -> usize {
        usize::try_from(self.credit.saturating_sub(self.taken)).unwrap_or(usize::MAX)
    }

    /// How many slots the local pipe shall have.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.after(0)
    }

    /// [`OutputSender::slots`] when so many bytes more will have been taken.
    ///
    /// What is in them shall be a quarter of the credit, judged by the size of the last records: the
    /// pipe can be made smaller only in a moment when little is in it, and so there are several such
    /// moments before the credit is used up. Bulk data get all of it: of a writer that has passed so
    /// much, hardly one ends within the last few pages.
    #[must_use]
    pub fn after(&self, length: usize) -> usize {
        let pages = self.most().saturating_sub(length) / MAX_RECORD;
        let share = if self.taken >= BULK { pages } else { pages / 4 };
        let (records, bytes) = self.recent;
        let record = if records >= JUDGED_RECORDS { (bytes / records).max(1) } else { MAX_RECORD };
        let slots = share.max(1) * MAX_RECORD / record;
        1 << slots.min(pages).clamp(1, MAX_SLOTS).ilog2()
    }
}

#[derive(Debug, Clone)]
struct Chunk {
    bytes: Vec<u8>,
    start: usize,
    /// Lengths of the records not written yet; the first may have been written in part.
    records: VecDeque<u16>,
}

/// Home: writes records into the real pipe or terminal and gives credit as room appears there.
#[derive(Debug, Clone)]
pub struct OutputReceiver {
    granted: u64,
    received: u64,
    written: u64,
    pending: VecDeque<Chunk>,
    ended: bool,
}

impl OutputReceiver {
    /// With the room that the pipe has now; [`OutputReceiver::granted`] goes with the descriptor.
    #[must_use]
    pub fn new(room: usize) -> Self {
        OutputReceiver {
            granted: (room as u64).min(MAX_WINDOW),
            received: 0,
            written: 0,
            pending: VecDeque::new(),
            ended: false,
        }
    }

    /// Bytes that the sender may have sent in all.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// Bytes arrived. `records` as in [`crate::CarryMessage::StreamData`], checked.
    pub fn data(&mut self, records: Vec<u16>, bytes: Vec<u8>) -> Result<(), Violation> {
        if self.ended {
            return Err(Violation("data after the end"));
        }
        if self.received + bytes.len() as u64 > self.granted {
            return Err(Violation("data over the credit"));
        }
        self.received += bytes.len() as u64;
        let records = if records.is_empty() {
            bytes
                .chunks(MAX_RECORD)
                .map(|record| u16::try_from(record.len()).unwrap_or(u16::MAX))
                .collect()
        } else {
            records.into()
        };
        self.pending.push_back(Chunk { bytes, start: 0, records });
        Ok(())
    }

    /// The sender has no more, or is gone.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What to write next with one call: records that fit into one atomic write together, or a run of
    /// full pages (which a pipe accepts in whole pages only), or a run of full pages and the record
    /// behind it, which looks like one large write, if `free` bytes of room are surely enough for it.
    #[must_use]
    pub fn next(&self, free: usize) -> Option<&[u8]> {
        let chunk = self.pending.front()?;
        let pages = self.pages();
        let mut length = 0;
        if pages > 0 {
            length = pages * MAX_RECORD;
            let tail = chunk.records.get(pages).copied().map_or(0, usize::from);
            if length + tail + MARGIN <= free {
                length += tail;
            }
        } else {
            for &record in &chunk.records {
                if length + usize::from(record) > MAX_RECORD {
                    break;
                }
                length += usize::from(record);
            }
        }
        chunk.bytes.get(chunk.start..chunk.start + length)
    }

    /// Whether [`OutputReceiver::next`] depends on the room.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.pages() > 0
    }

    /// Full pages at the front.
    fn pages(&self) -> usize {
        let Some(chunk) = self.pending.front() else { return 0 };
        chunk.records.iter().take_while(|&&record| usize::from(record) == MAX_RECORD).count()
    }

    /// So many bytes of [`OutputReceiver::next`] were written.
    pub fn wrote(&mut self, length: usize) {
        self.written += length as u64;
        let Some(chunk) = self.pending.front_mut() else { return };
        chunk.start += length;
        let mut left = length;
        while left > 0 {
            let Some(first) = chunk.records.front_mut() else { break };
            let taken = left.min(usize::from(*first));
            *first -= u16::try_from(taken).unwrap_or(*first);
            left -= taken;
            if *first == 0 {
                chunk.records.pop_front();
            }
        }
        if chunk.start >= chunk.bytes.len() {
            self.pending.pop_front();
        }
    }

    /// Whether it is worth looking how much room the pipe has.
    #[must_use]
    pub fn wants_room(&self) -> bool {
        !self.ended && self.granted - self.received < LOW_CREDIT
    }

    /// The pipe has room for so many bytes beyond what was written; returns the new total to tell the
    /// sender, if it is worth a message.
    pub fn room(&mut self, room: usize) -> Option<u64> {
        if self.ended {
            return None;
        }
        let total = self.written + (room as u64).min(MAX_WINDOW);
        let left = self.granted - self.received;
        let more = total.saturating_sub(self.granted);
        if more == 0 || (left >= STALLED && more < WORTHWHILE) {
            return None;
        }
        self.granted = total;
        Some(total)
    }

    /// Whether to wait until the pipe is writable: bytes are pending, or the sender stands still.
    #[must_use]
    pub fn wants_writable(&self) -> bool {
        !self.pending.is_empty() || (!self.ended && self.granted - self.received < STALLED)
    }

    /// Whether everything was written and nothing follows: time to close.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.ended && self.pending.is_empty()
    }

    /// Everything received until now.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.received
    }

    /// Whether all that a mark stands for has been written.
    #[must_use]
    pub fn passed(&self, mark: u64) -> bool {
        self.written >= mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_records_are_written_together_and_never_split() {
        let mut receiver = OutputReceiver::new(65536);
        receiver.data(vec![2000, 2000, 2000], vec![1; 6000]).unwrap();
        assert_eq!(receiver.next(0).unwrap().len(), 4000);
        receiver.wrote(4000);
        assert_eq!(receiver.next(0).unwrap().len(), 2000);
        receiver.wrote(2000);
        assert!(receiver.next(0).is_none());
    }

    #[test]
    fn full_pages_are_written_in_one_run() {
        let mut receiver = OutputReceiver::new(65536);
        receiver.data(vec![4096, 4096, 10], vec![1; 8202]).unwrap();
        assert_eq!(receiver.next(0).unwrap().len(), 8192);
        receiver.wrote(4096);
        assert_eq!(receiver.next(0).unwrap().len(), 4096);
        receiver.wrote(4096);
        assert_eq!(receiver.next(0).unwrap().len(), 10);
    }

    #[test]
    fn a_terminal_may_take_a_part() {
        let mut receiver = OutputReceiver::new(65536);
        receiver.data(vec![], b"hello".to_vec()).unwrap();
        receiver.wrote(2);
        assert_eq!(receiver.next(0).unwrap(), b"llo");
    }

    #[test]
    fn more_than_the_credit_is_a_violation() {
        let mut receiver = OutputReceiver::new(10);
        assert!(receiver.data(vec![], vec![0; 11]).is_err());
        receiver.end();
        assert!(receiver.data(vec![], vec![0; 1]).is_err());
        let mut sender = OutputSender::new(0);
        assert!(sender.credit(MAX_WINDOW + 1).is_err());
    }

    #[test]
    fn a_large_write_stays_one_if_there_is_room() {
        let mut receiver = OutputReceiver::new(65536);
        receiver.data(vec![4096, 4096, 1808, 50], vec![1; 10_050]).unwrap();
        assert_eq!(receiver.next(10_000).unwrap().len(), 8192);
        assert_eq!(receiver.next(65536).unwrap().len(), 10_000);
        receiver.wrote(10_000);
        assert!(!receiver.is_large());
        assert_eq!(receiver.next(0).unwrap().len(), 50);
    }

    #[test]
    fn the_local_pipe_follows_the_credit() {
        let mut sender = OutputSender::new(16 * STALLED);
        assert_eq!(sender.slots(), 4);
        for (taken, slots) in [(1, 2), (7, 2), (1, 1), (7, 1)] {
            for _ in 0..taken {
                sender.took(MAX_RECORD);
            }
            assert_eq!(sender.slots(), slots);
        }
        assert!(!sender.may_take());
    }

    #[test]
    fn writers_of_small_records_get_more_slots() {
        let mut sender = OutputSender::new(16 * STALLED + 200);
        for _ in 0..JUDGED_RECORDS {
            sender.took(20);
        }
        assert_eq!(sender.slots(), MAX_SLOTS);
        for _ in 0..3 {
            sender.took(MAX_RECORD);
        }
        assert_eq!(sender.slots(), 8, "fewer as they grow");
    }
}
