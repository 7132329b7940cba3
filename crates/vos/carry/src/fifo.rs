//! Named FIFOs between nodes.
//!
//! A FIFO of the tree is a pipe of the kernel, and each node's mount has its own. So the *readers* of
//! a FIFO are kept on one node, where its real pipe is; writers may be anywhere. A writer opens a
//! *writers' end* instead of the real FIFO: another inode of the mount with a pipe of its own, which is
//! emptied into the real one by an output stream, as the pipe of a placed program is.
//!
//! No call is trapped. The file system asks for the attributes of a FIFO as the last thing before it is
//! opened, and while a thread waits for that answer its call can be looked at: so every opening is
//! known just before it happens ([`Opener`]). What must be natively so stays so: an open waits for its
//! other end in the kernel, a writer without a reader gets `ENXIO` or `SIGPIPE`, a reader sees the end
//! when the last writer is gone.
//!
//! | role | node | knows |
//! |---|---|---|
//! | registrar | the container's home | which node reads, who waits for a reader |
//! | reader | where the FIFO is read | its openers, the streams that come in |
//! | writer | every node with a writer | its openers, its stream |
//!
//! `core` is the protocol, `bridge` the thread that does what it wants. A second node that opens the
//! FIFO for reading while the first one does is refused ([`FifoRefusal`]): bytes of a pipe go to one
//! reader only, and who it is cannot be decided between nodes before one of them really reads.

pub(crate) mod bridge;
pub(crate) mod core;
#[cfg(test)]
mod simulation;

use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

use crate::messages::StreamId;

/// Most FIFOs that are known at a time, in each role.
pub const MAX_FIFOS: usize = 16_384;

/// A FIFO of the DC's tree: its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FifoId {
    /// Number.
    pub number: u64,
    /// Generation.
    pub generation: u32,
}

/// Which of a node's pipes for one FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FifoEnd {
    /// The FIFO itself.
    Real,
    /// What writers open instead.
    Writers,
}

/// A thread that is opening something: as long as it is in this very call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opener {
    /// Its number for this process.
    pub thread: u32,
    /// What tells the call from its other calls.
    pub call: String,
}

/// Why a FIFO cannot be opened here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FifoRefusal {
    /// Another node's programs read it.
    #[error("the FIFO is being read on node {0}, and a FIFO can be read on one node only")]
    ReadElsewhere(u16),
    /// Over [`MAX_FIFOS`], or the container is ending.
    #[error("too many FIFOs are in use")]
    TooMany,
}

/// What a bridge needs of the container.
pub trait FifoHost: Send + Sync {
    /// Opens an end of a FIFO in the container's mount. `flags` have `O_NONBLOCK`.
    ///
    /// # Errors
    /// errno; `ENXIO`: to be written, and nobody reads.
    fn open(&self, fifo: FifoId, end: FifoEnd, flags: i32) -> Result<OwnedFd, i32>;

    /// Whether the thread is still in that call.
    fn is_opening(&self, opener: &Opener) -> bool;
}

/// What nodes say to each other of one FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FifoMessage {
    /// To the registrar: a program here wants to read.
    Claim,
    /// Its answer: it may, or another node reads.
    Claimed(Result<(), u16>),
    /// Registrar to the reader's node: somebody else wants to read.
    YieldAsked,
    /// To the registrar: nobody reads here (any more), or somebody does.
    Yielded(bool),
    /// To the registrar: a program here wants to write.
    Want,
    /// Its answer: nobody reads; it will say when somebody does.
    Waiting,
    /// The other answer, or what follows later: this node reads.
    Offer(u16),
    /// To the registrar: nobody wants to write any more.
    Withdraw,
    /// Writer's node to the reader's: let me in.
    Connect,
    /// Its answer: this stream goes into the FIFO.
    Granted {
        /// Which.
        stream: StreamId,
        /// Bytes that may be sent at once.
        credit: u64,
    },
    /// The other answer: nobody reads here.
    NoReader,
}
