//! What waits for one peer: bounded in bytes. A full queue holds up who fills it; the kernel's own
//! queues fill then, and senders wait. Only when that takes too long is something dropped.

use std::collections::VecDeque;

/// Most bytes that wait for one peer, one message over it excepted.
pub const MAX_BYTES: usize = 4 << 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Queue {
    /// Whether one more message may be added.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes < MAX_BYTES
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Adds a message; gives it back when there is no room.
    ///
    /// # Errors
    /// The message.
    pub fn push(&mut self, message: Vec<u8>) -> Result<(), Vec<u8>> {
        if !self.has_room() {
            return Err(message);
        }
        self.bytes += message.len();
        self.messages.push_back(message);
        Ok(())
    }

    /// The oldest message.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }

    /// Drops everything; how many messages that were.
    pub fn clear(&mut self) -> usize {
        self.bytes = 0;
        self.messages.drain(..).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_bounded_and_in_order() {
        let mut queue = Queue::default();
        let mut pushed = 0_u8;
        while queue.push(vec![pushed; 1 << 20]).is_ok() {
            pushed += 1;
        }
        assert_eq!(usize::from(pushed), MAX_BYTES >> 20);
        assert_eq!(queue.pop().map(|message| message[0]), Some(0));
        assert!(queue.has_room());
        assert_eq!(queue.pop().map(|message| message[0]), Some(1));
        assert_eq!(queue.clear(), usize::from(pushed) - 2);
        assert!(queue.is_empty() && queue.has_room() && queue.pop().is_none());
    }
}
