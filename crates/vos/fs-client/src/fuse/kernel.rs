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

    /// The ids under which the kernel may know an object.
    fn ids(&self, inode: InodeId) -> Vec<u64> {
        let session = self.session.upgrade();
        session.map_or_else(Vec::new, |session| session.nodes.lock().unwrap().ids(inode))
    }
}

impl Invalidator for Kernel {
    fn attributes(&self, inode: InodeId) {
        for id in self.ids(inode) {
            // A negative offset: no pages, so nothing to wait for.
            let _ = self.device.invalidate_inode(id, -1, 0);
        }
    }

    fn content(&self, inode: InodeId) {
        for id in self.ids(inode) {
            let _ = self.device.invalidate_inode(id, 0, 0);
        }
    }

    fn name(&self, parent: InodeId, name: &[u8]) {
        // Names are kept by the client, except where the kernel was told that they never change.
        let Some(session) = self.session.upgrade() else { return };
        let keeps =
            session.nodes.lock().unwrap().of(parent).is_some_and(|directory| directory.keeps_names);
        if keeps {
            for id in self.ids(parent) {
                let _ = self.device.invalidate_entry(id, name);
            }
        }
    }
}
