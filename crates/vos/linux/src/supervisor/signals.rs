//! `kill`: targets on other nodes, process groups that reach over nodes, and the stop signal that no
//! ghost can see.

use super::Personality;
use super::bodies::may_signal;
use crate::messages::{Answer, Note, Request, encode};
use dvs_container::launch::SignalSender;
use dvs_sys::seccomp::Notification;
use dvs_sys::task::TaskStatus;
use std::sync::Arc;
use std::time::Duration;

/// How long another node may take to send a signal.
const DEADLINE: Duration = Duration::from_secs(10);

/// A process as far as signals go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) pid: u32,
    /// Real and saved user id.
    pub(crate) users: (u32, u32),
}

fn is_terminal_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

impl Personality {
    /// Lets the call go on, if only this node is concerned.
    pub(crate) fn kill_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        let (target, signal) = (call.arguments[0] as i32, call.arguments[1] as i32);
        let needs_more = match target {
            1.. => {
                let pid = target as u32;
                let is_ghost = self.ghosts.lock().unwrap().get(pid).is_some();
                let is_body = self.bodies.lock().unwrap().by_pid(pid).is_some();
                if is_ghost {
                    signal == libc::SIGSTOP
                } else if is_body {
                    is_terminal_stop(signal)
                } else {
                    self.is_foreign(pid)
                }
            }
            -1 => false,
            group => {
                let alone =
                    self.home.lock().unwrap().is_empty() && self.bodies.lock().unwrap().is_empty();
                !alone || self.is_foreign(group.unsigned_abs())
            }
        };
        if !needs_more {
            let _ = self.listener.proceed(call.id);
        }
        !needs_more
    }

    /// Sends a signal that concerns more than this node.
    pub(crate) fn kill(self: &Arc<Self>, call: &Notification) {
        match self.kill_elsewhere(call) {
            None => {
                let _ = self.listener.proceed(call.id);
            }
            Some(0) => {
                let _ = self.listener.answer(call.id, 0);
            }
            Some(errno) => {
                let _ = self.listener.fail(call.id, errno);
            }
        }
    }

    /// What another node says; `None`: the call goes on here.
    fn kill_elsewhere(&self, call: &Notification) -> Option<i32> {
        let (target, signal) = (call.arguments[0] as i32, call.arguments[1] as i32);
        let status = TaskStatus::read(call.pid).ok()?;
        let uid = self.baseline().map_or(status.uids[0], |baseline| baseline.user(status.uids[0]));
        let sender =
            SignalSender { pid: status.inner_process(), uid, code: libc::SI_USER, value: 0 };
        if target > 0 {
            let pid = target as u32;
            if let Some((home, _)) = self.body_home(pid) {
                // Its ghost decides: it knows whether the group is orphaned.
                return Some(self.ask_signal(home, target, signal, sender));
            }
            if let Some(owner) = self.foreign_owner(pid) {
                return Some(self.ask_signal(owner, target, signal, sender));
            }
            self.stop_after(pid, signal, sender);
            return None;
        }
        let group = if target == 0 {
            status.ns_group.last().copied().unwrap_or(0)
        } else {
            target.unsigned_abs()
        };
        if target == 0
            && let Some((home, _)) = self.body_home(group)
        {
            let at_home = self.bodies.lock().unwrap().standing(group).map_or(group, |who| who.0);
            return Some(self.ask_signal(home, -(at_home as i32), signal, sender));
        }
        if let Some(owner) = self.foreign_owner(group) {
            return Some(self.ask_signal(owner, -(group as i32), signal, sender));
        }
        self.tell_group(group, signal, sender);
        None
    }

    fn ask_signal(&self, node: u16, target: i32, signal: i32, sender: SignalSender) -> i32 {
        let Ok(bytes) = encode(&Request::Signal { target, signal, sender }) else {
            return libc::EINVAL;
        };
        match self.ask(node, bytes, DEADLINE) {
            Ok(Answer::Done(errno)) => errno,
            // A lost node's processes are gone.
            _ => libc::ESRCH,
        }
    }

    /// Another node sends a signal to a process or group of this one; errno.
    pub(crate) fn signal_request(&self, target: i32, signal: i32, sender: SignalSender) -> i32 {
        if target > 0 {
            let pid = target as u32;
            let Ok(process) = self.process_of(pid) else { return libc::ESRCH };
            let Some(found) = self.target(pid, process) else { return libc::ESRCH };
            if !may_signal(sender.uid, found.users) {
                return libc::EPERM;
            }
            self.stop_after(pid, signal, sender);
        } else if target < -1 {
            self.tell_group(target.unsigned_abs(), signal, sender);
        } else {
            return libc::EINVAL;
        }
        let plain = signal == 0 || signal == libc::SIGKILL || signal == libc::SIGSTOP || target < 0;
        self.launcher.signal(target, signal, (!plain).then_some(sender)).err().unwrap_or(0)
    }

    /// A ghost cannot see SIGSTOP: its program is stopped along with it.
    fn stop_after(&self, pid: u32, signal: i32, sender: SignalSender) {
        if signal != libc::SIGSTOP {
            return;
        }
        let process = self.ghosts.lock().unwrap().get(pid).map(|ghost| ghost.process);
        let allowed = process
            .and_then(|process| self.target(pid, process))
            .is_some_and(|target| may_signal(sender.uid, target.users));
        if allowed {
            self.forward(pid, signal, sender, false);
        }
    }

    /// A signal goes to a process group of this node: what the group's placed programs have started
    /// elsewhere is in it, too.
    fn tell_group(&self, group: u32, signal: i32, sender: SignalSender) {
        if signal == 0 {
            return;
        }
        let ghosts = self.home.lock().unwrap().ghosts().collect::<Vec<_>>();
        for (pid, node, placement) in ghosts {
            let process = self.ghosts.lock().unwrap().get(pid).map(|ghost| ghost.process);
            let Some(process) = process else { continue };
            let in_group = TaskStatus::read(process)
                .is_ok_and(|status| status.ns_group.last() == Some(&group));
            if in_group {
                self.post(node, &Note::GroupSignal { placement, signal, sender });
                self.stop_after(pid, signal, sender);
            }
        }
    }

    fn target(&self, pid: u32, process: u32) -> Option<Target> {
        let status = TaskStatus::read(process).ok()?;
        let inside = |id| self.baseline().map_or(id, |baseline| baseline.user(id));
        Some(Target { pid, users: (inside(status.uids[0]), inside(status.uids[2])) })
    }

    /// The processes of this node in a process group (the container's number).
    pub(crate) fn processes_of_group(&self, group: u32) -> Vec<Target> {
        let processes = self.launcher.processes();
        processes
            .into_iter()
            .filter_map(|(process, pid)| {
                let status = TaskStatus::read(process).ok()?;
                (status.ns_group.get(1) == Some(&group)).then(|| self.target(pid, process))?
            })
            .collect()
    }
}
