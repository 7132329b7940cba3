//! Limits and priorities that somebody changes from outside (`prlimit`, `renice`): those of a ghost are
//! natively changed, and before that those of the program that it stands for.
//!
//! Only what needs no right is passed on: nothing is raised beyond what the program has. Whoever asks
//! for more asks the kernel, at the ghost, and the program keeps what it had.

use super::Personality;
use crate::messages::{Answer, Request, Setting, encode};
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
        libc::SYS_setpriority if first as u32 == libc::PRIO_PROCESS => Some(second as u32),
        _ => None,
    }
}

/// What it sets.
fn setting(call: &Notification) -> Option<Setting> {
    let [_, second, third, ..] = call.arguments;
    if i64::from(call.number) == libc::SYS_setpriority {
        // Values beyond the range mean its ends.
        return Some(Setting::Nice((third as u32 as i32).clamp(-20, 19)));
    }
    // No new limit: it is only asked for.
    let bytes = (third != 0).then(|| TaskMemory::new(call.pid).bytes(third, 16).ok())??;
    let (soft, hard) = bytes.split_first_chunk::<8>()?;
    let (soft, hard) = (u64::from_ne_bytes(*soft), u64::from_ne_bytes(hard.try_into().ok()?));
    Some(Setting::Limit { resource: second as u32, soft, hard })
}

/// Whether the caller may change it, as the kernel says.
fn may_set(caller: &TaskStatus, target: &TaskStatus, setting: Setting) -> bool {
    let capability = match setting {
        Setting::Nice(_) => CAP_SYS_NICE,
        Setting::Limit { .. } => CAP_SYS_RESOURCE,
    };
    let [_, _, effective, ..] = caller.capabilities;
    if effective & capability != 0 {
        return true;
    }
    match setting {
        Setting::Nice(_) => [target.uids[0], target.uids[1]].contains(&caller.uids[1]),
        Setting::Limit { .. } => {
            target.uids[..3].iter().all(|id| *id == caller.uids[0])
                && target.gids[..3].iter().all(|id| *id == caller.gids[0])
        }
    }
}

impl Personality {
    /// Lets the call go on if it concerns no placed program.
    pub(crate) fn setting_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        let ghosts = self.ghosts.lock().unwrap();
        let native = subject(call).is_none_or(|pid| ghosts.get(pid).is_none());
        drop(ghosts);
        if native {
            let _ = self.listener.proceed(call.id);
        }
        native
    }

    /// Sets it for the placed program; the call then goes on, for the ghost.
    pub(crate) fn setting(self: &Arc<Self>, call: &Notification) {
        if let Some((node, request)) = self.setting_to_pass(call)
            && let Ok(bytes) = encode(&request)
        {
            // A program that has ended meanwhile, or a setting that it may not have: the ghost's say.
            let _: Result<Answer, _> = self.ask(node, bytes, DEADLINE);
        }
        let _ = self.listener.proceed(call.id);
    }

    fn setting_to_pass(&self, call: &Notification) -> Option<(u16, Request)> {
        let (pid, setting) = (subject(call)?, setting(call)?);
        let ghost = self.ghosts.lock().unwrap().get(pid).map(|ghost| ghost.process)?;
        let (node, _) = self.home.lock().unwrap().ghost(pid)?;
        let (caller, target) = (TaskStatus::read(call.pid).ok()?, TaskStatus::read(ghost).ok()?);
        may_set(&caller, &target, setting).then_some((node, Request::Set { pid, setting }))
    }

    /// The home node of a placed program sets something of it; errno.
    pub(crate) fn set(&self, from: u16, pid: u32, setting: Setting) -> i32 {
        let body = self.bodies.lock().unwrap().by_pid(pid).cloned();
        let Some(body) = body.filter(|body| body.key.home == from) else { return libc::ESRCH };
        let done = match setting {
            Setting::Limit { resource, soft, hard } if resource < RESOURCES && soft <= hard => {
                prlimit(body.process, resource, None).and_then(|(_, most)| {
                    if hard > most {
                        return Err(dvs_sys::error::SysError::new("prlimit", libc::EPERM));
                    }
                    prlimit(body.process, resource, Some((soft, hard))).map(|_| ())
                })
            }
            Setting::Limit { .. } => return libc::EINVAL,
            Setting::Nice(nice) => scheduling(body.process).and_then(|(now, _)| {
                if nice < now {
                    return Err(dvs_sys::error::SysError::new("setpriority", libc::EACCES));
                }
                set_nice(body.process, nice)
            }),
        };
        done.err().map_or(0, |error| error.errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_set_what() {
        let status = |uids: [u32; 4]| TaskStatus { uids, gids: [7; 4], ..TaskStatus::default() };
        let limit = Setting::Limit { resource: 7, soft: 1, hard: 2 };
        let (user, other) = (status([5; 4]), status([6; 4]));
        let privileged = status([5, 0, 0, 0]);
        let resource =
            TaskStatus { capabilities: [0, 0, CAP_SYS_RESOURCE, 0, 0], ..status([6; 4]) };
        for setting in [limit, Setting::Nice(3)] {
            assert!(may_set(&user, &user, setting));
            assert!(!may_set(&other, &user, setting));
        }
        assert!(may_set(&resource, &user, limit) && !may_set(&resource, &user, Setting::Nice(3)));
        assert!(!may_set(&user, &privileged, limit));
        assert!(may_set(&user, &privileged, Setting::Nice(3)), "its real user's");
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
        let nice = call(libc::SYS_setpriority, [0, 50, 100, 0, 0, 0]);
        assert_eq!((subject(&nice), setting(&nice)), (Some(50), Some(Setting::Nice(19))));
        assert_eq!(subject(&call(libc::SYS_setpriority, [1, 50, 3, 0, 0, 0])), None, "a group");
    }
}
