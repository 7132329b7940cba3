//! Attached descriptions in the mount: from the name to the open file, reading and writing.

use super::convert;
use super::serve::{Answer, Served, Session};
use crate::attach::{CallId, LocalOffset, NAME_LIFE, Position, RemoteDescription, Waiting};
use dvs_fs::messages::{
    Attributes, Credentials, Handle, InodeId, LockKind, Operation as Ask, Outcome, Stale,
};
use dvs_sys::fuse::reply::{Body, Entry};
use dvs_sys::fuse::{Device, Header};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

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
    /// Shared by all that came from one attachment: the last of them closes it.
    attachment: Arc<()>,
    flags: u32,
    node: u64,
    offset: Mutex<Offset>,
    /// The server's handle for what the description itself cannot do (record locks, holes).
    side: Mutex<Option<Handle>>,
}

impl AttachedFile {
    /// The kernel will advance its offset by `count` bytes from `offset`.
    fn advance(&self, offset: u64, count: u64) {
        if let Offset::Shared(local) = &mut *self.offset.lock().unwrap() {
            self.description.local_offset(local.advance(offset, count));
        }
    }

    fn appends(&self) -> bool {
        self.flags & libc::O_APPEND.cast_unsigned() != 0
    }
}

/// How requests are placed.
enum Offset {
    /// At the shared offset, unless the program has sought.
    Shared(LocalOffset),
    /// An offset of its own, which the kernel keeps: the file was opened again through
    /// `/proc/self/fd`, as `/dev/stdout` is.
    Own,
}

impl Offset {
    fn position(&self, offset: u64) -> Position {
        match self {
            Offset::Shared(local) => local.position(offset),
            Offset::Own => Position::At(offset),
        }
    }
}

#[derive(Default)]
struct Table {
    /// Looked up, by node and thread; the next OPEN of these opens it.
    looked_up: HashMap<(u64, u32), Waiting>,
    open: HashMap<u64, Arc<AttachedFile>>,
    last: u64,
}

impl Table {
    fn add(
        &mut self,
        (description, attachment): (Arc<dyn RemoteDescription>, Arc<()>),
        flags: u32,
        node: u64,
        offset: Offset,
    ) -> u64 {
        self.last += 1;
        let handle = ATTACHED | self.last;
        let (offset, side) = (Mutex::new(offset), Mutex::default());
        let file = AttachedFile { description, attachment, flags, node, offset, side };
        self.open.insert(handle, Arc::new(file));
        handle
    }

    /// Takes an open file out; whether it was the last of its attachment.
    fn remove(&mut self, handle: u64) -> Option<(Arc<AttachedFile>, bool)> {
        let file = self.open.remove(&handle)?;
        let same = |other: &Arc<AttachedFile>| Arc::ptr_eq(&other.attachment, &file.attachment);
        let last = !self.open.values().any(same);
        Some((file, last))
    }
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
        let Waiting { description, like, .. } = waiting;
        let offset = Offset::Shared(LocalOffset::new(like.position));
        Some(table.add((description, Arc::default()), like.flags, node, offset))
    }

    /// Opens a description outside the tree again, by its node. Where it is written or read is then
    /// the kernel's affair; the shared offset moves along, since a description has only the one.
    pub(super) fn open_again(&self, node: u64, flags: u32) -> Result<u64, i32> {
        let file = self.of_node(node).ok_or(libc::ESTALE)?;
        if flags & libc::O_TRUNC.cast_unsigned() != 0 {
            file.description.set_size(0)?;
        }
        let shared = (Arc::clone(&file.description), Arc::clone(&file.attachment));
        Ok(self.table.lock().unwrap().add(shared, flags, node, Offset::Own))
    }

    /// Notes what a thread has looked up; the answer: descriptions that were never opened, whose
    /// time is over, to be closed.
    fn look_up(&self, node: u64, pid: u32, waiting: Waiting) -> Vec<Waiting> {
        let mut table = self.table.lock().unwrap();
        let now = Instant::now();
        let old = |waiting: &Waiting| waiting.age(now) >= NAME_LIFE;
        let keys: Vec<_> =
            table.looked_up.iter().filter(|(_, it)| old(it)).map(|(key, _)| *key).collect();
        let mut over: Vec<_> = keys.iter().filter_map(|key| table.looked_up.remove(key)).collect();
        if table.looked_up.len() >= MAX_LOOKED_UP {
            over.push(waiting);
        } else {
            over.extend(table.looked_up.insert((node, pid), waiting));
        }
        over
    }

    /// What this thread has looked up and not yet opened.
    fn looked_up(&self, node: u64, pid: u32) -> Option<Waiting> {
        let table = self.table.lock().unwrap();
        if table.looked_up.is_empty() { None } else { table.looked_up.get(&(node, pid)).cloned() }
    }

    /// An open description of a node.
    fn of_node(&self, node: u64) -> Option<Arc<AttachedFile>> {
        self.table.lock().unwrap().open.values().find(|file| file.node == node).cloned()
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
        let mut table = std::mem::take(&mut *self.table.lock().unwrap());
        for waiting in table.looked_up.values() {
            waiting.description.closed();
        }
        let handles: Vec<u64> = table.open.keys().copied().collect();
        for (file, last) in handles.into_iter().filter_map(|handle| table.remove(handle)) {
            if last {
                file.description.closed();
            }
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
        let attributes = match self.attributes_of(h, &waiting) {
            Ok(attributes) => attributes,
            Err(errno) => {
                waiting.description.closed();
                return Err(errno);
            }
        };
        let node = self.nodes.lock().unwrap().enter_attached(waiting.like.inode);
        for over in self.attached.look_up(node, h.pid, waiting) {
            over.description.closed();
        }
        body.entry(&Entry { node, attr: convert::attr(&attributes), ..Entry::default() });
        Ok(Answer::Body)
    }

    /// What a description looks like until it is open: who has its name may open it, whoever may
    /// open the file.
    fn attributes_of(&self, h: &Header, waiting: &Waiting) -> Result<Attributes, i32> {
        let attributes = match waiting.like.inode {
            Some(inode) => self.client.attributes(convert::credentials(h), inode)?.0,
            None => waiting.description.attributes()?,
        };
        Ok(Attributes { mode: attributes.mode | 0o666, ..attributes })
    }

    /// Attributes of an attached description's node.
    pub(super) fn attached_attributes(&self, h: &Header) -> Result<Attributes, i32> {
        if let Some(waiting) = self.attached.looked_up(h.node, h.pid) {
            return self.attributes_of(h, &waiting);
        }
        match self.node(h.node, |node| node.inode)? {
            Some(inode) => Ok(self.client.attributes(convert::credentials(h), inode)?.0),
            None => self.attached.of_node(h.node).ok_or(libc::ESTALE)?.description.attributes(),
        }
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
            file.advance(offset, moved.what.len() as u64);
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
            let position = match (file.appends(), &*file.offset.lock().unwrap()) {
                (false, at) => at.position(offset),
                (true, Offset::Shared(_)) => Position::Sequential,
                (true, Offset::Own) => Position::At(file.description.attributes()?.size),
            };
            let result = file.description.write(call, position, &data);
            if let Ok(Some(inode)) = session.node(node, |node| node.inode) {
                session.client.note_stale(Stale::Attributes(inode));
            }
            let moved = result?;
            if moved.what as usize > data.len() {
                return Err(libc::EIO);
            }
            file.advance(offset, u64::from(moved.what));
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
        let removed = self.attached.table.lock().unwrap().remove(handle);
        let Some((file, last)) = removed else { return };
        let side = file.side.lock().unwrap().take();
        if let (Some(handle), Ok(inode)) = (side, self.inode(h.node)) {
            let _ = self.done(h, Ask::Release { inode, handle, owner: None });
        }
        if last {
            file.description.closed();
        }
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
