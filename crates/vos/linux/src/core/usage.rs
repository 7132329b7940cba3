//! What placed programs used, for those who ask after their children's times.
//!
//! The kernel adds what a child used to its parent's account when the parent waits for it, and the
//! parent's account to the grandparent's, and so on. A ghost uses next to nothing, so what its program
//! used on the other node is kept here, with the ghost's ancestors: an ancestor is told of it when all
//! between it and the ghost are gone, as the kernel would have passed it up by then.

use std::collections::BTreeMap;

/// Most groups of programs with the same ancestors that are kept; beyond it what new ones use is lost.
pub const MAX_LINES: usize = 4096;
/// Most generations looked at above a ghost.
pub const MAX_GENERATIONS: usize = 64;

/// A process that cannot be taken for another one: its pid outside, and when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ancestor {
    /// Pid outside.
    pub process: u32,
    /// Start, in clock ticks since boot.
    pub started: u64,
}

/// What programs used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// CPU time in microseconds: user, system.
    pub cpu: (u64, u64),
    /// Largest resident size of one of them in KiB.
    pub max_resident: u64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Usage) -> Usage {
        let add = u64::saturating_add;
        Usage {
            cpu: (add(self.cpu.0, other.cpu.0), add(self.cpu.1, other.cpu.1)),
            max_resident: self.max_resident.max(other.max_resident),
        }
    }
}

/// What the placed programs of one node used.
#[derive(Debug, Default)]
pub struct Accounts {
    /// By the ghosts' ancestors, the parent first.
    lines: BTreeMap<Vec<Ancestor>, Usage>,
}

impl Accounts {
    /// A program has ended whose ghost has these ancestors, the parent first. `lives` says of a process
    /// whether it is still there (and not only waits to be waited for).
    pub fn add(
        &mut self,
        mut ancestors: Vec<Ancestor>,
        usage: Usage,
        lives: impl Fn(Ancestor) -> bool,
    ) {
        ancestors.truncate(MAX_GENERATIONS);
        if ancestors.is_empty() {
            return;
        }
        if self.lines.len() >= MAX_LINES && !self.lines.contains_key(&ancestors) {
            self.shorten(&lives);
            if self.lines.len() >= MAX_LINES {
                return;
            }
        }
        let line = self.lines.entry(ancestors).or_default();
        *line = line.and(usage);
    }

    /// What a process has to be told of: what was used below it, by programs all of whose ancestors
    /// between it and them are gone.
    #[must_use]
    pub fn below(&self, process: u32, lives: impl Fn(Ancestor) -> bool) -> Usage {
        self.lines
            .iter()
            .filter(|(ancestors, _)| {
                let place = ancestors.iter().position(|ancestor| ancestor.process == process);
                place.is_some_and(|place| ancestors.iter().take(place).all(|one| !lives(*one)))
            })
            .fold(Usage::default(), |sum, (_, usage)| sum.and(*usage))
    }

    /// Whether there is nothing to tell anybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Passes up what can be, and forgets what nobody is left to be told of.
    fn shorten(&mut self, lives: impl Fn(Ancestor) -> bool) {
        for (ancestors, usage) in std::mem::take(&mut self.lines) {
            let left: Vec<Ancestor> =
                ancestors.into_iter().skip_while(|one| !lives(*one)).collect();
            if !left.is_empty() {
                let line = self.lines.entry(left).or_default();
                *line = line.and(usage);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ancestor(process: u32) -> Ancestor {
        Ancestor { process, started: u64::from(process) }
    }

    fn used(user: u64) -> Usage {
        Usage { cpu: (user, 1), max_resident: user }
    }

    fn line(processes: &[u32]) -> Vec<Ancestor> {
        processes.iter().map(|process| ancestor(*process)).collect()
    }

    #[test]
    fn a_parent_is_told_at_once_and_a_grandparent_when_the_parent_is_gone() {
        let mut accounts = Accounts::default();
        accounts.add(line(&[5, 4, 3]), used(10), |_| true);
        accounts.add(line(&[5, 4, 3]), used(7), |_| true);
        let sum = Usage { cpu: (17, 2), max_resident: 10 };
        assert_eq!(accounts.below(5, |_| true), sum);
        assert_eq!(accounts.below(4, |_| true), Usage::default());
        assert_eq!(accounts.below(4, |one| one.process != 5), sum);
        assert_eq!(accounts.below(3, |one| one.process != 5), Usage::default());
        assert_eq!(accounts.below(3, |_| false), sum);
        assert_eq!(accounts.below(9, |_| false), Usage::default());
    }

    #[test]
    fn the_accounts_are_bounded_and_the_dead_are_forgotten() {
        let mut accounts = Accounts::default();
        for process in 0..MAX_LINES as u32 {
            accounts.add(line(&[process + 10, 2]), used(1), |_| true);
        }
        accounts.add(line(&[9, 2]), used(1), |_| true);
        assert_eq!(accounts.lines.len(), MAX_LINES, "no room while all live");
        accounts.add(line(&[9, 2]), used(1), |one| one.process == 2);
        assert_eq!(accounts.lines.len(), 2);
        let all = accounts.below(2, |_| false);
        assert_eq!(all.cpu.0, MAX_LINES as u64 + 1, "passed up, not lost");
        accounts.add(Vec::new(), used(1), |_| true);
        accounts.shorten(|_| false);
        assert!(accounts.is_empty());
    }
}
