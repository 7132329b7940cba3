//! Operations on files: attributes, opening, reading, writing.

use super::attached;
use super::convert;
use super::serve::{Answer, Served, Session};
use crate::cache::Until;
use dvs_fs::messages::{
    AttributeChanges, Handle, Lease, MAX_IO, MAX_NAME, Operation as Ask, Outcome,
};
use dvs_sys::fuse::abi::{flag, open};
use dvs_sys::fuse::reply::Body;
use dvs_sys::fuse::request::{ReadArguments, SetAttr};
use dvs_sys::fuse::{Device, Header};
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of one `copy_file_range`, so that its answer comes in a bounded time.
const MAX_COPY: u64 = 64 << 20;

impl Session {
    pub(super) fn get_attr(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        body: &mut Body,
    ) -> Served {
        let (inode, attached, writers) =
            self.node(h.node, |node| (node.inode, node.attached, node.writers))?;
        let (Some(inode), false) = (inode, attached) else {
            let attributes = self.attached_attributes(h)?;
            body.attr_out(Duration::ZERO, &convert::attr(&attributes));
            return Ok(Answer::Body);
        };
        let (attributes, until) = self.client.attributes(convert::credentials(h), inode)?;
        if let Some(opening) = self.fifo_opened(h, &attributes, writers) {
            return self.before_fifo_opens(device, h, (inode, writers), opening, &attributes);
        }
        body.attr_out(self.attr_valid(&attributes, until), &convert::attr(&attributes));
        Ok(Answer::Body)
    }

    pub(super) fn set_attr(&self, h: &Header, given: &SetAttr, body: &mut Body) -> Served {
        let handle = (given.valid & dvs_sys::fuse::abi::setattr::FH != 0).then_some(given.handle);
        let attached = handle.and_then(|handle| self.attached.get(handle));
        let Some(inode) = self.node(h.node, |node| node.inode)? else {
            let file = attached.ok_or(libc::EPERM)?;
            if let Some(size) = convert::changes(given).size {
                file.description.set_size(size)?;
            }
            body.attr_out(Duration::ZERO, &convert::attr(&file.description.attributes()?));
            return Ok(Answer::Body);
        };
        let handle = match (handle, attached) {
            (Some(_), Some(file)) => Some(self.side_handle(h, inode, &file)?),
            (Some(handle), None) => Some(Handle(handle)),
            (None, _) => None,
        };
        let operation = Ask::SetAttributes { inode, handle, changes: convert::changes(given) };
        let answer = self.client.perform(convert::credentials(h), operation)?;
        let Outcome::Attributes(attributes, _) = answer.outcome else { return Err(libc::EIO) };
        let valid = self.unchecked_attr_valid(&attributes, answer.attributes);
        body.attr_out(valid, &convert::attr(&attributes));
        Ok(Answer::Body)
    }

    pub(super) fn open(&self, h: &Header, flags: u32, open_flags: u32, body: &mut Body) -> Served {
        if let Some(handle) = self.attached.open(h.node, h.pid) {
            body.open(handle, open::DIRECT_IO);
            return Ok(Answer::Body);
        }
        let (inode, place) = self.node(h.node, |node| (node.inode, node.place))?;
        let Some(inode) = inode else {
            body.open(self.attached.open_again(h.node, flags)?, open::DIRECT_IO);
            return Ok(Answer::Body);
        };
        let credentials = convert::credentials(h);
        let (handle, content) = self.client.open(credentials, inode, flags)?;
        if open_flags & open::KILL_SUIDGID != 0 && has(flags, libc::O_TRUNC) {
            let changes = AttributeChanges { kill_privileges: true, ..AttributeChanges::default() };
            let operation = Ask::SetAttributes { inode, handle: Some(handle), changes };
            self.client.perform(credentials, operation)?;
        }
        self.note_shared_memory(h, place, flags);
        body.open(check(handle)?, self.cache_mode(flags, content));
        Ok(Answer::Body)
    }

    pub(super) fn create(
        &self,
        h: &Header,
        name: &[u8],
        (flags, mode, open_flags): (u32, u32, u32),
        body: &mut Body,
    ) -> Served {
        if name.len() > MAX_NAME {
            return Err(libc::ENAMETOOLONG);
        }
        let (parent, place) = self.node(h.node, |node| (node.inode, node.place))?;
        let parent = parent.ok_or(libc::ENOTDIR)?;
        let credentials = convert::credentials(h);
        let operation = Ask::Create { parent, name: name.to_vec(), mode, flags };
        let answer = self.client.perform(credentials, operation)?;
        let Outcome::Created { entry, handle, content } = answer.outcome else {
            return Err(libc::EIO);
        };
        let mut until = answer.attributes;
        let kept = (answer.name, answer.in_kernel, answer.mark);
        let name_valid = self.made_name_valid(h.node, (parent, name), &entry, kept);
        let attributes = entry.attributes.ok_or(libc::EIO)?;
        if open_flags & open::KILL_SUIDGID != 0 && has(flags, libc::O_TRUNC) {
            let changes = AttributeChanges { kill_privileges: true, ..AttributeChanges::default() };
            let inode = attributes.inode;
            let operation = Ask::SetAttributes { inode, handle: Some(handle), changes };
            self.client.perform(credentials, operation)?;
            until = Until::Never;
        }
        self.opened(
            h,
            (&entry, name_valid, until),
            place.below(name),
            (handle, content, flags),
            body,
        )
    }

    pub(super) fn create_unnamed(
        &self,
        h: &Header,
        flags: u32,
        mode: u32,
        body: &mut Body,
    ) -> Served {
        let (parent, place) = self.node(h.node, |node| (node.inode, node.place))?;
        let parent = parent.ok_or(libc::ENOTDIR)?;
        let operation = Ask::CreateUnnamed { parent, mode, flags };
        let answer = self.client.perform(convert::credentials(h), operation)?;
        let Outcome::Created { entry, handle, content } = answer.outcome else {
            return Err(libc::EIO);
        };
        let entry = (&entry, Duration::ZERO, answer.attributes);
        self.opened(h, entry, place.below(b"unnamed"), (handle, content, flags), body)
    }

    /// The answer to CREATE and TMPFILE: an entry and an open file.
    fn opened(
        &self,
        h: &Header,
        (entry, name_valid, until): (&dvs_fs::messages::Entry, Duration, Until),
        place: super::nodes::Place,
        (handle, content, flags): (Handle, Lease, u32),
        body: &mut Body,
    ) -> Served {
        let mut made = self.made(entry, place, until)?;
        made.name_valid = name_valid;
        body.entry(&made);
        self.note_shared_memory(h, place, flags);
        body.open(check(handle)?, self.cache_mode(flags, content));
        Ok(Answer::Body)
    }

    fn note_shared_memory(&self, h: &Header, place: super::nodes::Place, flags: u32) {
        if place == super::nodes::Place::SharedMemory {
            self.hooks.shared_memory_seen(h.pid, writes(flags));
        }
    }

    /// How the kernel caches a file that is being opened. For writing: not at all, since a buffered
    /// write keeps its page locked until it is answered, and two nodes that write one file would
    /// wait for each other's page. For reading: pages of earlier opens are kept if the server says
    /// that they are still right. (If it recalls them meanwhile, they are dropped before or after
    /// this, and read anew.)
    fn cache_mode(&self, flags: u32, content: Lease) -> u32 {
        if writes(flags) && self.writes_directly() {
            open::DIRECT_IO
        } else if content.milliseconds > 0 {
            open::KEEP_CACHE
        } else {
            0
        }
    }

    pub(super) fn read(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        arguments: ReadArguments,
    ) -> Served {
        let length = arguments.size.min(u32::try_from(MAX_IO).unwrap_or(u32::MAX));
        if let Some(file) = self.attached.get(arguments.handle) {
            return self.read_attached(device, h, file, arguments.offset, length);
        }
        let operation = Ask::Read {
            inode: self.inode(h.node)?,
            handle: Handle(arguments.handle),
            offset: arguments.offset,
            length,
        };
        self.data(h, operation, length as usize)
    }

    pub(super) fn write(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        (handle, offset): (u64, u64),
        (write_flags, flags): (u32, u32),
        data: &[u8],
        body: &mut Body,
    ) -> Served {
        if data.len() > MAX_IO {
            return Err(libc::EINVAL);
        }
        if let Some(file) = self.attached.get(handle) {
            return self.write_attached(device, h, file, offset, data);
        }
        // Pages written back belong where they are, whatever file the kernel found to write them.
        let from_pages = write_flags & flag::WRITE_CACHE != 0;
        let operation = Ask::Write {
            inode: self.inode(h.node)?,
            handle: Handle(handle),
            offset,
            append: has(flags, libc::O_APPEND) && !from_pages,
            kill_privileges: write_flags & flag::WRITE_KILL_SUIDGID != 0,
            data: data.to_vec(),
        };
        match self.client.perform(convert::credentials(h), operation)?.outcome {
            Outcome::Written { length, .. } if length as usize <= data.len() => {
                body.size(length);
                Ok(Answer::Body)
            }
            _ => Err(libc::EIO),
        }
    }

    pub(super) fn flush(&self, h: &Header, handle: u64, owner: u64) -> Served {
        let (inode, locked) = self.node(h.node, |node| (node.inode, node.locked))?;
        let (Some(inode), true) = (inode, locked) else {
            // Nothing is kept back here, and no record lock can be held: nothing to tell.
            return Ok(Answer::Body);
        };
        let handle = match self.attached.get(handle) {
            Some(file) => self.side_handle(h, inode, &file)?,
            None => Handle(handle),
        };
        self.done(h, Ask::Flush { inode, handle, owner: dvs_fs::messages::LockOwner(owner) })
    }

    pub(super) fn release(
        &self,
        h: &Header,
        handle: u64,
        release_flags: u32,
        owner: u64,
    ) -> Served {
        if attached::is_attached(handle) {
            self.release_attached(h, handle);
            return Ok(Answer::Body);
        }
        let inode = self.inode(h.node)?;
        let owner = (release_flags & flag::RELEASE_FLOCK_UNLOCK != 0)
            .then_some(dvs_fs::messages::LockOwner(owner));
        self.done(h, Ask::Release { inode, handle: Handle(handle), owner })
    }

    pub(super) fn fsync(&self, h: &Header, handle: u64, flags: u32) -> Served {
        let data_only = flags & flag::FSYNC_FDATASYNC != 0;
        if let Some(file) = self.attached.get(handle) {
            return file.description.synchronize(data_only).map(|()| Answer::Body);
        }
        let inode = self.inode(h.node)?;
        self.done(h, Ask::Fsync { inode, handle: Handle(handle), data_only })
    }

    pub(super) fn allocate(
        &self,
        h: &Header,
        handle: u64,
        (offset, length): (u64, u64),
        mode: u32,
    ) -> Served {
        let inode = self.inode(h.node)?;
        let handle = self.tree_handle(h, inode, handle)?;
        self.done(h, Ask::Allocate { inode, handle, offset, length, mode })
    }

    pub(super) fn seek(
        &self,
        h: &Header,
        handle: u64,
        offset: u64,
        whence: u32,
        body: &mut Body,
    ) -> Served {
        let inode = self.inode(h.node)?;
        let handle = self.tree_handle(h, inode, handle)?;
        let operation = Ask::Seek { inode, handle, offset, whence };
        match self.client.perform(convert::credentials(h), operation)?.outcome {
            Outcome::Offset(offset) => {
                body.u64(offset);
                Ok(Answer::Body)
            }
            _ => Err(libc::EIO),
        }
    }

    pub(super) fn copy_range(
        &self,
        h: &Header,
        (from, from_offset): (u64, u64),
        to_node: u64,
        (to, to_offset): (u64, u64),
        length: u64,
        body: &mut Body,
    ) -> Served {
        if attached::is_attached(from) || attached::is_attached(to) {
            // The kernel copies by itself then.
            return Err(libc::EXDEV);
        }
        let operation = Ask::CopyRange {
            from: (self.inode(h.node)?, Handle(from), from_offset),
            to: (self.inode(to_node)?, Handle(to), to_offset),
            length: length.min(MAX_COPY),
        };
        match self.client.perform(convert::credentials(h), operation)?.outcome {
            Outcome::Written { length, .. } => {
                body.size(length);
                Ok(Answer::Body)
            }
            _ => Err(libc::EIO),
        }
    }
}

/// The server's handle as the kernel gets it: its highest bit tells attached descriptions.
fn check(handle: Handle) -> Result<u64, i32> {
    if attached::is_attached(handle.0) { Err(libc::EOVERFLOW) } else { Ok(handle.0) }
}

fn has(flags: u32, flag: i32) -> bool {
    flags & flag.cast_unsigned() != 0
}

/// Whether a file is opened for writing.
fn writes(flags: u32) -> bool {
    flags & libc::O_ACCMODE.cast_unsigned() != libc::O_RDONLY.cast_unsigned()
}
