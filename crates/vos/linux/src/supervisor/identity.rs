//! Parents, process groups and sessions: a placed program and what it starts see those of home.
//!
//! On the node where it runs, a placed program leads a process group that has its own pid as number;
//! what it starts there inherits that group. So a group number that is the pid of a placed program
//! means "the group that this program is in at home", and the home node is asked.

use super::Personality;
use crate::messages::{Answer, Identity, Request, encode};
use dvs_sys::ghost::Order;
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{self, TaskStatus};
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

    /// Answers the call, asking other nodes where needed.
    pub(crate) fn identity(self: &Arc<Self>, call: &Notification) {
        let caller = self.body_of_thread(call.pid);
        let [first, second, ..] = call.arguments;
        let (first, second) = (first as u32, second as u32);
        let result = match (i64::from(call.number), caller) {
            (libc::SYS_getppid, Some(pid)) => self.identity_of(pid).map(|who| who.parent),
            (libc::SYS_setsid, Some(pid)) => {
                self.ask_home(pid, &Request::NewSession { pid }).map(|()| pid)
            }
            (libc::SYS_setpgid, Some(pid)) if first == 0 || first == pid => {
                let group = if second == pid { 0 } else { second };
                self.ask_home(pid, &Request::SetGroup { pid, group }).map(|()| 0)
            }
            (libc::SYS_getpgrp | libc::SYS_getpgid | libc::SYS_getsid, _) => {
                let number = i64::from(call.number);
                let target = if number == libc::SYS_getpgrp || first == 0 {
                    TaskStatus::read(call.pid)
                        .map(|status| status.inner_process())
                        .map_err(|error| error.errno)
                } else {
                    Ok(first)
                };
                target
                    .and_then(|pid| self.identity_of(pid))
                    .map(|who| if number == libc::SYS_getsid { who.session } else { who.group })
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

    /// Where a process of the DC stands, as all of the DC sees it.
    pub(crate) fn identity_of(&self, pid: u32) -> Result<Identity, i32> {
        if let Some((home, _)) = self.body_home(pid) {
            return self.ask_identity(home, pid);
        }
        let Ok(process) = task::process_from(&self.namespace, pid) else {
            let owner = self.foreign_owner(pid).ok_or(libc::ESRCH)?;
            return self.ask_identity(owner, pid);
        };
        self.native_identity(process)
    }

    fn native_identity(&self, process: u32) -> Result<Identity, i32> {
        let status = TaskStatus::read(process).map_err(|error| error.errno)?;
        let level = status.ns_process.len().min(2).saturating_sub(1);
        let at = |list: &[u32]| list.get(level).copied().unwrap_or(0);
        let parent = match status.parent {
            0 => 0,
            parent => TaskStatus::read(parent).map_or(0, |parent| {
                // A parent outside the container (the launcher) has no number here.
                if parent.ns_process.len() > level { parent.ns_process[level] } else { 0 }
            }),
        };
        let parent = if level == 0 { 0 } else { parent };
        let mut identity = Identity {
            parent,
            group: at(&status.ns_group),
            session: at(&status.ns_session),
            users: self.inner_users(&status),
        };
        if self.body_home(identity.group).is_some() {
            identity.group = self.identity_of(identity.group)?.group;
        }
        if (identity.session == 0 || self.body_home(identity.session).is_some())
            && let Some(body) = self.body_above(process)
        {
            identity.session = self.identity_of(body)?.session;
        }
        Ok(identity)
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
