//! Batches: what one thread sends in a row is written to the link by one call.
//!
//! The reader of a link is in a batch while it handles what it has read, so that the answers to
//! many requests go out together; it ends the batch before it waits for more, so that the answer to
//! a single one is not delayed.

use crate::ids::Lane;
use crate::node::Shared;
use crate::peer::Peer;
use std::cell::RefCell;
use std::sync::Arc;

/// A batch is written at the latest after so many messages.
pub(crate) const BATCH: usize = 64;

type Postponed = (Arc<Shared>, Arc<Peer>, Lane);

#[derive(Default)]
struct Batch {
    /// How many batches are open, one inside the other.
    depth: usize,
    messages: usize,
    /// Lanes that have something to write; a few at most, so a list does.
    lanes: Vec<Postponed>,
}

thread_local! {
    static BATCH_OF_THREAD: RefCell<Batch> = RefCell::default();
}

/// Runs `body`; what it sends to other nodes may be held back until its end, so that it is written
/// together. Whatever waits inside (call, send, receive) writes it first.
pub fn batched<T>(body: impl FnOnce() -> T) -> T {
    let _open = Open::new();
    body()
}

/// An open batch of this thread.
pub(crate) struct Open(());

impl Open {
    pub(crate) fn new() -> Self {
        BATCH_OF_THREAD.with_borrow_mut(|batch| batch.depth += 1);
        Open(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let last = BATCH_OF_THREAD.with_borrow_mut(|batch| {
            batch.depth -= 1;
            batch.depth == 0
        });
        if last {
            flush();
        }
    }
}

/// Whether a lane's writing is put off to the end of a batch of this thread.
pub(crate) fn postpone(shared: &Arc<Shared>, peer: &Arc<Peer>, lane: Lane) -> bool {
    BATCH_OF_THREAD.with_borrow_mut(|batch| {
        if batch.depth == 0 {
            return false;
        }
        batch.messages += 1;
        if batch.messages >= BATCH {
            // This one is written now, with all of its lane; the others wait for the end.
            batch.messages = 0;
            return false;
        }
        let is_this = |(_, other, of): &Postponed| Arc::ptr_eq(other, peer) && *of == lane;
        if !batch.lanes.iter().any(is_this) {
            batch.lanes.push((Arc::clone(shared), Arc::clone(peer), lane));
        }
        true
    })
}

/// Writes what was put off.
pub(crate) fn flush() {
    let lanes = BATCH_OF_THREAD.with_borrow_mut(|batch| {
        batch.messages = 0;
        std::mem::take(&mut batch.lanes)
    });
    for (shared, peer, lane) in lanes {
        peer.flush(&shared, lane);
    }
}
