//! Where a program runs: decided on the node that executes it, from what it knows of the others.
//!
//! The view is a little old by nature, so a decision is counted at once against the node that it
//! chose, until a report that is newer than the decision arrives. Otherwise a burst of programs
//! would all go to the node that was idle a moment ago.

use crate::messages::Load;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Most decisions remembered between two reports; older ones are taken as seen.
pub const MAX_PENDING: usize = 4096;

/// How programs are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Policy {
    /// Everything stays where it is.
    Home,
    /// Every program goes to another node, in turn.
    Spread,
    /// To the least loaded node; an idle home keeps the work.
    #[default]
    Load,
}

impl std::str::FromStr for Policy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "home" => Ok(Policy::Home),
            "spread" => Ok(Policy::Spread),
            "load" => Ok(Policy::Load),
            other => {
                Err(format!("no placement policy is called '{other}'; use home, spread or load"))
            }
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Policy::Home => "home",
            Policy::Spread => "spread",
            Policy::Load => "load",
        })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct View {
    load: Load,
    /// Times (milliseconds) of decisions for this node that no report covers yet.
    pending: VecDeque<u64>,
}

impl View {
    /// Tasks per CPU, in thousandths, if one more program came.
    fn pressure(&self) -> u64 {
        let tasks = u64::from(self.load.runnable) + self.pending.len() as u64 + 1;
        tasks * 1_000_000 / u64::from(self.load.millicpus.max(1))
    }

    fn has_room(&self) -> bool {
        let tasks = u64::from(self.load.runnable) + self.pending.len() as u64;
        tasks * 1000 < u64::from(self.load.millicpus)
    }
}

/// What one node knows of the loads of all nodes of a DC, and its decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    here: u16,
    policy: Policy,
    nodes: BTreeMap<u16, View>,
    turn: u16,
}

impl Placement {
    /// Only this node is known.
    #[must_use]
    pub fn new(here: u16, policy: Policy) -> Self {
        let nodes = BTreeMap::from([(here, View::default())]);
        Placement { here, policy, nodes, turn: here }
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// A node takes part, or reports. `now`: milliseconds of any steady clock of this node at which
    /// the load was measured (or received); decisions up to then are taken as contained in it.
    pub fn report(&mut self, node: u16, load: Load, now: u64) {
        let view = self.nodes.entry(node).or_default();
        view.load = load;
        while view.pending.front().is_some_and(|time| *time <= now) {
            view.pending.pop_front();
        }
    }

    /// A node is gone.
    pub fn remove(&mut self, node: u16) {
        if node != self.here {
            self.nodes.remove(&node);
        }
    }

    /// The nodes known, this one included.
    pub fn nodes(&self) -> impl Iterator<Item = u16> + '_ {
        self.nodes.keys().copied()
    }

    /// Chooses the node for a program that could run on any, and counts it there.
    pub fn choose(&mut self, now: u64) -> u16 {
        let node = match self.policy {
            Policy::Home => self.here,
            Policy::Spread => self.next_other(),
            Policy::Load => self.least_loaded(),
        };
        self.count(node, now);
        node
    }

    /// A program starts here without a choice (it had to stay, or was sent by another node).
    pub fn count(&mut self, node: u16, now: u64) {
        if let Some(view) = self.nodes.get_mut(&node) {
            if view.pending.len() >= MAX_PENDING {
                view.pending.pop_front();
            }
            view.pending.push_back(now);
        }
    }

    /// A program that was counted has ended before any report.
    pub fn uncount(&mut self, node: u16) {
        if let Some(view) = self.nodes.get_mut(&node) {
            view.pending.pop_back();
        }
    }

    fn next_other(&mut self) -> u16 {
        let others = || self.nodes.keys().copied().filter(|node| *node != self.here);
        let next = others().find(|node| *node > self.turn).or_else(|| others().next());
        self.turn = next.unwrap_or(self.here);
        self.turn
    }

    fn least_loaded(&mut self) -> u16 {
        let here = &self.nodes[&self.here];
        if here.has_room() {
            return self.here;
        }
        let home_pressure = here.pressure();
        // Equal nodes are taken in turn, so that the lowest number does not get everything.
        let turn = self.turn;
        let best = self
            .nodes
            .iter()
            .filter(|(node, _)| **node != self.here)
            .map(|(node, view)| (view.pressure(), *node <= turn, *node))
            .min();
        match best {
            Some((pressure, _, node)) if pressure < home_pressure => {
                self.turn = node;
                node
            }
            _ => self.here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(runnable: u32, millicpus: u32) -> Load {
        Load { runnable, millicpus }
    }

    fn cluster(policy: Policy) -> Placement {
        let mut placement = Placement::new(1, policy);
        for node in 1..=3 {
            placement.report(node, load(0, 1000), 0);
        }
        placement
    }

    #[test]
    fn spread_never_stays_and_takes_turns() {
        let mut placement = cluster(Policy::Spread);
        let chosen: Vec<u16> = (0..4).map(|_| placement.choose(1)).collect();
        assert_eq!(chosen, vec![2, 3, 2, 3]);
        placement.remove(2);
        assert_eq!(placement.choose(2), 3);
        placement.remove(3);
        assert_eq!(placement.choose(2), 1, "alone, everything stays");
    }

    #[test]
    fn an_idle_home_keeps_the_work() {
        let mut placement = cluster(Policy::Load);
        assert_eq!(placement.choose(1), 1);
        assert_ne!(placement.choose(1), 1, "its one CPU is taken");
    }

    #[test]
    fn a_burst_is_spread_evenly_before_any_report() {
        let mut placement = cluster(Policy::Load);
        let mut counts = BTreeMap::new();
        for _ in 0..9 {
            *counts.entry(placement.choose(1)).or_insert(0) += 1;
        }
        assert_eq!(counts, BTreeMap::from([(1, 3), (2, 3), (3, 3)]));
    }

    #[test]
    fn cpus_count() {
        let mut placement = cluster(Policy::Load);
        placement.report(1, load(1, 1000), 0);
        placement.report(2, load(2, 4000), 0);
        placement.report(3, load(1, 1000), 0);
        assert_eq!(placement.choose(1), 2);
    }

    #[test]
    fn reports_cover_older_decisions() {
        let mut placement = cluster(Policy::Load);
        assert_eq!(placement.choose(5), 1);
        placement.report(1, load(0, 1000), 4);
        assert_ne!(placement.choose(6), 1, "the report is older than the decision");
        placement.report(1, load(0, 1000), 7);
        assert_eq!(placement.choose(8), 1);
    }

    #[test]
    fn the_memory_of_decisions_is_bounded() {
        let mut placement = Placement::new(1, Policy::Home);
        for time in 0..(MAX_PENDING as u64 + 10) {
            placement.choose(time);
        }
        assert_eq!(placement.nodes[&1].pending.len(), MAX_PENDING);
    }

    #[test]
    fn policies_have_names() {
        for policy in [Policy::Home, Policy::Spread, Policy::Load] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert!("far".parse::<Policy>().unwrap_err().contains("far"));
    }
}
