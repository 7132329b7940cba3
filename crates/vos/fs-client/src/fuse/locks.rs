//! Record locks and `flock`, decided at the server.

use super::convert;
use super::serve::{Answer, Served, Session};
use dvs_fs::messages::{LockFamily, LockKind, LockOwner, LockRange, Operation as Ask, Outcome};
use dvs_sys::fuse::abi::flag;
use dvs_sys::fuse::reply::Body;
use dvs_sys::fuse::request::LockArguments;
use dvs_sys::fuse::{Device, Header};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Pause between two cancellations of one request, doubled with each: a cancellation may overtake
/// the request that it is for, and is then not heeded.
const CANCEL_PAUSE: Duration = Duration::from_millis(5);
/// The pause grows up to this.
const MAX_CANCEL_PAUSE: Duration = Duration::from_millis(500);

impl Session {
    pub(super) fn test_lock(&self, h: &Header, given: &LockArguments, body: &mut Body) -> Served {
        let inode = self.inode(h.node)?;
        let handle = self.tree_handle(h, inode, given.handle)?;
        let lock = convert::lock_range(&given.lock).ok_or(libc::EINVAL)?;
        let operation = Ask::TestLock { inode, handle, owner: LockOwner(given.owner), lock };
        let mut outcome = self.client.perform(convert::credentials(h), operation.clone())?.outcome;
        if matches!(outcome, Outcome::Lock(Some(_))) {
            self.releases.settle();
            outcome = self.client.perform(convert::credentials(h), operation)?.outcome;
        }
        match outcome {
            Outcome::Lock(conflict) => {
                body.lock(&convert::file_lock(conflict));
                Ok(Answer::Body)
            }
            _ => Err(libc::EIO),
        }
    }

    pub(super) fn set_lock(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        given: &LockArguments,
        wait: bool,
    ) -> Served {
        let lock = convert::lock_range(&given.lock).ok_or(libc::EINVAL)?;
        let flock = given.flags & flag::LK_FLOCK != 0;
        if flock && let Some(file) = self.attached.get(given.handle) {
            return self.flock_attached(device, h, file, lock.kind, wait);
        }
        let inode = self.inode(h.node)?;
        let handle = self.tree_handle(h, inode, given.handle)?;
        if !flock {
            self.node(h.node, |node| node.locked = true)?;
        }
        let family = if flock { LockFamily::Flock } else { LockFamily::Record };
        let lock = if flock { LockRange { start: 0, end: u64::MAX, ..lock } } else { lock };
        let wait = wait && lock.kind != LockKind::Unlock;
        let owner = LockOwner(given.owner);
        let operation = Ask::SetLock { inode, handle, owner, family, lock, wait };
        if !wait {
            return match self.done(h, operation.clone()) {
                Err(libc::EAGAIN) => {
                    self.releases.settle();
                    self.done(h, operation)
                }
                other => other,
            };
        }
        let session = Arc::clone(self);
        let credentials = convert::credentials(h);
        let unique = h.unique;
        self.later(device, h, libc::ENOLCK, move || {
            let sequence = session.client.open_number();
            let cancellation = Arc::new(Cancellation::default());
            let cancel = {
                let (session, cancellation) = (Arc::clone(&session), Arc::clone(&cancellation));
                Arc::new(move || cancellation.start(&session, sequence))
            };
            let result = if session.interrupts.wait(unique, cancel) {
                session.client.perform_as(sequence, credentials, operation)
            } else {
                session.client.close_number(sequence);
                Err(libc::EINTR)
            };
            cancellation.answered();
            result.map(|_| Vec::new())
        })
    }

    /// Does something that may wait, on a thread of its own, and answers there; with `refusal` when
    /// too much waits already.
    pub(super) fn later(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        refusal: i32,
        work: impl FnOnce() -> Result<Vec<u8>, i32> + Send + 'static,
    ) -> Served {
        let (session, device, unique) = (Arc::clone(self), Arc::clone(device), h.unique);
        self.interrupts.enter(unique);
        let taken = self.waiters.run(Box::new(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                .unwrap_or(Err(libc::EIO));
            session.interrupts.leave(unique);
            // Fails only when nobody waits for the answer any more.
            let _ = match result {
                Ok(data) => device.reply(unique, 0, &data),
                Err(errno) => device.reply(unique, errno, &[]),
            };
        }));
        if !taken {
            self.interrupts.leave(unique);
            return Err(refusal);
        }
        Ok(Answer::Later)
    }
}

/// Cancels one request again and again until it is answered.
#[derive(Default)]
struct Cancellation {
    answered: Mutex<bool>,
    changed: Condvar,
}

impl Cancellation {
    fn start(self: &Arc<Self>, session: &Arc<Session>, sequence: u64) {
        let (this, client) = (Arc::clone(self), Arc::clone(&session.client));
        // As many as requests that wait, which are bounded; if no thread is left, once is tried.
        client.cancel(sequence);
        let _ = std::thread::Builder::new()
            .name("fs-cancel".into())
            .stack_size(64 << 10)
            .spawn(move || this.run(&client, sequence));
    }

    fn run(&self, client: &crate::client::Client, sequence: u64) {
        let mut pause = CANCEL_PAUSE;
        let mut answered = self.answered.lock().unwrap();
        loop {
            answered = self.changed.wait_timeout(answered, pause).unwrap().0;
            if *answered || client.is_gone() {
                return;
            }
            client.cancel(sequence);
            pause = (pause * 2).min(MAX_CANCEL_PAUSE);
        }
    }

    fn answered(&self) {
        *self.answered.lock().unwrap() = true;
        self.changed.notify_all();
    }
}
