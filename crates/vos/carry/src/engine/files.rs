//! Home's side of shared descriptions: requests from away, done by workers or, for locks, by a thread
//! that may wait.

use std::fs::File;
use std::sync::{Arc, Weak};

use super::locks::{DescriptionLock, Waiter};
use super::{Effects, Engine, State};
use crate::description;
use crate::messages::{
    CarryMessage, DescriptionId, DescriptionOperation, DescriptionOutcome, FileAttributes,
};

/// A description kept for another node.
pub(super) struct Description {
    pub(super) to: u16,
    pub(super) file: Arc<File>,
    pub(super) lock: Arc<DescriptionLock>,
}

/// A request that waits for a lock.
#[derive(Clone)]
pub(super) struct Waiting {
    lock: Arc<DescriptionLock>,
    waiter: Arc<Waiter>,
}

impl State {
    pub(super) fn home_describe(
        &mut self,
        from: u16,
        request: u64,
        number: DescriptionId,
        operation: DescriptionOperation,
        engine: Weak<Engine>,
        effects: &mut Effects,
    ) {
        let found = self.home.descriptions.get(&number).filter(|found| found.to == from);
        let Some(found) = found else {
            let result = Err(libc::EBADF);
            effects.post(from, CarryMessage::DescriptionReply { request, result });
            return;
        };
        let (file, lock) = (Arc::clone(&found.file), Arc::clone(&found.lock));
        if let DescriptionOperation::Lock { operation } = operation
            && operation & (libc::LOCK_NB | libc::LOCK_UN) == 0
        {
            self.home_lock((from, request), file, &lock, operation, engine, effects);
            return;
        }
        // Answers EAGAIN if it is dropped undone, because no worker has room for it.
        let answer = Answer { engine, to: from, request, result: Err(libc::EAGAIN) };
        effects.jobs.push(Box::new(move || {
            let Some(engine) = answer.engine.upgrade() else { return };
            let result = match operation {
                DescriptionOperation::Lock { operation } => {
                    lock.now(&file, operation).map(|()| DescriptionOutcome::Done)
                }
                other => description::perform(&file, other, &|file| engine.attributes(file)),
            };
            drop(file);
            answer.finish(result);
        }));
    }

    /// Waits for a lock in a thread of its own.
    fn home_lock(
        &mut self,
        (from, request): (u16, u64),
        file: Arc<File>,
        lock: &Arc<DescriptionLock>,
        operation: i32,
        engine: Weak<Engine>,
        effects: &mut Effects,
    ) {
        let mut answer = Answer { engine, to: from, request, result: Err(libc::ENOLCK) };
        if self.home.waiting_locks.len() >= description::MAX_LOCK_WAITERS {
            effects.callbacks.push(Box::new(move || drop(answer)));
            return;
        }
        let waiting = Waiting { lock: Arc::clone(lock), waiter: Arc::new(lock.begin()) };
        self.home.waiting_locks.insert((from, request), waiting.clone());
        effects.callbacks.push(Box::new(move || {
            let inside = waiting.clone();
            let started = std::thread::Builder::new().name("carry-lock".into()).spawn(move || {
                if let Some(engine) = answer.engine.upgrade() {
                    engine.config.enter();
                }
                match inside.lock.wait(&inside.waiter, &file, operation) {
                    Some(result) => answer.result = result.map(|()| DescriptionOutcome::Done),
                    None => answer.forget(),
                }
                drop(file);
                drop(answer);
            });
            if started.is_err() {
                // The answer was dropped with the thread's work and has said ENOLCK.
                waiting.lock.give_up(&waiting.waiter);
            }
        }));
    }

    pub(super) fn home_describe_cancelled(
        &mut self,
        from: u16,
        request: u64,
        effects: &mut Effects,
    ) {
        if let Some(waiting) = self.home.waiting_locks.get(&(from, request))
            && waiting.lock.give_up(&waiting.waiter)
        {
            let result = Err(libc::EINTR);
            effects.post(from, CarryMessage::DescriptionReply { request, result });
        }
    }

    pub(super) fn home_description_dropped(
        &mut self,
        from: u16,
        number: DescriptionId,
        effects: &mut Effects,
    ) {
        if self.home.descriptions.get(&number).is_some_and(|found| found.to == from) {
            effects.close(self.home.descriptions.remove(&number));
        }
    }
}

/// The reply to one request, sent when the job ends or is dropped.
struct Answer {
    engine: Weak<Engine>,
    to: u16,
    request: u64,
    result: Result<DescriptionOutcome, i32>,
}

impl Answer {
    /// The request was answered by somebody else.
    fn forget(&mut self) {
        if let Some(engine) = std::mem::take(&mut self.engine).upgrade() {
            engine.locked(|state, _| {
                state.home.waiting_locks.remove(&(self.to, self.request));
            });
        }
    }

    fn finish(mut self, result: Result<DescriptionOutcome, i32>) {
        self.result = result;
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.upgrade() {
            let result = std::mem::replace(&mut self.result, Err(libc::EIO));
            engine.reply(self.to, self.request, result);
        }
    }
}

impl Engine {
    /// `fstat` with the owner as the DC has it.
    fn attributes(&self, file: &File) -> Result<FileAttributes, i32> {
        let found = crate::classify::attributes(file).map_err(|error| error.errno)?;
        Ok(self.config.inside(found))
    }
}
