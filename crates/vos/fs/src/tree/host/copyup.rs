//! Copying up: what only the read-only layer has gets a file of its own in the upper one.
//!
//! The copy is made under a temporary name and moved into place, so it is never seen half done. Of a
//! directory only itself is copied; it stays merged with the lower one. Parents are copied first.

use super::marks::Mark;
use super::nodes::{Key, Lower, Record, Side};
use super::resolve::{c_name, errno};
use super::{HostTree, write};
use crate::messages::InodeId;
use crate::tree::Result;
use dvs_sys::hostfile::{self, SetTime, Status};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;
/// Most bytes of an extended attribute that are copied.
const MAX_XATTR: usize = crate::messages::MAX_XATTR;

/// A temporary file of the work folder, removed unless it was moved away.
pub(super) struct Temporary<'a> {
    pub(super) work: BorrowedFd<'a>,
    pub(super) name: CString,
    pub(super) directory: bool,
    pub(super) moved: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.moved {
            let _ = hostfile::unlink_at(self.work, &self.name, self.directory);
        }
    }
}

impl HostTree {
    /// Makes sure that an object can be changed; of a file's content at most `limit` bytes are needed.
    /// Answers its record.
    pub(super) fn copy_up(&self, inode: InodeId, limit: Option<u64>) -> Result<Record> {
        loop {
            let record = self.record(inode)?;
            if !self.regions[record.region].writable {
                return Err(libc::EROFS);
            }
            if record.upper.is_some() {
                return Ok(record);
            }
            // Upwards to the highest that is not there yet. Regions' roots are.
            let mut highest = record;
            while let Some((parent, _)) = &highest.place {
                let parent = self.record(InodeId { number: *parent, generation: 0 })?;
                if parent.upper.is_some() {
                    break;
                }
                highest = parent;
            }
            let limit = if highest.number == inode.number { limit } else { None };
            self.copy_up_one(highest.id(), limit)?;
        }
    }

    fn copy_up_one(&self, inode: InodeId, limit: Option<u64>) -> Result<()> {
        let _object = self.object_locks.lock(inode.number);
        let record = self.record(inode)?;
        if record.upper.is_some() {
            return Ok(());
        }
        if record.place.is_none() && record.is_directory() {
            return Err(libc::ENOENT);
        }
        let source = self.descriptor_of(record.number, Side::Lower)?;
        let status = hostfile::status(source.as_fd()).map_err(errno)?;
        let (mut temporary, fd) = self.copy(source.as_fd(), &status, limit)?;
        let key = Key::from(&hostfile::status(fd.as_fd()).map_err(errno)?);
        self.mark_copy(&record, fd.as_fd(), &status)?;
        self.set_copied_attributes(fd.as_fd(), key, &status)?;
        let Some((parent, name)) = record.place.clone() else {
            // Without a name, as its original: the descriptor keeps it.
            self.table().set_upper(record.number, key, fd);
            return Ok(());
        };
        let directory = self.descriptor_of(parent, Side::Upper)?;
        let _names = self.directory_locks.lock(parent);
        let now = self.record(inode)?;
        if now.place != record.place {
            // Renamed or removed meanwhile: what there is to do is looked at again.
            return Ok(());
        }
        if let Some(lower) = record.lower.filter(|_| status.mode & libc::S_IFMT == libc::S_IFDIR) {
            write(&self.partners).insert(key, lower);
        }
        let flags = libc::RENAME_NOREPLACE;
        let name = c_name(&name)?;
        // The upper directory keeps its times: nothing has changed that anybody can see.
        let before = hostfile::status(directory.as_fd()).map_err(errno)?;
        if let Err(error) =
            hostfile::rename_at(self.work.as_fd(), &temporary.name, directory.as_fd(), &name, flags)
        {
            write(&self.partners).remove(&key);
            return Err(error.errno);
        }
        temporary.moved = true;
        let (seconds, nanoseconds) = before.modified;
        let _ = hostfile::set_times(
            directory.as_fd(),
            SetTime::Keep,
            SetTime::To(seconds, nanoseconds),
        );
        self.table().set_upper(record.number, key, fd);
        Ok(())
    }

    /// Says on a copy what it is a copy of.
    fn mark_copy(&self, record: &Record, fd: BorrowedFd<'_>, original: &Status) -> Result<()> {
        let markable = matches!(record.kind, libc::S_IFDIR | libc::S_IFREG);
        if !markable || !self.keeps_marks(record.region) {
            return Ok(());
        }
        let path = |lower: &Lower| lower.path.as_bytes().to_vec();
        let lower = record.lower.as_ref().filter(|_| record.is_directory()).map(path);
        // Other names of the original stay what they were for the next server: two files.
        let one_name = record.is_directory() || original.links == 1;
        Mark { lower, number: one_name.then_some(record.number), owner: None }.write(fd)
    }

    /// A name in the work folder that nobody else uses.
    pub(super) fn temporary_name(&self) -> CString {
        let number = self.next_work.fetch_add(1, Relaxed);
        CString::new(format!("copy-{number}")).unwrap_or_default()
    }

    fn copy(
        &self,
        source: BorrowedFd<'_>,
        status: &Status,
        limit: Option<u64>,
    ) -> Result<(Temporary<'_>, Arc<OwnedFd>)> {
        let work = self.work.as_fd();
        let name = self.temporary_name();
        let kind = status.mode & libc::S_IFMT;
        let directory = kind == libc::S_IFDIR;
        let mut content = None;
        match kind {
            libc::S_IFDIR => hostfile::make_directory_at(work, &name, 0o700).map_err(errno)?,
            libc::S_IFREG => {
                // Opened first: what may not be read leaves nothing behind.
                let from = hostfile::reopen(source, libc::O_RDONLY).map_err(errno)?;
                let to = hostfile::create_at(work, &name, libc::O_RDWR, 0o600).map_err(errno)?;
                content = Some((from, to));
            }
            libc::S_IFLNK => {
                let target = hostfile::read_link(source).map_err(errno)?;
                hostfile::make_link_at(&c_name(&target)?, work, &name).map_err(errno)?;
            }
            libc::S_IFIFO | libc::S_IFSOCK => {
                hostfile::make_node_at(work, &name, kind | 0o600).map_err(errno)?;
            }
            // A device node of the image cannot be made anew.
            _ => return Err(libc::EPERM),
        }
        let temporary = Temporary { work, name, directory, moved: false };
        if let Some((from, to)) = content {
            let length = limit.map_or(status.size, |limit| limit.min(status.size));
            copy_content(from.as_fd(), to.as_fd(), length)?;
        }
        let fd = Arc::new(hostfile::path_at(work, &temporary.name).map_err(errno)?);
        if matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
            copy_xattrs(source, fd.as_fd());
        }
        Ok((temporary, fd))
    }
}

/// Copies the first bytes of a file, holes left out.
fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> Result<()> {
    hostfile::set_length(to, length).map_err(errno)?;
    let mut offset = 0;
    while offset < length {
        let start = match hostfile::seek(from, offset, libc::SEEK_DATA as u32) {
            Ok(start) => start,
            // Only a hole follows; or holes are not told, then all is data.
            Err(error) if error.errno == libc::ENXIO => break,
            Err(_) => offset,
        };
        let end = hostfile::seek(from, start, libc::SEEK_HOLE as u32).unwrap_or(length).min(length);
        offset = start;
        while offset < end {
            let part = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
            let copied = copy_part(from, to, offset, part)?;
            if copied == 0 {
                // Shorter than it said: the rest reads as zeros.
                return Ok(());
            }
            offset += copied as u64;
        }
        offset = offset.max(end);
    }
    Ok(())
}

fn copy_part(from: BorrowedFd<'_>, to: BorrowedFd<'_>, offset: u64, part: usize) -> Result<usize> {
    match hostfile::copy_range(from, offset, to, offset, part) {
        Ok(copied) if copied > 0 => return Ok(copied),
        Err(error) if matches!(error.errno, libc::ENOSPC | libc::EDQUOT | libc::EIO) => {
            return Err(error.errno);
        }
        // Two file systems that cannot do it, or an end that read(2) should tell.
        _ => {}
    }
    let mut buffer = vec![0; part];
    let read = hostfile::read_at(from, &mut buffer, offset).map_err(errno)?;
    let mut written = 0;
    while written < read {
        let rest = buffer.get(written..read).unwrap_or_default();
        let done = hostfile::write_at(to, rest, offset + written as u64).map_err(errno)?;
        if done == 0 {
            return Err(libc::EIO);
        }
        written += done;
    }
    Ok(read)
}

/// Copies the extended attributes that a DC sees, as far as the upper file system keeps them.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let Ok(names) = hostfile::list_xattrs(from, MAX_XATTR) else { return };
    for name in names.split(|byte| *byte == 0).filter(|name| super::xattr::is_shown(name)) {
        let Ok(name) = c_name(name) else { continue };
        if let Ok(value) = hostfile::get_xattr(from, &name, MAX_XATTR) {
            let _ = hostfile::set_xattr(to, &name, &value, 0);
        }
    }
}
