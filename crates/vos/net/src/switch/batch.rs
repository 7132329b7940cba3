//! Several frames as one message: each after its length in four bytes, little-endian.

use super::frame::MAX_FRAME;

/// A message is full at this length: with one more frame it stays far below what a link takes.
pub const FULL: usize = 256 << 10;

/// Frames for one node, being packed.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
}

impl Batch {
    /// Adds a frame.
    pub fn push(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(frame);
    }

    /// Whether it should be sent before more is added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= FULL
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The message; the batch is empty again.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// The frames of a message; ends at what is none.
#[derive(Debug)]
pub struct Frames<'a>(pub &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_FRAME {
            return None;
        }
        let frame = rest.get(..length)?;
        self.0 = rest.get(length..).unwrap_or_default();
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut batch = Batch::default();
        assert!(batch.is_empty());
        for length in [1, 60, MAX_FRAME] {
            batch.push(&vec![length as u8; length]);
        }
        assert!(!batch.is_full());
        let message = batch.take();
        assert!(batch.is_empty());
        let lengths: Vec<usize> = Frames(&message).map(<[u8]>::len).collect();
        assert_eq!(lengths, [1, 60, MAX_FRAME]);
        for cut in 0..70 {
            assert!(Frames(&message[..cut]).count() <= 2);
        }
        assert_eq!(Frames(&u32::MAX.to_le_bytes()).count(), 0);
        let mut batch = Batch::default();
        while !batch.is_full() {
            batch.push(&[0; MAX_FRAME]);
        }
        assert!(batch.take().len() < FULL + MAX_FRAME + 5);
    }
}
