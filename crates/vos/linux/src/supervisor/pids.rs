//! Pid blocks: which node a pid belongs to, and keeping this node's new pids in blocks of its own.

use super::Personality;
use dvs_pm::blocks::Block;
use dvs_sys::task::TaskStatus;
use std::collections::BTreeMap;
use std::sync::Arc;

/// So many pids before its end a block counts as used up: what is forked before the next look must
/// still fit.
const MARGIN: u32 = 2048;

/// The leases that this node knows.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    owners: BTreeMap<Block, u16>,
    leasing: bool,
}

impl Blocks {
    pub(crate) fn node_lost(&mut self, node: u16) {
        self.owners.retain(|_, owner| *owner != node);
    }
}

impl Personality {
    /// A block is leased to a node (this one or another).
    pub fn block_leased(&self, block: Block, node: u16) {
        self.blocks.lock().unwrap().owners.insert(block, node);
    }

    /// The other node to which a pid is leased.
    pub(crate) fn foreign_owner(&self, pid: u32) -> Option<u16> {
        let owner = self.blocks.lock().unwrap().owners.get(&Block::of(pid)).copied();
        owner.filter(|node| *node != self.config.node)
    }

    /// Looks at the pid of a process that executes something, which is mostly a new one, and moves on
    /// to another block when it is near the end of this one, or outside all of ours.
    pub(crate) fn check_pids(self: &Arc<Self>, thread: u32) {
        let Ok(status) = TaskStatus::read(thread) else { return };
        let pid = status.inner_process();
        if self.bodies.lock().unwrap().is_body(status.process) {
            return;
        }
        {
            let mut blocks = self.blocks.lock().unwrap();
            if blocks.owners.is_empty() || blocks.leasing {
                return;
            }
            let block = Block::of(pid);
            let ours = blocks.owners.get(&block) == Some(&self.config.node);
            // A later block of ours is in use already.
            let old = blocks
                .owners
                .iter()
                .any(|(other, node)| *node == self.config.node && other.first > block.first);
            if old || (ours && pid + MARGIN < block.end()) {
                return;
            }
            blocks.leasing = true;
        }
        let personality = Arc::clone(self);
        let started = self.pool.run(move || {
            if let Some(block) = personality.lease.lease() {
                personality.block_leased(block, personality.config.node);
                // Where that fails the next look tries again.
                let _ = personality.launcher.aim_pids(block.first);
            }
            personality.blocks.lock().unwrap().leasing = false;
        });
        if started.is_err() {
            self.blocks.lock().unwrap().leasing = false;
        }
    }
}
