//! Signals to process groups that reach over nodes: who still has to get one, and whose output waits.
//!
//! On one machine the kernel gives a signal to all of a group before any of them can act on it. Here
//! one program may be gone while the signal to another is on its way, and that other would read an end
//! of file, or learn of a child's death, that it natively never lives to see. So what the group's
//! placed programs write, and that they have ended, is held back at home until each ghost has taken
//! the signal (or is gone) and each program has it.

use super::Placement;
use std::collections::{BTreeMap, BTreeSet};

/// Most signals under way at a time; beyond it nothing is held back.
pub const MAX_HOLDS: usize = 256;
/// Most programs of a group that are waited for.
pub const MAX_WAITING: usize = 4096;
/// A program that has not got it after so many milliseconds (its ghost is stopped, by the host maybe)
/// holds nobody back any more.
pub const LONGEST: u64 = 2000;

#[derive(Debug)]
struct Hold {
    signal: i32,
    since: u64,
    waiting: BTreeSet<Placement>,
    all: Vec<Placement>,
}

/// All signals to groups that are under way.
#[derive(Debug, Default)]
pub struct Holds {
    open: Vec<Hold>,
    /// Programs that have ended meanwhile: the node that says so, and the wait status.
    ended: BTreeMap<Placement, (u16, i32)>,
}

impl Holds {
    /// A signal is about to go to the ghosts of these placements; true: their output is to be held
    /// back once more.
    pub fn begin(&mut self, now: u64, signal: i32, placements: &[Placement]) -> bool {
        if placements.is_empty() || placements.len() > MAX_WAITING || self.open.len() >= MAX_HOLDS {
            return false;
        }
        let (waiting, all) = (placements.iter().copied().collect(), placements.to_vec());
        self.open.push(Hold { signal, since: now, waiting, all });
        true
    }

    /// Whether a program's getting a signal is waited for.
    #[must_use]
    pub fn expects(&self, placement: Placement, signal: i32) -> bool {
        self.open.iter().any(|hold| hold.signal == signal && hold.waiting.contains(&placement))
    }

    /// A program has the signal. The answer: whose output is to be released, once for each mention.
    pub fn delivered(&mut self, placement: Placement, signal: i32) -> Vec<Placement> {
        // For all that wait for it: of two equal signals one may have been merged into the other.
        self.remove(|hold| {
            if hold.signal == signal {
                hold.waiting.remove(&placement);
            }
        })
    }

    /// A program has ended. True: that is to be kept back for now, see [`Holds::take_ended`].
    pub fn postpones(&mut self, placement: Placement, from: u16, status: i32) -> bool {
        let held = self.holds(placement);
        if held {
            self.ended.insert(placement, (from, status));
        }
        held
    }

    /// How a program ended that is held back no more: the node that said so, and the wait status.
    pub fn take_ended(&mut self, placement: Placement) -> Option<(u16, i32)> {
        if self.holds(placement) { None } else { self.ended.remove(&placement) }
    }

    fn holds(&self, placement: Placement) -> bool {
        self.open.iter().any(|hold| hold.all.contains(&placement))
    }

    /// A ghost is gone: it takes nothing any more.
    pub fn over(&mut self, placement: Placement) -> Vec<Placement> {
        self.remove(|hold| {
            hold.waiting.remove(&placement);
        })
    }

    /// Time has passed.
    pub fn expire(&mut self, now: u64) -> Vec<Placement> {
        self.remove(|hold| {
            if now.saturating_sub(hold.since) >= LONGEST {
                hold.waiting.clear();
            }
        })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn remove(&mut self, change: impl FnMut(&mut Hold)) -> Vec<Placement> {
        self.open.iter_mut().for_each(change);
        let mut freed = Vec::new();
        self.open.retain_mut(|hold| {
            let over = hold.waiting.is_empty();
            if over {
                freed.append(&mut hold.all);
            }
            !over
        });
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Placement = Placement(1);
    const B: Placement = Placement(2);
    const TERM: i32 = libc::SIGTERM;

    #[test]
    fn output_is_held_until_all_have_the_signal() {
        let mut holds = Holds::default();
        assert!(holds.begin(0, TERM, &[A, B]));
        assert!(holds.expects(A, TERM) && !holds.expects(A, libc::SIGINT));
        assert_eq!(holds.delivered(A, TERM), []);
        assert!(!holds.expects(A, TERM));
        assert_eq!(holds.delivered(B, libc::SIGINT), []);
        assert_eq!(holds.delivered(B, TERM), [A, B]);
        assert!(holds.is_empty());
        assert_eq!(holds.delivered(B, TERM), []);
    }

    #[test]
    fn an_end_is_told_when_no_hold_is_left() {
        let mut holds = Holds::default();
        assert!(!holds.begin(0, TERM, &[]), "nobody to wait for");
        assert!(!holds.postpones(A, 2, 15));
        holds.begin(0, TERM, &[A]);
        holds.begin(0, libc::SIGHUP, &[A, B]);
        assert!(holds.postpones(A, 2, 15));
        assert!(holds.postpones(A, 2, 15), "told again by the other node");
        assert_eq!(holds.delivered(A, TERM), [A]);
        assert_eq!(holds.take_ended(A), None);
        holds.over(A);
        assert_eq!(holds.over(B), [A, B]);
        assert_eq!(holds.take_ended(A), Some((2, 15)));
        assert_eq!(holds.take_ended(A), None);
    }

    #[test]
    fn an_end_and_time_free_the_others() {
        let mut holds = Holds::default();
        holds.begin(0, TERM, &[A, B]);
        holds.begin(10, libc::SIGINT, &[A, B]);
        assert_eq!(holds.over(A), []);
        assert_eq!(holds.expire(LONGEST), [A, B]);
        assert_eq!(holds.over(B), [A, B], "each hold releases its own");
        assert!(holds.is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut holds = Holds::default();
        for _ in 0..MAX_HOLDS {
            assert!(holds.begin(0, TERM, &[A, B]));
        }
        assert!(!holds.begin(0, TERM, &[A, B]));
        let many: Vec<Placement> = (0..=MAX_WAITING as u64).map(Placement).collect();
        assert!(!Holds::default().begin(0, TERM, &many));
    }
}
