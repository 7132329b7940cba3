//! What happened on a node: the last events are kept in memory, for `dvs events`.

use crate::managing::Event;
use dvs_sys::clock;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most events kept; older ones are dropped.
pub(crate) const MAX_EVENTS: usize = 4096;

/// See the module.
pub(crate) struct Events {
    node: String,
    kept: Mutex<Kept>,
    more: Condvar,
}

#[derive(Default)]
struct Kept {
    /// How many were dropped before the first one kept.
    dropped: u64,
    events: VecDeque<Event>,
}

impl Events {
    /// None yet.
    pub(crate) fn new(node: &str) -> Events {
        Events { node: node.to_owned(), kept: Mutex::default(), more: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one.
    pub(crate) fn tell(&self, action: &str, container: &str, attributes: Vec<(String, String)>) {
        let mut kept = self.lock();
        if kept.events.len() >= MAX_EVENTS {
            kept.events.pop_front();
            kept.dropped += 1;
        }
        kept.events.push_back(Event {
            time: clock::real(),
            action: action.to_owned(),
            container: container.to_owned(),
            node: self.node.clone(),
            attributes,
        });
        drop(kept);
        self.more.notify_all();
    }

    /// Number of the next event.
    pub(crate) fn next(&self) -> u64 {
        let kept = self.lock();
        kept.dropped + kept.events.len() as u64
    }

    /// Events from a number on; moves it behind them. Waits up to `patience` for the first.
    pub(crate) fn read(&self, from: &mut u64, patience: Duration) -> Vec<Event> {
        let nothing = |kept: &mut Kept| *from >= kept.dropped + kept.events.len() as u64;
        let waited = self.more.wait_timeout_while(self.lock(), patience, nothing);
        let kept = waited.unwrap_or_else(PoisonError::into_inner).0;
        let skip = usize::try_from(from.saturating_sub(kept.dropped)).unwrap_or(usize::MAX);
        let found: Vec<Event> = kept.events.iter().skip(skip).cloned().collect();
        *from = kept.dropped + kept.events.len() as u64;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_readers_go_on() {
        let events = Events::new("n1");
        let mut late = 0;
        for number in 0..MAX_EVENTS + 10 {
            events.tell("start", &number.to_string(), Vec::new());
        }
        let mut from = events.next();
        assert!(events.read(&mut from, Duration::ZERO).is_empty());
        let all = events.read(&mut late, Duration::ZERO);
        assert_eq!((all.len(), all[0].container.as_str()), (MAX_EVENTS, "10"));
        assert_eq!(all[0].node, "n1");
        events.tell("die", "x", Vec::new());
        assert_eq!(events.read(&mut from, Duration::ZERO).len(), 1);
        assert_eq!(events.read(&mut late, Duration::ZERO).len(), 1);
    }
}
