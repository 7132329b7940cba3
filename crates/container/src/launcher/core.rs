//! The launcher's table of programs as a state machine: what was asked and what the kernel says, in;
//! ptrace requests, signals and reports, out. No I/O.
//!
//! A program is made (`Starting`), stops itself so that it can be bound to the launcher's life before
//! it execs (only then is it sure that a prepared program never runs after a crash), stops again
//! after its exec (`Held`), and is let go (`Running`). One that is not to be held skips the stops.

use crate::launch::{LaunchId, LaunchStep, LauncherEvent};
use dvs_sys::process::WaitState;
use dvs_sys::ptrace::EVENT_EXEC;
use std::collections::HashMap;

/// Most programs of a launcher at a time.
pub const MAX_PROGRAMS: usize = 8192;

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Bind the stopped process to the launcher: it dies with it, and stops after its exec.
    Bind(u32),
    /// Let a stopped process go on, with this signal.
    Continue(u32, i32),
    /// Set the blocked signals of a stopped process.
    SetMask(u32, u64),
    /// Set the out-of-memory adjustment of the process with this pid inside.
    SetOomScore(u32, i32),
    /// Let go of a stopped process.
    Detach(u32),
    /// Send a signal to a process.
    Kill(u32, i32),
    /// Tell the daemon.
    Report(LauncherEvent),
}

/// What a child has said about itself before its exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// Its pid inside.
    pub pid: Option<u32>,
    /// Where and why it failed.
    pub failure: Option<(LaunchStep, i32)>,
}

/// How a process ended, and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Wait status.
    pub status: i32,
    /// CPU time in microseconds: user, system.
    pub cpu: (u64, u64),
    /// Largest resident size in KiB.
    pub max_resident: u64,
}

/// What the core must know of a program that was just made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The daemon's number.
    pub id: LaunchId,
    /// Pid outside.
    pub host_pid: u32,
    /// Pid inside, where it was chosen.
    pub pid: Option<u32>,
    /// The daemon wants it held.
    pub hold: bool,
    /// It was made with ptrace, because it is to be held or something must be set after its exec.
    pub traced: bool,
    /// Signals that it blocks when it runs.
    pub blocked_signals: u64,
    /// Out-of-memory adjustment to set after its exec.
    pub oom_score: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before its exec; `bound`: it has had its first stop.
    Starting { bound: bool },
    /// At its exec stop.
    Held,
    /// Let go.
    Running,
    /// Killed on the daemon's word; its end is not reported.
    Aborted,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    made: Made,
    phase: Phase,
    pid: Option<u32>,
    /// A SIGSTOP came before it ran.
    stop_pending: bool,
    /// The daemon released it before its exec stop.
    released_early: bool,
    /// The last order that was carried out.
    order: u32,
    /// It is stopped.
    stopped: bool,
    /// Its next stop is one that was ordered.
    ordered_stop: bool,
    /// That it goes on now was ordered.
    ordered_continue: bool,
}

/// All programs of a launcher.
#[derive(Debug, Default)]
pub struct Core {
    programs: HashMap<u32, Entry>,
    ids: HashMap<LaunchId, u32>,
}

impl Core {
    /// Whether another program fits, and its number is free.
    ///
    /// # Errors
    /// The errno to report.
    pub fn admit(&self, id: LaunchId) -> Result<(), i32> {
        if self.ids.contains_key(&id) {
            Err(libc::EEXIST)
        } else if self.programs.len() >= MAX_PROGRAMS {
            Err(libc::EAGAIN)
        } else {
            Ok(())
        }
    }

    /// A process was made for a program.
    pub fn made(&mut self, made: Made) {
        let entry = Entry {
            made,
            phase: Phase::Starting { bound: false },
            pid: made.pid,
            stop_pending: false,
            released_early: false,
            order: 0,
            stopped: false,
            ordered_stop: false,
            ordered_continue: false,
        };
        self.programs.insert(made.host_pid, entry);
        self.ids.insert(made.id, made.host_pid);
    }

    /// Whether the process is one of a program that has not got to its exec.
    #[must_use]
    pub fn is_starting(&self, host_pid: u32) -> bool {
        self.programs
            .get(&host_pid)
            .is_some_and(|entry| matches!(entry.phase, Phase::Starting { .. }))
    }

    /// The pid outside of the program with a pid inside.
    #[must_use]
    pub fn host_pid(&self, inside: i32) -> Option<u32> {
        let inside = u32::try_from(inside).ok()?;
        self.programs.iter().find(|(_, entry)| entry.pid == Some(inside)).map(|(pid, _)| *pid)
    }

    /// Pid outside and inside of a program that runs.
    #[must_use]
    pub fn running(&self, id: LaunchId) -> Option<(u32, Option<u32>)> {
        let host_pid = *self.ids.get(&id)?;
        let entry = self.programs.get(&host_pid)?;
        (entry.phase == Phase::Running).then_some((host_pid, entry.pid))
    }

    /// An order is about to be carried out; what the program did before has been looked at.
    pub fn ordered(&mut self, id: LaunchId, number: u32, signal: i32) {
        let Some(entry) = self.ids.get(&id).and_then(|pid| self.programs.get_mut(pid)) else {
            return;
        };
        entry.order = number;
        match signal {
            // One that is stopped already is not stopped once more.
            libc::SIGSTOP => entry.ordered_stop = !entry.stopped,
            libc::SIGCONT => {
                entry.ordered_stop = false;
                entry.ordered_continue = true;
            }
            _ => {}
        }
    }

    /// The order has been carried out, and its effect looked at.
    pub fn order_done(&mut self, id: LaunchId) {
        if let Some(entry) = self.ids.get(&id).and_then(|pid| self.programs.get_mut(pid)) {
            entry.ordered_continue = false;
        }
    }

    /// Number of programs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.programs.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// An untraced child has closed its report by its exec (or died after having said nothing).
    pub fn executed(&mut self, host_pid: u32, told: Told) -> Vec<Command> {
        let Some(entry) = self.programs.get_mut(&host_pid) else { return Vec::new() };
        if entry.made.traced || !matches!(entry.phase, Phase::Starting { .. }) {
            return Vec::new();
        }
        if told.failure.is_some() || told.pid.is_none() {
            // Its end follows and reports the failure.
            return Vec::new();
        }
        entry.phase = Phase::Running;
        entry.pid = entry.pid.or(told.pid);
        vec![Command::Report(entry.launched())]
    }

    /// A child has stopped or goes on.
    pub fn stopped(&mut self, host_pid: u32, state: WaitState, told: Told) -> Vec<Command> {
        let Some(entry) = self.programs.get_mut(&host_pid) else {
            // A child of a guest made with CLONE_PARENT: not ours to manage.
            return Vec::new();
        };
        match (entry.phase, state) {
            (Phase::Starting { bound: false }, WaitState::Stopped(libc::SIGSTOP, 0))
                if entry.made.traced =>
            {
                entry.phase = Phase::Starting { bound: true };
                vec![Command::Bind(host_pid), Command::Continue(host_pid, 0)]
            }
            (Phase::Starting { .. }, WaitState::Stopped(_, EVENT_EXEC)) => {
                entry.pid = entry.pid.or(told.pid);
                entry.at_exec()
            }
            (Phase::Starting { .. }, WaitState::Stopped(libc::SIGSTOP, 0)) if entry.made.traced => {
                entry.stop_pending = true;
                vec![Command::Continue(host_pid, 0)]
            }
            (Phase::Starting { .. }, WaitState::Stopped(signal, 0)) if entry.made.traced => {
                vec![Command::Continue(host_pid, signal)]
            }
            (Phase::Running, WaitState::Stopped(signal, _)) => {
                entry.stopped = true;
                if std::mem::take(&mut entry.ordered_stop) {
                    return Vec::new();
                }
                let (id, order) = (entry.made.id, entry.order);
                vec![Command::Report(LauncherEvent::Stopped { id, signal, order })]
            }
            (Phase::Running, WaitState::Continued) => {
                entry.stopped = false;
                // A stop signal that was still pending is gone with it.
                entry.ordered_stop = false;
                if entry.ordered_continue {
                    return Vec::new();
                }
                let (id, order) = (entry.made.id, entry.order);
                vec![Command::Report(LauncherEvent::Continued { id, order })]
            }
            _ => Vec::new(),
        }
    }

    /// A child has ended.
    pub fn ended(&mut self, host_pid: u32, usage: Usage, told: Told) -> Vec<Command> {
        let Some(entry) = self.programs.remove(&host_pid) else { return Vec::new() };
        self.ids.remove(&entry.made.id);
        let id = entry.made.id;
        let exited = LauncherEvent::Exited {
            id,
            status: usage.status,
            cpu: usage.cpu,
            max_resident: usage.max_resident,
        };
        let failed = |step, errno| LauncherEvent::Failed { id, errno, step };
        let reports = match (entry.phase, told.failure) {
            (Phase::Aborted, _) => vec![],
            (Phase::Starting { .. }, Some((step, errno))) => vec![failed(step, errno)],
            // Killed while it was set up, or before.
            (Phase::Starting { .. }, None) if entry.made.traced || told.pid.is_none() => {
                vec![failed(LaunchStep::Setup, libc::ECANCELED)]
            }
            // Its exec and its end came in one go.
            (Phase::Starting { .. }, None) => {
                let launched = Entry { pid: entry.pid.or(told.pid), ..entry }.launched();
                vec![launched, exited]
            }
            (Phase::Held | Phase::Running, _) => vec![exited],
        };
        reports.into_iter().map(Command::Report).collect()
    }

    /// The daemon lets a held program go.
    pub fn release(&mut self, id: LaunchId) -> Vec<Command> {
        let Some(entry) = self.ids.get(&id).and_then(|pid| self.programs.get_mut(pid)) else {
            return Vec::new();
        };
        match entry.phase {
            Phase::Held => entry.let_go(),
            Phase::Starting { .. } => {
                entry.released_early = true;
                Vec::new()
            }
            Phase::Running | Phase::Aborted => Vec::new(),
        }
    }

    /// The daemon gives a program up that does not run yet.
    pub fn abort(&mut self, id: LaunchId) -> Vec<Command> {
        let Some(entry) = self.ids.get(&id).and_then(|pid| self.programs.get_mut(pid)) else {
            return Vec::new();
        };
        match entry.phase {
            Phase::Held | Phase::Starting { .. } => {
                entry.phase = Phase::Aborted;
                vec![Command::Kill(entry.made.host_pid, libc::SIGKILL)]
            }
            Phase::Running | Phase::Aborted => Vec::new(),
        }
    }
}

impl Entry {
    fn launched(&self) -> LauncherEvent {
        LauncherEvent::Launched {
            id: self.made.id,
            pid: self.pid.unwrap_or(0),
            host_pid: self.made.host_pid,
        }
    }

    fn at_exec(&mut self) -> Vec<Command> {
        let pid = self.made.host_pid;
        let mut commands = vec![Command::SetMask(pid, self.made.blocked_signals)];
        if let (Some(score), Some(inside)) = (self.made.oom_score, self.pid) {
            commands.push(Command::SetOomScore(inside, score));
        }
        commands.push(Command::Report(self.launched()));
        self.phase = Phase::Held;
        if !self.made.hold || self.released_early {
            commands.extend(self.let_go());
        }
        commands
    }

    fn let_go(&mut self) -> Vec<Command> {
        self.phase = Phase::Running;
        let pid = self.made.host_pid;
        if self.stop_pending {
            vec![Command::Kill(pid, libc::SIGSTOP), Command::Detach(pid)]
        } else {
            vec![Command::Detach(pid)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: LaunchId = LaunchId(7);
    const HOST: u32 = 1000;
    const NOTHING: Told = Told { pid: None, failure: None };
    const USAGE: Usage = Usage { status: 0, cpu: (1, 2), max_resident: 3 };

    fn core(hold: bool, traced: bool) -> Core {
        let mut core = Core::default();
        core.made(Made {
            id: ID,
            host_pid: HOST,
            pid: Some(50),
            hold,
            traced,
            blocked_signals: 5,
            oom_score: None,
        });
        core
    }

    fn launched() -> Command {
        Command::Report(LauncherEvent::Launched { id: ID, pid: 50, host_pid: HOST })
    }

    fn exited() -> Command {
        Command::Report(LauncherEvent::Exited { id: ID, status: 0, cpu: (1, 2), max_resident: 3 })
    }

    fn first_stop(core: &mut Core) {
        let stop = WaitState::Stopped(libc::SIGSTOP, 0);
        let commands = core.stopped(HOST, stop, NOTHING);
        assert_eq!(commands, [Command::Bind(HOST), Command::Continue(HOST, 0)]);
    }

    fn exec_stop(core: &mut Core) -> Vec<Command> {
        core.stopped(HOST, WaitState::Stopped(libc::SIGTRAP, EVENT_EXEC), NOTHING)
    }

    #[test]
    fn held_released_ended() {
        let mut core = core(true, true);
        first_stop(&mut core);
        assert_eq!(exec_stop(&mut core), [Command::SetMask(HOST, 5), launched()]);
        assert_eq!(core.release(ID), [Command::Detach(HOST)]);
        assert_eq!(core.release(ID), []);
        assert_eq!(core.abort(ID), [], "a running program is not aborted");
        assert_eq!(core.ended(HOST, USAGE, NOTHING), [exited()]);
        assert!(core.is_empty());
        assert_eq!(core.release(ID), []);
    }

    #[test]
    fn an_aborted_program_never_runs_and_its_end_is_silent() {
        for stops in 0..=2 {
            let mut core = core(true, true);
            if stops > 0 {
                first_stop(&mut core);
            }
            if stops > 1 {
                exec_stop(&mut core);
            }
            assert_eq!(core.abort(ID), [Command::Kill(HOST, libc::SIGKILL)]);
            assert_eq!(core.release(ID), []);
            // Stops that were under way have no effect any more.
            assert_eq!(exec_stop(&mut core), []);
            assert_eq!(core.ended(HOST, USAGE, NOTHING), []);
            assert!(core.is_empty());
        }
    }

    #[test]
    fn a_failure_is_reported_once_with_its_step() {
        for traced in [true, false] {
            let mut core = core(traced, traced);
            let told = Told { pid: None, failure: Some((LaunchStep::Exec, libc::ENOENT)) };
            assert_eq!(core.executed(HOST, told), []);
            let failed =
                LauncherEvent::Failed { id: ID, errno: libc::ENOENT, step: LaunchStep::Exec };
            assert_eq!(core.ended(HOST, USAGE, told), [Command::Report(failed)]);
        }
    }

    #[test]
    fn killed_during_setup_fails_without_having_run() {
        for traced in [true, false] {
            let mut core = core(traced, traced);
            let commands = core.ended(HOST, USAGE, NOTHING);
            assert!(matches!(
                commands[..],
                [Command::Report(LauncherEvent::Failed { step: LaunchStep::Setup, .. })]
            ));
        }
    }

    #[test]
    fn without_hold_exec_is_seen_by_the_report_that_closes() {
        let mut first = core(false, false);
        let told = Told { pid: Some(50), failure: None };
        assert_eq!(first.executed(HOST, NOTHING), [], "it has not even begun");
        assert_eq!(first.executed(HOST, told), [launched()]);
        assert_eq!(first.executed(HOST, told), []);
        let stop = WaitState::Stopped(libc::SIGTSTP, 0);
        let stopped = LauncherEvent::Stopped { id: ID, signal: libc::SIGTSTP, order: 0 };
        assert_eq!(first.stopped(HOST, stop, NOTHING), [Command::Report(stopped)]);
        let goes_on = Command::Report(LauncherEvent::Continued { id: ID, order: 0 });
        assert_eq!(first.stopped(HOST, WaitState::Continued, NOTHING), [goes_on]);
        // Exec and end in one go.
        let mut second = core(false, false);
        assert_eq!(second.ended(HOST, USAGE, told), [launched(), exited()]);
    }

    fn running() -> Core {
        let mut core = core(true, true);
        first_stop(&mut core);
        exec_stop(&mut core);
        core.release(ID);
        assert_eq!(core.running(ID), Some((HOST, Some(50))));
        core
    }

    #[test]
    fn what_was_ordered_is_not_reported_and_the_rest_names_the_last_order() {
        let mut core = running();
        let stop = |signal| WaitState::Stopped(signal, 0);
        core.ordered(ID, 1, libc::SIGSTOP);
        core.order_done(ID);
        assert_eq!(core.stopped(HOST, stop(libc::SIGSTOP), NOTHING), []);
        core.ordered(ID, 2, libc::SIGCONT);
        assert_eq!(core.stopped(HOST, WaitState::Continued, NOTHING), []);
        core.order_done(ID);
        // By itself, after the second order.
        let stopped = LauncherEvent::Stopped { id: ID, signal: libc::SIGTTIN, order: 2 };
        assert_eq!(core.stopped(HOST, stop(libc::SIGTTIN), NOTHING), [Command::Report(stopped)]);
        // Stopped already: the order stops nothing, and what follows is its own.
        core.ordered(ID, 3, libc::SIGSTOP);
        core.order_done(ID);
        let goes_on = LauncherEvent::Continued { id: ID, order: 3 };
        assert_eq!(core.stopped(HOST, WaitState::Continued, NOTHING), [Command::Report(goes_on)]);
        let stopped = LauncherEvent::Stopped { id: ID, signal: libc::SIGSTOP, order: 3 };
        assert_eq!(core.stopped(HOST, stop(libc::SIGSTOP), NOTHING), [Command::Report(stopped)]);
    }

    #[test]
    fn an_ordered_stop_that_an_order_undoes_leaves_no_trace() {
        let mut core = running();
        core.ordered(ID, 1, libc::SIGSTOP);
        core.order_done(ID);
        core.ordered(ID, 2, libc::SIGCONT);
        core.order_done(ID);
        let stopped = LauncherEvent::Stopped { id: ID, signal: libc::SIGTSTP, order: 2 };
        assert_eq!(
            core.stopped(HOST, WaitState::Stopped(libc::SIGTSTP, 0), NOTHING),
            [Command::Report(stopped)],
            "its own"
        );
    }

    #[test]
    fn a_program_that_does_not_run_takes_no_order() {
        let mut core = core(true, true);
        assert_eq!(core.running(ID), None);
        first_stop(&mut core);
        exec_stop(&mut core);
        assert_eq!(core.running(ID), None);
    }

    #[test]
    fn a_stop_before_the_release_takes_effect_after_it() {
        let mut core = core(true, true);
        first_stop(&mut core);
        let stop = WaitState::Stopped(libc::SIGSTOP, 0);
        assert_eq!(core.stopped(HOST, stop, NOTHING), [Command::Continue(HOST, 0)]);
        exec_stop(&mut core);
        let expected = [Command::Kill(HOST, libc::SIGSTOP), Command::Detach(HOST)];
        assert_eq!(core.release(ID), expected);
    }

    #[test]
    fn an_early_release_takes_effect_at_the_exec_stop() {
        let mut core = core(true, true);
        assert_eq!(core.release(ID), []);
        first_stop(&mut core);
        let expected = [Command::SetMask(HOST, 5), launched(), Command::Detach(HOST)];
        assert_eq!(exec_stop(&mut core), expected);
    }

    #[test]
    fn traced_for_a_setting_alone_goes_on_by_itself() {
        let mut core = Core::default();
        core.made(Made {
            id: ID,
            host_pid: HOST,
            pid: None,
            hold: false,
            traced: true,
            blocked_signals: 0,
            oom_score: Some(300),
        });
        first_stop(&mut core);
        let told = Told { pid: Some(50), failure: None };
        let commands = core.stopped(HOST, WaitState::Stopped(libc::SIGTRAP, EVENT_EXEC), told);
        let expected = [
            Command::SetMask(HOST, 0),
            Command::SetOomScore(50, 300),
            launched(),
            Command::Detach(HOST),
        ];
        assert_eq!(commands, expected);
    }

    #[test]
    fn strangers_and_doubles_have_no_effect() {
        let mut core = core(true, true);
        assert_eq!(core.admit(ID), Err(libc::EEXIST));
        assert_eq!(core.stopped(5, WaitState::Stopped(libc::SIGSTOP, 0), NOTHING), []);
        assert_eq!(core.ended(5, USAGE, NOTHING), []);
        assert_eq!(core.executed(5, NOTHING), []);
        assert_eq!(core.abort(LaunchId(8)), []);
        for number in 0..MAX_PROGRAMS as u64 {
            let made = Made {
                id: LaunchId(100 + number),
                host_pid: 2000 + number as u32,
                pid: None,
                hold: false,
                traced: false,
                blocked_signals: 0,
                oom_score: None,
            };
            core.made(made);
        }
        assert_eq!(core.admit(LaunchId(8)), Err(libc::EAGAIN));
    }
}
