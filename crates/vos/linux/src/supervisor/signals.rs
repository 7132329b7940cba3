//! `kill`: targets on other nodes, process groups that reach over nodes, and the stop signal that no
//! ghost can see.

use super::Personality;
use super::bodies::may_signal;
use crate::core::Placement;
use crate::core::holds::Holds;
use crate::core::home::Event;
use crate::messages::{Answer, Note, Request, encode};
use dvs_container::launch::SignalSender;
use dvs_sys::ghost::Order;
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{TaskMemory, TaskStatus};
use std::sync::Arc;
use std::time::Duration;

/// How long another node may take to send a signal.
const DEADLINE: Duration = Duration::from_secs(10);
/// `si_code` of `tgkill`.
const SI_TKILL: i32 = -6;

/// A process as far as signals go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) pid: u32,
    /// Real and saved user id.
    pub(crate) users: (u32, u32),
}

/// A ghost of a process group.
#[derive(Debug)]
struct Member {
    pid: u32,
    node: u16,
    placement: Placement,
    status: TaskStatus,
}

impl Member {
    fn is_stopped(&self) -> bool {
        self.status.state == b'T'
    }
}

/// Whether a signal is given to all of a group at once. Stopping and going on are not: ghosts decide
/// about them. Nor are real-time signals, which are counted.
fn is_for_all_at_once(signal: i32) -> bool {
    (1..32).contains(&signal)
        && !is_terminal_stop(signal)
        && !matches!(signal, libc::SIGSTOP | libc::SIGCONT)
}

/// Code and value of the `siginfo_t` of `rt_sigqueueinfo`. Who sends it is not taken from there: it
/// decides about permission.
fn queued_by(task: u32, address: u64) -> Result<(i32, u64), i32> {
    // si_code at 8, si_value at 24.
    let bytes = TaskMemory::new(task).bytes(address, 32).map_err(|error| error.errno)?;
    let four = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk::<4>().copied());
    let word = |at| four(at).map_or(0, u32::from_ne_bytes);
    Ok((word(8).cast_signed(), u64::from(word(24)) | u64::from(word(28)) << 32))
}

fn is_terminal_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

impl Personality {
    /// Lets the call go on, if only this node is concerned.
    pub(crate) fn kill_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        let (target, signal) = (call.arguments[0] as i32, call.arguments[1] as i32);
        if self.ghosts.lock().unwrap().pid_of(call.pid).is_some() {
            // On behalf of its program, for somebody here.
            let _ = self.listener.proceed(call.id);
            return true;
        }
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
                let (target, signal) = (call.arguments[0] as i32, call.arguments[1] as i32);
                if self.listener.proceed(call.id).is_err() && target < -1 {
                    // The caller has been killed meanwhile, and programs elsewhere have the signal
                    // already: so have the rest of the group.
                    let _ = self.launcher.signal(target, signal, None);
                }
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
        let sender = self.sender_of(&status);
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

    /// Lets a signal with a value (`sigqueue`) go on if its target is on this node.
    pub(crate) fn queue_at_once(&self, call: &Notification) -> bool {
        let target = call.arguments[0] as i32;
        let here = u32::try_from(target).map_or(true, |pid| pid == 0 || !self.is_foreign(pid));
        if here {
            let _ = self.listener.proceed(call.id);
        }
        here
    }

    /// Sends a signal with a value to another node.
    pub(crate) fn queue(&self, call: &Notification) {
        let [target, signal, information, ..] = call.arguments;
        let (target, signal) = (target as i32, signal as i32);
        let errno = match queued_by(call.pid, information) {
            Err(errno) => errno,
            // What only the kernel may claim.
            Ok((code, _)) if code >= 0 || code == SI_TKILL => libc::EPERM,
            Ok((code, value)) => match (self.sender(call), self.foreign_owner(target as u32)) {
                (Some(sender), Some(owner)) => {
                    let sender = SignalSender { code, value, ..sender };
                    self.ask_signal(owner, target, signal, sender)
                }
                _ => libc::ESRCH,
            },
        };
        let _ = match errno {
            0 => self.listener.answer(call.id, 0),
            errno => self.listener.fail(call.id, errno),
        };
    }

    fn sender(&self, call: &Notification) -> Option<SignalSender> {
        TaskStatus::read(call.pid).ok().map(|status| self.sender_of(&status))
    }

    fn sender_of(&self, status: &TaskStatus) -> SignalSender {
        let uid = self.users_of(status).0;
        SignalSender { pid: status.inner_process(), uid, code: libc::SI_USER, value: 0 }
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
        // These two show nobody their sender, and could keep its ghost from saying that it has sent them.
        let silent = matches!(signal, libc::SIGKILL | libc::SIGSTOP);
        if !silent
            && self.has_ghost(&sender)
            && let Some(errno) = self.send_by_ghost(target, signal, sender)
        {
            return errno;
        }
        let plain = signal == 0 || silent || target < 0;
        self.launcher.signal(target, signal, (!plain).then_some(sender)).err().unwrap_or(0)
    }

    /// Whether the sender of a plain signal runs elsewhere and has its ghost here, with its number and
    /// user id: then the ghost can send for it, and everything about the sender is right.
    pub(crate) fn has_ghost(&self, sender: &SignalSender) -> bool {
        if sender.code != libc::SI_USER || sender.pid < 2 {
            return false;
        }
        let process = {
            let ghosts = self.ghosts.lock().unwrap();
            ghosts.get(sender.pid).filter(|ghost| ghost.is_committed()).map(|ghost| ghost.process)
        };
        let user = |id| self.baseline().map_or(id, |baseline| baseline.user(id));
        process.and_then(|process| TaskStatus::read(process).ok()).is_some_and(|status| {
            let [real, effective, ..] = status.uids;
            user(real) == sender.uid && user(effective) == sender.uid
        })
    }

    /// Has the sender's ghost send a signal; errno, or `None` if the ghost did not say.
    pub(crate) fn send_by_ghost(
        &self,
        target: i32,
        signal: i32,
        sender: SignalSender,
    ) -> Option<i32> {
        let signal = u8::try_from(signal).ok()?;
        let result = self.order(sender.pid, Order::Kill { target, signal }).ok()?;
        Some(i32::try_from(-result).unwrap_or(libc::EINVAL))
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

    /// A signal goes to a process group of this node: the group's placed programs have it before the
    /// call goes on, and what they have started elsewhere, which is in the group, too.
    fn tell_group(&self, group: u32, signal: i32, sender: SignalSender) {
        if signal == 0 {
            return;
        }
        let members = self.ghosts_of_group(group);
        let may = |member: &Member| may_signal(sender.uid, self.users_of(&member.status));
        let at_once = is_for_all_at_once(signal);
        if at_once {
            let placements: Vec<Placement> = members
                .iter()
                // A stopped one takes nothing, but is killed.
                .filter(|member| signal == libc::SIGKILL || !member.is_stopped())
                .filter(|member| may(member))
                .map(|member| member.placement)
                .collect();
            self.hold_streams(signal, &placements);
        }
        for member in members {
            let (placement, whole) = (member.placement, at_once && may(&member));
            self.post(member.node, &Note::GroupSignal { placement, signal, sender, whole });
            self.stop_after(member.pid, signal, sender);
        }
    }

    /// A terminal has sent a signal to a ghost's whole group, and this is the first ghost that says so:
    /// output is held back until all have said so and their programs have it.
    pub(crate) fn hold_rest_of_group(&self, process: u32, pid: u32, signal: i32) {
        let placement = self.home.lock().unwrap().ghost(pid).map(|(_, placement)| placement);
        let Some(placement) = placement else { return };
        if self.holds.lock().unwrap().expects(placement, signal) {
            return;
        }
        let group = TaskStatus::read(process).ok();
        let Some(group) = group.and_then(|status| status.ns_group.last().copied()) else { return };
        let members = self.ghosts_of_group(group);
        let placements: Vec<Placement> = members
            .iter()
            .filter(|member| !member.is_stopped())
            .map(|member| member.placement)
            .collect();
        // The terminal has sent it to all that are here already.
        if placements.len() > 1 {
            self.hold_streams(signal, &placements);
        }
    }

    /// The ghosts of this node in a process group (the container's number).
    fn ghosts_of_group(&self, group: u32) -> Vec<Member> {
        let ghosts = self.home.lock().unwrap().ghosts().collect::<Vec<_>>();
        ghosts
            .into_iter()
            .filter_map(|(pid, node, placement)| {
                let process = self.ghosts.lock().unwrap().get(pid).map(|ghost| ghost.process)?;
                let status = TaskStatus::read(process).ok()?;
                (status.ns_group.last() == Some(&group)).then_some(Member {
                    pid,
                    node,
                    placement,
                    status,
                })
            })
            .collect()
    }

    fn hold_streams(&self, signal: i32, placements: &[Placement]) {
        let now = self.now();
        // Under the lock: nobody releases what is not held yet.
        let mut holds = self.holds.lock().unwrap();
        if holds.begin(now, signal, placements) {
            for placement in placements {
                self.carry.hold(self.key_of(*placement));
            }
            drop(holds);
            self.want_ticks();
        }
    }

    /// Something has happened to signals under way; lets go of the output that waited for it.
    pub(crate) fn release_streams(
        self: &Arc<Self>,
        happened: impl FnOnce(&mut Holds) -> Vec<Placement>,
    ) {
        let freed = {
            let mut holds = self.holds.lock().unwrap();
            if holds.is_empty() {
                return;
            }
            happened(&mut holds)
        };
        for placement in freed {
            self.carry.release(self.key_of(placement));
            let ended = self.holds.lock().unwrap().take_ended(placement);
            if let Some((from, status)) = ended {
                self.home_event(Event::Ended { from, placement, status });
            }
        }
    }

    fn users_of(&self, status: &TaskStatus) -> (u32, u32) {
        let inside = |id| self.baseline().map_or(id, |baseline| baseline.user(id));
        (inside(status.uids[0]), inside(status.uids[2]))
    }

    fn target(&self, pid: u32, process: u32) -> Option<Target> {
        let status = TaskStatus::read(process).ok()?;
        Some(Target { pid, users: self.users_of(&status) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_value_of_a_queued_signal_are_read() {
        let mut information = [0_u32; 32];
        information[2] = libc::SI_QUEUE.cast_unsigned();
        (information[6], information[7]) = (1, 2);
        let own = std::process::id();
        let queued = queued_by(own, information.as_ptr() as u64);
        assert_eq!(queued, Ok((libc::SI_QUEUE, 1 | 2 << 32)));
        assert_eq!(queued_by(own, 8), Err(libc::EFAULT));
    }

    #[test]
    fn stopping_and_counted_signals_are_not_for_all_at_once() {
        for signal in [0, libc::SIGSTOP, libc::SIGCONT, libc::SIGTSTP, libc::SIGTTIN, 32, 64] {
            assert!(!is_for_all_at_once(signal), "{signal}");
        }
        for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGINT, libc::SIGUSR1] {
            assert!(is_for_all_at_once(signal), "{signal}");
        }
    }
}
