//! The thread that tells the state machines how late it is.

use crate::node::Shared;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Links are looked at this often: acknowledgements, heartbeats, failure detection.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(crate) struct Timer {
    /// When the thread wakes next; 0 while it is awake.
    next: AtomicU64,
    lock: Mutex<bool>,
    changed: Condvar,
}

impl Timer {
    /// Something is due at a time; most are due later than the next tick and cost nothing here.
    pub(crate) fn due(&self, at: u64) {
        if at < self.next.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    pub(crate) fn wake(&self) {
        *self.lock.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

pub(crate) fn run(shared: &Arc<Shared>) {
    let tick = u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX);
    let mut next_tick = 0;
    while !shared.is_closed() {
        let now = shared.now();
        let mut commands = Vec::new();
        shared.exchange.lock().unwrap().tick(now, &mut commands);
        shared.run(commands);
        let dcs: Vec<_> = shared.dcs.lock().unwrap().values().cloned().collect();
        let mut next = u64::MAX;
        for dc in dcs {
            next = next.min(dc.tick(now));
        }
        if now >= next_tick {
            next_tick = now + tick;
            for peer in shared.all_peers() {
                peer.tick(shared, now);
            }
        }
        let timer = &shared.timer;
        let mut woken = timer.lock.lock().unwrap();
        // Published before the deadlines are read: whoever adds an earlier one later sees it.
        timer.next.store(next_tick.min(next), Ordering::SeqCst);
        drop(woken);
        let deadline = shared.exchange.lock().unwrap().next_deadline();
        woken = timer.lock.lock().unwrap();
        let next = next_tick.min(next).min(deadline.unwrap_or(u64::MAX));
        timer.next.store(next, Ordering::SeqCst);
        let rest = Duration::from_nanos(next.saturating_sub(shared.now()));
        if !*woken && !rest.is_zero() {
            woken = timer.changed.wait_timeout(woken, rest).unwrap().0;
        }
        *woken = false;
    }
}
