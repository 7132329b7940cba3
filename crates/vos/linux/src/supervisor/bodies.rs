//! Programs of other nodes that run here: held, released, signalled, their end reported.

use super::Personality;
use crate::core::Placement;
use crate::core::away::{Command, Event, Key};
use crate::messages::{Answer, Note, Prepare};
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
    /// It is stopped.
    stopped: bool,
    /// The next stop (or continuation) is one that its home node made and knows of.
    expects_stop: bool,
    expects_continue: bool,
}

/// All placed programs of the node.
#[derive(Debug, Default)]
pub(crate) struct Bodies {
    by_key: HashMap<Key, Body>,
    by_id: HashMap<LaunchId, Key>,
    by_process: HashMap<u32, Key>,
    by_pid: HashMap<u32, Key>,
    /// Being launched, and how they ended if they did so before the launch returned.
    expected: HashMap<LaunchId, (Key, Option<i32>)>,
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
    /// A home node asks for a program to be held; waits until it is.
    pub(crate) fn prepare(self: &Arc<Self>, from: u16, prepare: Prepare) -> Answer {
        let Prepare { placement, lowest_open, spec, group, session, descriptors } = prepare;
        let key = Key { home: from, placement };
        let commands = self.away.lock().unwrap().step(Event::Prepare { key, lowest_open });
        if !commands.contains(&Command::Launch(key)) {
            log::debug!("{key:?} is over, or as many as can be are being prepared");
            return Answer::NotPrepared;
        }
        let program = Personality::away_key(key);
        let failed = |errno: Option<i32>| {
            self.carry.discard(program);
            self.away_event(Event::NotLaunched(key));
            errno.map_or(Answer::NotPrepared, Answer::Impossible)
        };
        if spec.pid.is_none_or(|pid| pid < 2) || !spec.hold {
            return failed(None);
        }
        let local = match self.carry.import(from, program, descriptors) {
            Ok(local) => local,
            Err(errno) => {
                log::debug!("the descriptors of {key:?} cannot be made here: errno {errno}");
                return failed(None);
            }
        };
        let mut spec = spec;
        let (list, passed) = for_launcher(local);
        spec.descriptors = list;
        let plain = spec.credentials.capabilities.is_none()
            && spec.affinity.is_none()
            && spec.oom_score_adjust.is_none();
        let id = self.launcher.next_id();
        self.bodies.lock().unwrap().expected.insert(id, (key, None));
        let launched = match self.launcher.launch(id, spec, passed) {
            Ok(launched) => launched,
            Err(failure) => {
                self.bodies.lock().unwrap().expected.remove(&id);
                let own = failure.step == LaunchStep::Exec && is_programs_own(failure.errno);
                log::debug!("{key:?} cannot be launched here: {failure}");
                return failed(own.then_some(failure.errno));
            }
        };
        let handle = OnceCell::new();
        let ready = self.carry.body_ready(program, &|number| {
            let handle = handle.get_or_init(|| pidfd_open(launched.host_pid).ok());
            duplicate_descriptor(handle.as_ref()?, number).ok()
        });
        if !ready {
            log::debug!("the open files of {key:?} cannot be watched here");
            self.launcher.abort(id);
            self.bodies.lock().unwrap().expected.remove(&id);
            return failed(None);
        }
        if plain {
            self.learn_baseline(launched.host_pid);
        }
        let body = Body {
            key,
            id,
            pid: launched.pid,
            process: launched.host_pid,
            group,
            session,
            stopped: false,
            expects_stop: false,
            expects_continue: false,
        };
        let ended = {
            let mut bodies = self.bodies.lock().unwrap();
            bodies.insert(body);
            bodies.expected.remove(&id).and_then(|(_, status)| status)
        };
        self.want_ticks();
        let commands = self.away.lock().unwrap().step(Event::Launched(key));
        let prepared = commands.contains(&Command::Prepared(key));
        for command in commands {
            self.away_command(command);
        }
        if let Some(status) = ended {
            self.body_exited(id, status);
        }
        if prepared { Answer::Prepared } else { Answer::NotPrepared }
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
                self.post(key.home, &Note::Ended { placement: key.placement, status });
                self.want_ticks();
            }
            Command::Query(key) => self.post(key.home, &Note::Query(key.placement)),
            Command::Forget(key) => {
                self.bodies.lock().unwrap().remove(key);
            }
        }
    }

    /// A launched program ended; true if it is a placed one.
    pub(crate) fn body_exited(self: &Arc<Self>, id: LaunchId, status: i32) -> bool {
        let key = {
            let mut bodies = self.bodies.lock().unwrap();
            if let Some((_, ended)) = bodies.expected.get_mut(&id) {
                *ended = Some(status);
                return true;
            }
            let Some(key) = bodies.by_id(id) else { return false };
            // Its pids may be used again from now on.
            bodies.remove(key);
            key
        };
        self.carry.body_ended(Personality::away_key(key));
        self.away_event(Event::Exited(key, status));
        true
    }

    /// A launched program stopped by itself or by a signal; true if it is a placed one.
    pub(crate) fn body_stopped(&self, id: LaunchId, signal: i32) -> bool {
        let mut bodies = self.bodies.lock().unwrap();
        let Some(key) = bodies.by_id(id) else { return false };
        let Some(body) = bodies.by_key.get_mut(&key) else { return true };
        body.stopped = true;
        let expected = std::mem::take(&mut body.expects_stop);
        drop(bodies);
        if !expected {
            self.post(key.home, &Note::Stopped { placement: key.placement, signal });
        }
        true
    }

    /// A launched program goes on; true if it is a placed one.
    pub(crate) fn body_continued(&self, id: LaunchId) -> bool {
        let mut bodies = self.bodies.lock().unwrap();
        let Some(key) = bodies.by_id(id) else { return false };
        let Some(body) = bodies.by_key.get_mut(&key) else { return true };
        let was = std::mem::take(&mut body.stopped);
        let expected = std::mem::take(&mut body.expects_continue);
        drop(bodies);
        if was && !expected {
            self.post(key.home, &Note::Continued { placement: key.placement });
        }
        true
    }

    /// A ghost took a signal: the program gets it.
    pub(crate) fn deliver(&self, key: Key, signal: i32, sender: SignalSender, terminal: bool) {
        let (pid, process) = {
            let mut bodies = self.bodies.lock().unwrap();
            let Some(body) = bodies.by_key.get_mut(&key) else { return };
            match signal {
                libc::SIGSTOP if !body.stopped => body.expects_stop = true,
                libc::SIGCONT => {
                    body.expects_stop = false;
                    body.expects_continue = body.stopped;
                }
                _ => {}
            }
            (body.pid, body.process)
        };
        match signal {
            libc::SIGKILL | libc::SIGSTOP => {
                let _ = kill(process as i32, signal);
            }
            _ if terminal => {
                // Its own group here: the program and what it started in that group.
                if self.launcher.signal(-(pid as i32), signal, None).is_err() {
                    let _ = self.launcher.signal(pid as i32, signal, Some(sender));
                }
            }
            // Always from inside, so that the sender shows: whether anybody will look cannot be seen from
            // outside (a thread in `sigwaitinfo` shows the signal as neither caught nor blocked).
            _ => {
                let _ = self.launcher.signal(pid as i32, signal, Some(sender));
            }
        }
    }

    /// A stop signal of terminals is pending at the ghost: stops the program if it does not catch,
    /// ignore or block it, else gives it the signal. True if it stops.
    pub(crate) fn stop_asked(&self, key: Key, signal: i32, sender: SignalSender) -> bool {
        let Some(body) = self.bodies.lock().unwrap().by_key.get(&key).cloned() else {
            return false;
        };
        let Ok(status) = TaskStatus::read(body.process) else { return false };
        let bit = 1 << (signal - 1);
        if (status.caught | status.ignored | status.blocked) & bit != 0 {
            let _ = self.launcher.signal(body.pid as i32, signal, Some(sender));
            return false;
        }
        if let Some(body) = self.bodies.lock().unwrap().by_key.get_mut(&key) {
            body.expects_stop = !body.stopped;
        }
        kill(body.process as i32, libc::SIGSTOP).is_ok()
    }

    /// A signal went to the ghost's group at home: for the program's children here that are in it.
    pub(crate) fn deliver_to_children(&self, key: Key, signal: i32, sender: SignalSender) {
        let Some(body) = self.bodies.lock().unwrap().by_key.get(&key).cloned() else { return };
        for process in self.processes_of_group(body.pid) {
            if process.pid != body.pid && may_signal(sender.uid, process.users) {
                let sender = (signal != libc::SIGKILL && signal != libc::SIGSTOP).then_some(sender);
                let _ = self.launcher.signal(process.pid as i32, signal, sender);
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
