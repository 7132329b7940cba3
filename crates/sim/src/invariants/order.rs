//! No message of a pair of endpoints is lost, doubled or reordered on a lane while both nodes live.

use dvs_dvk::{Address, Lane};
use std::collections::BTreeMap;

/// Source, destination and lane.
pub type Flow = (Address, Address, Lane);

/// Watches numbered messages: each flow sends 0, 1, 2, ...
#[derive(Debug, Default)]
pub struct Order {
    sent: BTreeMap<Flow, u64>,
    received: BTreeMap<Flow, u64>,
}

impl Order {
    /// The number that the next message of a flow carries.
    pub fn send(&mut self, flow: Flow) -> u64 {
        let next = self.sent.entry(flow).or_default();
        *next += 1;
        *next - 1
    }

    /// A message was not sent after all.
    pub fn unsend(&mut self, flow: Flow) {
        if let Some(next) = self.sent.get_mut(&flow) {
            *next -= 1;
        }
    }

    /// A message was received.
    ///
    /// # Panics
    /// When it is not the next one of its flow, or was never sent.
    pub fn receive(&mut self, flow: Flow, number: u64) {
        let next = self.received.entry(flow).or_default();
        assert_eq!(number, *next, "order of {flow:?}");
        *next += 1;
        let sent = self.sent.get(&flow).copied().unwrap_or(0);
        assert!(*next <= sent, "{flow:?} received {next} messages, {sent} were sent");
    }

    /// The end of a run in which nobody died: everything has arrived.
    ///
    /// # Panics
    /// When not.
    pub fn complete(&self) {
        for (flow, sent) in &self.sent {
            let received = self.received.get(flow).copied().unwrap_or(0);
            assert_eq!(received, *sent, "messages of {flow:?} that arrived");
        }
    }

    /// Messages that arrived.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.values().sum()
    }
}
