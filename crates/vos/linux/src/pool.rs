//! A bounded pool of threads for work that may wait.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    most_threads: usize,
    most_jobs: usize,
    name: &'static str,
}

/// A pool; threads are made as they are needed and end with it.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

/// The queue is full or the pool has been stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub(crate) struct Full;

impl Pool {
    /// A pool of at most `most_threads` threads before which at most `most_jobs` jobs wait.
    #[must_use]
    pub(crate) fn new(name: &'static str, most_threads: usize, most_jobs: usize) -> Self {
        let state = State { jobs: VecDeque::new(), threads: 0, idle: 0, stopped: false };
        Pool(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            most_threads,
            most_jobs,
            name,
        }))
    }

    /// Has a job done.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        let mut state = self.0.state.lock().unwrap();
        if state.stopped || state.jobs.len() >= self.0.most_jobs {
            return Err(Full);
        }
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.0.changed.notify_one();
        } else if state.threads < self.0.most_threads {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name(self.0.name.to_owned());
            match thread.spawn(move || work(&shared)) {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads > 0 => {}
                Err(_) => {
                    state.jobs.pop_back();
                    return Err(Full);
                }
            }
        }
        Ok(())
    }

    /// No more jobs are taken; those that wait are dropped, the threads end.
    pub(crate) fn stop(&self) {
        let mut state = self.0.state.lock().unwrap();
        state.stopped = true;
        state.jobs.clear();
        self.0.changed.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state.lock().unwrap();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            // A job that panics must not take its thread with it.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            state = shared.state.lock().unwrap();
        } else if state.stopped {
            state.threads -= 1;
            return;
        } else {
            state.idle += 1;
            state = shared.changed.wait(state).unwrap();
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_run_and_the_queue_is_bounded() {
        let pool = Pool::new("test", 1, 2);
        let (hold, held) = mpsc::channel::<()>();
        let (started, begins) = mpsc::channel();
        pool.run(move || {
            started.send(()).unwrap();
            let _ = held.recv();
        })
        .unwrap();
        begins.recv().unwrap();
        let (sender, done) = mpsc::channel();
        for number in 0..2 {
            let sender = sender.clone();
            pool.run(move || sender.send(number).unwrap()).unwrap();
        }
        assert_eq!(pool.run(|| {}), Err(Full));
        drop(hold);
        assert_eq!((done.recv().unwrap(), done.recv().unwrap()), (0, 1), "one thread keeps order");
        pool.run(|| panic!("a job that panics")).unwrap();
        pool.run(move || sender.send(2).unwrap()).unwrap();
        assert_eq!(done.recv(), Ok(2));
        pool.stop();
        assert_eq!(pool.run(|| {}), Err(Full));
    }
}
