//! Obeying recalls, on a thread of its own. The kernel may have to write dirty pages before it can
//! drop them, and these writes are answered by the threads that serve requests.
//!
//! The same thread tells the server which objects the kernel has forgotten. Both are requests like
//! any other, waited for and repeated after a cut link: a lost confirmation would keep others
//! waiting, and a post could be overtaken by a request that says it was answered.

use crate::client::Client;
use dvs_fs::messages::{InodeId, Notice, Operation, Stale};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, Weak};

/// Most notices that wait. A notice beyond that is dropped: what it recalls is then no longer kept
/// here, but the server hears nothing and waits until its lease is over.
pub const MAX_NOTICES: usize = 4096;
/// Most objects in one message about forgotten ones.
pub const MAX_FORGETS: usize = 4096;
/// The thread's stack.
const STACK: usize = 256 << 10;

/// What keeps things beyond the client's own cache: the kernel behind a mount.
pub trait Invalidator: Send + Sync {
    /// Drop the attributes.
    fn attributes(&self, inode: InodeId);
    /// Drop content and attributes.
    fn content(&self, inode: InodeId);
    /// Drop a name.
    fn name(&self, parent: InodeId, name: &[u8]);
}

#[derive(Default)]
struct State {
    notices: VecDeque<Notice>,
    forgotten: HashMap<InodeId, u64>,
    ended: bool,
}

/// What waits for the thread.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    work: Condvar,
}

enum Work {
    Notice(Notice),
    Forget(Vec<(InodeId, u64)>),
}

impl Queue {
    /// A notice; false: it was dropped, see [`MAX_NOTICES`].
    pub(crate) fn notice(&self, notice: Notice) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.notices.len() >= MAX_NOTICES {
            return false;
        }
        state.notices.push_back(notice);
        drop(state);
        self.work.notify_one();
        true
    }

    /// Objects and how many of the server's references to them are gone.
    pub(crate) fn forget(&self, inodes: &[(InodeId, u64)]) {
        let mut state = self.state.lock().unwrap();
        for (inode, count) in inodes {
            *state.forgotten.entry(*inode).or_default() += count;
        }
        drop(state);
        self.work.notify_one();
    }

    /// The client is gone: the thread ends.
    pub(crate) fn end(&self) {
        self.state.lock().unwrap().ended = true;
        self.work.notify_one();
    }

    /// Recalls first: somebody waits for them.
    fn next(&self) -> Option<Work> {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.ended {
                return None;
            }
            if let Some(notice) = state.notices.pop_front() {
                return Some(Work::Notice(notice));
            }
            if !state.forgotten.is_empty() {
                let some: Vec<InodeId> =
                    state.forgotten.keys().take(MAX_FORGETS).copied().collect();
                let counts = some
                    .iter()
                    .filter_map(|inode| Some((*inode, state.forgotten.remove(inode)?)))
                    .collect();
                return Some(Work::Forget(counts));
            }
            state = self.work.wait(state).unwrap();
        }
    }
}

/// Starts the thread; it ends with the client.
pub(crate) fn start(client: Weak<Client>, queue: Arc<Queue>) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("fs-notices".into())
        .stack_size(STACK)
        .spawn(move || run(&client, &queue))
        .map(drop)
}

fn run(client: &Weak<Client>, queue: &Queue) {
    while let Some(work) = queue.next() {
        let Some(client) = client.upgrade() else { return };
        match work {
            Work::Notice(Notice::Recall { number, stale }) => {
                if let Some(invalidator) = client.invalidator() {
                    for what in &stale {
                        match what {
                            Stale::Attributes(inode) => invalidator.attributes(*inode),
                            Stale::Content(inode) => invalidator.content(*inode),
                            Stale::Name(parent, name) => invalidator.name(*parent, name),
                        }
                    }
                }
                client.tell(&Operation::RecallDone { notice: number });
            }
            Work::Forget(inodes) => client.tell(&Operation::Forget { inodes }),
        }
    }
}
