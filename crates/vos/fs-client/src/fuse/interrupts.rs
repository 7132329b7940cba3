//! Requests that may wait long, and the kernel's wish to end them (INTERRUPT).
//!
//! With several descriptors of the device, an interrupt is read by any thread, maybe before the one
//! that read the request has entered it here, maybe after the request is over. The kernel sends it
//! only once, so early ones are remembered (a bounded number: they are mostly for requests that do
//! not wait, or are over).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// Most interrupts remembered for requests that are not entered.
pub const MAX_EARLY: usize = 1024;

/// Ends one waiting request early; called at most once, on a thread that serves the kernel.
pub(super) type Cancel = Arc<dyn Fn() + Send + Sync>;

enum State {
    /// Entered, nothing waits yet.
    Entered { interrupted: bool },
    /// Waits.
    Waiting(Cancel),
}

#[derive(Default)]
struct Table {
    requests: HashMap<u64, State>,
    early: VecDeque<u64>,
}

/// The waiting requests of a mount.
#[derive(Default)]
pub(super) struct Interrupts(Mutex<Table>);

impl Interrupts {
    /// A request that may wait was read.
    pub(super) fn enter(&self, unique: u64) {
        let mut table = self.0.lock().unwrap();
        let before = table.early.len();
        table.early.retain(|early| *early != unique);
        let interrupted = table.early.len() != before;
        table.requests.insert(unique, State::Entered { interrupted });
    }

    /// It is about to wait. False: it was interrupted already, and must not.
    pub(super) fn wait(&self, unique: u64, cancel: Cancel) -> bool {
        let mut table = self.0.lock().unwrap();
        if let Some(State::Entered { interrupted: true }) = table.requests.get(&unique) {
            return false;
        }
        table.requests.insert(unique, State::Waiting(cancel));
        true
    }

    /// It is over.
    pub(super) fn leave(&self, unique: u64) {
        self.0.lock().unwrap().requests.remove(&unique);
    }

    /// The kernel wants it ended.
    pub(super) fn interrupt(&self, unique: u64) {
        let cancel = {
            let mut table = self.0.lock().unwrap();
            match table.requests.get_mut(&unique) {
                Some(State::Waiting(cancel)) => Some(Arc::clone(cancel)),
                Some(State::Entered { interrupted }) => {
                    *interrupted = true;
                    None
                }
                None => {
                    if table.early.len() == MAX_EARLY {
                        table.early.pop_front();
                    }
                    table.early.push_back(unique);
                    None
                }
            }
        };
        if let Some(cancel) = cancel {
            cancel();
        }
    }

    /// The mount is over: nothing is to wait any more.
    pub(super) fn interrupt_all(&self) {
        let uniques: Vec<u64> = self.0.lock().unwrap().requests.keys().copied().collect();
        for unique in uniques {
            self.interrupt(unique);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn counter() -> (Arc<AtomicU32>, Cancel) {
        let count = Arc::new(AtomicU32::new(0));
        let inner = Arc::clone(&count);
        let cancel = move || {
            inner.fetch_add(1, Ordering::Relaxed);
        };
        (count, Arc::new(cancel))
    }

    #[test]
    fn an_interrupt_is_heeded_whenever_it_comes() {
        let interrupts = Interrupts::default();
        let (count, cancel) = counter();
        // Before the request is entered.
        interrupts.interrupt(2);
        interrupts.enter(2);
        assert!(!interrupts.wait(2, Arc::clone(&cancel)));
        interrupts.leave(2);
        // Between.
        interrupts.enter(4);
        interrupts.interrupt(4);
        assert!(!interrupts.wait(4, Arc::clone(&cancel)));
        interrupts.leave(4);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        // While it waits.
        interrupts.enter(6);
        assert!(interrupts.wait(6, Arc::clone(&cancel)));
        interrupts.interrupt(6);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        interrupts.leave(6);
        // Another one is not touched.
        interrupts.enter(8);
        interrupts.interrupt(6);
        assert!(interrupts.wait(8, cancel));
    }

    #[test]
    fn early_ones_are_bounded() {
        let interrupts = Interrupts::default();
        for unique in 0..=MAX_EARLY as u64 {
            interrupts.interrupt(unique);
        }
        assert_eq!(interrupts.0.lock().unwrap().early.len(), MAX_EARLY);
        let (_, cancel) = counter();
        interrupts.enter(0);
        assert!(interrupts.wait(0, Arc::clone(&cancel)), "the oldest was given up");
        interrupts.enter(1);
        assert!(!interrupts.wait(1, cancel));
    }
}
