//! One request of the kernel: which operation it is and who does it.

use super::attached::AttachedTable;
use super::convert;
use super::interrupts::Interrupts;
use super::nodes::{Node, Nodes};
use super::pool::Waiters;
use super::releases::Releases;
use crate::cache::Until;
use crate::client::Client;
use crate::hooks::Hooks;
use dvs_fs::messages::{Attributes, InodeId, Operation as Ask, Outcome};
use dvs_sys::fuse::abi::init;
use dvs_sys::fuse::reply::{Body, StatFs};
use dvs_sys::fuse::{Device, Header, Operation, Request};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How a request is answered.
pub(super) enum Answer {
    /// Not at all: it wants no answer.
    Nothing,
    /// By another thread.
    Later,
    /// With the body, which may be empty.
    Body,
    /// With these bytes.
    Data(Vec<u8>),
}

/// Result of a request: an answer or an errno.
pub(super) type Served = Result<Answer, i32>;

/// A mount and everything it keeps.
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    pub(super) hooks: Arc<dyn Hooks>,
    pub(super) nodes: Mutex<Nodes>,
    pub(super) interrupts: Interrupts,
    pub(super) waiters: Arc<Waiters>,
    pub(super) attached: AttachedTable,
    pub(super) releases: Releases,
    /// See [`super::MountOptions`].
    pub(super) alone: bool,
    agreed: OnceLock<u64>,
}

impl Session {
    pub(super) fn new(client: Arc<Client>, hooks: Arc<dyn Hooks>, alone: bool) -> Session {
        Session {
            client,
            hooks,
            nodes: Mutex::new(Nodes::new()),
            interrupts: Interrupts::default(),
            waiters: Arc::default(),
            attached: AttachedTable::default(),
            releases: Releases::default(),
            alone,
            agreed: OnceLock::new(),
        }
    }

    /// The flags that INIT agreed on.
    pub(super) fn agree(&self, flags: u64) {
        let _ = self.agreed.set(flags);
    }

    fn has(&self, flag: u64) -> bool {
        self.agreed.get().is_some_and(|flags| flags & flag != 0)
    }

    pub(super) fn setxattr_extended(&self) -> bool {
        self.has(init::SETXATTR_EXT)
    }

    /// Whether files open for writing bypass the page cache. Without `DIRECT_IO_ALLOW_MMAP` (before
    /// Linux 6.6) they could then not be mapped, so there they do not.
    pub(super) fn writes_directly(&self) -> bool {
        self.has(init::DIRECT_IO_ALLOW_MMAP)
    }

    /// The mount is over.
    pub(super) fn end(&self) {
        self.client.set_invalidator(None);
        self.interrupts.interrupt_all();
        self.attached.close_all();
        self.waiters.close();
    }

    /// The object of a node id.
    pub(super) fn inode(&self, node: u64) -> Result<InodeId, i32> {
        self.node(node, |node| node.inode)?.ok_or(libc::EOPNOTSUPP)
    }

    /// What `look` takes from a node.
    pub(super) fn node<T>(&self, id: u64, look: impl FnOnce(&mut Node) -> T) -> Result<T, i32> {
        self.nodes.lock().unwrap().get(id).map(look).ok_or(libc::ESTALE)
    }

    /// How long the kernel may keep attributes.
    pub(super) fn attr_valid(&self, attributes: &Attributes, until: Until) -> Duration {
        if is_special(attributes.mode) { Duration::ZERO } else { self.client.remaining(until) }
    }

    /// How long the kernel may keep attributes that it takes without a look at what was invalidated
    /// meanwhile, as those in answers to CREATE and SETATTR.
    pub(super) fn unchecked_attr_valid(&self, attributes: &Attributes, until: Until) -> Duration {
        if self.alone { self.attr_valid(attributes, until) } else { Duration::ZERO }
    }

    /// Does one request.
    pub(super) fn serve(
        self: &Arc<Self>,
        device: &Arc<Device>,
        request: Request<'_>,
        body: &mut Body,
    ) -> Served {
        let header = request.header;
        let h = &header;
        let Some(operation) = request.operation else { return Err(libc::EIO) };
        match operation {
            Operation::Init { .. } => Err(libc::EIO),
            Operation::Destroy => Ok(Answer::Body),
            Operation::Forget { lookups } => Ok(self.forget(&[(h.node, lookups)])),
            Operation::BatchForget { nodes } => Ok(self.forget(&nodes)),
            Operation::Interrupt { unique } => {
                self.interrupts.interrupt(unique);
                Ok(Answer::Nothing)
            }
            Operation::Lookup { name } => self.lookup(h, name, body),
            Operation::GetAttr { .. } => self.get_attr(device, h, body),
            Operation::SetAttr(changes) => self.set_attr(h, &changes, body),
            Operation::ReadLink => {
                self.data(h, Ask::ReadLink { inode: self.inode(h.node)? }, usize::MAX)
            }
            Operation::Symlink { name, target } => self.make(h, name, body, |parent, name| {
                Ask::MakeSymbolicLink { parent, name, target: target.to_vec() }
            }),
            Operation::MkNod { name, mode, rdev } => {
                self.make(h, name, body, |parent, name| Ask::MakeNode { parent, name, mode, rdev })
            }
            Operation::MkDir { name, mode } => {
                self.make(h, name, body, |parent, name| Ask::MakeDirectory { parent, name, mode })
            }
            Operation::Link { node, name } => {
                let inode = self.inode(node)?;
                self.make(h, name, body, |parent, name| Ask::Link { inode, parent, name })
            }
            Operation::Unlink { name } => {
                let parent = self.inode(h.node)?;
                self.done(h, Ask::Unlink { parent, name: name.to_vec() })
            }
            Operation::RmDir { name } => {
                let parent = self.inode(h.node)?;
                self.done(h, Ask::RemoveDirectory { parent, name: name.to_vec() })
            }
            Operation::Rename { name, new_parent, new_name, flags } => {
                self.rename(h, name, new_parent, new_name, flags)
            }
            Operation::Open { flags, open_flags } => self.open(h, flags, open_flags, body),
            Operation::Create { name, flags, mode, open_flags } => {
                self.create(h, name, (flags, mode, open_flags), body)
            }
            Operation::TmpFile { flags, mode } => self.create_unnamed(h, flags, mode, body),
            Operation::Read(arguments) => self.read(device, h, arguments),
            Operation::Write { handle, offset, write_flags, flags, data } => {
                self.write(device, h, (handle, offset), (write_flags, flags), data, body)
            }
            Operation::Flush { handle, owner } => self.flush(h, handle, owner),
            Operation::Release { handle, release_flags, owner } => {
                self.releases.during(|| self.release(h, handle, release_flags, owner))
            }
            Operation::Fsync { handle, flags } => self.fsync(h, handle, flags),
            Operation::OpenDir { flags } => self.open_dir(h, flags, body),
            Operation::ReadDir(arguments) => self.read_dir(h, arguments, false, body),
            Operation::ReadDirPlus(arguments) => self.read_dir(h, arguments, true, body),
            Operation::ReleaseDir { handle } => {
                let inode = self.inode(h.node)?;
                let handle = dvs_fs::messages::Handle(handle);
                self.done(h, Ask::Release { inode, handle, owner: None })
            }
            Operation::FsyncDir { handle, flags } => self.fsync(h, handle, flags),
            Operation::StatFs => self.statfs(h, body),
            Operation::GetXattr { name, size } => {
                let inode = self.inode(h.node).map_err(|_| libc::ENODATA)?;
                sized(self.client.xattr(convert::credentials(h), inode, name)?, size, body)
            }
            Operation::ListXattr { size } => {
                let operation = Ask::ListXattr { inode: self.inode(h.node)? };
                match self.client.perform(convert::credentials(h), operation)?.outcome {
                    Outcome::Data(names) => sized(names, size, body),
                    _ => Err(libc::EIO),
                }
            }
            Operation::SetXattr { name, value, flags } => {
                let inode = self.inode(h.node)?;
                let (name, value) = (name.to_vec(), value.to_vec());
                self.done(h, Ask::SetXattr { inode, name, value, flags })
            }
            Operation::RemoveXattr { name } => {
                let inode = self.inode(h.node)?;
                self.done(h, Ask::RemoveXattr { inode, name: name.to_vec() })
            }
            Operation::Allocate { handle, offset, length, mode } => {
                self.allocate(h, handle, (offset, length), mode)
            }
            Operation::Seek { handle, offset, whence } => {
                self.seek(h, handle, offset, whence, body)
            }
            Operation::CopyRange { from, to_node, to, length } => {
                self.copy_range(h, from, to_node, to, length, body)
            }
            Operation::GetLock(arguments) => self.test_lock(h, &arguments, body),
            Operation::SetLock(arguments) => self.set_lock(device, h, &arguments, false),
            Operation::SetLockWait(arguments) => self.set_lock(device, h, &arguments, true),
            // The kernel checks permissions itself (`default_permissions`); files are always ready.
            Operation::Access | Operation::Poll | Operation::Unknown => Err(libc::ENOSYS),
            Operation::Ioctl => Err(libc::ENOTTY),
        }
    }

    fn forget(&self, nodes: &[(u64, u64)]) -> Answer {
        let gone: Vec<_> = {
            let mut table = self.nodes.lock().unwrap();
            nodes.iter().filter_map(|(id, count)| table.forget(*id, *count)).collect()
        };
        for (id, _) in nodes {
            self.attached.forget(*id);
        }
        self.client.forget(&gone);
        Answer::Nothing
    }

    /// An operation that answers nothing but that it was done.
    pub(super) fn done(&self, h: &Header, operation: Ask) -> Served {
        self.client.perform(convert::credentials(h), operation).map(|_| Answer::Body)
    }

    /// An operation that answers bytes, of which at most `limit` are passed on.
    pub(super) fn data(&self, h: &Header, operation: Ask, limit: usize) -> Served {
        match self.client.perform(convert::credentials(h), operation)?.outcome {
            Outcome::Data(mut data) => {
                data.truncate(limit);
                Ok(Answer::Data(data))
            }
            _ => Err(libc::EIO),
        }
    }

    fn statfs(&self, h: &Header, body: &mut Body) -> Served {
        // Also for an object outside the tree: the numbers of the tree.
        let inode = self.inode(h.node).unwrap_or(dvs_fs::messages::ROOT);
        let operation = Ask::StatFileSystem { inode };
        match self.client.perform(convert::credentials(h), operation)?.outcome {
            Outcome::FileSystem { block_size, blocks, free, available, files, files_free } => {
                body.statfs(&StatFs {
                    blocks,
                    free,
                    available,
                    files,
                    files_free,
                    block_size,
                    name_length: u32::try_from(dvs_fs::messages::MAX_NAME).unwrap_or(255),
                });
                Ok(Answer::Body)
            }
            _ => Err(libc::EIO),
        }
    }
}

/// The answer to a question for bytes by a caller with room for `size`, 0: only their number.
fn sized(data: Vec<u8>, size: u32, body: &mut Body) -> Served {
    let length = u32::try_from(data.len()).map_err(|_| libc::E2BIG)?;
    if size == 0 {
        body.size(length);
        Ok(Answer::Body)
    } else if length > size {
        Err(libc::ERANGE)
    } else {
        Ok(Answer::Data(data))
    }
}

/// Whether a mode is a FIFO's or a socket's: these work within one node only, so every lookup of
/// their names must be seen.
pub(super) fn is_special(mode: u32) -> bool {
    matches!(mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK)
}
