//! The CPU time of placed children, for `getrusage`, `times` and what builds on them.

use super::Personality;
use crate::core::Placement;
use crate::core::usage::{Ancestor, MAX_GENERATIONS, Usage};
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{self, TICKS_PER_SECOND, TaskStat, TaskStatus};

const MICROSECONDS_PER_TICK: u64 = 1_000_000 / TICKS_PER_SECOND;

/// Whether a process is there, and does not only wait for its parent.
fn lives(ancestor: Ancestor) -> bool {
    TaskStat::read(ancestor.process)
        .is_ok_and(|stat| stat.started == ancestor.started && stat.state != b'Z')
}

impl Personality {
    /// A caller has become a ghost: who is above it, for the time when its program has ended.
    pub(crate) fn note_ancestors(&self, pid: u32, placement: Placement, process: u32) {
        let ancestors = self.ancestors(process);
        if let Some(ghost) = self.ghosts.lock().unwrap().by_placement(placement, pid) {
            ghost.ancestors = Some(ancestors);
        }
    }

    fn ancestors(&self, process: u32) -> Vec<Ancestor> {
        let mut ancestors = Vec::new();
        let Ok(stat) = TaskStat::read(process) else { return ancestors };
        let mut parent = stat.parent;
        while ancestors.len() < MAX_GENERATIONS
            && parent != self.init
            && parent != self.launcher.process()
            && let Ok(stat) = TaskStat::read(parent)
        {
            ancestors.push(Ancestor { process: parent, started: stat.started });
            parent = stat.parent;
        }
        ancestors
    }

    /// A placed program has ended and used this; once.
    pub(crate) fn account(&self, placement: Placement, usage: Usage) {
        let pid = self.home.lock().unwrap().pid(placement);
        let Some(pid) = pid else { return };
        let (ancestors, process) = {
            let mut ghosts = self.ghosts.lock().unwrap();
            let Some(ghost) = ghosts.by_placement(placement, pid) else { return };
            // Empty from now on: the other node may tell once more.
            (ghost.ancestors.replace(Vec::new()), ghost.process)
        };
        // It ended before anybody had looked.
        let ancestors = ancestors.unwrap_or_else(|| self.ancestors(process));
        self.accounts.lock().unwrap().add(ancestors, usage, lives);
    }

    /// What ended programs used that were placed from here and belong to this process.
    pub(crate) fn used_elsewhere(&self, process: u32) -> Usage {
        let accounts = self.accounts.lock().unwrap();
        if accounts.is_empty() { Usage::default() } else { accounts.below(process, lives) }
    }

    /// Lets the call go on if no child of anybody has run elsewhere.
    pub(crate) fn usage_at_once(&self, call: &Notification) -> bool {
        let native = self.accounts.lock().unwrap().is_empty();
        if native {
            let _ = self.listener.proceed(call.id);
        }
        native
    }

    /// Answers `getrusage(RUSAGE_CHILDREN)` and `times` with what the kernel counts and what placed
    /// children used elsewhere. What the kernel does not show from outside (the children's context
    /// switches and transfers) is 0 then.
    pub(crate) fn usage(&self, call: &Notification) {
        let answer = TaskStatus::read(call.pid).ok().and_then(|status| {
            let used = self.used_elsewhere(status.process);
            if used == Usage::default() {
                return None;
            }
            let stat = TaskStat::read(status.process).ok()?;
            if i64::from(call.number) == libc::SYS_times {
                let value = task::ticks_now();
                let words = times(&stat, used);
                // Without room for them the call gives the time alone.
                let written = call.arguments[0] == 0 || write(call, call.arguments[0], &words);
                written.then_some(value)
            } else {
                write(call, call.arguments[1], &children(&stat, used)).then_some(0)
            }
        });
        // Whatever is not as it should be, the kernel says so better.
        let _ = match answer {
            Some(value) => self.listener.answer(call.id, value),
            None => self.listener.proceed(call.id),
        };
    }
}

fn write(call: &Notification, address: u64, words: &[u64]) -> bool {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    task::write_memory(call.pid, address, &bytes).is_ok()
}

/// `struct tms`.
fn times(stat: &TaskStat, used: Usage) -> [u64; 4] {
    let more = |microseconds: u64| microseconds / MICROSECONDS_PER_TICK;
    let (user, system) = stat.children_cpu;
    [stat.cpu.0, stat.cpu.1, user + more(used.cpu.0), system + more(used.cpu.1)]
}

/// `struct rusage` of the children.
fn children(stat: &TaskStat, used: Usage) -> [u64; 18] {
    let time = |ticks: u64, more: u64| {
        let microseconds = ticks.saturating_mul(MICROSECONDS_PER_TICK).saturating_add(more);
        (microseconds / 1_000_000, microseconds % 1_000_000)
    };
    let mut words = [0; 18];
    (words[0], words[1]) = time(stat.children_cpu.0, used.cpu.0);
    (words[2], words[3]) = time(stat.children_cpu.1, used.cpu.1);
    words[4] = used.max_resident;
    (words[8], words[9]) = stat.children_faults;
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat() -> TaskStat {
        let line = b"1 (x) S 2 0 0 0 -1 0 0 7 0 8 50 60 150 25 20 0 1 0 99 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0";
        TaskStat::parse(line).unwrap()
    }

    #[test]
    fn what_was_used_elsewhere_is_added() {
        let used = Usage { cpu: (600_000, 20_000), max_resident: 1234 };
        assert_eq!(times(&stat(), used), [50, 60, 210, 27]);
        let words = children(&stat(), used);
        assert_eq!(words[..5], [2, 100_000, 0, 270_000, 1234]);
        assert_eq!(words[8..10], [7, 8]);
        assert_eq!(size_of_val(&words), size_of::<libc::rusage>());
        assert_eq!(size_of_val(&times(&stat(), used)), size_of::<libc::tms>());
    }
}
