//! Waking whoever waits, and running handlers and callbacks.
//!
//! A handler runs on the thread that delivers: the link's reader, or the local sender. One endpoint's
//! handler runs on one thread at a time, so that its messages stay in order. What a handler sends to
//! other handlers of this process runs after it, on the same thread, not inside it.

use crate::core::exchange::Key;
use crate::core::inbox::Taken;
use crate::error::{CallError, ReceiveError};
use crate::message::Message;
use crate::node::{NodeEvent, Shared};
use crate::port::{Answers, Completion};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::Waker;

/// After so many messages of one endpoint its handler goes on in the task thread, so that a sender
/// is not kept working for others.
const DRAIN: usize = 64;

pub(crate) type Handler = dyn Fn(Message) + Send + Sync;
pub(crate) type Callback = Box<dyn FnOnce(Result<Vec<u8>, CallError>) + Send>;

/// A place for one value that another thread waits for. The first value counts.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    state: Mutex<SlotState<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct SlotState<T> {
    value: Option<T>,
    filled: bool,
    /// The wait is to end without a value.
    interrupted: bool,
    waker: Option<Waker>,
}

impl<T> Slot<T> {
    pub(crate) fn new() -> Arc<Self> {
        let state = SlotState { value: None, filled: false, interrupted: false, waker: None };
        Arc::new(Slot { state: Mutex::new(state), filled: Condvar::new() })
    }

    pub(crate) fn fill(&self, value: T) {
        let mut state = self.state.lock().unwrap();
        if state.filled {
            return;
        }
        state.value = Some(value);
        state.filled = true;
        self.wake(state);
    }

    /// Ends the wait without a value.
    pub(crate) fn interrupt(&self) {
        let mut state = self.state.lock().unwrap();
        state.interrupted = true;
        self.wake(state);
    }

    /// It may be waited for again.
    pub(crate) fn resume(&self) {
        self.state.lock().unwrap().interrupted = false;
    }

    fn wake(&self, mut state: MutexGuard<'_, SlotState<T>>) {
        let waker = state.waker.take();
        drop(state);
        self.filled.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The value of a slot that is complete.
    ///
    /// # Panics
    /// When it is not, or was taken already.
    pub(crate) fn take(&self) -> T {
        self.state.lock().unwrap().value.take().expect("a slot is taken once, when it is filled")
    }

    pub(crate) fn try_take(&self) -> Option<T> {
        self.state.lock().unwrap().value.take()
    }
}

impl<T: Send> Completion for Slot<T> {
    fn is_complete(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.filled || state.interrupted
    }

    fn block(&self) {
        let mut state = self.state.lock().unwrap();
        while !state.filled && !state.interrupted {
            state = self.filled.wait(state).unwrap();
        }
    }

    fn tell(&self, waker: &Waker) {
        let mut state = self.state.lock().unwrap();
        if state.filled || state.interrupted {
            drop(state);
            waker.wake_by_ref();
        } else {
            state.waker = Some(waker.clone());
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
    pub(crate) fn finish(self, result: Result<Vec<u8>, CallError>) {
        match self {
            Waiter::Caller(slot) => slot.fill(result),
            Waiter::Callback(callback) => perform(Work::Callback(callback, result)),
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
    Drain(Arc<Shared>, Key),
    Callback(Callback, Result<Vec<u8>, CallError>),
}

/// Work for the task thread.
pub(crate) enum Task {
    Drain(Key),
    Event(NodeEvent),
}

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    static QUEUE: RefCell<VecDeque<Work>> = const { RefCell::new(VecDeque::new()) };
}

/// Whether this thread runs a handler or callback.
pub(crate) fn in_handler() -> bool {
    ACTIVE.get()
}

/// Runs work now, or after the handler that runs on this thread. The queue is bounded: an endpoint
/// is in it once, a callback once per call.
pub(crate) fn perform(work: Work) {
    if ACTIVE.get() {
        QUEUE.with_borrow_mut(|queue| queue.push_back(work));
        return;
    }
    ACTIVE.set(true);
    run_work(work);
    while let Some(work) = QUEUE.with_borrow_mut(VecDeque::pop_front) {
        run_work(work);
    }
    ACTIVE.set(false);
}

fn run_work(work: Work) {
    match work {
        // A panic is printed by its hook; it is its author's, and ends nothing else.
        Work::Callback(callback, result) => {
            let _ = catch_unwind(AssertUnwindSafe(|| callback(result)));
        }
        Work::Drain(shared, key) => drain(&shared, key),
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
        let answers: Arc<dyn Answers> = Arc::clone(shared) as _;
        let message = Message::new(answers, taken);
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
            Task::Drain(key) => perform(Work::Drain(Arc::clone(shared), key)),
            Task::Event(event) => shared.observe(&event),
        }
    }
}
