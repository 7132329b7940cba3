//! Names of things: nodes, distributed containers, endpoints, lanes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One host of the cluster.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct NodeId(pub u16);

impl From<u16> for NodeId {
    fn from(number: u16) -> Self {
        NodeId(number)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

/// A distributed container: the domain that no message leaves.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct DcId(pub u64);

impl fmt::Display for DcId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:x}", self.0)
    }
}

/// Where an endpoint is. Plain data: it may be sent, stored and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The container that the endpoint belongs to.
    pub dc: DcId,
    /// The node that it runs on.
    pub node: NodeId,
    /// The life of that node; the address dies with it.
    pub incarnation: u64,
    /// Number of the endpoint, unique within the container and the life of the node.
    pub number: u64,
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "endpoint {:x} of container {} on node {}", self.number, self.dc, self.node)
    }
}

/// Connections between two nodes: messages of one pair of endpoints keep their order on each lane,
/// and have none between lanes. A reply takes the lane of its call.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub enum Lane {
    /// Short messages that somebody waits for; the default.
    #[default]
    Small,
    /// Blocks of data, so that short messages need not queue behind them.
    Bulk,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Lane; 2] = [Lane::Small, Lane::Bulk];

    /// Position in [`Lane::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Lane::Small => 0,
            Lane::Bulk => 1,
        }
    }

    /// The lane at a position.
    #[must_use]
    pub fn at(index: usize) -> Option<Lane> {
        Lane::ALL.get(index).copied()
    }
}
