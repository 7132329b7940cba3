//! Small adapters between crates that do not know each other.

use dvs_carry::{
    AttachRequest, Attacher, Carrier, FifoEnd, FifoHost, FifoId, FileAttributes, Opener,
    SharedDescription,
};
use dvs_container::Launcher;
use dvs_fs::messages::{Attributes, InodeId, Time};
use dvs_fs_client::attach::{CallId, Moved, Position, RemoteDescription};
use dvs_fs_client::{Attached, Client, Hooks, Opening};
use dvs_linux::{OpenCall, Personality};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};

/// Makes shared descriptions openable in the tree.
pub(crate) struct AttachPort(pub(crate) Arc<Client>);

impl Attacher for AttachPort {
    fn attach(&self, request: AttachRequest) -> Result<Vec<u8>, i32> {
        let inode = request.inode.map(|number| InodeId { number, generation: 0 });
        let like = Attached { inode, flags: request.flags, position: request.position };
        let foreign = inode.is_none();
        let description = Arc::new(Description { shared: request.description, foreign });
        Ok(self.0.attach(description, like)?.path().into_bytes())
    }
}

/// A description kept by a carrier, as the file-system client wants it.
struct Description {
    shared: Arc<SharedDescription>,
    foreign: bool,
}

fn position(position: Position) -> dvs_carry::Position {
    match position {
        Position::Sequential => dvs_carry::Position::Sequential,
        Position::At(offset) => dvs_carry::Position::At(offset),
    }
}

impl RemoteDescription for Description {
    fn read(&self, _call: CallId, at: Position, length: u32) -> Result<Moved<Vec<u8>>, i32> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (what, position) = self.shared.read(position(at), length)?;
        Ok(Moved { what, position })
    }

    fn write(&self, _call: CallId, at: Position, data: &[u8]) -> Result<Moved<u32>, i32> {
        let (written, position) = self.shared.write(position(at), data)?;
        Ok(Moved { what: u32::try_from(written).unwrap_or(u32::MAX), position })
    }

    fn local_offset(&self, offset: u64) {
        self.shared.set_local_offset(offset);
    }

    fn attributes(&self) -> Result<Attributes, i32> {
        let mut found = attributes(&self.shared.attributes()?);
        if self.foreign {
            found.inode.number |= dvs_carry::FOREIGN_INODE;
        }
        Ok(found)
    }

    fn set_size(&self, size: u64) -> Result<(), i32> {
        self.shared.truncate(size)
    }

    fn synchronize(&self, data_only: bool) -> Result<(), i32> {
        self.shared.sync(data_only)
    }

    fn flock(&self, call: CallId, operation: i32) -> Result<(), i32> {
        self.shared.lock(call.0, operation)
    }

    fn interrupt(&self, call: CallId) {
        self.shared.interrupt(call.0);
    }

    fn closed(&self) {
        // The carrier sees the last handle go.
    }
}

fn attributes(found: &FileAttributes) -> Attributes {
    let time = |(seconds, nanoseconds): (i64, u32)| Time { seconds, nanoseconds };
    let [accessed, modified, changed] = found.times;
    Attributes {
        inode: InodeId { number: found.inode, generation: 0 },
        mode: found.mode,
        links: u32::try_from(found.links).unwrap_or(u32::MAX),
        uid: found.uid,
        gid: found.gid,
        rdev: u32::try_from(found.rdev).unwrap_or(u32::MAX),
        size: found.size,
        blocks: found.blocks,
        accessed: time(accessed),
        modified: time(modified),
        changed: time(changed),
    }
}

/// Opens ends of FIFOs in the container, and looks at who opens them.
pub(crate) struct FifoPort {
    pub(crate) client: Arc<Client>,
    pub(crate) launcher: Launcher,
}

impl FifoHost for FifoPort {
    fn open(&self, fifo: FifoId, end: FifoEnd, flags: i32) -> Result<OwnedFd, i32> {
        let inode = InodeId { number: fifo.number, generation: fifo.generation };
        let open = |path: &[u8]| self.launcher.open(path, flags);
        self.client.open_fifo(inode, end == FifoEnd::Writers, open)
    }

    fn is_opening(&self, opener: &Opener) -> bool {
        OpenCall::is_going_on(opener.thread, &opener.call)
    }
}

/// What the file tree sees, for the personality and the carrier, which come later than the tree.
#[derive(Default)]
pub(crate) struct TreeHooks {
    pub(crate) personality: OnceLock<Weak<Personality>>,
    pub(crate) carrier: OnceLock<Weak<Carrier>>,
}

impl TreeHooks {
    fn personality(&self) -> Option<Arc<Personality>> {
        self.personality.get()?.upgrade()
    }
}

impl Hooks for TreeHooks {
    fn bridges_fifos(&self) -> bool {
        self.personality().is_some_and(|personality| personality.is_spread())
    }

    fn opening(&self, pid: u32) -> Option<Opening> {
        let OpenCall { thread, line, flags } = self.personality()?.opening(pid)?;
        Some(Opening { thread, call: line, flags })
    }

    fn fifo_opening(&self, fifo: InodeId, writers: bool, opening: Opening) -> Result<(), i32> {
        let carrier = self.carrier.get().and_then(Weak::upgrade).ok_or(libc::EIO)?;
        let fifo = FifoId { number: fifo.number, generation: fifo.generation };
        let end = if writers { FifoEnd::Writers } else { FifoEnd::Real };
        if !writers && opening.flags & (libc::O_RDWR | libc::O_NONBLOCK) != 0 {
            // Held open for others to read too (make's jobserver, `exec 3<>fifo`), which they can do
            // on this node only.
            if let Some(personality) = self.personality() {
                personality.shares_by_tree();
            }
        }
        let Opening { thread, call, .. } = opening;
        carrier.fifo_opening(fifo, end, Opener { thread, call }).map_err(|refusal| {
            if let Some(personality) = self.personality() {
                personality.fifo_refused(thread, &refusal.to_string());
            }
            libc::EXDEV
        })
    }

    fn shared_memory_seen(&self, _pid: u32, _writable: bool) {
        if let Some(personality) = self.personality() {
            personality.shares_by_tree();
        }
    }
}
