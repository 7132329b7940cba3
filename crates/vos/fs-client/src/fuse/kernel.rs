//! The way back to the kernel: what it keeps and must not any more.

use super::serve::Session;
use crate::notices::Invalidator;
use dvs_fs::messages::InodeId;
use dvs_sys::fuse::Device;
use std::sync::{Arc, Weak};

/// The kernel behind a mount. Its methods run on the client's thread for notices. An error means
/// that the kernel does not have what is stale.
pub(super) struct Kernel {
    session: Weak<Session>,
    device: Arc<Device>,
}

impl Kernel {
    pub(super) fn new(session: &Arc<Session>, device: Arc<Device>) -> Kernel {
        Kernel { session: Arc::downgrade(session), device }
    }

    /// The id of an object, and what `note` takes from its node.
    fn id<T>(
        &self,
        inode: InodeId,
        note: impl FnOnce(&mut super::nodes::Node) -> T,
    ) -> Option<(u64, T)> {
        let session = self.session.upgrade()?;
        let mut nodes = session.nodes.lock().unwrap();
        let id = nodes.id(inode)?;
        let noted = note(nodes.of(inode)?);
        Some((id, noted))
    }
}

impl Invalidator for Kernel {
    fn attributes(&self, inode: InodeId) {
        if let Some((id, ())) = self.id(inode, |_| ()) {
            // A negative offset: no pages, so nothing to wait for.
            let _ = self.device.invalidate_inode(id, -1, 0);
        }
    }

    fn content(&self, inode: InodeId) {
        if let Some((id, ())) = self.id(inode, |_| ()) {
            let _ = self.device.invalidate_inode(id, 0, 0);
        }
    }

    fn name(&self, parent: InodeId, name: &[u8]) {
        // Names are kept by the client, except where the kernel was told that they never change.
        if let Some((id, true)) = self.id(parent, |node| node.keeps_names) {
            let _ = self.device.invalidate_entry(id, name);
        }
    }
}
