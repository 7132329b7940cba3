//! Threads for what may wait without bound: locks, and attached descriptions. They are apart from
//! those that read the device, so that whatever waits never stops what does not.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

/// Most threads, so most operations that wait at a time.
pub const MAX_WAITERS: usize = 1024;
/// Threads kept although nothing waits.
const KEEP_IDLE: usize = 4;
/// A waiter's stack; it only calls the transport.
const STACK: usize = 256 << 10;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// The pool.
#[derive(Default)]
pub(super) struct Waiters {
    state: Mutex<State>,
    work: Condvar,
}

impl Waiters {
    /// Runs a job on a thread of its own. False: as many wait as may, and the job was dropped.
    pub(super) fn run(self: &Arc<Self>, job: Job) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.closed {
            return false;
        }
        if state.idle > state.jobs.len() {
            state.jobs.push_back(job);
            drop(state);
            self.work.notify_one();
            return true;
        }
        if state.threads >= MAX_WAITERS {
            return false;
        }
        let pool = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name("fs-waiter".into())
            .stack_size(STACK)
            .spawn(move || pool.work(job));
        state.threads += usize::from(started.is_ok());
        started.is_ok()
    }

    /// Lets idle threads end; no new job is taken.
    pub(super) fn close(&self) {
        self.state.lock().unwrap().closed = true;
        self.work.notify_all();
    }

    /// Number of threads now.
    pub(super) fn threads(&self) -> usize {
        self.state.lock().unwrap().threads
    }

    fn work(&self, first: Job) {
        first();
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock().unwrap();
            } else if state.closed || state.idle >= KEEP_IDLE {
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap();
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn waiting_jobs_do_not_stop_others_and_are_bounded() {
        let pool = Arc::new(Waiters::default());
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (sender, receiver) = channel();
        for _ in 0..MAX_WAITERS {
            let (gate, sender) = (Arc::clone(&gate), sender.clone());
            assert!(pool.run(Box::new(move || {
                let mut open = gate.0.lock().unwrap();
                while !*open {
                    open = gate.1.wait(open).unwrap();
                }
                sender.send(()).unwrap();
            })));
        }
        assert_eq!(pool.threads(), MAX_WAITERS);
        assert!(!pool.run(Box::new(|| ())), "one more is refused");
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        for _ in 0..MAX_WAITERS {
            receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        pool.close();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while pool.threads() > 0 {
            assert!(std::time::Instant::now() < end, "threads are left");
            std::thread::yield_now();
        }
        assert!(!pool.run(Box::new(|| ())), "a closed pool takes nothing");
    }
}
