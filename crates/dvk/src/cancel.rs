//! Cancelling what a thread waits for.
//!
//! A [`Cancellation`] covers a piece of code: every call, send, receive and resolve that waits inside
//! [`Cancellation::cover`] ends with an error when [`Cancellation::cancel`] is called, from any
//! thread, and those that begin later end at once. Async code has no need of it: it drops the future.

use crate::deliver::Slot;
use crate::port::Port;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// May be cancelled, once. Cheap to clone.
#[derive(Clone, Default)]
pub struct Cancellation {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cancelled: bool,
    next: u64,
    /// What waits now; one entry for each waiting thread that is covered.
    waits: HashMap<u64, Arc<dyn Fn() + Send + Sync>>,
}

thread_local! {
    static COVER: RefCell<Vec<Cancellation>> = const { RefCell::new(Vec::new()) };
}

impl std::fmt::Debug for Cancellation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Cancellation(cancelled: {})", self.is_cancelled())
    }
}

impl Cancellation {
    /// One that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Cancellation::default()
    }

    /// Ends what waits under its cover, now and from now on.
    pub fn cancel(&self) {
        let mut state = self.state.lock().unwrap();
        state.cancelled = true;
        let waits: Vec<_> = state.waits.values().cloned().collect();
        drop(state);
        for end in waits {
            end();
        }
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state.lock().unwrap().cancelled
    }

    /// Runs `body` on this thread; what it waits for in the meantime can be cancelled. Covers may be
    /// inside each other; each one cancels.
    pub fn cover<T>(&self, body: impl FnOnce() -> T) -> T {
        struct Uncover;
        impl Drop for Uncover {
            fn drop(&mut self) {
                COVER.with_borrow_mut(Vec::pop);
            }
        }
        COVER.with_borrow_mut(|cover| cover.push(self.clone()));
        let _uncover = Uncover;
        body()
    }
}

/// Whether what this thread would wait for was cancelled.
pub(crate) fn requested() -> bool {
    COVER.with_borrow(|cover| cover.iter().any(Cancellation::is_cancelled))
}

struct Registered(Vec<(Cancellation, u64)>);

impl Drop for Registered {
    fn drop(&mut self) {
        for (cancellation, id) in &self.0 {
            cancellation.state.lock().unwrap().waits.remove(id);
        }
    }
}

/// Registers what ends a wait of this thread with all its covers.
fn register(end: &Arc<dyn Fn() + Send + Sync>) -> Registered {
    let covers = COVER.with_borrow(Vec::clone);
    let mut registered = Registered(Vec::new());
    for cancellation in covers {
        let mut state = cancellation.state.lock().unwrap();
        let id = state.next;
        state.next += 1;
        state.waits.insert(id, Arc::clone(end));
        let cancelled = state.cancelled;
        drop(state);
        registered.0.push((cancellation, id));
        if cancelled {
            end();
        }
    }
    registered
}

/// Waits for a slot; `id` names the wait to the port. A cancelled wait is taken back from the port,
/// which completes the slot; one that the port does not know ends with `cancelled` at once.
pub(crate) fn wait<T: Send + 'static>(
    port: &dyn Port,
    slot: &Arc<Slot<T>>,
    id: Option<u64>,
    cancelled: impl FnOnce() -> T,
) -> T {
    if COVER.with_borrow(Vec::is_empty) {
        port.block(&**slot);
        return slot.take();
    }
    let waiting = Arc::clone(slot);
    let end: Arc<dyn Fn() + Send + Sync> = Arc::new(move || waiting.interrupt());
    let registered = register(&end);
    port.block(&**slot);
    drop(registered);
    if let Some(value) = slot.try_take() {
        return value;
    }
    let Some(id) = id else { return cancelled() };
    slot.resume();
    port.cancel(id);
    port.block(&**slot);
    slot.take()
}
