//! What the server knows of one client's life: its requests, references and open files.

use crate::messages::{Handle, InodeId, Reply};
use crate::tree::{FileToken, Life};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most replies that are kept for repeated requests; the oldest are dropped first.
pub const MAX_REPLIES: usize = 1024;
/// Most requests of one client under way; more are refused with `EBUSY`.
pub const MAX_RUNNING: usize = 8192;
/// Most open files of one client; more are refused with `ENFILE`.
pub const MAX_OPEN: usize = 65536;

/// An open file of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The object.
    pub inode: InodeId,
    /// At the tree.
    pub file: FileToken,
    /// Whether it is a directory.
    pub directory: bool,
    /// Whether it can write.
    pub writes: bool,
    /// How the object can change.
    pub life: Life,
}

/// How a request with some number is to be taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// For the first time.
    New,
    /// Once more, while it is under way: its answer will come.
    UnderWay,
    /// Once more: this was the answer.
    Answered(Box<Reply>),
    /// So old that its answer has been confirmed or dropped: nobody can wait for it.
    Old,
    /// Too many are under way.
    Full,
}

/// One client's life.
#[derive(Debug, Default)]
pub struct Session {
    /// References of its kernel to objects.
    pub references: HashMap<InodeId, u64>,
    /// Its open files.
    pub open: HashMap<Handle, Open>,
    next_handle: u64,
    running: BTreeSet<u64>,
    replies: BTreeMap<u64, Reply>,
    /// Everything up to here has been answered and confirmed, or dropped.
    settled: u64,
}

impl Session {
    /// Takes a request's number, and the number up to which the client has its answers.
    pub fn admit(&mut self, sequence: u64, answered: u64) -> Admission {
        if answered > self.settled {
            self.settled = answered;
            self.replies = self.replies.split_off(&(answered + 1));
        }
        if let Some(reply) = self.replies.get(&sequence) {
            Admission::Answered(Box::new(reply.clone()))
        } else if self.running.contains(&sequence) {
            Admission::UnderWay
        } else if sequence <= self.settled {
            Admission::Old
        } else if self.running.len() >= MAX_RUNNING {
            Admission::Full
        } else {
            self.running.insert(sequence);
            Admission::New
        }
    }

    /// The request has its answer. `keep`: it must not run twice.
    pub fn answer(&mut self, reply: &Reply, keep: bool) {
        self.running.remove(&reply.sequence);
        if keep && reply.sequence > self.settled {
            self.replies.insert(reply.sequence, reply.clone());
            if self.replies.len() > MAX_REPLIES
                && let Some((oldest, _)) = self.replies.pop_first()
            {
                self.settled = self.settled.max(oldest);
            }
        }
    }

    /// The request needs no answer and may come again.
    pub fn drop_request(&mut self, sequence: u64) {
        self.running.remove(&sequence);
    }

    /// A new open file, if there is room.
    pub fn add_open(&mut self, open: Open) -> Option<Handle> {
        if self.open.len() >= MAX_OPEN {
            return None;
        }
        self.next_handle += 1;
        let handle = Handle(self.next_handle);
        self.open.insert(handle, open);
        Some(handle)
    }
}
