//! Every request is executed at most once, and exactly once if it was answered.

use dvs_dvk::Address;
use std::collections::BTreeSet;

/// A request: who asks, and its number there.
pub type Request = (Address, u64);

/// Watches executions and answers.
#[derive(Debug, Default)]
pub struct Once {
    executed: BTreeSet<Request>,
    answered: BTreeSet<Request>,
}

impl Once {
    /// A server executes a request.
    ///
    /// # Panics
    /// When it was executed before.
    pub fn execute(&mut self, request: Request) {
        assert!(self.executed.insert(request), "{request:?} was executed twice");
    }

    /// A client has its answer.
    ///
    /// # Panics
    /// When it was not executed, or answered before.
    pub fn answer(&mut self, request: Request) {
        assert!(self.executed.contains(&request), "{request:?} was answered, but not executed");
        assert!(self.answered.insert(request), "{request:?} was answered twice");
    }

    /// How many were answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered.len()
    }
}
