//! Numbers of requests: the identity under which the server knows a repeated request.

use std::collections::BTreeSet;

/// Gives numbers and knows up to which all have been answered. Pure.
#[derive(Debug, Default)]
pub struct Numbering {
    last: u64,
    open: BTreeSet<u64>,
}

impl Numbering {
    /// None given yet; the first is 1.
    #[must_use]
    pub fn new() -> Numbering {
        Numbering::default()
    }

    /// The next number; unanswered until [`Self::close`].
    pub fn open(&mut self) -> u64 {
        self.last += 1;
        self.open.insert(self.last);
        self.last
    }

    /// The request was answered, or will never be sent again.
    pub fn close(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// Every number up to this one is closed.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.open.first().map_or(self.last, |first| first - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_stops_before_the_oldest_open_number() {
        let mut numbering = Numbering::new();
        assert_eq!(numbering.answered(), 0);
        let numbers: Vec<u64> = (0..4).map(|_| numbering.open()).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        numbering.close(2);
        assert_eq!(numbering.answered(), 0);
        numbering.close(1);
        assert_eq!(numbering.answered(), 2);
        numbering.close(4);
        assert_eq!(numbering.answered(), 2);
        numbering.close(3);
        assert_eq!(numbering.answered(), 4);
    }
}
