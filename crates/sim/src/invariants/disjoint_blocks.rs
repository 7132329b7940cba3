//! No pid belongs to two nodes, whatever the nodes believe and however late they hear.

use dvs_pm::blocks::Block;
use std::collections::BTreeMap;

/// Watches which life of which node uses which pid block.
#[derive(Debug, Default)]
pub struct DisjointBlocks {
    users: BTreeMap<Block, (u16, u64)>,
}

impl DisjointBlocks {
    /// A life of a node begins to use a block.
    ///
    /// # Panics
    /// When another one ever used it: in these runs no block comes back.
    pub fn takes(&mut self, block: Block, node: u16, incarnation: u64) {
        let user = *self.users.entry(block).or_insert((node, incarnation));
        assert_eq!(user, (node, incarnation), "two users of the pids from {}", block.first);
    }

    /// Blocks in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}
