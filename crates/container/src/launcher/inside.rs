//! What must be done from inside the guest's pid namespace: sending signals (from outside their
//! sender would show as 0) and choosing pids. A short-lived child does it.
//!
//! The child is non-dumpable and holds nothing that the guest could use, but the guest's root may
//! stop or kill it like any process of its container; so every wait for it is bounded.

use crate::launch::SignalSender;
use dvs_sys::birth::Script;
use dvs_sys::descriptor;
use dvs_sys::process::{self, CloneOptions, Forked, SingleThreaded, WaitState};
use dvs_sys::untrapped::{Sender, Untrapped};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

/// Pid of helpers: below those that the kernel gives out after its first round, so that helpers take
/// no number of the node's block.
const HELPER_PID: u32 = 299;
/// How often a helper that the guest stops is woken again before it is killed.
const WAKE_UPS: u32 = 100;
/// How often a helper that the guest kills is made again.
const TRIES: u32 = 3;
const SI_TKILL: i32 = -6;

/// Has a child inside the container do a list of calls.
fn perform(calls: Untrapped, pid: u32, list: impl Fn(&mut Script)) -> Result<(), i32> {
    for _ in 0..TRIES {
        let run = |pid| {
            let mut script = Script::new(calls.cookie);
            list(&mut script);
            script.run(pid)
        };
        let mut made = run(Some(pid));
        if pid == HELPER_PID && made.as_ref().is_err_and(|error| error.errno == libc::EEXIST) {
            made = run(None);
        }
        let birth = made.map_err(|error| error.errno)?;
        let ended = wait(calls, birth.child());
        match (birth.failure(), ended) {
            (Some((_, errno)), _) => return Err(errno),
            (None, WaitState::Exited(_)) => return Ok(()),
            // The guest has killed it, maybe before it had done anything.
            (None, _) => {}
        }
    }
    Err(libc::EAGAIN)
}

/// Runs `body` in a forked child inside the container; its result is an errno or 0.
fn run(alone: SingleThreaded, calls: Untrapped, body: impl Fn(&Forked) -> i32) -> Result<(), i32> {
    for _ in 0..TRIES {
        let options = CloneOptions { pid: Some(HELPER_PID), ..Default::default() };
        let mut made = process::fork(alone, options, &body);
        if made.as_ref().is_err_and(|error| error.errno == libc::EEXIST) {
            made = process::fork(alone, CloneOptions::default(), &body);
        }
        let child = made.map_err(|error| error.errno)?;
        match wait(calls, child.pid) {
            WaitState::Exited(0) => return Ok(()),
            WaitState::Exited(errno) => return Err(errno),
            _ => {}
        }
    }
    Err(libc::EAGAIN)
}

fn wait(calls: Untrapped, pid: u32) -> WaitState {
    let flags = libc::__WALL | libc::WUNTRACED;
    for _ in 0..WAKE_UPS {
        match process::wait(pid as i32, flags, calls.cookie) {
            Ok(Some(waited)) => match waited.state {
                WaitState::Stopped(..) => {
                    let _ = calls.kill(pid as i32, libc::SIGCONT);
                }
                state => return state,
            },
            Ok(None) => {}
            Err(_) => return WaitState::Killed(libc::SIGKILL, false),
        }
    }
    let _ = calls.kill(pid as i32, libc::SIGKILL);
    loop {
        match process::wait(pid as i32, libc::__WALL, calls.cookie) {
            Ok(Some(waited)) if matches!(waited.state, WaitState::Stopped(..)) => {}
            Ok(None) => {}
            _ => return WaitState::Killed(libc::SIGKILL, false),
        }
    }
}

/// Sends a signal as [`crate::launch::LauncherRequest::Signal`] describes.
///
/// # Errors
/// errno; `EAGAIN` also where there is no room for another process.
pub fn signal(
    calls: Untrapped,
    target: i32,
    signal: i32,
    sender: Option<SignalSender>,
) -> Result<(), i32> {
    let Some(sender) = sender else {
        return perform(calls, HELPER_PID, |list| list.kill(target, signal));
    };
    let queued = sender.code < 0 && sender.code != SI_TKILL;
    if !queued && sender.pid > 1 && sender.pid != HELPER_PID {
        // A sender that lives elsewhere: its number is free here, so a helper can be it.
        let result = perform(calls, sender.pid, |list| {
            // The real id is what the kernel shows.
            list.set_user_ids([sender.uid, 0, 0]);
            list.kill(target, signal);
        });
        // Taken (by its ghost), or an id that is not mapped: shown as a queued one.
        if !matches!(result, Err(libc::EEXIST | libc::EINVAL)) {
            return result;
        }
    }
    perform(calls, HELPER_PID, |list| match u32::try_from(target) {
        Ok(target) if target > 0 => {
            let code = if queued { sender.code } else { libc::SI_QUEUE };
            let shown = Sender { code, pid: sender.pid, uid: sender.uid, value: sender.value };
            list.queue_signal(target, signal, &shown);
        }
        // Groups cannot be sent a queued signal.
        _ => list.kill(target, signal),
    })
}

/// Reads `ns_last_pid` of the container and, with `next`, makes `next` the number to be given out
/// next. `file` is that file, opened on any procfs: it acts on the namespace of who uses it.
///
/// # Errors
/// errno.
pub fn aim_pids(
    alone: SingleThreaded,
    calls: Untrapped,
    file: &File,
    next: Option<u32>,
) -> Result<u32, i32> {
    if next.is_some_and(|next| next < 2) {
        return Err(libc::EINVAL);
    }
    let io_errno = |error: &std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let (reader, writer) = descriptor::pipe().map_err(|error| error.errno)?;
    let writer = File::from(writer);
    run(alone, calls, |_| {
        let mut text = [0; 32];
        let told = file.read_at(&mut text, 0).and_then(|length| {
            (&writer).write_all(text.get(..length).unwrap_or_default())?;
            match next {
                Some(next) => file.write_all_at((next - 1).to_string().as_bytes(), 0),
                None => Ok(()),
            }
        });
        told.map_or_else(|error| io_errno(&error), |()| 0)
    })?;
    drop(writer);
    let mut text = String::new();
    File::from(reader).take(64).read_to_string(&mut text).map_err(|error| io_errno(&error))?;
    text.trim().parse().map_err(|_| libc::EIO)
}
