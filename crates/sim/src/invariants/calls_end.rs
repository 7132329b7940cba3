//! Every call ends, once: by an answer, an error, or its deadline. No sender is held for ever.

use dvs_dvk::Address;
use std::collections::BTreeMap;

/// Watches calls.
#[derive(Debug, Default)]
pub struct CallsEnd {
    /// Open calls and their deadlines.
    open: BTreeMap<(Address, u64), u64>,
}

impl CallsEnd {
    /// A call begins.
    ///
    /// # Panics
    /// When its number is not new.
    pub fn begin(&mut self, caller: Address, number: u64, deadline: u64) {
        assert!(self.open.insert((caller, number), deadline).is_none());
    }

    /// It ended.
    ///
    /// # Panics
    /// When it had ended already, or never began.
    pub fn end(&mut self, caller: Address, number: u64) {
        assert!(
            self.open.remove(&(caller, number)).is_some(),
            "{caller} call {number} ended twice"
        );
    }

    /// A caller died, and its calls with it.
    pub fn caller_died(&mut self, caller: Address) {
        self.open.retain(|(open, _), _| *open != caller);
    }

    /// At any time: no call is open for longer than its deadline and a tick.
    ///
    /// # Panics
    /// When one is.
    pub fn check(&self, now: u64, tick: u64) {
        for ((caller, number), deadline) in &self.open {
            assert!(now <= deadline + tick, "{caller} call {number} is held after its deadline");
        }
    }
}
