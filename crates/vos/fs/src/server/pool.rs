//! A small pool of threads for what may take long.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most threads.
pub(super) const MAX_WORKERS: usize = 8;
/// Most jobs that wait; more run on their callers' threads.
pub(super) const MAX_JOBS: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    workers: Vec<std::thread::JoinHandle<()>>,
    ended: bool,
}

/// The pool. Its threads start when they are first needed.
pub(super) struct Pool {
    shared: std::sync::Arc<(Mutex<Queue>, Condvar)>,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(super) fn new() -> Self {
        Pool { shared: std::sync::Arc::default() }
    }

    /// Runs a job on a thread of the pool, or gives it back when the pool is full.
    pub(super) fn run(&self, job: Job) -> Result<(), Job> {
        let mut queue = lock(&self.shared.0);
        if queue.ended || queue.jobs.len() >= MAX_JOBS {
            return Err(job);
        }
        if queue.idle <= queue.jobs.len() && queue.workers.len() < MAX_WORKERS {
            let shared = std::sync::Arc::clone(&self.shared);
            let started = std::thread::Builder::new()
                .name("fs-worker".into())
                .spawn(move || work(&shared.0, &shared.1));
            match started {
                Ok(worker) => queue.workers.push(worker),
                Err(_) if queue.workers.is_empty() => return Err(job),
                Err(_) => {}
            }
        }
        queue.jobs.push_back(job);
        self.shared.1.notify_one();
        Ok(())
    }

    /// Ends the threads after the jobs that wait.
    pub(super) fn end(&self) {
        let workers = {
            let mut queue = lock(&self.shared.0);
            queue.ended = true;
            std::mem::take(&mut queue.workers)
        };
        self.shared.1.notify_all();
        let own = std::thread::current().id();
        for worker in workers {
            // The last owner of a server can be a job's reply: that thread ends by itself.
            if worker.thread().id() != own {
                let _ = worker.join();
            }
        }
    }
}

fn work(queue: &Mutex<Queue>, changed: &Condvar) {
    let mut queue_guard = lock(queue);
    loop {
        if let Some(job) = queue_guard.jobs.pop_front() {
            drop(queue_guard);
            job();
            queue_guard = lock(queue);
        } else if queue_guard.ended {
            return;
        } else {
            queue_guard.idle += 1;
            queue_guard = changed.wait(queue_guard).unwrap_or_else(PoisonError::into_inner);
            queue_guard.idle -= 1;
        }
    }
}
