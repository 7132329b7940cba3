//! `flock` on a shared description, for bodies that may give up waiting.
//!
//! A thread that waits in flock(2) cannot be called back: a lock that it gets after its caller has
//! given up must be released. But the lock belongs to the description, and somebody else may have
//! taken it through the same one meanwhile; then it must stay.

use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use dvs_sys::flock::flock;

/// The lock of one description, as far as bodies have taken it.
#[derive(Debug, Default)]
pub(super) struct DescriptionLock {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: bool,
    /// Callers that wait for it and have not given up.
    wanted: usize,
}

/// One who waits; over when it was answered or has given up.
#[derive(Debug, Default)]
pub(super) struct Waiter {
    over: AtomicBool,
}

impl DescriptionLock {
    /// An operation that does not wait.
    pub(super) fn now(&self, file: &File, operation: i32) -> Result<(), i32> {
        let mut state = self.state.lock().unwrap();
        flock(file, operation).map_err(|error| error.errno)?;
        state.held = operation & libc::LOCK_UN == 0;
        Ok(())
    }

    /// Somebody begins to wait.
    pub(super) fn begin(&self) -> Waiter {
        self.state.lock().unwrap().wanted += 1;
        Waiter::default()
    }

    /// Somebody gives up; false: too late, it was answered.
    pub(super) fn give_up(&self, waiter: &Waiter) -> bool {
        let mut state = self.state.lock().unwrap();
        let first = !waiter.over.swap(true, Ordering::AcqRel);
        if first {
            state.wanted -= 1;
        }
        first
    }

    /// Waits; `None`: the caller has given up meanwhile.
    pub(super) fn wait(
        &self,
        waiter: &Waiter,
        file: &File,
        operation: i32,
    ) -> Option<Result<(), i32>> {
        let result = loop {
            match flock(file, operation) {
                Err(error) if error.errno == libc::EINTR => {}
                other => break other.map_err(|error| error.errno),
            }
        };
        let mut state = self.state.lock().unwrap();
        if waiter.over.swap(true, Ordering::AcqRel) {
            if result.is_ok() && !state.held && state.wanted == 0 {
                // It cannot fail: the lock is there.
                let _ = flock(file, libc::LOCK_UN);
            }
            return None;
        }
        state.wanted -= 1;
        state.held |= result.is_ok();
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(path: &std::path::Path) -> bool {
        let file = File::open(path).unwrap();
        flock(&file, libc::LOCK_EX | libc::LOCK_NB).is_ok()
    }

    #[test]
    fn a_lock_that_comes_too_late_is_released_unless_it_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let file = File::create(&path).unwrap();
        let lock = DescriptionLock::default();
        let late = lock.begin();
        assert!(lock.give_up(&late));
        assert!(!lock.give_up(&late));
        assert_eq!(lock.wait(&late, &file, libc::LOCK_EX), None);
        assert!(free(&path), "released");

        let (late, wanted) = (lock.begin(), lock.begin());
        assert!(lock.give_up(&late));
        assert_eq!(lock.wait(&late, &file, libc::LOCK_EX), None);
        assert!(!free(&path), "somebody else waits for it through the same description");
        assert_eq!(lock.wait(&wanted, &file, libc::LOCK_EX), Some(Ok(())));
        let late = lock.begin();
        lock.give_up(&late);
        assert_eq!(lock.wait(&late, &file, libc::LOCK_EX), None);
        assert!(!free(&path), "held");
        lock.now(&file, libc::LOCK_UN).unwrap();
        assert!(free(&path));
    }
}
