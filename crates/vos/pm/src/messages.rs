//! What nodes ask the process manager of their DC, and what it tells them.

use crate::blocks::{Block, LeaseError};
use serde::{Deserialize, Serialize};

/// Version of these messages.
pub const PROTOCOL: u32 = 1;
/// Most nodes of one DC.
pub const MAX_MEMBERS: usize = 256;

/// One life of one node's part of the DC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Client {
    /// The node.
    pub node: u16,
    /// Which life of it.
    pub incarnation: u64,
}

/// A request; a repeated one (same client and sequence) is answered as before and not done again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks.
    pub client: Client,
    /// Rises with each request of the client's life, from 1.
    pub sequence: u64,
    /// What.
    pub body: Ask,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Take part in the DC. Answer: [`Answer::Joined`].
    Join {
        /// [`PROTOCOL`] of the node.
        protocol: u32,
        /// CPUs of the node in thousandths, its quota considered.
        millicpus: u32,
    },
    /// One more pid block. Answer: [`Answer::Block`].
    LeaseBlock,
    /// No process of the block is alive anywhere. Answer: [`Answer::Done`].
    GiveBack(Block),
    /// Load of the node. Answer: [`Answer::Done`].
    Report(Load),
    /// End taking part. Answer: [`Answer::Done`].
    Leave,
}

/// Load of a node as it measures it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Runnable tasks of the DC on the node.
    pub runnable: u32,
    /// CPUs in thousandths, the quota considered.
    pub millicpus: u32,
}

/// One node of the DC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its life.
    pub client: Client,
    /// Its last report.
    pub load: Load,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// Taken in.
    Joined {
        /// First pid block.
        block: Block,
        /// All nodes of the DC, the new one included.
        members: Vec<Member>,
        /// Who leases which block.
        blocks: Vec<(Block, u16)>,
    },
    /// A leased block.
    Block(Block),
    /// No block.
    NoBlock(LeaseError),
    /// The request cannot be answered.
    Refused(Refusal),
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Versions differ.
    #[error(
        "the container's process manager speaks version {ours}, node {node} version {theirs}; run the same version of dvs on both"
    )]
    Protocol {
        /// The node.
        node: u16,
        /// Manager's version.
        ours: u32,
        /// Node's version.
        theirs: u32,
    },
    /// Not a member, or a life that is over.
    #[error("node {0} is not (or no longer) part of the container; join it again")]
    NotAMember(u16),
    /// Bound reached.
    #[error("the container has {MAX_MEMBERS} nodes, which is the limit")]
    TooManyMembers,
    /// An older request than the last answered one.
    #[error("request {0} is older than the last one answered")]
    Outdated(u64),
}

/// What the manager tells every node unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// A node takes part from now on.
    Joined(Member),
    /// A node is lost or left: its programs are gone.
    Gone(Client),
    /// A block has a (new) owner.
    Leased(Block, u16),
    /// Load of a node.
    Load(u16, Load),
}
