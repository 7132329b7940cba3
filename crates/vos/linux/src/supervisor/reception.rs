//! Receiving trapped calls: one thread waits, the others work or wait for their turn.

use super::Personality;
use dvs_sys::descriptor::{Poll, poll};
use dvs_sys::error::SysError;
use dvs_sys::poll::EventFd;
use dvs_sys::seccomp::{Notification, Reception as Received};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex};

/// Most threads that receive and carry through trapped calls.
pub(crate) const MAX_RECEIVERS: usize = 32;

#[derive(Debug, Default)]
struct State {
    /// Somebody waits for calls.
    led: bool,
    threads: usize,
    idle: usize,
    ended: bool,
}

/// Who waits for trapped calls.
#[derive(Debug, Default)]
pub(crate) struct Reception {
    state: Mutex<State>,
    turn: Condvar,
    /// The node chosen for a call that its receiver carries through next.
    chosen: Mutex<std::collections::HashMap<u64, u16>>,
    stop: std::sync::OnceLock<EventFd>,
}

impl Reception {
    pub(crate) fn choose(&self, call: u64, node: u16) {
        self.chosen.lock().unwrap().insert(call, node);
    }

    pub(crate) fn chosen(&self, call: u64) -> Option<u16> {
        self.chosen.lock().unwrap().remove(&call)
    }
}

impl Personality {
    pub(crate) fn begin_reception(self: &Arc<Self>) -> Result<(), SysError> {
        let _ = self.reception.stop.set(EventFd::new()?);
        self.reception.state.lock().unwrap().threads += 1;
        self.thread("linux-traps", Personality::receive_calls)
    }

    pub(crate) fn end_reception(&self) {
        self.reception.state.lock().unwrap().ended = true;
        self.reception.turn.notify_all();
        if let Some(stop) = self.reception.stop.get() {
            let _ = stop.signal();
        }
    }

    fn receive_calls(self: &Arc<Self>) {
        while self.take_lead() {
            let work = self.lead();
            self.give_lead(work.is_none());
            if let Some(call) = work {
                self.carry_through_call(&call);
            }
        }
    }

    fn take_lead(&self) -> bool {
        let mut state = self.reception.state.lock().unwrap();
        while state.led && !state.ended {
            state.idle += 1;
            state = self.reception.turn.wait(state).unwrap();
            state.idle -= 1;
        }
        if state.ended {
            state.threads -= 1;
            return false;
        }
        state.led = true;
        true
    }

    /// Hands the waiting on: to a thread that has nothing to do, else to a new one.
    fn give_lead(self: &Arc<Self>, ended: bool) {
        let mut state = self.reception.state.lock().unwrap();
        state.led = false;
        state.ended |= ended;
        if state.ended {
            self.reception.turn.notify_all();
        } else if state.idle > 0 {
            self.reception.turn.notify_one();
        } else if state.threads < MAX_RECEIVERS {
            state.threads += 1;
            drop(state);
            if self.thread("linux-traps", Personality::receive_calls).is_err() {
                // Whoever finishes first waits for the next call.
                self.reception.state.lock().unwrap().threads -= 1;
            }
        }
    }

    /// Answers calls until one needs more; `None` when no program is left that could make one.
    fn lead(self: &Arc<Self>) -> Option<Notification> {
        let stop = self.reception.stop.get()?;
        loop {
            let mut waits = [Poll::readable(self.listener.as_fd()), Poll::readable(stop.as_fd())];
            if poll(&mut waits, None).is_err() {
                continue;
            }
            let [calls, stops] = waits.map(|wait| wait.ready);
            if stops != 0 || self.is_stopped() {
                return None;
            }
            if calls & libc::POLLIN == 0 {
                if calls & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
                    return None;
                }
                continue;
            }
            match self.listener.receive() {
                Ok(Received::Call(call)) => {
                    if !self.answer_at_once(&call) {
                        return Some(call);
                    }
                }
                Ok(Received::Nothing) => {}
                Err(_) => return None,
            }
        }
    }

    /// Answers a call if that needs no waiting; false if it does.
    fn answer_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        match i64::from(call.number) {
            number if number == i64::from(dvs_sys::ghost::REPORT_CALL) => self.report(call),
            libc::SYS_execve | libc::SYS_execveat => return self.exec_at_once(call),
            libc::SYS_kill => return self.kill_at_once(call),
            libc::SYS_rt_sigqueueinfo => return self.queue_at_once(call),
            libc::SYS_getppid
            | libc::SYS_getpgid
            | libc::SYS_getpgrp
            | libc::SYS_getsid
            | libc::SYS_setpgid
            | libc::SYS_setsid => return self.identity_at_once(call),
            libc::SYS_prctl => return self.prctl_at_once(call),
            libc::SYS_prlimit64 | libc::SYS_setpriority | libc::SYS_getpriority => {
                return self.setting_at_once(call);
            }
            libc::SYS_getrusage | libc::SYS_times => return self.usage_at_once(call),
            _ => return self.shared_at_once(call),
        }
        true
    }

    fn carry_through_call(self: &Arc<Self>, call: &Notification) {
        match i64::from(call.number) {
            libc::SYS_execve | libc::SYS_execveat => self.exec(call),
            libc::SYS_kill => self.kill(call),
            libc::SYS_rt_sigqueueinfo => self.queue(call),
            libc::SYS_getppid
            | libc::SYS_getpgid
            | libc::SYS_getpgrp
            | libc::SYS_getsid
            | libc::SYS_setpgid
            | libc::SYS_setsid
            | libc::SYS_prctl => self.identity(call),
            libc::SYS_prlimit64 | libc::SYS_setpriority | libc::SYS_getpriority => {
                self.setting(call);
            }
            libc::SYS_getrusage | libc::SYS_times => self.usage(call),
            _ => self.shared(call),
        }
    }
}
