//! Waking whoever waits, and running handlers and callbacks.
//!
//! A handler runs on the thread that delivers: the link's reader, or the local sender. One endpoint's
//! handler runs on one thread at a time, so that its messages stay in order. What a handler sends to
//! other handlers of this process runs after it, on the same thread, not inside it.

use crate::batch;
use crate::core::exchange::Key;
use crate::core::inbox::Taken;
use crate::endpoint::Message;
use crate::error::{CallError, ReceiveError};
use crate::node::{NodeEvent, Shared};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex};

/// After so many messages of one endpoint its handler goes on in the task thread, so that a sender
/// is not kept working for others.
const DRAIN: usize = 64;

pub(crate) type Handler = dyn Fn(Message) + Send + Sync;
pub(crate) type Callback = Box<dyn FnOnce(Result<Vec<u8>, CallError>) + Send>;

/// A place for one value that another thread waits for.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    value: Mutex<Option<T>>,
    filled: Condvar,
}

impl<T> Slot<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Slot { value: Mutex::new(None), filled: Condvar::new() })
    }

    pub(crate) fn fill(&self, value: T) {
        *self.value.lock().unwrap() = Some(value);
        self.filled.notify_one();
    }

    /// Waits. The exchange or the registry, which owns the other end, fills every slot at its
    /// deadline at the latest, or when the node is closed.
    pub(crate) fn wait(&self) -> T {
        // What a batch of this thread holds back may be what is waited for.
        batch::flush();
        let mut value = self.value.lock().unwrap();
        loop {
            if let Some(value) = value.take() {
                return value;
            }
            value = self.filled.wait(value).unwrap();
        }
    }
}

/// Who waits for a call, a send or a message.
pub(crate) enum Waiter {
    Caller(Arc<Slot<Result<Vec<u8>, CallError>>>),
    Callback(Callback),
    Receiver(Arc<Slot<Result<Taken, ReceiveError>>>),
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Waiter::Caller(_) => "Caller",
            Waiter::Callback(_) => "Callback",
            Waiter::Receiver(_) => "Receiver",
        })
    }
}

impl Waiter {
    pub(crate) fn finish(self, shared: &Arc<Shared>, result: Result<Vec<u8>, CallError>) {
        match self {
            Waiter::Caller(slot) => slot.fill(result),
            Waiter::Callback(callback) => perform(shared, Work::Callback(callback, result)),
            Waiter::Receiver(slot) => slot.fill(Err(ReceiveError::Closed)),
        }
    }

    pub(crate) fn received(self, result: Result<Taken, ReceiveError>) {
        if let Waiter::Receiver(slot) = self {
            slot.fill(result);
        }
    }
}

/// Something that runs code of the node's user.
pub(crate) enum Work {
    Drain(Key),
    Callback(Callback, Result<Vec<u8>, CallError>),
}

/// Work for the task thread.
pub(crate) enum Task {
    Drain(Key),
    Event(NodeEvent),
}

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    static QUEUE: RefCell<VecDeque<(Arc<Shared>, Work)>> = const { RefCell::new(VecDeque::new()) };
}

/// Whether this thread runs a handler or callback.
pub(crate) fn in_handler() -> bool {
    ACTIVE.get()
}

/// Runs work now, or after the handler that runs on this thread. The queue is bounded: an endpoint
/// is in it once, a callback once per call.
pub(crate) fn perform(shared: &Arc<Shared>, work: Work) {
    if ACTIVE.get() {
        QUEUE.with_borrow_mut(|queue| queue.push_back((Arc::clone(shared), work)));
        return;
    }
    ACTIVE.set(true);
    run_work(shared, work);
    while let Some((shared, work)) = QUEUE.with_borrow_mut(VecDeque::pop_front) {
        run_work(&shared, work);
    }
    ACTIVE.set(false);
}

fn run_work(shared: &Arc<Shared>, work: Work) {
    match work {
        Work::Callback(callback, result) => guarded(shared, || callback(result)),
        Work::Drain(key) => drain(shared, key),
    }
}

fn drain(shared: &Arc<Shared>, key: Key) {
    let handler = shared.handlers.read().unwrap().get(&key).cloned();
    let Some(handler) = handler else { return };
    for _ in 0..DRAIN {
        let mut commands = Vec::new();
        let taken = shared.exchange.lock().unwrap().next_for_handler(key, &mut commands);
        shared.run(commands);
        let Some(taken) = taken else { return };
        let message = Message::new(shared, taken);
        guarded(shared, || handler(message));
    }
    shared.later(Task::Drain(key));
}

/// A handler that panics loses its message (whose sender hears that it was dropped), not the link.
fn guarded(shared: &Shared, body: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(body)).is_err() {
        shared.emit(NodeEvent::Refused { reason: "a message handler panicked".into() });
    }
}

pub(crate) fn run_tasks(shared: &Arc<Shared>, tasks: &Receiver<Task>) {
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Drain(key) => perform(shared, Work::Drain(key)),
            Task::Event(event) => shared.observe(&event),
        }
    }
}
