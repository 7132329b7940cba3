//! Record locks and whole-file locks, with waiting and deadlock detection.
//!
//! Semantics of `fcntl(2)` (`F_SETLK`, `F_SETLKW`, `F_GETLK`) and `flock(2)`: an owner's own locks
//! never conflict; setting a lock replaces what the owner held in that range, which splits and merges
//! its other locks; a waiting owner that would close a circle of waiting owners is refused with
//! `EDEADLK`. The two families do not see each other.

use crate::messages::{ClientId, InodeId, LockFamily, LockKind, LockOwner, LockRange};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Most locks that one client can hold; more are refused with `ENOLCK`.
pub const MAX_LOCKS: usize = 65536;
/// Most requests of one client that can wait for locks; more are refused with `ENOLCK`.
pub const MAX_WAITING: usize = 4096;

/// An owner of locks, unique in the DC.
pub type Owner = (ClientId, LockOwner);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lock {
    owner: Owner,
    range: LockRange,
}

/// A request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiter {
    inode: InodeId,
    family: LockFamily,
    owner: Owner,
    range: LockRange,
}

/// Answer to a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Granted,
    /// Will be answered when it is granted.
    Waits,
    /// Refused with this errno.
    Refused(i32),
}

/// All locks of a DC.
#[derive(Debug, Default)]
pub struct Locks {
    held: HashMap<(InodeId, LockFamily), Vec<Lock>>,
    /// By ticket, which rises: first come, first served.
    waiting: BTreeMap<u64, Waiter>,
    counts: HashMap<ClientId, usize>,
}

fn conflict(lock: &Lock, owner: Owner, wish: &LockRange) -> bool {
    lock.owner != owner
        && lock.range.start <= wish.end
        && wish.start <= lock.range.end
        && (lock.range.kind == LockKind::Write || wish.kind == LockKind::Write)
}

impl Locks {
    /// The first lock that conflicts with a wish (`F_GETLK`).
    #[must_use]
    pub fn test(&self, inode: InodeId, owner: Owner, wish: &LockRange) -> Option<LockRange> {
        if wish.kind == LockKind::Unlock {
            return None;
        }
        let held = self.held.get(&(inode, LockFamily::Record))?;
        held.iter().find(|lock| conflict(lock, owner, wish)).map(|lock| lock.range)
    }

    /// Sets, waits for, or releases a lock. Answers, and the tickets that are granted by it.
    pub fn set(
        &mut self,
        ticket: u64,
        inode: InodeId,
        family: LockFamily,
        owner: Owner,
        wish: LockRange,
        wait: bool,
    ) -> (Answer, Vec<u64>) {
        if wish.start > wish.end {
            return (Answer::Refused(libc::EINVAL), Vec::new());
        }
        if wish.kind == LockKind::Unlock {
            let room = self.count(owner.0) < MAX_LOCKS;
            if !room && self.unlocking_splits(inode, family, owner, &wish) {
                return (Answer::Refused(libc::ENOLCK), Vec::new());
            }
            self.replace(inode, family, owner, wish);
            return (Answer::Granted, self.grant(inode, family));
        }
        if !self.is_free(inode, family, owner, &wish) {
            // flock(2): a conversion first gives up the lock that is held.
            let granted = if family == LockFamily::Flock {
                self.replace(inode, family, owner, LockRange { kind: LockKind::Unlock, ..wish });
                self.grant(inode, family)
            } else {
                Vec::new()
            };
            if !wait {
                return (Answer::Refused(libc::EAGAIN), granted);
            }
            // What was given up may have let others in, never this one.
            if family == LockFamily::Record && self.closes_circle(inode, owner, &wish) {
                return (Answer::Refused(libc::EDEADLK), granted);
            }
            if self.waiting.values().filter(|w| w.owner.0 == owner.0).count() >= MAX_WAITING {
                return (Answer::Refused(libc::ENOLCK), granted);
            }
            self.waiting.insert(ticket, Waiter { inode, family, owner, range: wish });
            return (Answer::Waits, granted);
        }
        if self.count(owner.0) + 2 > MAX_LOCKS {
            return (Answer::Refused(libc::ENOLCK), Vec::new());
        }
        self.replace(inode, family, owner, wish);
        // A change from exclusive to shared can let others in.
        (Answer::Granted, self.grant(inode, family))
    }

    /// Ends waiting. `false`: it did not wait.
    pub fn cancel(&mut self, ticket: u64) -> bool {
        self.waiting.remove(&ticket).is_some()
    }

    /// Releases what an owner holds on an object; answers the tickets that are granted by it.
    pub fn release(&mut self, inode: InodeId, family: LockFamily, owner: Owner) -> Vec<u64> {
        let whole = LockRange { start: 0, end: u64::MAX, kind: LockKind::Unlock, pid: 0 };
        self.replace(inode, family, owner, whole);
        self.grant(inode, family)
    }

    /// Releases what a client holds on an object.
    pub fn release_inode(&mut self, inode: InodeId, client: ClientId) -> Vec<u64> {
        let mut granted = Vec::new();
        for family in [LockFamily::Record, LockFamily::Flock] {
            let mut removed = 0;
            if let Some(held) = self.held.get_mut(&(inode, family)) {
                let before = held.len();
                held.retain(|lock| lock.owner.0 != client);
                removed = before - held.len();
            }
            if removed > 0 {
                self.uncount(client, removed);
                granted.extend(self.grant(inode, family));
            }
        }
        granted
    }

    /// Releases everything of a client and ends its waiting.
    pub fn release_client(&mut self, client: ClientId) -> Vec<u64> {
        self.waiting.retain(|_, waiter| waiter.owner.0 != client);
        let mut touched: Vec<_> = Vec::new();
        for (key, held) in &mut self.held {
            let before = held.len();
            held.retain(|lock| lock.owner.0 != client);
            if held.len() != before {
                touched.push(*key);
            }
        }
        self.counts.remove(&client);
        // In a fixed order, so that the same events give the same answers.
        touched.sort_by_key(|(inode, family)| (*inode, *family == LockFamily::Flock));
        touched.into_iter().flat_map(|(inode, family)| self.grant(inode, family)).collect()
    }

    /// Locks held and requests waiting, of all clients.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.held.values().map(Vec::len).sum(), self.waiting.len())
    }

    fn count(&self, client: ClientId) -> usize {
        self.counts.get(&client).copied().unwrap_or(0)
    }

    fn uncount(&mut self, client: ClientId, number: usize) {
        if let Some(count) = self.counts.get_mut(&client) {
            *count = count.saturating_sub(number);
        }
    }

    fn is_free(&self, inode: InodeId, family: LockFamily, owner: Owner, wish: &LockRange) -> bool {
        !self
            .held
            .get(&(inode, family))
            .is_some_and(|held| held.iter().any(|lock| conflict(lock, owner, wish)))
    }

    fn unlocking_splits(
        &self,
        inode: InodeId,
        family: LockFamily,
        owner: Owner,
        wish: &LockRange,
    ) -> bool {
        self.held.get(&(inode, family)).is_some_and(|held| {
            held.iter().any(|lock| {
                lock.owner == owner && lock.range.start < wish.start && lock.range.end > wish.end
            })
        })
    }

    /// Cuts the range out of the owner's locks and, unless it is a release, puts the new lock there,
    /// merged with neighbours of its kind.
    fn replace(&mut self, inode: InodeId, family: LockFamily, owner: Owner, wish: LockRange) {
        let held = self.held.entry((inode, family)).or_default();
        let before = held.iter().filter(|lock| lock.owner == owner).count();
        let mut rest = Vec::with_capacity(held.len() + 2);
        let mut merged = wish;
        for lock in held.drain(..) {
            let old = lock.range;
            if lock.owner != owner {
                rest.push(lock);
            } else if old.kind == wish.kind
                && old.start <= merged.end.saturating_add(1)
                && merged.start <= old.end.saturating_add(1)
            {
                merged.start = merged.start.min(old.start);
                merged.end = merged.end.max(old.end);
            } else {
                // At most two pieces stay outside the range.
                if old.start < wish.start {
                    let end = old.end.min(wish.start - 1);
                    rest.push(Lock { owner, range: LockRange { end, ..old } });
                }
                if old.end > wish.end {
                    let start = old.start.max(wish.end + 1);
                    rest.push(Lock { owner, range: LockRange { start, ..old } });
                }
            }
        }
        if wish.kind != LockKind::Unlock {
            rest.push(Lock { owner, range: merged });
        }
        rest.sort_by_key(|lock| (lock.range.start, lock.owner));
        let after = rest.iter().filter(|lock| lock.owner == owner).count();
        if rest.is_empty() {
            self.held.remove(&(inode, family));
        } else {
            self.held.insert((inode, family), rest);
        }
        if after > before {
            *self.counts.entry(owner.0).or_default() += after - before;
        } else {
            self.uncount(owner.0, before - after);
        }
    }

    /// Grants what can be granted on an object, oldest first.
    fn grant(&mut self, inode: InodeId, family: LockFamily) -> Vec<u64> {
        let candidates: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, w)| w.inode == inode && w.family == family)
            .map(|(ticket, _)| *ticket)
            .collect();
        let mut granted = Vec::new();
        for ticket in candidates {
            let Some(waiter) = self.waiting.get(&ticket).copied() else { continue };
            if self.is_free(inode, family, waiter.owner, &waiter.range) {
                self.waiting.remove(&ticket);
                self.replace(inode, family, waiter.owner, waiter.range);
                granted.push(ticket);
            }
        }
        granted
    }

    /// Whether an owner that began to wait for this would wait for itself.
    fn closes_circle(&self, inode: InodeId, owner: Owner, wish: &LockRange) -> bool {
        let blockers = |inode: InodeId, family, owner: Owner, range: &LockRange| -> Vec<Owner> {
            self.held.get(&(inode, family)).map_or_else(Vec::new, |held| {
                held.iter()
                    .filter(|lock| conflict(lock, owner, range))
                    .map(|lock| lock.owner)
                    .collect()
            })
        };
        let mut seen = HashSet::new();
        let mut stack = blockers(inode, LockFamily::Record, owner, wish);
        while let Some(next) = stack.pop() {
            if next == owner {
                return true;
            }
            if !seen.insert(next) {
                continue;
            }
            for waiter in self.waiting.values() {
                if waiter.owner == next && waiter.family == LockFamily::Record {
                    stack.extend(blockers(
                        waiter.inode,
                        LockFamily::Record,
                        waiter.owner,
                        &waiter.range,
                    ));
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_random::Random;

    const FILE: InodeId = InodeId { number: 7, generation: 0 };
    const OTHER: InodeId = InodeId { number: 8, generation: 0 };

    fn owner(number: u64) -> Owner {
        (ClientId { node: (number % 2) as u16, incarnation: 1 }, LockOwner(number))
    }

    fn range(start: u64, end: u64, kind: LockKind) -> LockRange {
        LockRange { start, end, kind, pid: 1 }
    }

    fn set(locks: &mut Locks, ticket: u64, who: u64, wish: LockRange, wait: bool) -> Answer {
        locks.set(ticket, FILE, LockFamily::Record, owner(who), wish, wait).0
    }

    #[test]
    fn random_locks_behave_like_an_array_of_bytes() {
        let mut random = Random::from_environment("locks");
        for _ in 0..40 {
            let mut locks = Locks::default();
            // Model: for each byte, the kind that each of three owners holds.
            let mut model = [[None::<LockKind>; 24]; 3];
            for step in 0..200 {
                let who = random.below(3);
                let start = random.below(24);
                let end = start + random.below(24 - start);
                let kind =
                    [LockKind::Read, LockKind::Write, LockKind::Unlock][random.below(3) as usize];
                let bytes = start as usize..=end as usize;
                let blocked = kind != LockKind::Unlock
                    && model.iter().enumerate().any(|(other, held)| {
                        other != who as usize
                            && held[bytes.clone()]
                                .iter()
                                .flatten()
                                .any(|held| *held == LockKind::Write || kind == LockKind::Write)
                    });
                let wish = range(start, end, kind);
                let tested = locks.test(FILE, owner(who), &wish);
                let answer = set(&mut locks, step, who, wish, false);
                if blocked {
                    assert_eq!(answer, Answer::Refused(libc::EAGAIN));
                    assert!(tested.is_some());
                } else {
                    assert_eq!(answer, Answer::Granted);
                    assert!(tested.is_none());
                    for held in &mut model[who as usize][bytes] {
                        *held = (kind != LockKind::Unlock).then_some(kind);
                    }
                }
                // The same bytes in the same hands, as the fewest possible locks.
                let mut fewest = 0;
                for (who, held) in model.iter().enumerate() {
                    let mut last = None;
                    for byte in held {
                        if byte.is_some() && *byte != last {
                            fewest += 1;
                        }
                        last = *byte;
                    }
                    for (byte, expected) in held.iter().enumerate() {
                        let found = locks
                            .held
                            .get(&(FILE, LockFamily::Record))
                            .into_iter()
                            .flatten()
                            .filter(|lock| {
                                lock.owner == owner(who as u64)
                                    && (lock.range.start..=lock.range.end).contains(&(byte as u64))
                            })
                            .map(|lock| lock.range.kind)
                            .collect::<Vec<_>>();
                        assert_eq!(found, expected.iter().copied().collect::<Vec<_>>());
                    }
                }
                assert_eq!(locks.load().0, fewest);
                assert_eq!(locks.counts.values().sum::<usize>(), fewest);
            }
        }
    }

    #[test]
    fn waiting_is_granted_in_order_and_can_be_cancelled() {
        let mut locks = Locks::default();
        let all = range(0, u64::MAX, LockKind::Write);
        assert_eq!(set(&mut locks, 1, 1, all, true), Answer::Granted);
        assert_eq!(set(&mut locks, 2, 2, all, true), Answer::Waits);
        assert_eq!(set(&mut locks, 3, 3, all, true), Answer::Waits);
        assert_eq!(set(&mut locks, 4, 4, all, true), Answer::Waits);
        assert!(locks.cancel(2) && !locks.cancel(2));
        assert_eq!(locks.release(FILE, LockFamily::Record, owner(1)), [3]);
        assert_eq!(locks.release_client(owner(3).0), [4]);
        assert_eq!(locks.release_client(owner(4).0), []);
        assert_eq!(locks.load(), (0, 0));
    }

    #[test]
    fn a_circle_of_waiting_owners_is_refused() {
        let mut locks = Locks::default();
        let byte = |n| range(n, n, LockKind::Write);
        for who in 1..=3 {
            assert_eq!(set(&mut locks, who, who, byte(who), true), Answer::Granted);
        }
        assert_eq!(set(&mut locks, 11, 1, byte(2), true), Answer::Waits);
        assert_eq!(set(&mut locks, 12, 2, byte(3), true), Answer::Waits);
        assert_eq!(set(&mut locks, 13, 3, byte(1), true), Answer::Refused(libc::EDEADLK));
        // Across files as well.
        let one = range(0, 0, LockKind::Write);
        assert_eq!(
            locks.set(14, OTHER, LockFamily::Record, owner(3), one, true).0,
            Answer::Granted
        );
        assert_eq!(locks.release(FILE, LockFamily::Record, owner(3)), [12]);
    }

    #[test]
    fn flock_converts_by_letting_go() {
        let mut locks = Locks::default();
        let mut set = |ticket, who, kind, wait| {
            let whole = range(0, u64::MAX, kind);
            locks.set(ticket, FILE, LockFamily::Flock, owner(who), whole, wait)
        };
        assert_eq!(set(1, 1, LockKind::Read, false).0, Answer::Granted);
        assert_eq!(set(2, 2, LockKind::Read, false).0, Answer::Granted);
        assert_eq!(set(3, 1, LockKind::Write, false).0, Answer::Refused(libc::EAGAIN));
        // The failed conversion has lost the shared lock: the other one can have it alone.
        assert_eq!(set(4, 2, LockKind::Write, false).0, Answer::Granted);
        assert_eq!(set(5, 1, LockKind::Read, true).0, Answer::Waits);
        assert_eq!(set(6, 2, LockKind::Read, false), (Answer::Granted, vec![5]));
    }

    #[test]
    fn numbers_are_bounded() {
        let mut locks = Locks::default();
        for n in 0..MAX_LOCKS as u64 - 1 {
            let wish = range(2 * n, 2 * n, LockKind::Write);
            locks.replace(FILE, LockFamily::Record, owner(2), wish);
            if n > 64 {
                // Filled directly from here: each insertion is linear.
                break;
            }
        }
        locks.counts.insert(owner(2).0, MAX_LOCKS);
        let wish = range(1 << 40, 1 << 40, LockKind::Write);
        assert_eq!(set(&mut locks, 1, 2, wish, false), Answer::Refused(libc::ENOLCK));
        for ticket in 0..=MAX_WAITING as u64 {
            let wish = range(0, 0, LockKind::Write);
            let answer = set(&mut locks, 10 + ticket, 1 + 2 * (ticket + 1), wish, true);
            let full = ticket == MAX_WAITING as u64;
            assert_eq!(answer, if full { Answer::Refused(libc::ENOLCK) } else { Answer::Waits });
        }
    }
}
