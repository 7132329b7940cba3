//! Changes of different clients that wait for each other: finding and breaking such circles.
//!
//! See the head of [`super`] for how they come about and what breaking one costs.

use super::interest::Instant;
use super::{Command, Core, Ticket};
use std::collections::BTreeSet;

impl Core {
    /// Answers the youngest change of each circle of changes that wait for each other.
    pub(super) fn break_circles(&mut self, now: Instant, out: &mut Vec<Command>) {
        let Some(patience) = self.patience else { return };
        let ripe: Vec<Ticket> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| !waiting.checked && waiting.since + patience <= now)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in ripe {
            while let Some(youngest) = self.youngest_of_circle(ticket) {
                let Some(waiting) = self.waiting.remove(&youngest) else { break };
                self.finish(now, waiting, out);
            }
            if let Some(waiting) = self.waiting.get_mut(&ticket) {
                waiting.checked = true;
            }
        }
    }

    /// Changes whose answers must go out before this one's recalls can be answered.
    fn held_up_by(&self, ticket: Ticket) -> Vec<Ticket> {
        let Some(waiting) = self.waiting.get(&ticket) else { return Vec::new() };
        let recalls = waiting.recalls.iter().filter_map(|number| self.recalls.get(number));
        let mut found = Vec::new();
        for recall in recalls {
            for (other, blocking) in &self.waiting {
                if blocking.running.client == recall.client
                    && recall.items.iter().zip(&recall.needs_lock).any(|(item, needs_lock)| {
                        *needs_lock && blocking.running.subject.blocks(item)
                    })
                {
                    found.push(*other);
                }
            }
        }
        found
    }

    fn youngest_of_circle(&self, start: Ticket) -> Option<Ticket> {
        // Depth first, remembering the way; the first way back to the start is a circle.
        let mut way = vec![(start, self.held_up_by(start))];
        let mut seen = BTreeSet::from([start]);
        while let Some((_, next)) = way.last_mut() {
            match next.pop() {
                Some(ticket) if ticket == start => {
                    return way.iter().map(|(ticket, _)| *ticket).max();
                }
                Some(ticket) => {
                    if seen.insert(ticket) {
                        let further = self.held_up_by(ticket);
                        way.push((ticket, further));
                    }
                }
                None => {
                    way.pop();
                }
            }
        }
        None
    }
}
