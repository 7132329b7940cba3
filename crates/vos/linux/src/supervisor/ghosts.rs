//! The ghosts of this node: what they report, and how they are told to end.

use super::Personality;
use crate::core::home::{Command, Event};
use crate::core::usage::Ancestor;
use crate::core::{KILLED, Placement};
use crate::messages::Note;
use dvs_container::launch::SignalSender;
use dvs_sys::ghost::{DOORBELL, Order, Report};
use dvs_sys::process::{WaitState, pidfd_send_signal};
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{self, TaskStat};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// How long a ghost may take to carry out an order before the one who asked is told that it did not.
const ORDER_DEADLINE: Duration = Duration::from_secs(5);
/// Most orders that wait for one ghost.
const MAX_ORDERS: usize = 16;
/// `si_code` of a signal that the kernel itself sends, a terminal's for one.
const SI_KERNEL: i32 = 0x80;
/// Signals that a terminal (or the end of its session) sends to a whole process group.
const TERMINAL_SIGNALS: [i32; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
    libc::SIGWINCH,
];

/// Those of them that end a program by default.
const ENDING_SIGNALS: [i32; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT];

/// One ghost, or a caller that becomes one.
#[derive(Debug)]
pub(crate) struct Ghost {
    pub(crate) placement: Placement,
    pub(crate) node: u16,
    /// Pid outside.
    pub(crate) process: u32,
    handle: Arc<OwnedFd>,
    name: [u8; 16],
    descriptors_end: u32,
    /// It has said hello: the placement is committed.
    committed: bool,
    /// Its report that waits for an answer from the other node.
    waiting: Option<u64>,
    orders: Vec<(Order, Option<SyncSender<i64>>)>,
    /// Its parent and those above, once they have been looked at, until its program's end is known.
    pub(crate) ancestors: Option<Vec<Ancestor>>,
    /// Number of the last order to stop or go on that was sent after its program.
    moved: u32,
    /// The one whose order it carries out now.
    ordered: Option<SyncSender<i64>>,
    finish: Option<Order>,
}

impl Ghost {
    /// Whether it stands for a program that runs elsewhere already.
    pub(crate) fn is_committed(&self) -> bool {
        self.committed
    }

    /// The number of the next order to stop or go on for its program.
    fn next_order(&mut self) -> u32 {
        self.moved = self.moved.wrapping_add(1);
        self.moved
    }
}

/// All ghosts, by their pid in the DC.
#[derive(Debug, Default)]
pub(crate) struct Ghosts {
    by_pid: HashMap<u32, Ghost>,
    by_process: HashMap<u32, u32>,
    pids: HashMap<Placement, u32>,
}

impl Ghosts {
    pub(crate) fn get(&self, pid: u32) -> Option<&Ghost> {
        self.by_pid.get(&pid)
    }

    /// The pid in the DC of a ghost given by its pid outside.
    pub(crate) fn pid_of(&self, process: u32) -> Option<u32> {
        self.by_process.get(&process).copied()
    }

    /// The pid of the ghost of a placement.
    pub(crate) fn pid(&self, placement: Placement) -> Option<u32> {
        self.pids.get(&placement).copied()
    }

    pub(crate) fn remove(&mut self, pid: u32, placement: Placement) -> Option<Ghost> {
        if self.by_pid.get(&pid)?.placement != placement {
            return None;
        }
        let ghost = self.by_pid.remove(&pid)?;
        self.by_process.remove(&ghost.process);
        self.pids.remove(&placement);
        Some(ghost)
    }

    pub(crate) fn by_placement(&mut self, placement: Placement, pid: u32) -> Option<&mut Ghost> {
        self.by_pid.get_mut(&pid).filter(|ghost| ghost.placement == placement)
    }
}

/// What is needed of a caller to make it a ghost.
#[derive(Debug)]
pub(crate) struct GhostToBe {
    pub(crate) placement: Placement,
    pub(crate) node: u16,
    pub(crate) pid: u32,
    pub(crate) process: u32,
    pub(crate) handle: OwnedFd,
    pub(crate) path: Vec<u8>,
    pub(crate) descriptors_end: u32,
}

/// The name that an exec of this path gives a process.
fn name_of(path: &[u8]) -> [u8; 16] {
    let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let mut name = [0; 16];
    for (to, from) in name[..15].iter_mut().zip(base) {
        *to = *from;
    }
    name
}

impl Personality {
    pub(crate) fn watch_ghost(&self, future: GhostToBe) -> Result<(), dvs_sys::error::SysError> {
        let handle = Arc::new(future.handle);
        let once = (libc::EPOLLIN | libc::EPOLLONESHOT) as u32;
        self.watcher.add(handle.as_fd(), once, future.placement.0)?;
        let mut ghosts = self.ghosts.lock().unwrap();
        ghosts.by_process.insert(future.process, future.pid);
        let ghost = Ghost {
            placement: future.placement,
            node: future.node,
            process: future.process,
            handle,
            name: name_of(&future.path),
            descriptors_end: future.descriptors_end,
            committed: false,
            waiting: None,
            orders: Vec::new(),
            ancestors: None,
            moved: 0,
            ordered: None,
            finish: None,
        };
        ghosts.pids.insert(future.placement, future.pid);
        if let Some(old) = ghosts.by_pid.insert(future.pid, ghost) {
            // Its end was not seen yet, and its pid has a new owner.
            ghosts.pids.remove(&old.placement);
            let _ = self.watcher.remove(old.handle.as_fd());
        }
        Ok(())
    }

    /// Forgets a ghost or a caller that did not become one; the node of one that was committed.
    pub(crate) fn unwatch_ghost(&self, pid: u32, placement: Placement) -> Option<u16> {
        let ghost = self.ghosts.lock().unwrap().remove(pid, placement)?;
        let _ = self.watcher.remove(ghost.handle.as_fd());
        ghost.committed.then_some(ghost.node)
    }

    /// A process that was watched has ended.
    pub(crate) fn process_gone(self: &Arc<Self>, placement: Placement) {
        self.release_streams(|holds| holds.over(placement));
        let pid = self.home.lock().unwrap().pid(placement);
        let Some(pid) = pid else { return };
        self.home_event(Event::CallerGone { pid });
    }

    /// A trapped call with the ghosts' number.
    pub(crate) fn report(self: &Arc<Self>, call: &Notification) {
        let pid = self.ghosts.lock().unwrap().pid_of(call.pid);
        let (Some(pid), Some(report)) = (pid, Report::decode(call.arguments)) else {
            let _ = self.listener.fail(call.id, libc::ENOSYS);
            return;
        };
        match report {
            Report::Hello { name } => self.hello(call, pid, name),
            Report::Taken { signal, code, pid: sender, uid, value } => {
                let sender = SignalSender { pid: sender, uid, code, value };
                self.signal_taken(call, pid, signal, sender);
            }
            Report::StopPending { signal } => self.stop_pending(call, pid, signal),
            Report::BackFromStop { continued } => {
                if !continued {
                    let sender = SignalSender { pid: 0, uid: 0, code: 0, value: 0 };
                    self.forward(pid, libc::SIGCONT, sender, false);
                }
                self.answer_ghost(call.id, pid);
            }
            Report::Result(value) => {
                if let Some(ghost) = self.ghosts.lock().unwrap().by_pid.get_mut(&pid)
                    && let Some(asked) = ghost.ordered.take()
                {
                    let _ = asked.try_send(value);
                }
                self.answer_ghost(call.id, pid);
            }
        }
    }

    fn hello(self: &Arc<Self>, call: &Notification, pid: u32, name: u64) {
        let commands = self.home.lock().unwrap().step(Event::Hello { pid });
        if commands.is_empty() {
            let _ = self.listener.fail(call.id, libc::ENOSYS);
            return;
        }
        let mut settled = None;
        for command in commands {
            match command {
                Command::Settle { .. } => {
                    let mut ghosts = self.ghosts.lock().unwrap();
                    if let Some(ghost) = ghosts.by_pid.get_mut(&pid) {
                        ghost.committed = true;
                        settled = Some((ghost.name, ghost.descriptors_end, ghost.node));
                    }
                }
                other => self.home_command(other),
            }
        }
        match settled {
            Some((text, end, node)) => {
                // Only its name in `ps` depends on it.
                let _ = task::write_memory(call.pid, name, &text);
                let _ = self.listener.answer(call.id, Order::Begin(end).encode());
                self.counters.placed(node);
            }
            None => self.answer_ghost(call.id, pid),
        }
    }

    fn signal_taken(
        self: &Arc<Self>,
        call: &Notification,
        pid: u32,
        signal: i32,
        sender: SignalSender,
    ) {
        // From outside the container: our own doorbell, or a SIGCONT with which we mirror the body. A
        // guest cannot send one that looks so.
        let placement = self.home.lock().unwrap().ghost(pid).map(|(_, placement)| placement);
        if let (libc::SIGWINCH, Some(placement)) = (signal, placement) {
            self.carry.window_changed(self.key_of(placement));
        }
        let ours = sender.code == libc::SI_USER && sender.pid == 0;
        if !(ours && (signal == DOORBELL || signal == libc::SIGCONT)) {
            let terminal = sender.code == SI_KERNEL && TERMINAL_SIGNALS.contains(&signal);
            if terminal && ENDING_SIGNALS.contains(&signal) {
                self.hold_rest_of_group(call.pid, pid, signal);
            }
            self.forward(pid, signal, sender, terminal);
        }
        self.answer_ghost(call.id, pid);
    }

    /// Sends a signal after the placed program.
    pub(crate) fn forward(&self, pid: u32, signal: i32, sender: SignalSender, terminal: bool) {
        let target = self.home.lock().unwrap().ghost(pid);
        if let Some((node, placement)) = target {
            let confirm = self.holds.lock().unwrap().expects(placement, signal);
            let note = |order| Note::Signal { placement, signal, sender, terminal, order, confirm };
            if matches!(signal, libc::SIGSTOP | libc::SIGCONT) {
                // Posted under the lock, so that orders arrive in the order of their numbers.
                let mut ghosts = self.ghosts.lock().unwrap();
                let Some(ghost) = ghosts.by_placement(placement, pid) else { return };
                self.post(node, &note(ghost.next_order()));
            } else {
                self.post(node, &note(0));
            }
        }
    }

    fn stop_pending(&self, call: &Notification, pid: u32, signal: i32) {
        let target = self.home.lock().unwrap().ghost(pid);
        let Some((node, placement)) = target else {
            self.answer_ghost(call.id, pid);
            return;
        };
        let mut ghosts = self.ghosts.lock().unwrap();
        if let Some(ghost) = ghosts.by_pid.get_mut(&pid)
            && ghost.finish.is_none()
        {
            ghost.waiting = Some(call.id);
            let sender = SignalSender { pid: 0, uid: 0, code: 0, value: 0 };
            let order = ghost.next_order();
            self.post(node, &Note::StopAsked { placement, signal, sender, order });
        } else {
            drop(ghosts);
            self.answer_ghost(call.id, pid);
        }
    }

    /// The other node says whether the program stops.
    pub(crate) fn stop_answer(&self, placement: Placement, stop: bool) {
        let pid = self.home.lock().unwrap().pid(placement);
        let Some(pid) = pid else { return };
        let waiting = {
            let mut ghosts = self.ghosts.lock().unwrap();
            ghosts.by_placement(placement, pid).and_then(|ghost| ghost.waiting.take())
        };
        if let Some(id) = waiting {
            let order = if stop { Order::Stop } else { Order::Wait };
            let _ = self.listener.answer(id, order.encode());
        }
    }

    /// Answers a report with what the ghost is to do next.
    fn answer_ghost(&self, id: u64, pid: u32) {
        let order = {
            let mut ghosts = self.ghosts.lock().unwrap();
            match ghosts.by_pid.get_mut(&pid) {
                Some(ghost) => match ghost.finish {
                    Some(order) => order,
                    None if ghost.ordered.is_none() && !ghost.orders.is_empty() => {
                        let (order, asked) = ghost.orders.remove(0);
                        ghost.ordered = asked;
                        order
                    }
                    None => Order::Wait,
                },
                None => Order::Wait,
            }
        };
        let _ = self.listener.answer(id, order.encode());
    }

    /// Has a ghost carry out an order and returns what its call returned.
    pub(crate) fn order(&self, pid: u32, order: Order) -> Result<i64, i32> {
        let (handle, result): (_, Receiver<i64>) = {
            let mut ghosts = self.ghosts.lock().unwrap();
            let ghost = ghosts.by_pid.get_mut(&pid).ok_or(libc::ESRCH)?;
            if !ghost.committed || ghost.finish.is_some() {
                return Err(libc::ESRCH);
            }
            if ghost.orders.len() >= MAX_ORDERS {
                return Err(libc::EAGAIN);
            }
            let (sender, receiver) = sync_channel(1);
            ghost.orders.push((order, Some(sender)));
            (Arc::clone(&ghost.handle), receiver)
        };
        pidfd_send_signal(handle.as_fd(), DOORBELL).map_err(|error| error.errno)?;
        result.recv_timeout(ORDER_DEADLINE).map_err(|_| libc::ESRCH)
    }

    /// The placed program ended: its ghost ends the same way.
    pub(crate) fn finish_ghost(&self, pid: u32, status: i32) {
        let order = match WaitState::of(status) {
            WaitState::Exited(code) => Some(Order::Exit(code as u8)),
            WaitState::Killed(signal, _) if status & 0x7f != KILLED => {
                Some(Order::Die(signal as u8))
            }
            _ => None,
        };
        let (handle, process, waiting) = {
            let mut ghosts = self.ghosts.lock().unwrap();
            let Some(ghost) = ghosts.by_pid.get_mut(&pid) else { return };
            ghost.finish = order;
            (Arc::clone(&ghost.handle), ghost.process, ghost.waiting.take())
        };
        let Some(order) = order else {
            let _ = pidfd_send_signal(handle.as_fd(), libc::SIGKILL);
            return;
        };
        if let Some(id) = waiting {
            let _ = self.listener.answer(id, order.encode());
            return;
        }
        let _ = pidfd_send_signal(handle.as_fd(), DOORBELL);
        if TaskStat::read(process).is_ok_and(|stat| stat.state == b'T') {
            let _ = pidfd_send_signal(handle.as_fd(), libc::SIGCONT);
        }
    }

    /// The placed program stopped (by `signal`) or goes on by itself: its ghost does so, too, for its
    /// parent's wait. Not if an order to stop or go on is on its way that the program had not seen: it
    /// undoes this, or has it done already.
    pub(crate) fn mirror(&self, placement: Placement, signal: i32, order: u32) {
        let pid = self.home.lock().unwrap().pid(placement);
        let Some(pid) = pid else { return };
        let (handle, signal) = {
            let mut ghosts = self.ghosts.lock().unwrap();
            let Some(ghost) = ghosts.by_placement(placement, pid) else { return };
            if ghost.finish.is_some() || ghost.moved != order {
                return;
            }
            let signal = match signal {
                libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
                    if ghost.orders.len() < MAX_ORDERS =>
                {
                    ghost.orders.push((Order::StopBy(signal as u8), None));
                    DOORBELL
                }
                libc::SIGCONT => libc::SIGCONT,
                _ => libc::SIGSTOP,
            };
            (Arc::clone(&ghost.handle), signal)
        };
        let _ = pidfd_send_signal(handle.as_fd(), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_file() {
        assert_eq!(&name_of(b"/usr/bin/true")[..5], b"true\0");
        assert_eq!(&name_of(b"a-name-longer-than-fifteen")[..], b"a-name-longer-t\0");
        assert_eq!(name_of(b"")[0], 0);
    }
}
