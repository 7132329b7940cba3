//! Attached descriptions in the mount: from the name to the open file, reading and writing.

use super::convert;
use super::serve::{Answer, Served, Session};
use crate::attach::{CallId, LocalOffset, RemoteDescription, Waiting};
use dvs_fs::messages::{
    Attributes, Credentials, Handle, InodeId, LockKind, Operation as Ask, Outcome, Stale,
};
use dvs_sys::fuse::reply::{Body, Entry};
use dvs_sys::fuse::{Device, Header};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The bit that tells handles of attached descriptions from the server's.
const ATTACHED: u64 = 1 << 63;
/// Most descriptions whose name was looked up and that wait for the OPEN that follows.
pub(super) const MAX_LOOKED_UP: usize = 4096;

/// Whether a handle is one of an attached description.
pub(super) fn is_attached(handle: u64) -> bool {
    handle & ATTACHED != 0
}

/// An attached description that is open here.
pub(super) struct AttachedFile {
    pub(super) description: Arc<dyn RemoteDescription>,
    flags: u32,
    node: u64,
    offset: Mutex<LocalOffset>,
    /// The server's handle for what the description itself cannot do (record locks, holes).
    side: Mutex<Option<Handle>>,
}

#[derive(Default)]
struct Table {
    /// Looked up, by node and thread; the next OPEN of these opens it.
    looked_up: HashMap<(u64, u32), Waiting>,
    open: HashMap<u64, Arc<AttachedFile>>,
    last: u64,
}

/// The attached descriptions of a mount.
#[derive(Default)]
pub(super) struct AttachedTable {
    table: Mutex<Table>,
    calls: AtomicU64,
}

impl AttachedTable {
    pub(super) fn get(&self, handle: u64) -> Option<Arc<AttachedFile>> {
        if !is_attached(handle) {
            return None;
        }
        self.table.lock().unwrap().open.get(&handle).cloned()
    }

    /// Opens what this thread has looked up.
    pub(super) fn open(&self, node: u64, pid: u32) -> Option<u64> {
        let mut table = self.table.lock().unwrap();
        if table.looked_up.is_empty() {
            return None;
        }
        let waiting = table.looked_up.remove(&(node, pid))?;
        table.last += 1;
        let handle = ATTACHED | table.last;
        let file = AttachedFile {
            description: waiting.description,
            flags: waiting.like.flags,
            node,
            offset: Mutex::new(LocalOffset::new(waiting.like.position)),
            side: Mutex::default(),
        };
        table.open.insert(handle, Arc::new(file));
        Some(handle)
    }

    /// Attributes of an object outside the tree.
    pub(super) fn attributes(&self, node: u64, handle: Option<u64>) -> Result<Attributes, i32> {
        let description = {
            let table = self.table.lock().unwrap();
            let open = || table.open.values().find(|file| file.node == node);
            let file = handle.and_then(|handle| table.open.get(&handle)).or_else(open);
            let looked_up = || {
                let mut all = table.looked_up.iter();
                all.find(|((at, _), _)| *at == node).map(|(_, waiting)| &waiting.description)
            };
            file.map(|file| &file.description).or_else(looked_up).cloned()
        };
        description.ok_or(libc::ESTALE)?.attributes()
    }

    /// The kernel forgot a node: nothing that was looked up under it will be opened.
    pub(super) fn forget(&self, node: u64) {
        let mut gone = Vec::new();
        {
            let mut table = self.table.lock().unwrap();
            if !table.looked_up.is_empty() {
                let keys: Vec<_> =
                    table.looked_up.keys().filter(|(at, _)| *at == node).copied().collect();
                gone.extend(keys.iter().filter_map(|key| table.looked_up.remove(key)));
            }
        }
        for waiting in gone {
            waiting.description.closed();
        }
    }

    /// The mount is over.
    pub(super) fn close_all(&self) {
        let table = std::mem::take(&mut *self.table.lock().unwrap());
        for waiting in table.looked_up.into_values() {
            waiting.description.closed();
        }
        for file in table.open.into_values() {
            file.description.closed();
        }
    }

    fn call(&self) -> CallId {
        CallId(self.calls.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Session {
    /// LOOKUP of an attached description's name. It is good once.
    pub(super) fn lookup_attached(&self, h: &Header, name: &[u8], body: &mut Body) -> Served {
        let waiting = self.client.take_attached(name).ok_or(libc::ENOENT)?;
        let attributes = match waiting.like.inode {
            Some(inode) => self.client.attributes(convert::credentials(h), inode).map(|it| it.0),
            None => waiting.description.attributes(),
        };
        let attributes = match attributes {
            Ok(attributes) => attributes,
            Err(errno) => {
                waiting.description.closed();
                return Err(errno);
            }
        };
        let node = {
            let mut nodes = self.nodes.lock().unwrap();
            match waiting.like.inode {
                Some(inode) => nodes.enter_uncounted(inode),
                None => nodes.enter_foreign(),
            }
        };
        let replaced = {
            let mut table = self.attached.table.lock().unwrap();
            let full = table.looked_up.len() >= MAX_LOOKED_UP;
            let key = (node, h.pid);
            if full { Some(waiting) } else { table.looked_up.insert(key, waiting) }
        };
        if let Some(waiting) = replaced {
            waiting.description.closed();
        }
        body.entry(&Entry { node, attr: convert::attr(&attributes), ..Entry::default() });
        Ok(Answer::Body)
    }

    pub(super) fn read_attached(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        file: Arc<AttachedFile>,
        offset: u64,
        length: u32,
    ) -> Served {
        self.on_description(device, h, file, move |file, call| {
            let position = file.offset.lock().unwrap().position(offset);
            let mut moved = file.description.read(call, position, length)?;
            moved.what.truncate(length as usize);
            file.offset.lock().unwrap().advance(offset, moved.what.len() as u64);
            Ok(moved.what)
        })
    }

    pub(super) fn write_attached(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        file: Arc<AttachedFile>,
        offset: u64,
        data: &[u8],
    ) -> Served {
        let data = data.to_vec();
        let session = Arc::clone(self);
        let node = h.node;
        self.on_description(device, h, file, move |file, call| {
            let append = file.flags & libc::O_APPEND.cast_unsigned() != 0;
            let position = if append {
                crate::attach::Position::Sequential
            } else {
                file.offset.lock().unwrap().position(offset)
            };
            let result = file.description.write(call, position, &data);
            if let Ok(Some(inode)) = session.node(node, |node| node.inode) {
                session.client.note_stale(Stale::Attributes(inode));
            }
            let moved = result?;
            if moved.what as usize > data.len() {
                return Err(libc::EIO);
            }
            file.offset.lock().unwrap().advance(offset, u64::from(moved.what));
            let mut body = Body::new();
            body.size(moved.what);
            Ok(body.bytes().to_vec())
        })
    }

    /// `flock` of an attached description.
    pub(super) fn flock_attached(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        file: Arc<AttachedFile>,
        kind: LockKind,
        wait: bool,
    ) -> Served {
        let operation = match kind {
            LockKind::Read => libc::LOCK_SH,
            LockKind::Write => libc::LOCK_EX,
            LockKind::Unlock => libc::LOCK_UN,
        } | if wait { 0 } else { libc::LOCK_NB };
        self.on_description(device, h, file, move |file, call| {
            file.description.flock(call, operation).map(|()| Vec::new())
        })
    }

    /// A call on a description, on a thread of its own, ended by an interrupt.
    fn on_description(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        file: Arc<AttachedFile>,
        work: impl FnOnce(&AttachedFile, CallId) -> Result<Vec<u8>, i32> + Send + 'static,
    ) -> Served {
        let session = Arc::clone(self);
        let (unique, call) = (h.unique, self.attached.call());
        self.later(device, h, libc::EAGAIN, move || {
            let description = Arc::clone(&file.description);
            let cancel = Arc::new(move || description.interrupt(call));
            if session.interrupts.wait(unique, cancel) {
                work(&file, call)
            } else {
                Err(libc::EINTR)
            }
        })
    }

    pub(super) fn release_attached(&self, h: &Header, handle: u64) {
        let file = self.attached.table.lock().unwrap().open.remove(&handle);
        let Some(file) = file else { return };
        let side = file.side.lock().unwrap().take();
        if let (Some(handle), Ok(inode)) = (side, self.inode(h.node)) {
            let _ = self.done(h, Ask::Release { inode, handle, owner: None });
        }
        file.description.closed();
    }

    /// The server's handle of an open file, attached or not.
    pub(super) fn tree_handle(
        &self,
        h: &Header,
        inode: InodeId,
        handle: u64,
    ) -> Result<Handle, i32> {
        match self.attached.get(handle) {
            Some(file) => self.side_handle(h, inode, &file),
            None => Ok(Handle(handle)),
        }
    }

    /// A handle at the server beside an attached description, opened when first needed.
    pub(super) fn side_handle(
        &self,
        h: &Header,
        inode: InodeId,
        file: &AttachedFile,
    ) -> Result<Handle, i32> {
        let mut side = file.side.lock().unwrap();
        if let Some(handle) = *side {
            return Ok(handle);
        }
        let flags = file.flags & (libc::O_ACCMODE | libc::O_APPEND).cast_unsigned();
        let credentials = Credentials { umask: 0, ..convert::credentials(h) };
        match self.client.perform(credentials, Ask::Open { inode, flags })?.outcome {
            Outcome::Opened { handle, .. } => {
                *side = Some(handle);
                Ok(handle)
            }
            _ => Err(libc::EIO),
        }
    }
}
