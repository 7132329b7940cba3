//! Pid blocks: every pid of a DC belongs to the node that leases its block.
//!
//! A node gives the pids of its own blocks to the processes that it forks, so a pid means the same
//! process on every node and `clone3(set_tid)` of another node's pid can never collide. The model's
//! name for this is SLOTS (Pessolani, distributed allocation of process slots). Blocks are leased on
//! demand, lowest number never used first; a dead node's blocks are not given out again while
//! ghosts of its programs may live, that is until the pid space is used up and the node is forgotten.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Pids of one block.
pub const BLOCK: u32 = 8192;
/// One above the largest pid that a child pid namespace of Linux accepts.
pub const PID_LIMIT: u32 = 4_194_304;
/// Most blocks that one node may hold at a time.
pub const MAX_BLOCKS_PER_NODE: usize = 32;

/// A leased range of pids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Block {
    /// First pid of the block; a multiple of [`BLOCK`].
    pub first: u32,
}

impl Block {
    /// The block that a pid lies in.
    #[must_use]
    pub fn of(pid: u32) -> Block {
        Block { first: pid / BLOCK * BLOCK }
    }

    /// One above the last pid.
    #[must_use]
    pub fn end(self) -> u32 {
        self.first + BLOCK
    }

    /// Whether a pid lies in it.
    #[must_use]
    pub fn contains(self, pid: u32) -> bool {
        pid >= self.first && pid < self.end()
    }
}

/// Why no block was leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum LeaseError {
    /// The node holds [`MAX_BLOCKS_PER_NODE`] already.
    #[error("node {0} holds {MAX_BLOCKS_PER_NODE} pid blocks already; end processes there")]
    TooMany(u16),
    /// All pids of the DC are leased.
    #[error("all pid blocks of the container are leased; remove a node or end the container")]
    Exhausted,
}

/// Which node leases which block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidBlocks {
    owners: BTreeMap<Block, u16>,
    lost: BTreeMap<Block, u16>,
    next: u32,
}

impl PidBlocks {
    /// No block leased. Block 0 is never given out: it holds pid 1 and numbers that programs treat
    /// specially.
    #[must_use]
    pub fn new() -> Self {
        PidBlocks { owners: BTreeMap::new(), lost: BTreeMap::new(), next: BLOCK }
    }

    /// Leases one more block to a node.
    ///
    /// # Errors
    /// When the node has its fill or no pid is left.
    pub fn lease(&mut self, node: u16) -> Result<Block, LeaseError> {
        if self.of_node(node).count() >= MAX_BLOCKS_PER_NODE {
            return Err(LeaseError::TooMany(node));
        }
        let block = if self.next < PID_LIMIT {
            let block = Block { first: self.next };
            self.next += BLOCK;
            block
        } else {
            self.reusable().ok_or(LeaseError::Exhausted)?
        };
        self.lost.remove(&block);
        self.owners.insert(block, node);
        Ok(block)
    }

    fn reusable(&self) -> Option<Block> {
        (1..PID_LIMIT / BLOCK)
            .map(|index| Block { first: index * BLOCK })
            .find(|block| !self.owners.contains_key(block) && !self.lost.contains_key(block))
    }

    /// Gives a block back: no process of it is alive anywhere. False if the node does not hold it.
    pub fn give_back(&mut self, node: u16, block: Block) -> bool {
        if self.owners.get(&block) == Some(&node) {
            self.owners.remove(&block);
            true
        } else {
            false
        }
    }

    /// A node is lost: its blocks answer to nobody and are kept out of use.
    pub fn node_lost(&mut self, node: u16) {
        let blocks: Vec<Block> = self.of_node(node).collect();
        for block in blocks {
            self.owners.remove(&block);
            self.lost.insert(block, node);
        }
    }

    /// Nothing of a lost node is left anywhere: its blocks may be used again.
    pub fn forget(&mut self, node: u16) {
        self.lost.retain(|_, lost| *lost != node);
    }

    /// The node that a pid belongs to, if it is leased and its node alive.
    #[must_use]
    pub fn owner(&self, pid: u32) -> Option<u16> {
        self.owners.get(&Block::of(pid)).copied()
    }

    /// The blocks of a node, lowest first.
    pub fn of_node(&self, node: u16) -> impl Iterator<Item = Block> + '_ {
        self.owners.iter().filter(move |(_, owner)| **owner == node).map(|(block, _)| *block)
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = (Block, u16)> + '_ {
        self.owners.iter().map(|(block, node)| (*block, *node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_disjoint_and_owned() {
        let mut blocks = PidBlocks::new();
        let a = blocks.lease(1).unwrap();
        let b = blocks.lease(2).unwrap();
        let c = blocks.lease(1).unwrap();
        assert!(a != b && b != c && a != c);
        assert_eq!(blocks.owner(a.first), Some(1));
        assert_eq!(blocks.owner(a.end() - 1), Some(1));
        assert_eq!(blocks.owner(b.first + 5), Some(2));
        assert_eq!(blocks.owner(1), None);
        assert_eq!(blocks.of_node(1).collect::<Vec<_>>(), vec![a, c]);
    }

    #[test]
    fn a_node_cannot_take_all() {
        let mut blocks = PidBlocks::new();
        for _ in 0..MAX_BLOCKS_PER_NODE {
            blocks.lease(1).unwrap();
        }
        assert_eq!(blocks.lease(1), Err(LeaseError::TooMany(1)));
        assert!(blocks.lease(2).is_ok());
    }

    #[test]
    fn exhaustion_is_an_error_and_ends_when_blocks_come_back() {
        let mut blocks = PidBlocks::new();
        let total = PID_LIMIT / BLOCK - 1;
        for index in 0..total {
            blocks.lease((index / 32) as u16).unwrap();
        }
        assert_eq!(blocks.lease(999), Err(LeaseError::Exhausted));
        blocks.node_lost(0);
        assert_eq!(blocks.lease(999), Err(LeaseError::Exhausted), "lost blocks stay out of use");
        assert_eq!(blocks.owner(BLOCK), None);
        blocks.forget(0);
        assert_eq!(blocks.lease(999), Ok(Block { first: BLOCK }));
        assert!(!blocks.give_back(1, Block { first: BLOCK }));
        assert!(blocks.give_back(999, Block { first: BLOCK }));
        assert_eq!(blocks.lease(998), Ok(Block { first: BLOCK }));
    }
}
