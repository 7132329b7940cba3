//! Programs that a user starts (`dvs run`, `dvs exec`), what the launcher reports, and the list for
//! `dvs ps`.

use super::Personality;
use crate::core::usage::Usage;
use crate::ports::LaunchFailure;
use crate::reason::Reason;
use dvs_container::launch::{LaunchId, LaunchSpec, LauncherEvent};
use dvs_sys::task::{TaskStat, TaskStatus, text};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};

/// Longest command line that the process list shows.
const MAX_COMMAND: usize = 4096;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Wait status as `waitpid` gives it.
    pub status: i32,
    /// CPU time of it and its waited-for children, microseconds: user, system.
    pub cpu: (u64, u64),
    /// Largest resident size in KiB.
    pub max_resident: u64,
}

#[derive(Debug, Default)]
struct Outcome {
    ended: Mutex<Option<Ended>>,
    changed: Condvar,
}

/// A program that was started by a user.
#[derive(Debug, Clone)]
pub struct ProgramRef {
    /// Its pid in the DC.
    pub pid: u32,
    /// Its pid outside.
    pub host_pid: u32,
    outcome: Arc<Outcome>,
}

impl ProgramRef {
    /// Waits for its end.
    #[must_use]
    pub fn wait(&self) -> Ended {
        let mut ended = self.outcome.ended.lock().unwrap();
        loop {
            if let Some(ended) = *ended {
                return ended;
            }
            ended = self.outcome.changed.wait(ended).unwrap();
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        *self.outcome.ended.lock().unwrap()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Programs {
    running: HashMap<LaunchId, Arc<Outcome>>,
    gone: bool,
}

/// Where a process of the list runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Place {
    /// On the node that lists it, with the reason why it is there, if it ever asked to execute.
    Here(Option<Reason>),
    /// On the node that lists it, placed there by another node.
    From(u16),
}

/// One process of a node, for `dvs ps`. Ghosts are left out: their programs are in the list of the
/// node where they run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessInfo {
    /// Pid in the DC.
    pub pid: u32,
    /// Parent's pid in the DC, 0: started from outside.
    pub parent: u32,
    /// User id inside.
    pub user: u32,
    /// Node.
    pub node: u16,
    /// State letter, as `ps` shows it.
    pub state: char,
    /// Command line, arguments separated by spaces; the name in brackets if there is none.
    pub command: String,
    /// Where it runs and why.
    pub place: Place,
}

impl Personality {
    /// Starts a program for a user. Its descriptors are those of `spec`, in the order in which it
    /// counts the passed ones.
    ///
    /// # Errors
    /// See [`LaunchFailure`].
    pub fn run_program(
        self: &Arc<Self>,
        mut spec: LaunchSpec,
        descriptors: Vec<OwnedFd>,
    ) -> Result<ProgramRef, LaunchFailure> {
        let outcome = Arc::new(Outcome::default());
        let id = self.launcher.next_id();
        // Before the launch: it may have ended when the launch returns.
        {
            let mut programs = self.programs.lock().unwrap();
            if programs.gone {
                let step = dvs_container::launch::LaunchStep::Request;
                return Err(LaunchFailure { errno: libc::ESHUTDOWN, step });
            }
            programs.running.insert(id, Arc::clone(&outcome));
        }
        // The first one shows what every program has before it changes anything.
        let wanted_hold = spec.hold;
        let learn = self.baseline().is_none();
        spec.hold |= learn;
        let launched = match self.launcher.launch(id, spec, descriptors) {
            Ok(launched) => launched,
            Err(failure) => {
                self.programs.lock().unwrap().running.remove(&id);
                return Err(failure);
            }
        };
        if learn {
            self.learn_baseline(launched.host_pid);
            if !wanted_hold {
                self.launcher.release(id);
            }
        }
        self.counters.stayed(launched.host_pid, Reason::First);
        Ok(ProgramRef { pid: launched.pid, host_pid: launched.host_pid, outcome })
    }

    /// Sends a signal to a program that a user started (or to its process group), from outside.
    ///
    /// # Errors
    /// errno.
    pub fn signal_program(
        &self,
        program: &ProgramRef,
        signal: i32,
        group: bool,
    ) -> Result<(), i32> {
        let target = program.pid as i32;
        self.launcher.signal(if group { -target } else { target }, signal, None)
    }

    /// What the launcher of the container reports.
    pub fn launcher_event(self: &Arc<Self>, event: &LauncherEvent) {
        match *event {
            LauncherEvent::Exited { id, status, cpu, max_resident } => {
                if self.body_exited(id, status, Usage { cpu, max_resident }) {
                    return;
                }
                let outcome = self.programs.lock().unwrap().running.remove(&id);
                if let Some(outcome) = outcome {
                    *outcome.ended.lock().unwrap() = Some(Ended { status, cpu, max_resident });
                    outcome.changed.notify_all();
                }
            }
            LauncherEvent::Stopped { id, signal, order } => {
                self.body_stopped(id, Some(signal), order);
            }
            LauncherEvent::Continued { id, order } => self.body_stopped(id, None, order),
            _ => {}
        }
    }

    /// The container has ended: every program in it ends as killed.
    pub fn container_gone(&self) {
        let running = {
            let mut programs = self.programs.lock().unwrap();
            programs.gone = true;
            std::mem::take(&mut programs.running)
        };
        for outcome in running.into_values() {
            let killed = Ended { status: crate::core::KILLED, cpu: (0, 0), max_resident: 0 };
            outcome.ended.lock().unwrap().get_or_insert(killed);
            outcome.changed.notify_all();
        }
    }

    /// The processes of this node, without ghosts and pid 1.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessInfo> {
        let list = self.launcher.processes();
        list.into_iter().filter_map(|(process, pid)| self.process_info(process, pid)).collect()
    }

    fn process_info(&self, process: u32, pid: u32) -> Option<ProcessInfo> {
        if pid == 1
            || self.ghosts.lock().unwrap().get(pid).is_some_and(super::ghosts::Ghost::is_committed)
        {
            return None;
        }
        let status = TaskStatus::read(process).ok()?;
        let stat = TaskStat::read(process).ok()?;
        let home = self.bodies.lock().unwrap().by_process(process).map(|body| body.key.home);
        let parent = match home {
            Some(_) => self.parent_of_body(pid).unwrap_or(0),
            None => TaskStatus::read(stat.parent)
                .ok()
                .and_then(|parent| parent.ns_process.get(1).copied())
                .unwrap_or(0),
        };
        let place = home.map_or_else(|| Place::Here(self.counters.reason(process)), Place::From);
        Some(ProcessInfo {
            pid,
            parent,
            user: self.baseline().map_or(status.uids[0], |baseline| baseline.user(status.uids[0])),
            node: self.config.node,
            state: char::from(stat.state),
            command: command(process, &status),
            place,
        })
    }
}

fn command(process: u32, status: &TaskStatus) -> String {
    let mut line = text(process, "cmdline").unwrap_or_default();
    line.truncate(MAX_COMMAND);
    while line.last() == Some(&0) {
        line.pop();
    }
    if line.is_empty() {
        return format!("[{}]", String::from_utf8_lossy(&status.name));
    }
    for byte in &mut line {
        // What a terminal would take as a command is not shown as such.
        if *byte < b' ' || *byte == 0x7f {
            *byte = b' ';
        }
    }
    String::from_utf8_lossy(&line).into_owned()
}
