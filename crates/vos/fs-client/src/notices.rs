//! Obeying recalls. The kernel may have to write dirty pages before it can drop them, and these
//! writes are answered by the threads that serve requests: so this happens on a thread of its own.

use crate::client::Client;
use dvs_fs::messages::{InodeId, Notice, Stale};
use std::sync::Weak;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Most notices that wait. A notice beyond that is dropped: what it recalls is then no longer kept
/// here, but the server hears nothing and waits until its lease is over.
pub const MAX_NOTICES: usize = 4096;

/// What keeps things beyond the client's own cache: the kernel behind a mount.
pub trait Invalidator: Send + Sync {
    /// Drop the attributes.
    fn attributes(&self, inode: InodeId);
    /// Drop content and attributes.
    fn content(&self, inode: InodeId);
    /// Drop a name.
    fn name(&self, parent: InodeId, name: &[u8]);
}

/// Starts the thread; it ends when the sender is dropped.
pub(crate) fn start(client: Weak<Client>) -> std::io::Result<SyncSender<Notice>> {
    let (sender, receiver) = sync_channel(MAX_NOTICES);
    std::thread::Builder::new()
        .name("fs-notices".into())
        .stack_size(256 << 10)
        .spawn(move || run(&client, &receiver))?;
    Ok(sender)
}

fn run(client: &Weak<Client>, notices: &Receiver<Notice>) {
    while let Ok(notice) = notices.recv() {
        let Some(client) = client.upgrade() else { return };
        let Notice::Recall { number, stale } = notice;
        if let Some(invalidator) = client.invalidator() {
            for what in &stale {
                match what {
                    Stale::Attributes(inode) => invalidator.attributes(*inode),
                    Stale::Content(inode) => invalidator.content(*inode),
                    Stale::Name(parent, name) => invalidator.name(*parent, name),
                }
            }
        }
        client.recall_done(number);
    }
}
