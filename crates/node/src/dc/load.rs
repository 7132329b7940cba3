//! How loaded this node is by one container: its runnable tasks, told to the process manager and to
//! the own personality.
//!
//! The kernel gives no event for a change of load, so it is looked at: often while programs come and
//! go, and less and less while nothing changes. An end of a program that was started here is such an
//! event and brings the next look forward.

use super::manager::ManagerClient;
use dvs_linux::Personality;
use dvs_pm::messages::Load;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Time between two looks while something changes.
const SHORTEST: Duration = Duration::from_millis(50);
/// Time between two looks while nothing does.
const LONGEST: Duration = Duration::from_millis(800);
/// Most tasks looked at; more are taken as one more runnable task each 8, which is load enough.
const MAX_TASKS: usize = 4096;

/// Looks at the load until it is stopped.
pub(crate) struct LoadMeter {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    kicked: bool,
}

/// What is looked at.
pub(crate) struct Subject {
    /// Cgroup folders of the container.
    pub(crate) cgroups: Vec<String>,
    /// Pid 1 and launcher, where there is no cgroup.
    pub(crate) processes: (u32, u32),
    /// CPUs, thousandths, the container's limit considered.
    pub(crate) millicpus: u32,
    /// This node.
    pub(crate) node: u16,
}

impl LoadMeter {
    /// Starts looking.
    ///
    /// # Errors
    /// When there is no thread.
    pub(crate) fn start(
        subject: Subject,
        personality: Weak<Personality>,
        manager: Arc<ManagerClient>,
    ) -> std::io::Result<Arc<LoadMeter>> {
        let meter = Arc::new(LoadMeter { state: Mutex::default(), changed: Condvar::new() });
        let own = Arc::clone(&meter);
        std::thread::Builder::new()
            .name("load".into())
            .spawn(move || own.run(&subject, &personality, &manager))?;
        Ok(meter)
    }

    /// Something happened: look soon.
    pub(crate) fn kick(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).kicked = true;
        self.changed.notify_one();
    }

    /// Looks no more.
    pub(crate) fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.changed.notify_one();
    }

    fn run(&self, subject: &Subject, personality: &Weak<Personality>, manager: &ManagerClient) {
        let mut pause = SHORTEST;
        let mut seen = None;
        loop {
            if self.pause(pause) {
                return;
            }
            let Some(personality) = personality.upgrade() else { return };
            let counts = personality.statistics();
            let activity =
                counts.received + counts.stayed.values().chain(counts.placed.values()).sum::<u64>();
            let load = Load { runnable: subject.runnable(), millicpus: subject.millicpus };
            if seen == Some((load, activity)) {
                pause = (pause * 2).min(LONGEST);
                continue;
            }
            pause = SHORTEST;
            seen = Some((load, activity));
            personality.node_load(subject.node, load);
            manager.report(load);
        }
    }

    /// Waits; true: it is over. A kick shortens a long wait to the shortest, but no further, so that
    /// a thousand ends in a moment are one look.
    fn pause(&self, time: Duration) -> bool {
        let lock = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |time: Duration, wanted: fn(&mut State) -> bool| {
            let waited = self.changed.wait_timeout_while(lock(), time, wanted);
            waited.unwrap_or_else(PoisonError::into_inner).0.stopped
        };
        if wait(SHORTEST.min(time), |state| !state.stopped) {
            return true;
        }
        let stopped = wait(time.saturating_sub(SHORTEST), |state| !state.stopped && !state.kicked);
        lock().kicked = false;
        stopped
    }
}

impl Subject {
    /// Tasks that run or want to.
    fn runnable(&self) -> u32 {
        let tasks = self.tasks();
        let beyond = tasks.len().saturating_sub(MAX_TASKS) / 8;
        let runs = |task: &&u32| {
            std::fs::read(format!("/proc/{task}/stat"))
                .is_ok_and(|stat| state_of(&stat) == Some(b'R'))
        };
        let count = tasks.iter().take(MAX_TASKS).filter(runs).count() + beyond;
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn tasks(&self) -> Vec<u32> {
        for folder in &self.cgroups {
            // v1 and v2 in turn.
            for name in ["tasks", "cgroup.threads"] {
                let path: PathBuf = Path::new(folder).join(name);
                if let Ok(text) = std::fs::read_to_string(path) {
                    return text.lines().filter_map(|line| line.trim().parse().ok()).collect();
                }
            }
        }
        descendants(&[self.processes.0, self.processes.1])
    }
}

/// All threads of these processes and their descendants, by the kernel's lists of children: the cost
/// is that of the container, not of the whole machine.
fn descendants(roots: &[u32]) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    let mut open: Vec<u32> = roots.to_vec();
    while let Some(process) = open.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
        for task in tasks.flatten() {
            found.extend(task.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            open.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        if found.len() > 2 * MAX_TASKS {
            break;
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The state letter of `/proc/PID/stat`: behind the name, which may hold anything, even brackets.
fn state_of(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read() {
        assert_eq!(state_of(b"12 (a) R 1 2"), Some(b'R'));
        assert_eq!(state_of(b"12 (a) R) S 1 2"), Some(b'S'));
        assert_eq!(state_of(b"12 (a)"), None);
        assert_eq!(state_of(b""), None);
    }

    #[test]
    fn a_running_thread_is_counted() {
        let own = std::process::id();
        // No cgroup: the processes are those of a container whose launcher and pid 1 are this one.
        let subject = Subject { cgroups: vec![], processes: (own, own), millicpus: 1000, node: 1 };
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let tasks = subject.tasks();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(tasks.contains(&own) && tasks.contains(&child.id()));
    }

    #[test]
    fn a_stopped_meter_ends() {
        let meter = LoadMeter { state: Mutex::default(), changed: Condvar::new() };
        std::thread::scope(|scope| {
            scope.spawn(|| while !meter.pause(LONGEST) {});
            meter.kick();
            meter.stop();
        });
    }
}
