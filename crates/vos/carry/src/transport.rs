//! What a carrier needs from outside: a way to its peers, and the file system's attached descriptions.

use std::sync::Arc;

use crate::description::SharedDescription;
use crate::messages::{CarryMessage, FileAttributes};

/// The peer cannot be reached any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("node {0} is gone")]
pub struct NodeGone(pub u16);

/// The way to the carriers of the same DC on other nodes.
///
/// Messages to one node arrive in the order in which they were posted, each once, or not at all from
/// some point on; then the node is reported to [`crate::Carrier::node_gone`]. `post` may wait a
/// bounded time for room but must not wait for the peer to handle anything: a carrier calls it with
/// no lock held, and what it has in flight is bounded by credits.
pub trait CarryTransport: Send + Sync {
    /// Sends one message.
    fn post(&self, to: u16, message: CarryMessage) -> Result<(), NodeGone>;
}

/// What the file system's mount shall show for an attached description.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// Reads and writes go here.
    pub description: Arc<SharedDescription>,
    /// `fstat` as it was when the program was placed; nothing for a file of the tree.
    pub attributes: FileAttributes,
    /// Its number in the DC's tree, if it is there: then attributes, length and record locks are the
    /// file system's business, and only reads, writes and `flock` go to the description.
    pub inode: Option<u64>,
    /// Access mode and status flags.
    pub flags: u32,
    /// Position at the start.
    pub position: u64,
    /// The file's path at home, for messages.
    pub path: Vec<u8>,
}

/// Makes a shared description openable in the guest's tree, once.
pub trait Attacher: Send + Sync {
    /// The path that the new process opens to get it, or an errno.
    fn attach(&self, request: AttachRequest) -> Result<Vec<u8>, i32>;
}

/// For carriers without a file system: every regular file is refused (the launch fails with
/// `ENOSYS`, and the program goes on at home).
#[derive(Debug, Clone, Copy, Default)]
pub struct NoAttacher;

impl Attacher for NoAttacher {
    fn attach(&self, _request: AttachRequest) -> Result<Vec<u8>, i32> {
        Err(libc::ENOSYS)
    }
}
