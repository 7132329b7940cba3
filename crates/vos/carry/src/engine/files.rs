//! Home's side of shared descriptions: requests from away, done by workers or, for locks, by a thread
//! that may wait.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use dvs_sys::flock::flock;

use super::{Effects, Engine, State};
use crate::description;
use crate::messages::{
    CarryMessage, DescriptionId, DescriptionOperation, DescriptionOutcome, FileAttributes,
};

/// A description kept for another node.
pub(super) struct Description {
    pub(super) to: u16,
    pub(super) file: Arc<File>,
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
        let file = Arc::clone(&found.file);
        if let DescriptionOperation::Lock { operation } = operation
            && operation & (libc::LOCK_NB | libc::LOCK_UN) == 0
        {
            self.home_lock(from, request, file, operation, engine, effects);
            return;
        }
        // Answers EAGAIN if it is dropped undone, because no worker has room for it.
        let answer = Answer { engine, to: from, request, result: Err(libc::EAGAIN) };
        effects.jobs.push(Box::new(move || {
            let Some(engine) = answer.engine.upgrade() else { return };
            let attributes = |file: &File| engine.attributes(file);
            let result = description::perform(&file, operation, &attributes);
            drop(file);
            answer.finish(result);
        }));
    }

    /// Waits for a lock in a thread of its own, or not at all if it is free.
    fn home_lock(
        &mut self,
        from: u16,
        request: u64,
        file: Arc<File>,
        operation: i32,
        engine: Weak<Engine>,
        effects: &mut Effects,
    ) {
        let mut answer = Answer { engine, to: from, request, result: Err(libc::ENOLCK) };
        if self.home.waiting_locks.len() >= description::MAX_LOCK_WAITERS {
            effects.callbacks.push(Box::new(move || drop(answer)));
            return;
        }
        let unwanted = Arc::new(AtomicBool::new(false));
        self.home.waiting_locks.insert((from, request), Arc::clone(&unwanted));
        effects.callbacks.push(Box::new(move || {
            // Not started: the answer is dropped and says ENOLCK.
            let _ = std::thread::Builder::new().name("carry-lock".into()).spawn(move || {
                answer.result = loop {
                    match flock(&*file, operation) {
                        Err(error) if error.errno == libc::EINTR => {}
                        other => break other.map(|()| DescriptionOutcome::Done),
                    }
                }
                .map_err(|error| error.errno);
                if unwanted.swap(true, Ordering::AcqRel) {
                    // Answered already: what came too late is given back.
                    if answer.result.is_ok() {
                        let _ = flock(&*file, libc::LOCK_UN);
                    }
                    answer.forget();
                }
                drop(file);
                drop(answer);
            });
        }));
    }

    pub(super) fn home_describe_cancelled(
        &mut self,
        from: u16,
        request: u64,
        effects: &mut Effects,
    ) {
        if let Some(unwanted) = self.home.waiting_locks.get(&(from, request))
            && !unwanted.swap(true, Ordering::AcqRel)
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
