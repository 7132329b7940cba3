//! Closings that are under way. The kernel tells of a closed file without waiting for the answer, and
//! its locks end only then; so a lock that is tried at once after its holder's end would still find
//! it. Who meets a conflict lets what is being closed be closed first, and tries once more.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// Time for a closing that was read from the device to be counted here.
const PAUSE: Duration = Duration::from_millis(1);
/// Longest wait for those that are counted.
const WAIT: Duration = Duration::from_millis(200);

/// How many.
#[derive(Debug, Default)]
pub(super) struct Releases {
    count: Mutex<usize>,
    none: Condvar,
}

impl Releases {
    /// Does a closing.
    pub(super) fn during<T>(&self, close: impl FnOnce() -> T) -> T {
        *self.count.lock().unwrap() += 1;
        let done = close();
        let mut count = self.count.lock().unwrap();
        *count -= 1;
        if *count == 0 {
            self.none.notify_all();
        }
        done
    }

    /// Waits for those under way, not for long.
    pub(super) fn settle(&self) {
        std::thread::sleep(PAUSE);
        let count = self.count.lock().unwrap();
        drop(self.none.wait_timeout_while(count, WAIT, |count| *count > 0).unwrap());
    }
}
