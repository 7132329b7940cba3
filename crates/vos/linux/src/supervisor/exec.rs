//! Placement of one program, from its trapped execve to its ghost, on one thread.

use super::Personality;
use super::convert::{Caller, Conversion};
use super::ghosts::GhostToBe;
use crate::core::Placement;
use crate::core::home::{Call, Command, Event};
use crate::image::{self, ExecArguments, Image};
use crate::messages::{Answer, Prepare, Request, decode, encode};
use crate::ports::PeerError;
use crate::reason::Reason;
use dvs_carry::Carried;
use dvs_container::launch::SessionSpec;
use dvs_pm::placement::Policy;
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{TaskStat, TaskStatus};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long another node may take to hold a program ready; then it runs at home.
const PREPARE_DEADLINE: Duration = Duration::from_secs(20);
/// Every so many execs the pid block is looked at.
const PIDS_EVERY: u32 = 32;

/// Where a program goes, under which number, and its process group and session.
struct Chosen {
    node: u16,
    placement: Placement,
    lowest_open: Placement,
    group: u32,
    session: u32,
}

/// Whether a thread is being killed or gone.
fn is_dying(thread: u32) -> bool {
    let killed = |status: TaskStatus| status.pending & 1 << (libc::SIGKILL - 1) != 0;
    TaskStat::read(thread).map_or(true, |stat| stat.exiting)
        || TaskStatus::read(thread).map_or(true, killed)
}

impl Personality {
    /// Decides what can be decided without reading anything of the caller.
    pub(crate) fn exec_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        if self.execs.fetch_add(1, Ordering::Relaxed).is_multiple_of(PIDS_EVERY) {
            self.check_pids(call.pid);
        }
        if self.bodies.lock().unwrap().is_body(call.pid) {
            self.counters.stayed(call.pid, Reason::Placed);
            let _ = self.listener.proceed(call.id);
            return true;
        }
        let now = self.now();
        let together = self.sharing.lock().unwrap().together();
        let node = if let Some(node) = together
            && self.config.policy != Policy::Home
        {
            if node == self.config.node {
                self.counters.stayed(call.pid, Reason::Sharing);
                let _ = self.listener.proceed(call.id);
                return true;
            }
            self.placement.lock().unwrap().count(node, now);
            node
        } else {
            let mut placement = self.placement.lock().unwrap();
            if placement.nodes().nth(1).is_none() {
                self.config.node
            } else {
                placement.choose(now)
            }
        };
        if node == self.config.node {
            self.counters.stayed(call.pid, Reason::Policy);
            let _ = self.listener.proceed(call.id);
            return true;
        }
        self.reception.choose(call.id, node);
        false
    }

    /// Carries a placement through.
    pub(crate) fn exec(self: &Arc<Self>, call: &Notification) {
        let node = self.reception.chosen(call.id).unwrap_or(self.config.node);
        let (image, (group, session)) = match self.read_image(call) {
            Ok(read) => read,
            Err(reason) => {
                let mut placement = self.placement.lock().unwrap();
                placement.uncount(node);
                placement.count(self.config.node, self.now());
                drop(placement);
                // A caller that was killed meanwhile has not stayed for any reason.
                let dying = is_dying(call.pid);
                if self.listener.proceed(call.id).is_ok() && !dying {
                    self.counters.stayed(call.pid, reason);
                }
                return;
            }
        };
        let event = Event::Exec { pid: image.pid, thread: call.pid, call: Call(call.id), node };
        let commands = self.home.lock().unwrap().step(event);
        let mut prepare = None;
        for command in commands {
            match command {
                Command::Prepare { placement, lowest_open, .. } => {
                    prepare = Some((placement, lowest_open));
                }
                other => self.home_command(other),
            }
        }
        // None: another thread of the caller was first, and this one waits for its fate.
        if let Some((placement, lowest_open)) = prepare {
            let chosen = Chosen { node, placement, lowest_open, group, session };
            self.place(call, image, chosen);
        }
    }

    /// The image, and the caller's process group and session.
    fn read_image(&self, call: &Notification) -> Result<(Image, (u32, u32)), Reason> {
        let baseline = self.baseline().ok_or(Reason::Failed)?;
        let status = TaskStatus::read(call.pid).map_err(|_| Reason::Failed)?;
        if self.bodies.lock().unwrap().is_body(status.process) {
            return Err(Reason::Placed);
        }
        if self.is_pinned(status.process) {
            return Err(Reason::Pinned);
        }
        let image = image::read(call, &status, baseline, &*self.files)?;
        Ok((image, self.standing_of(&status)))
    }

    fn place(
        self: &Arc<Self>,
        call: &Notification,
        image: Image,
        Chosen { node, placement, lowest_open, group, session }: Chosen,
    ) {
        let stays = |reason: Reason, event: Event| {
            self.counters.stayed(call.pid, reason);
            self.placement.lock().unwrap().uncount(node);
            self.home_event(event);
        };
        let Some(exec) = ExecArguments::of(call) else { return };
        let caller =
            Caller { thread: call.pid, call: call.id, exec, empty_string: image.empty_string };
        let mut spec = image.spec;
        let exported = self.carry.export(node, self.key_of(placement), image.descriptors);
        let descriptors = match exported {
            Ok(descriptors) => descriptors,
            Err(refusal) => {
                stays(Reason::from(&refusal), Event::Withdrawn(placement));
                return;
            }
        };
        let terminal = descriptors
            .iter()
            .find(|descriptor| matches!(descriptor.what, Carried::Terminal { .. }))
            .map(|descriptor| descriptor.number);
        if terminal.is_some() && TaskStat::read(image.process).is_ok_and(|stat| stat.terminal != 0)
        {
            spec.session = SessionSpec::New { terminal };
        }
        let future = GhostToBe {
            placement,
            node,
            pid: image.pid,
            process: image.process,
            handle: image.handle,
            path: spec.path.0.clone(),
            descriptors_end: image.descriptors_end,
        };
        let prepare = Prepare { placement, lowest_open, spec, group, session, descriptors };
        let Ok(bytes) = encode(&Request::Prepare(Box::new(prepare))) else {
            stays(Reason::TooLarge, Event::Withdrawn(placement));
            return;
        };
        match self.ask(node, bytes, PREPARE_DEADLINE) {
            Ok(Answer::Prepared) => self.make_ghost(&caller, placement, future),
            Ok(Answer::Impossible(errno)) => {
                stays(Reason::NotFound, Event::Impossible(placement, errno));
            }
            Ok(_) | Err(PeerError::TimedOut(_)) => {
                stays(Reason::Refused, Event::NotPrepared(placement));
            }
            Err(PeerError::Gone(_)) => {
                self.placement.lock().unwrap().remove(node);
                stays(Reason::NodeLost, Event::NotPrepared(placement));
            }
        }
    }

    fn make_ghost(self: &Arc<Self>, caller: &Caller, placement: Placement, future: GhostToBe) {
        let commands = self.home.lock().unwrap().step(Event::Prepared(placement));
        if !commands.contains(&Command::Convert(placement)) {
            for command in commands {
                self.home_command(command);
            }
            return;
        }
        let (pid, process) = (future.pid, future.process);
        if self.watch_ghost(future).is_err() {
            self.counters.stayed(caller.thread, Reason::Failed);
            self.home_event(Event::NotConverted(placement));
            return;
        }
        match self.convert(caller) {
            // By now the program may run already.
            Conversion::Ghost => self.note_ancestors(pid, placement, process),
            Conversion::Own => {
                if !is_dying(caller.thread) {
                    self.counters.stayed(caller.thread, Reason::Failed);
                }
                self.home_event(Event::NotConverted(placement));
            }
            // Its thread may have been killed by another one's exec, with the process alive.
            Conversion::Gone => self.home_event(Event::NotConverted(placement)),
        }
    }

    /// A question to another node.
    pub(crate) fn ask(
        &self,
        node: u16,
        bytes: Vec<u8>,
        deadline: Duration,
    ) -> Result<Answer, PeerError> {
        let answer = self.peers.call(node, bytes, deadline)?;
        decode(&answer).map_err(|_| PeerError::TimedOut(node))
    }

    /// Nothing of a placement is needed any more.
    pub(crate) fn forget_placement(self: &Arc<Self>, placement: Placement) {
        let pid = self.ghosts.lock().unwrap().pid(placement);
        let node = pid.and_then(|pid| self.unwatch_ghost(pid, placement));
        let key = self.key_of(placement);
        self.release_streams(|holds| holds.over(placement));
        match node {
            Some(node) => {
                self.carry.finished(key);
                self.placement.lock().unwrap().uncount(node);
            }
            None => self.carry.withdraw(key),
        }
    }
}
