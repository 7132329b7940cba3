//! The way back to the kernel: what it keeps and must not any more.

use super::serve::Session;
use crate::notices::Invalidator;
use dvs_fs::messages::InodeId;
use dvs_sys::fuse::Device;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long the kernel may take to make the inode of an answer that it has been given.
const INODE_WAIT: Duration = Duration::from_secs(1);
/// Pause between two looks whether it has.
const INODE_PAUSE: Duration = Duration::from_micros(100);

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

    /// Makes an inode's attributes stale, and its pages from `offset` on (none if negative).
    ///
    /// The kernel does not have the inode while the answer that names it for the first time is on its
    /// way, and when it has just dropped it, which it will tell. In the first case the inode would be
    /// made with what is stale; so this waits until it is there, or known to be dropped. (Only for the
    /// object's own id, which comes first: under the others the kernel keeps no attributes.)
    fn inode(&self, inode: InodeId, offset: i64) {
        let end = Instant::now() + INODE_WAIT;
        for id in self.ids(inode) {
            while self
                .device
                .invalidate_inode(id, offset, 0)
                .is_err_and(|error| error.errno == libc::ENOENT)
                && self.ids(inode).first() == Some(&id)
                && Instant::now() < end
            {
                std::thread::sleep(INODE_PAUSE);
            }
        }
    }
}

impl Invalidator for Kernel {
    fn attributes(&self, inode: InodeId) {
        // A negative offset: no pages, so nothing to wait for.
        self.inode(inode, -1);
    }

    fn content(&self, inode: InodeId) {
        self.inode(inode, 0);
    }

    fn name(&self, parent: InodeId, name: &[u8]) {
        // Where the kernel keeps no names there is nothing to drop, and its lock must not be waited
        // for: another node may be the one whose kernel keeps names, and wait for this one.
        let Some(session) = self.session.upgrade() else { return };
        let until = session.nodes.lock().unwrap().of(parent).map(|directory| directory.keeps_names);
        if until.is_some_and(|until| !session.client.remaining(until).is_zero()) {
            for id in self.ids(parent) {
                let _ = self.device.invalidate_entry(id, name);
            }
        }
    }
}
