//! Limits and priorities that somebody changes from outside (`prlimit`, `renice`).
//!
//! Those of a ghost are changed natively, and before that those of the program that it stands for. A
//! process that another node knows is changed there.
//!
//! Only what needs no right is passed on: nothing is raised beyond what the program has. Whoever asks
//! for more asks the kernel, at the ghost, and the program keeps what it had. Limits of a process of
//! another node cannot be asked for (`ESRCH`).

use super::Personality;
use crate::messages::{Answer, Request, Setter, Setting, encode};
use dvs_sys::process::{prlimit, set_nice};
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{TaskMemory, TaskStatus, scheduling};
use std::sync::Arc;
use std::time::Duration;

/// How long another node may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// `RLIM_NLIMITS`.
const RESOURCES: u32 = 16;
const CAP_SYS_NICE: u64 = 1 << 23;
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// Whom a call concerns, by its pid.
fn subject(call: &Notification) -> Option<u32> {
    let [first, second, ..] = call.arguments;
    match i64::from(call.number) {
        libc::SYS_prlimit64 => Some(first as u32),
        libc::SYS_setpriority | libc::SYS_getpriority if first as u32 == libc::PRIO_PROCESS => {
            Some(second as u32)
        }
        _ => None,
    }
}

/// What it sets.
fn setting(call: &Notification) -> Option<Setting> {
    let [_, second, third, ..] = call.arguments;
    match i64::from(call.number) {
        // Values beyond the range mean its ends.
        libc::SYS_setpriority => {
            return Some(Setting::Nice((third as u32 as i32).clamp(-20, 19)));
        }
        libc::SYS_prlimit64 => {}
        _ => return None,
    }
    // No new limit: it is only asked for.
    let bytes = (third != 0).then(|| TaskMemory::new(call.pid).bytes(third, 16).ok())??;
    let (soft, hard) = bytes.split_first_chunk::<8>()?;
    let (soft, hard) = (u64::from_ne_bytes(*soft), u64::from_ne_bytes(hard.try_into().ok()?));
    Some(Setting::Limit { resource: second as u32, soft, hard })
}

/// Whether somebody may change it, as the kernel says; the target's real, effective and saved ids.
fn may_set(setter: Setter, users: [u32; 3], groups: [u32; 3], setting: Setting) -> bool {
    if setter.capable {
        return true;
    }
    match setting {
        Setting::Nice(_) => [users[0], users[1]].contains(&setter.users.1),
        Setting::Limit { .. } => users == [setter.users.0; 3] && groups == [setter.group; 3],
    }
}

/// Sets something of a process of this node, if it raises nothing; errno.
fn set_here(process: u32, setting: Setting) -> i32 {
    let refused = |call, errno| Err(dvs_sys::error::SysError::new(call, errno));
    let done = match setting {
        Setting::Limit { resource, soft, hard } if resource < RESOURCES && soft <= hard => {
            prlimit(process, resource, None).and_then(|(_, most)| {
                if hard > most {
                    return refused("prlimit", libc::EPERM);
                }
                prlimit(process, resource, Some((soft, hard))).map(|_| ())
            })
        }
        Setting::Limit { .. } => return libc::EINVAL,
        Setting::Nice(nice) => scheduling(process).and_then(|(now, _)| {
            if nice < now { refused("setpriority", libc::EACCES) } else { set_nice(process, nice) }
        }),
    };
    done.err().map_or(0, |error| error.errno)
}

impl Personality {
    /// Lets the call go on if it concerns no placed program and no other node.
    pub(crate) fn setting_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        let native = subject(call).is_none_or(|pid| {
            let is_ghost = self.ghosts.lock().unwrap().get(pid).is_some();
            !is_ghost && !self.is_foreign(pid)
        });
        if native {
            let _ = self.listener.proceed(call.id);
        }
        native
    }

    /// Sets it for the placed program, and lets the call go on, for the ghost; or has it done by the
    /// node whose process it is.
    pub(crate) fn setting(self: &Arc<Self>, call: &Notification) {
        let answer = subject(call).and_then(|pid| {
            let setting = setting(call);
            match self.foreign_owner(pid) {
                Some(owner) if self.is_foreign(pid) => self.ask_setting(call, owner, pid, setting),
                _ => {
                    let setting = setting?;
                    let setter = self.setter(call.pid, setting)?;
                    self.pass_on(pid, setting, setter);
                    None
                }
            }
        });
        let _ = match answer {
            Some(Ok(value)) => self.listener.answer(call.id, value),
            Some(Err(errno)) => self.listener.fail(call.id, errno),
            None => self.listener.proceed(call.id),
        };
    }

    fn ask_setting(
        &self,
        call: &Notification,
        owner: u16,
        pid: u32,
        setting: Option<Setting>,
    ) -> Option<Result<i64, i32>> {
        let request = match (i64::from(call.number), setting) {
            (libc::SYS_getpriority, _) => Request::NiceOf { pid },
            // The old limit is wanted, too, or alone.
            (libc::SYS_prlimit64, _) if call.arguments[3] != 0 => return None,
            (_, setting) => {
                let setting = setting?;
                Request::SetFor { pid, setting, setter: self.setter(call.pid, setting)? }
            }
        };
        let bytes = encode(&request).ok()?;
        Some(match self.ask(owner, bytes, DEADLINE) {
            // As the call itself answers, so that no value looks like an error.
            Ok(Answer::Nice(nice)) => nice.map(|nice| i64::from(20 - nice)),
            Ok(Answer::Done(0)) => Ok(0),
            Ok(Answer::Done(errno)) => Err(errno),
            // A lost node's processes are gone.
            _ => Err(libc::ESRCH),
        })
    }

    /// The caller, as one who sets something.
    fn setter(&self, thread: u32, setting: Setting) -> Option<Setter> {
        let caller = TaskStatus::read(thread).ok()?;
        let baseline = self.baseline()?;
        let capability = match setting {
            Setting::Nice(_) => CAP_SYS_NICE,
            Setting::Limit { .. } => CAP_SYS_RESOURCE,
        };
        let [_, _, effective, ..] = caller.capabilities;
        Some(Setter {
            users: (baseline.user(caller.uids[0]), baseline.user(caller.uids[1])),
            group: baseline.group(caller.gids[0]),
            capable: effective & capability != 0,
        })
    }

    fn allows(&self, process: u32, setting: Setting, setter: Setter) -> bool {
        let (Ok(target), Some(baseline)) = (TaskStatus::read(process), self.baseline()) else {
            return false;
        };
        let [a, b, c, _] = target.uids.map(|id| baseline.user(id));
        let [d, e, f, _] = target.gids.map(|id| baseline.group(id));
        may_set(setter, [a, b, c], [d, e, f], setting)
    }

    /// Sets it for the program of a ghost, if it is one and may be set.
    fn pass_on(&self, pid: u32, setting: Setting, setter: Setter) {
        let ghost = self.ghosts.lock().unwrap().get(pid).map(|ghost| ghost.process);
        let node = self.home.lock().unwrap().ghost(pid).map(|(node, _)| node);
        let (Some(ghost), Some(node)) = (ghost, node) else { return };
        if self.allows(ghost, setting, setter)
            && let Ok(bytes) = encode(&Request::Set { pid, setting })
        {
            // A program that has ended meanwhile, or a setting that it may not have: the ghost's say.
            let _: Result<Answer, _> = self.ask(node, bytes, DEADLINE);
        }
    }

    /// A program of another node sets something of a process of this one; errno.
    pub(crate) fn set_for(&self, pid: u32, setting: Setting, setter: Setter) -> i32 {
        let Ok(process) = self.process_of(pid) else { return libc::ESRCH };
        if !self.allows(process, setting, setter) {
            return libc::EPERM;
        }
        self.pass_on(pid, setting, setter);
        set_here(process, setting)
    }

    /// The nice value of a process of this node.
    pub(crate) fn nice_of(&self, pid: u32) -> Result<i32, i32> {
        let process = self.process_of(pid).map_err(|_| libc::ESRCH)?;
        scheduling(process).map(|(nice, _)| nice).map_err(|error| error.errno)
    }

    /// The home node of a placed program sets something of it; errno.
    pub(crate) fn set(&self, from: u16, pid: u32, setting: Setting) -> i32 {
        let body = self.bodies.lock().unwrap().by_pid(pid).cloned();
        let Some(body) = body.filter(|body| body.key.home == from) else { return libc::ESRCH };
        set_here(body.process, setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_set_what() {
        let limit = Setting::Limit { resource: 7, soft: 1, hard: 2 };
        let setter = |user: u32| Setter { users: (user, user), group: 7, capable: false };
        for setting in [limit, Setting::Nice(3)] {
            assert!(may_set(setter(5), [5; 3], [7; 3], setting));
            assert!(!may_set(setter(6), [5; 3], [7; 3], setting));
            assert!(may_set(Setter { capable: true, ..setter(6) }, [5; 3], [8; 3], setting));
        }
        assert!(!may_set(setter(5), [5, 0, 0], [7; 3], limit));
        assert!(!may_set(setter(5), [5; 3], [8; 3], limit));
        assert!(may_set(setter(5), [5, 0, 0], [7; 3], Setting::Nice(3)), "its real user's");
    }

    #[test]
    fn nothing_is_raised() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = child.id();
        let (_, most) = prlimit(process, libc::RLIMIT_NOFILE, None).unwrap();
        let limit = |soft, hard| Setting::Limit { resource: libc::RLIMIT_NOFILE, soft, hard };
        assert_eq!(set_here(process, limit(10, 20)), 0);
        assert_eq!(set_here(process, limit(10, most)), libc::EPERM);
        assert_eq!(set_here(process, limit(21, 20)), libc::EINVAL);
        assert_eq!(prlimit(process, libc::RLIMIT_NOFILE, None).unwrap(), (10, 20));
        assert_eq!(set_here(process, Setting::Nice(19)), 0);
        assert_eq!(set_here(process, Setting::Nice(0)), libc::EACCES);
        assert_eq!(scheduling(process).unwrap().0, 19);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn calls_are_understood() {
        let call = |number: i64, arguments: [u64; 6]| Notification {
            number: number as i32,
            arguments,
            pid: std::process::id(),
            ..Notification::default()
        };
        let new = [3_u64, 9];
        let address = new.as_ptr() as u64;
        let limit = call(libc::SYS_prlimit64, [50, 7, address, 0, 0, 0]);
        assert_eq!(subject(&limit), Some(50));
        assert_eq!(setting(&limit), Some(Setting::Limit { resource: 7, soft: 3, hard: 9 }));
        assert_eq!(setting(&call(libc::SYS_prlimit64, [50, 7, 0, 0, 0, 0])), None);
        assert_eq!(
            setting(&call(libc::SYS_prlimit64, [50, 7, 8, 0, 0, 0])),
            None,
            "no memory there"
        );
        let asked = call(libc::SYS_getpriority, [0, 50, 0, 0, 0, 0]);
        assert_eq!((subject(&asked), setting(&asked)), (Some(50), None));
        let nice = call(libc::SYS_setpriority, [0, 50, 100, 0, 0, 0]);
        assert_eq!((subject(&nice), setting(&nice)), (Some(50), Some(Setting::Nice(19))));
        assert_eq!(subject(&call(libc::SYS_setpriority, [1, 50, 3, 0, 0, 0])), None, "a group");
    }
}
