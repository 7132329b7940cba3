//! Programs of other nodes that run here: held, released, signalled, their end reported.

use super::Personality;
use crate::core::Placement;
use crate::core::away::{Command, Event, Key};
use crate::core::usage::Usage;
use crate::messages::{Answer, Note, Prepare};
use crate::ports::{LaunchFailure, Launched};
use dvs_carry::{Local, LocalDescriptor};
use dvs_container::launch::{
    Bytes, DescriptorSource, DescriptorSpec, LaunchId, LaunchStep, SignalSender,
};
use dvs_sys::process::{kill, pidfd_open};
use dvs_sys::task::{TaskStatus, duplicate_descriptor};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Called with the answer to a request, once.
pub(crate) type Answered = Box<dyn FnOnce(Answer) + Send>;

/// A signal that a ghost has taken, see [`Note::Signal`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct TakenSignal {
    pub(crate) signal: i32,
    pub(crate) sender: SignalSender,
    pub(crate) terminal: bool,
    pub(crate) order: u32,
    pub(crate) confirm: bool,
}

/// One placed program.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub(crate) key: Key,
    id: LaunchId,
    pub(crate) pid: u32,
    pub(crate) process: u32,
    /// Process group and session at home.
    pub(crate) group: u32,
    pub(crate) session: u32,
    /// Signals (bit n-1 for signal n) that it got with its whole group here; that its ghost takes
    /// each of them follows.
    got_with_group: u64,
}

/// All placed programs of the node.
#[derive(Debug, Default)]
pub(crate) struct Bodies {
    by_key: HashMap<Key, Body>,
    by_id: HashMap<LaunchId, Key>,
    by_process: HashMap<u32, Key>,
    by_pid: HashMap<u32, Key>,
    /// Being launched.
    expected: HashMap<Key, LaunchId>,
    /// What those used that have ended, until their home knows.
    used: HashMap<Key, Usage>,
}

impl Bodies {
    /// Whether a process (its pid outside) is one.
    pub(crate) fn is_body(&self, process: u32) -> bool {
        self.by_process.contains_key(&process)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub(crate) fn by_process(&self, process: u32) -> Option<&Body> {
        self.by_key.get(self.by_process.get(&process)?)
    }

    /// The one with a pid of the DC.
    pub(crate) fn by_pid(&self, pid: u32) -> Option<&Body> {
        self.by_key.get(self.by_pid.get(&pid)?)
    }

    pub(crate) fn by_id(&self, id: LaunchId) -> Option<Key> {
        self.by_id.get(&id).copied()
    }

    /// The process group and session at home of the one with a pid of the DC.
    pub(crate) fn standing(&self, pid: u32) -> Option<(u32, u32)> {
        self.by_pid(pid).map(|body| (body.group, body.session))
    }

    /// The one with a pid of the DC is in another process group or session from now on.
    pub(crate) fn moved(&mut self, pid: u32, group: u32, session: Option<u32>) {
        let body = self.by_pid.get(&pid).and_then(|key| self.by_key.get_mut(key));
        if let Some(body) = body {
            body.group = group;
            body.session = session.unwrap_or(body.session);
        }
    }

    fn insert(&mut self, body: Body) {
        self.by_id.insert(body.id, body.key);
        self.by_process.insert(body.process, body.key);
        self.by_pid.insert(body.pid, body.key);
        self.by_key.insert(body.key, body);
    }

    fn remove(&mut self, key: Key) -> Option<Body> {
        let body = self.by_key.remove(&key)?;
        self.by_id.remove(&body.id);
        self.by_process.remove(&body.process);
        // A later body may have the same pid already.
        if self.by_pid.get(&body.pid) == Some(&key) {
            self.by_pid.remove(&body.pid);
        }
        Some(body)
    }
}

/// Whether execve fails so for the program's own sake, wherever it is called.
fn is_programs_own(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOENT
            | libc::EACCES
            | libc::EPERM
            | libc::ENOEXEC
            | libc::ENOTDIR
            | libc::EISDIR
            | libc::ELOOP
            | libc::ENAMETOOLONG
            | libc::E2BIG
            | libc::ELIBBAD
            | libc::EINVAL
    )
}

impl Personality {
    /// A home node asks for a program to be held; `answer` is called when it is, or cannot be. Waits
    /// for nothing.
    pub(crate) fn prepare(self: &Arc<Self>, from: u16, prepare: Prepare, answer: Answered) {
        let Prepare { placement, lowest_open, spec, group, session, descriptors } = prepare;
        let key = Key { home: from, placement };
        let commands = self.away.lock().unwrap().step(Event::Prepare { key, lowest_open });
        if !commands.contains(&Command::Launch(key)) {
            log::debug!("{key:?} is over, or as many as can be are being prepared");
            answer(Answer::NotPrepared);
            return;
        }
        let program = Personality::away_key(key);
        if spec.pid.is_none_or(|pid| pid < 2) || !spec.hold {
            answer(self.not_prepared(key, None));
            return;
        }
        let local = match self.carry.import(from, program, descriptors) {
            Ok(local) => local,
            Err(errno) => {
                log::debug!("the descriptors of {key:?} cannot be made here: errno {errno}");
                answer(self.not_prepared(key, None));
                return;
            }
        };
        let mut spec = spec;
        let (list, passed) = for_launcher(local);
        spec.descriptors = list;
        let plain = spec.credentials.capabilities.is_none()
            && spec.affinity.is_none()
            && spec.oom_score_adjust.is_none();
        let id = self.launcher.next_id();
        self.bodies.lock().unwrap().expected.insert(key, id);
        let personality = Arc::clone(self);
        let done = move |result| {
            let body = Body { key, id, pid: 0, process: 0, group, session, got_with_group: 0 };
            answer(personality.launched(body, plain, result));
        };
        self.launcher.launch_then(id, spec, passed, Box::new(done));
    }

    /// The launcher has made a program, or not.
    fn launched(
        self: &Arc<Self>,
        body: Body,
        plain: bool,
        result: Result<Launched, LaunchFailure>,
    ) -> Answer {
        let key = body.key;
        self.bodies.lock().unwrap().expected.remove(&key);
        let launched = match result {
            Ok(launched) => launched,
            Err(failure) => {
                let own = failure.step == LaunchStep::Exec && is_programs_own(failure.errno);
                log::debug!("{key:?} cannot be launched here: {failure}");
                return self.not_prepared(key, own.then_some(failure.errno));
            }
        };
        let handle = OnceCell::new();
        let ready = self.carry.body_ready(Personality::away_key(key), &|number| {
            let handle = handle.get_or_init(|| pidfd_open(launched.host_pid).ok());
            duplicate_descriptor(handle.as_ref()?, number).ok()
        });
        if !ready {
            log::debug!("the open files of {key:?} cannot be watched here");
            self.launcher.abort(body.id);
            return self.not_prepared(key, None);
        }
        if plain {
            self.learn_baseline(launched.host_pid);
        }
        let body = Body { pid: launched.pid, process: launched.host_pid, ..body };
        self.bodies.lock().unwrap().insert(body);
        self.want_ticks();
        let commands = self.away.lock().unwrap().step(Event::Launched(key));
        let prepared = commands.contains(&Command::Prepared(key));
        for command in commands {
            self.away_command(command);
        }
        if prepared { Answer::Prepared } else { Answer::NotPrepared }
    }

    fn not_prepared(self: &Arc<Self>, key: Key, errno: Option<i32>) -> Answer {
        self.carry.discard(Personality::away_key(key));
        self.away_event(Event::NotLaunched(key));
        errno.map_or(Answer::NotPrepared, Answer::Impossible)
    }

    /// The home node gives a program up; one that is still being launched is not waited for.
    pub(crate) fn abort_body(self: &Arc<Self>, key: Key) {
        self.away_event(Event::Abort(key));
        let launching = self.bodies.lock().unwrap().expected.get(&key).copied();
        if let Some(id) = launching {
            self.launcher.abort(id);
        }
    }

    pub(crate) fn away_event(self: &Arc<Self>, event: Event) {
        let commands = self.away.lock().unwrap().step(event);
        for command in commands {
            self.away_command(command);
        }
    }

    fn away_command(self: &Arc<Self>, command: Command) {
        let body = |key: &Key| self.bodies.lock().unwrap().by_key.get(key).cloned();
        match command {
            // These two are the business of `prepare`.
            Command::Launch(_) | Command::Prepared(_) => {}
            Command::Start(key) => {
                if let Some(body) = body(&key) {
                    self.counters.received();
                    self.launcher.release(body.id);
                }
            }
            Command::Discard(key) => {
                let removed = self.bodies.lock().unwrap().remove(key);
                if let Some(body) = removed {
                    self.launcher.abort(body.id);
                }
                self.carry.discard(Personality::away_key(key));
            }
            Command::Kill(key) => {
                if let Some(body) = body(&key) {
                    // The launcher has not reaped it yet, or it would have been removed: no other
                    // process has this number.
                    let _ = kill(body.process as i32, libc::SIGKILL);
                }
            }
            Command::Report(key, status) => {
                let usage = self.bodies.lock().unwrap().used.get(&key).copied();
                let (placement, usage) = (key.placement, usage.unwrap_or_default());
                self.post(key.home, &Note::Ended { placement, status, usage });
                self.want_ticks();
            }
            Command::Query(key) => self.post(key.home, &Note::Query(key.placement)),
            Command::Forget(key) => {
                let mut bodies = self.bodies.lock().unwrap();
                bodies.remove(key);
                bodies.used.remove(&key);
            }
        }
    }

    /// A launched program ended; true if it is a placed one.
    pub(crate) fn body_exited(self: &Arc<Self>, id: LaunchId, status: i32, usage: Usage) -> bool {
        let key = {
            let mut bodies = self.bodies.lock().unwrap();
            let Some(key) = bodies.by_id(id) else { return false };
            // Its pids may be used again from now on.
            let body = bodies.remove(key);
            // What its own children used on further nodes, this node's kernel does not know.
            let elsewhere = body.map(|body| self.used_elsewhere(body.process));
            bodies.used.insert(key, usage.and(elsewhere.unwrap_or_default()));
            key
        };
        self.carry.body_ended(Personality::away_key(key));
        self.away_event(Event::Exited(key, status));
        true
    }

    /// A launched program stopped, or goes on (no signal), by itself or by somebody here.
    pub(crate) fn body_stopped(&self, id: LaunchId, signal: Option<i32>, order: u32) {
        let Some(key) = self.bodies.lock().unwrap().by_id(id) else { return };
        let placement = key.placement;
        let note = match signal {
            Some(signal) => Note::Stopped { placement, signal, order },
            None => Note::Continued { placement, order },
        };
        self.post(key.home, &note);
    }

    /// A ghost took a signal: the program gets it.
    pub(crate) fn deliver(self: &Arc<Self>, key: Key, taken: TakenSignal) {
        let TakenSignal { signal, sender, terminal, order, confirm } = taken;
        let personality = Arc::clone(self);
        let done = move || {
            if confirm {
                let placement = key.placement;
                personality.post(key.home, &Note::Delivered { placement, signal });
            }
        };
        let body = {
            let mut bodies = self.bodies.lock().unwrap();
            bodies.by_key.get_mut(&key).map(|body| {
                let bit = 1_u64 << ((signal - 1) & 63);
                let got = !terminal && body.got_with_group & bit != 0;
                if got {
                    body.got_with_group &= !bit;
                }
                (body.pid, body.process, body.id, got)
            })
        };
        let Some((pid, process, id, got)) = body else { return done() };
        let target = pid as i32;
        match signal {
            libc::SIGKILL => {
                let _ = kill(process as i32, signal);
                done();
            }
            libc::SIGSTOP | libc::SIGCONT => {
                self.launcher.order(id, order, signal, sender);
                if terminal {
                    self.deliver_to_group(key, signal, sender, false);
                }
                done();
            }
            _ if got => {
                // What waited to be done, and what was asked of the launcher before, has been done when
                // it answers this. Without room nobody is told, and who waits does so for a bounded time.
                let launcher = Arc::clone(&self.launcher);
                let done = Box::new(move |_| done());
                let _ = self.deliveries.run(move || launcher.signal_then(target, 0, None, done));
            }
            _ if terminal => {
                // Its own group here: the program and what it started in that group.
                let personality = Arc::clone(self);
                let to_group = move |result: Result<(), i32>| match result {
                    Ok(()) => done(),
                    Err(_) => {
                        let done = Box::new(move |_| done());
                        personality.launcher.signal_then(target, signal, Some(sender), done);
                    }
                };
                self.launcher.signal_then(-target, signal, None, Box::new(to_group));
            }
            // A sender whose ghost is here has its number: so it is the ghost that sends.
            _ if self.has_ghost(&sender) => {
                let personality = Arc::clone(self);
                let job = move || {
                    if personality.send_by_ghost(target, signal, sender) != Some(0) {
                        let _ = personality.launcher.signal(target, signal, Some(sender));
                    }
                    done();
                };
                // No room: rather without the exact code than not at all.
                if self.deliveries.run(job).is_err() {
                    self.launcher.signal_then(target, signal, Some(sender), Box::new(|_| ()));
                }
            }
            // Always from inside, so that the sender shows: whether anybody will look cannot be seen from
            // outside (a thread in `sigwaitinfo` shows the signal as neither caught nor blocked).
            _ => {
                let done = Box::new(move |_| done());
                self.launcher.signal_then(target, signal, Some(sender), done);
            }
        }
    }

    /// A stop signal of terminals is pending at the ghost: stops the program if it does not catch,
    /// ignore or block it, else gives it the signal. True if it stops.
    pub(crate) fn stop_asked(
        &self,
        key: Key,
        signal: i32,
        sender: SignalSender,
        order: u32,
    ) -> bool {
        let Some(body) = self.bodies.lock().unwrap().by_key.get(&key).cloned() else {
            return false;
        };
        let Ok(status) = TaskStatus::read(body.process) else { return false };
        let bit = 1 << (signal - 1);
        let stop = (status.caught | status.ignored | status.blocked) & bit == 0;
        let signal = if stop { libc::SIGSTOP } else { signal };
        self.launcher.order(body.id, order, signal, sender);
        stop
    }

    /// A signal goes to the ghost's group at home: for the program's children here that are in it,
    /// and with `whole` for the program itself, all at once.
    pub(crate) fn deliver_to_group(
        self: &Arc<Self>,
        key: Key,
        signal: i32,
        sender: SignalSender,
        whole: bool,
    ) {
        let (body, sender_is_here) = {
            let mut bodies = self.bodies.lock().unwrap();
            let sender_is_here = bodies.by_pid(sender.pid).is_some();
            let Some(body) = bodies.by_key.get_mut(&key) else { return };
            if whole && signal != libc::SIGKILL {
                body.got_with_group |= 1 << (signal - 1);
            }
            (body.clone(), sender_is_here)
        };
        let group = -(body.pid as i32);
        if whole && sender.uid == 0 && signal != libc::SIGKILL && self.has_ghost(&sender) {
            let personality = Arc::clone(self);
            let job = move || {
                if personality.send_by_ghost(group, signal, sender) != Some(0) {
                    let _ = personality.launcher.signal(group, signal, Some(sender));
                }
            };
            if self.deliveries.run(job).is_ok() {
                return;
            }
        }
        // A sender that runs here has its own number, so nobody can send to a group in its name; to one
        // after the other a signal can be queued that names it.
        if whole && sender.uid == 0 && (!sender_is_here || signal == libc::SIGKILL) {
            let sender = (signal != libc::SIGKILL).then_some(sender);
            self.launcher.signal_then(group, signal, sender, Box::new(|_| ()));
            return;
        }
        for process in self.processes_of_group(body.pid) {
            let is_body = process.pid == body.pid;
            if (is_body && whole) || (!is_body && may_signal(sender.uid, process.users)) {
                let sender = (signal != libc::SIGKILL && signal != libc::SIGSTOP).then_some(sender);
                let target = process.pid as i32;
                self.launcher.signal_then(target, signal, sender, Box::new(|_| ()));
            }
        }
    }

    /// The home node's number of a placed program given by its pid in the DC.
    pub(crate) fn body_home(&self, pid: u32) -> Option<(u16, Placement)> {
        let bodies = self.bodies.lock().unwrap();
        bodies.by_pid(pid).map(|body| (body.key.home, body.key.placement))
    }
}

/// Whether a sender with this effective user id may signal a process with these (real, saved) ids.
pub(crate) fn may_signal(sender: u32, users: (u32, u32)) -> bool {
    sender == 0 || sender == users.0 || sender == users.1
}

/// Descriptors as the launcher takes them.
fn for_launcher(local: Vec<LocalDescriptor>) -> (Vec<DescriptorSpec>, Vec<OwnedFd>) {
    let mut passed = Vec::new();
    let list = local
        .into_iter()
        .map(|descriptor| {
            let source = match descriptor.what {
                Local::Fd(fd) => {
                    passed.push(fd);
                    DescriptorSource::Passed((passed.len() - 1) as u16)
                }
                Local::Open { path, flags, offset } => {
                    DescriptorSource::Open { path: Bytes::from(path), flags, offset }
                }
                Local::DuplicateOf(number) => DescriptorSource::DuplicateOf(number),
            };
            DescriptorSpec { number: descriptor.number, source }
        })
        .collect();
    (list, passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_counted_for_the_launcher() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let (list, passed) = for_launcher(vec![
            LocalDescriptor { number: 0, what: Local::Fd(file()) },
            LocalDescriptor { number: 1, what: Local::DuplicateOf(0) },
            LocalDescriptor { number: 7, what: Local::Fd(file()) },
        ]);
        assert_eq!(passed.len(), 2);
        assert_eq!(list[2].source, DescriptorSource::Passed(1));
        assert_eq!(list[1].source, DescriptorSource::DuplicateOf(0));
    }

    #[test]
    fn who_may_signal_whom() {
        assert!(may_signal(0, (5, 6)));
        assert!(may_signal(6, (5, 6)));
        assert!(!may_signal(7, (5, 6)));
    }
}
