//! Counts from outside what ran on which node: by the kernel's own events and pid namespaces, not
//! by what the daemons say.
//!
//! Every process that a test starts is followed with all its descendants. A process that is born
//! from one outside every container, but whose children go into another pid namespace, was started
//! by a launcher; that namespace is a node of the container. The first such program is the test's
//! own; each later one was placed there by another node. A placed program costs its home one more
//! exec, the ghost's.

use dvs_sys::procevents::{ProcessEvent, ProcessEvents};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Most processes followed at a time.
const MAX_FOLLOWED: usize = 200_000;

/// What was counted for one command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// Execs per pid namespace (by inode number).
    pub execs: BTreeMap<u64, u64>,
    /// Programs that a launcher started, per pid namespace.
    pub launched: BTreeMap<u64, u64>,
    /// The namespace in which the first program was started.
    pub first: Option<u64>,
}

impl Count {
    /// Programs that ran on a node other than the one that their parent is on.
    #[must_use]
    pub fn remote(&self) -> u64 {
        self.launched.values().sum::<u64>().saturating_sub(u64::from(self.first.is_some()))
    }

    /// Programs that were executed at all: every exec but the ghosts'. The first program is none of
    /// them: the test itself put it where it is.
    #[must_use]
    pub fn programs(&self) -> u64 {
        let execs: u64 = self.execs.values().sum();
        execs.saturating_sub(self.remote()).saturating_sub(u64::from(self.first.is_some()))
    }

    /// Nodes on which anything ran.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.execs.len()
    }
}

#[derive(Debug)]
struct Followed {
    root: u32,
    node: Option<u64>,
    launched: bool,
    executed: bool,
}

#[derive(Debug, Default)]
struct State {
    followed: HashMap<u32, Followed>,
    counts: HashMap<u32, (Count, bool)>,
    lost: bool,
}

/// A running census of all commands that this process starts.
#[derive(Debug)]
pub struct Census {
    shared: Arc<(Mutex<State>, Condvar)>,
}

/// Why there is no count.
#[derive(Debug)]
pub enum NoCount {
    /// The kernel dropped events: the machine was too busy.
    EventsLost,
    /// The command's end was not seen in time.
    NoEnd,
}

impl std::fmt::Display for NoCount {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            NoCount::EventsLost => "the kernel dropped process events; run fewer jobs at once",
            NoCount::NoEnd => "the end of the command was not among the process events",
        })
    }
}

impl Census {
    /// Starts counting. Needs root: the error says so.
    pub fn start() -> anyhow::Result<Census> {
        use anyhow::Context;
        let events = ProcessEvents::subscribe()
            .context("counting from outside needs the kernel's process events: run as root")?;
        let host = namespace("self", "pid").context("cannot read /proc/self/ns/pid")?;
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let thread_shared = Arc::clone(&shared);
        let own = std::process::id();
        std::thread::spawn(move || {
            loop {
                let event = events.next();
                let (state, changed) = &*thread_shared;
                let mut state = state.lock().expect("census");
                match event {
                    Ok(event) => state.take(event, own, host),
                    Err(error) => {
                        state.lost = true;
                        if error.errno != libc::ENOBUFS {
                            changed.notify_all();
                            return;
                        }
                    }
                }
                changed.notify_all();
            }
        });
        Ok(Census { shared })
    }

    /// The count of a command that has ended, by its pid.
    pub fn count(&self, command: u32) -> Result<Count, NoCount> {
        let (state, changed) = &*self.shared;
        let state = state.lock().expect("census");
        let ended = |state: &mut State| {
            !state.lost && !state.counts.get(&command).is_some_and(|(_, ended)| *ended)
        };
        let (mut state, _) =
            changed.wait_timeout_while(state, Duration::from_secs(10), ended).expect("census");
        if std::mem::take(&mut state.lost) {
            return Err(NoCount::EventsLost);
        }
        match state.counts.remove(&command) {
            Some((count, true)) => Ok(count),
            _ => Err(NoCount::NoEnd),
        }
    }
}

impl State {
    fn take(&mut self, event: ProcessEvent, own: u32, host: u64) {
        match event {
            ProcessEvent::Fork { parent, child } => self.born(parent, child, own, host),
            ProcessEvent::Exec { process } => self.executed(process, host),
            ProcessEvent::Exit { process, .. } => {
                self.followed.remove(&process);
                if let Some((_, ended)) = self.counts.get_mut(&process) {
                    *ended = true;
                }
            }
        }
    }

    fn born(&mut self, parent: u32, child: u32, own: u32, host: u64) {
        if self.followed.len() >= MAX_FOLLOWED {
            self.lost = true;
            return;
        }
        let born = if parent == own {
            self.counts.insert(child, (Count::default(), false));
            Followed { root: child, node: None, launched: false, executed: false }
        } else {
            let Some(parent_followed) = self.followed.get(&parent) else { return };
            let root = parent_followed.root;
            match parent_followed.node {
                Some(node) => Followed { root, node: Some(node), launched: false, executed: false },
                None => {
                    let node = namespace(&parent.to_string(), "pid_for_children")
                        .filter(|node| *node != host);
                    Followed { root, node, launched: node.is_some(), executed: false }
                }
            }
        };
        self.followed.insert(child, born);
    }

    fn executed(&mut self, process: u32, host: u64) {
        let Some(followed) = self.followed.get_mut(&process) else { return };
        if followed.node.is_none() {
            // Born as a sibling of its maker: the exec is the first chance to look at it.
            followed.node = namespace(&process.to_string(), "pid").filter(|node| *node != host);
            followed.launched = followed.node.is_some();
        }
        let Some(node) = followed.node else { return };
        let first_exec = !std::mem::replace(&mut followed.executed, true);
        let Some((count, _)) = self.counts.get_mut(&followed.root) else { return };
        *count.execs.entry(node).or_default() += 1;
        if followed.launched && first_exec {
            *count.launched.entry(node).or_default() += 1;
            count.first.get_or_insert(node);
        }
    }
}

/// Inode number of a namespace of a process.
fn namespace(process: &str, kind: &str) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()?;
    let text = link.to_str()?;
    text.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const HOST: u64 = 4_026_531_836;

    #[test]
    fn a_placed_program_is_counted_once_and_its_ghost_not() {
        let mut state = State::default();
        let own = 1;
        let node = |launched| Followed { root: 10, node: Some(77), launched, executed: false };
        state.take(ProcessEvent::Fork { parent: own, child: 10 }, own, HOST);
        // The first program, in the home's namespace, forks two children.
        state.followed.insert(20, node(true));
        state.take(ProcessEvent::Exec { process: 20 }, own, HOST);
        for child in [21, 22] {
            state.take(ProcessEvent::Fork { parent: 20, child }, own, HOST);
        }
        // One stays; the other is placed: a body elsewhere, a ghost here.
        state.take(ProcessEvent::Exec { process: 21 }, own, HOST);
        state.followed.insert(30, Followed { node: Some(88), ..node(true) });
        state.take(ProcessEvent::Exec { process: 30 }, own, HOST);
        state.take(ProcessEvent::Exec { process: 22 }, own, HOST);
        let (count, _) = &state.counts[&10];
        assert_eq!((count.remote(), count.programs(), count.nodes()), (1, 2, 2));
        assert_eq!(count.first, Some(77));
    }

    #[test]
    fn a_pid_namespace_entered_for_children_is_a_node() {
        let census = match Census::start() {
            Ok(census) => census,
            Err(error) => {
                println!("SKIPPED: {error:#}");
                return;
            }
        };
        // unshare(1) forks a child into a new pid namespace, which executes a shell: as a launcher.
        let mut child = match Command::new("unshare")
            .args(["--pid", "--fork", "sh", "-c", "/bin/true; /bin/true; :"])
            .spawn()
        {
            Ok(child) => child,
            Err(error) => {
                println!("SKIPPED: unshare(1): {error}");
                return;
            }
        };
        if !child.wait().expect("wait").success() {
            println!("SKIPPED: no pid namespaces here");
            return;
        }
        let count = census.count(child.id()).expect("a count");
        assert_eq!((count.nodes(), count.remote(), count.programs()), (1, 0, 2), "{count:?}");
    }
}
