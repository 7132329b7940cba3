//! How many programs were placed where, and how many stayed for which reason.

use crate::reason::Reason;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;

/// Most processes whose reason is remembered; the oldest is forgotten first.
pub const MAX_REASONS: usize = 16_384;

/// Counts at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Statistics {
    /// Programs placed, by node.
    pub placed: BTreeMap<u16, u64>,
    /// Programs that stayed, by reason.
    pub stayed: BTreeMap<Reason, u64>,
    /// Programs of other nodes that ran here.
    pub received: u64,
}

#[derive(Debug, Default)]
struct Counts {
    statistics: Statistics,
    reasons: HashMap<u32, Reason>,
    order: VecDeque<u32>,
}

/// Counters that threads share.
#[derive(Debug, Default)]
pub struct Counters(Mutex<Counts>);

impl Counters {
    /// A program was placed on a node.
    pub fn placed(&self, node: u16) {
        *self.0.lock().unwrap().statistics.placed.entry(node).or_default() += 1;
    }

    /// A program stayed: the process (its pid outside) and why. One that does not exist is no program:
    /// a search through `PATH` asks for it in every folder.
    pub fn stayed(&self, process: u32, reason: Reason) {
        if reason == Reason::NotFound {
            return;
        }
        let mut counts = self.0.lock().unwrap();
        *counts.statistics.stayed.entry(reason).or_default() += 1;
        if counts.reasons.insert(process, reason).is_none() {
            counts.order.push_back(process);
            if counts.order.len() > MAX_REASONS
                && let Some(oldest) = counts.order.pop_front()
            {
                counts.reasons.remove(&oldest);
            }
        }
    }

    /// A program of another node runs here.
    pub fn received(&self) {
        self.0.lock().unwrap().statistics.received += 1;
    }

    /// Why the last program of a process stayed.
    #[must_use]
    pub fn reason(&self, process: u32) -> Option<Reason> {
        self.0.lock().unwrap().reasons.get(&process).copied()
    }

    /// The counts now.
    #[must_use]
    pub fn now(&self) -> Statistics {
        self.0.lock().unwrap().statistics.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_bounded_memory_of_reasons() {
        let counters = Counters::default();
        counters.placed(2);
        counters.placed(2);
        counters.stayed(7, Reason::NotFound);
        for process in 0..=(MAX_REASONS as u32) {
            counters.stayed(process, Reason::Children);
        }
        let now = counters.now();
        assert_eq!(now.placed, BTreeMap::from([(2, 2)]));
        assert_eq!(now.stayed[&Reason::Children], MAX_REASONS as u64 + 1);
        assert_eq!(now.stayed.len(), 1, "a missing program has not stayed");
        assert_eq!(counters.reason(0), None);
        assert_eq!(counters.reason(1), Some(Reason::Children));
    }
}
