//! Parents, process groups and sessions: a placed program and what it starts see those of home.
//!
//! On the node where it runs, a placed program leads a process group that has its own pid as number;
//! what it starts there inherits that group. So a group number that is the pid of a placed program
//! means "the group that this program is in at home", and the home node is asked.

use super::Personality;
use crate::messages::{Answer, Identity, Request, encode};
use dvs_sys::ghost::Order;
use dvs_sys::seccomp::Notification;
use dvs_sys::task::TaskStatus;
use std::sync::Arc;
use std::time::Duration;

/// How long another node may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Most generations looked through for the program that a process descends from.
const MAX_GENERATIONS: usize = 1024;

impl Personality {
    /// Answers the call if that needs no other node.
    pub(crate) fn identity_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        let native = match i64::from(call.number) {
            libc::SYS_getppid | libc::SYS_setsid | libc::SYS_setpgid => {
                self.body_of_thread(call.pid).is_none()
            }
            number => {
                let target = if number == libc::SYS_getpgrp { 0 } else { call.arguments[0] as u32 };
                self.bodies.lock().unwrap().is_empty() && (target == 0 || !self.is_foreign(target))
            }
        };
        if native {
            let _ = self.listener.proceed(call.id);
        }
        native
    }

    /// The same for `prctl`: a placed program's parent is its ghost's.
    pub(crate) fn prctl_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        let death_signal = call.arguments[0] as u32 == libc::PR_SET_PDEATHSIG as u32;
        if death_signal && self.body_of_thread(call.pid).is_some() {
            return false;
        }
        if !death_signal {
            self.pin(call.pid);
        }
        let _ = self.listener.proceed(call.id);
        true
    }

    /// Answers the call, asking other nodes where needed.
    pub(crate) fn identity(self: &Arc<Self>, call: &Notification) {
        let caller = self.body_of_thread(call.pid);
        let [first, second, ..] = call.arguments;
        let (first, second) = (first as u32, second as u32);
        let result = match (i64::from(call.number), caller) {
            (libc::SYS_getppid, Some(pid)) => self.parent_of_body(pid),
            (libc::SYS_setsid, Some(pid)) => {
                self.ask_home(pid, &Request::NewSession { pid }).map(|()| {
                    self.bodies.lock().unwrap().moved(pid, pid, Some(pid));
                    pid
                })
            }
            (libc::SYS_prctl, Some(pid)) => match u8::try_from(call.arguments[1]) {
                Ok(signal @ 0..=64) => {
                    self.ask_home(pid, &Request::DeathSignal { pid, signal }).map(|()| 0)
                }
                _ => Err(libc::EINVAL),
            },
            (libc::SYS_setpgid, Some(pid)) if first == 0 || first == pid => {
                let group = if second == pid { 0 } else { second };
                self.ask_home(pid, &Request::SetGroup { pid, group }).map(|()| {
                    let group = if group == 0 { pid } else { group };
                    self.bodies.lock().unwrap().moved(pid, group, None);
                    0
                })
            }
            (libc::SYS_getpgrp | libc::SYS_getpgid | libc::SYS_getsid, _) => {
                let number = i64::from(call.number);
                let own = number == libc::SYS_getpgrp || first == 0;
                let who = match (own, caller) {
                    (true, None) => self.native_identity(call.pid),
                    (true, Some(pid)) => self.identity_of(pid),
                    (false, _) => self.identity_of(first),
                };
                who.map(|who| if number == libc::SYS_getsid { who.session } else { who.group })
            }
            _ => {
                let _ = self.listener.proceed(call.id);
                return;
            }
        };
        let _ = match result {
            Ok(value) => self.listener.answer(call.id, i64::from(value)),
            Err(errno) => self.listener.fail(call.id, errno),
        };
    }

    /// The pid of the placed program that a thread belongs to.
    pub(crate) fn body_of_thread(&self, thread: u32) -> Option<u32> {
        {
            let bodies = self.bodies.lock().unwrap();
            if bodies.is_empty() {
                return None;
            }
            if let Some(body) = bodies.by_process(thread) {
                return Some(body.pid);
            }
        }
        let process = TaskStatus::read(thread).ok()?.process;
        self.bodies.lock().unwrap().by_process(process).map(|body| body.pid)
    }

    /// Whether a pid is leased to another node, and no placed program here has it.
    pub(crate) fn is_foreign(&self, pid: u32) -> bool {
        self.foreign_owner(pid).is_some() && self.bodies.lock().unwrap().by_pid(pid).is_none()
    }

    /// Where a process of the DC stands, as all of the DC sees it. The parent of a placed program is
    /// 0 here: its home knows it (see `parent_of_body`).
    pub(crate) fn identity_of(&self, pid: u32) -> Result<Identity, i32> {
        let body = self.bodies.lock().unwrap().by_pid(pid).cloned();
        if let Some(body) = body {
            let users = TaskStatus::read(body.process).map(|status| self.inner_users(&status));
            let users = users.map_err(|error| error.errno)?;
            return Ok(Identity { parent: 0, group: body.group, session: body.session, users });
        }
        match self.process_of(pid) {
            Ok(process) => self.native_identity(process),
            Err(_) => self.ask_identity(self.foreign_owner(pid).ok_or(libc::ESRCH)?, pid),
        }
    }

    /// The parent at home of a placed program.
    pub(crate) fn parent_of_body(&self, pid: u32) -> Result<u32, i32> {
        let (home, _) = self.body_home(pid).ok_or(libc::ESRCH)?;
        self.ask_identity(home, pid).map(|who| who.parent)
    }

    /// The same of a process or thread of this node that is not placed here, by its number outside.
    pub(crate) fn native_identity(&self, process: u32) -> Result<Identity, i32> {
        let status = TaskStatus::read(process).map_err(|error| error.errno)?;
        // The second number is the container's; a nested container has more.
        let at = |list: &[u32]| list.get(1).copied().unwrap_or(0);
        let parent = match status.parent {
            0 => 0,
            // A parent outside the container (the launcher) has no number here.
            parent => TaskStatus::read(parent).map_or(0, |parent| at(&parent.ns_process)),
        };
        let (group, session) = self.standing_of(&status);
        Ok(Identity { parent, group, session, users: self.inner_users(&status) })
    }

    /// Process group and session of a process of this node that is not placed here.
    pub(crate) fn standing_of(&self, status: &TaskStatus) -> (u32, u32) {
        let at = |list: &[u32]| list.get(1).copied().unwrap_or(0);
        let (mut group, mut session) = (at(&status.ns_group), at(&status.ns_session));
        let bodies = self.bodies.lock().unwrap();
        if let Some((at_home, _)) = bodies.standing(group) {
            group = at_home;
        }
        let above = if session == 0 || bodies.standing(session).is_some() {
            drop(bodies);
            self.body_above(status.process)
        } else {
            drop(bodies);
            None
        };
        if let Some((_, at_home)) =
            above.and_then(|body| self.bodies.lock().unwrap().standing(body))
        {
            session = at_home;
        }
        (group, session)
    }

    fn inner_users(&self, status: &TaskStatus) -> (u32, u32) {
        let inside = |id| self.baseline().map_or(id, |baseline| baseline.user(id));
        (inside(status.uids[0]), inside(status.uids[2]))
    }

    /// The placed program that a process descends from.
    fn body_above(&self, process: u32) -> Option<u32> {
        let mut process = process;
        for _ in 0..MAX_GENERATIONS {
            if let Some(body) = self.bodies.lock().unwrap().by_process(process) {
                return Some(body.pid);
            }
            process = TaskStatus::read(process).ok()?.parent;
            if process <= 1 {
                return None;
            }
        }
        None
    }

    fn ask_identity(&self, node: u16, pid: u32) -> Result<Identity, i32> {
        let bytes = encode(&Request::Identity { pid }).map_err(|_| libc::EINVAL)?;
        match self.ask(node, bytes, DEADLINE) {
            Ok(Answer::Identity(identity)) => identity,
            _ => Err(libc::ESRCH),
        }
    }

    fn ask_home(&self, pid: u32, request: &Request) -> Result<(), i32> {
        let (home, _) = self.body_home(pid).ok_or(libc::ESRCH)?;
        let bytes = encode(request).map_err(|_| libc::EINVAL)?;
        match self.ask(home, bytes, DEADLINE) {
            Ok(Answer::Done(0)) => Ok(()),
            Ok(Answer::Done(errno)) => Err(errno),
            _ => Err(libc::EPERM),
        }
    }

    /// Another node's program wants its ghost to change its group or session.
    pub(crate) fn order_group(&self, pid: u32, order: Order) -> i32 {
        match self.order(pid, order) {
            Ok(value) if value < 0 => i32::try_from(-value).unwrap_or(libc::EINVAL),
            Ok(_) => 0,
            Err(errno) => errno,
        }
    }
}
