//! Open files.

use super::listing::{Listed, page};
use super::nodes::{Key, New, Side};
use super::resolve::errno;
use super::{HostTree, read, write};
use crate::messages::{DirectoryEntry, InodeId, MAX_DIRECTORY_ENTRIES, MAX_IO, ROOT};
use crate::tree::{
    Caller, Effect, FileToken, Make, Opened, Result, Tree, Version, Wrote, check_name,
};
use dvs_sys::hostfile;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    inode: InodeId,
    /// `O_ACCMODE` bits.
    access: i32,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// The descriptor, and which file it is of.
    File(Mutex<(Arc<OwnedFd>, Side)>),
    /// The names when it was last read from its start.
    Directory(Mutex<Arc<Vec<Listed>>>),
}

/// Flags that the host's file is opened with besides the access mode.
const KEPT_FLAGS: i32 = libc::O_SYNC | libc::O_DSYNC;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostTree {
    pub(super) fn open_object(&self, inode: InodeId, flags: u32) -> Result<Opened> {
        let flags = flags as i32;
        let access = flags & libc::O_ACCMODE;
        let mut record = self.record(inode)?;
        match record.kind {
            libc::S_IFDIR if access != libc::O_RDONLY => return Err(libc::EISDIR),
            libc::S_IFDIR => {
                let found = self.found(&record)?;
                let content = Content::Directory(Mutex::default());
                let file = self.add_file(OpenFile { inode, access, content });
                return Ok(Opened { file, found, effects: Vec::new() });
            }
            libc::S_IFREG if flags & libc::O_DIRECTORY != 0 => return Err(libc::ENOTDIR),
            libc::S_IFREG => {}
            libc::S_IFLNK => return Err(libc::ELOOP),
            // The client's kernel opens these itself.
            _ => return Err(libc::ENXIO),
        }
        let truncates = flags & libc::O_TRUNC != 0 && access != libc::O_RDONLY;
        if access != libc::O_RDONLY {
            record = self.copy_up(inode, truncates.then_some(0))?;
        }
        let side = record.side();
        let path = self.descriptor_of(record.number, side)?;
        let fd = hostfile::reopen(path.as_fd(), access | flags & KEPT_FLAGS).map_err(errno)?;
        let mut effects = Vec::new();
        if truncates {
            hostfile::set_length(fd.as_fd(), 0).map_err(errno)?;
            effects.push(Effect::Content(inode));
        }
        let status = hostfile::status(fd.as_fd()).map_err(errno)?;
        let found = self.found_with(&record, &status);
        let content = Content::File(Mutex::new((Arc::new(fd), side)));
        let file = self.add_file(OpenFile { inode, access, content });
        Ok(Opened { file, found, effects })
    }

    pub(super) fn create_file(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
    ) -> Result<Opened> {
        /// How often a file may vanish between being there and being opened.
        const TRIES: usize = 16;
        let exclusive = flags as i32 & libc::O_EXCL != 0;
        for _ in 0..TRIES {
            match self.make_file(caller, parent, name, mode) {
                Ok((found, fd)) => {
                    let access = flags as i32 & libc::O_ACCMODE;
                    let content = Content::File(Mutex::new((Arc::new(fd), Side::Upper)));
                    let inode = found.attributes.inode;
                    let file = self.add_file(OpenFile { inode, access, content });
                    return Ok(Opened { file, found, effects: Vec::new() });
                }
                Err(libc::EEXIST) if !exclusive && check_name(name).is_ok() => {}
                Err(errno) => return Err(errno),
            }
            let Some(found) = self.lookup(parent, name)?.found else { continue };
            let inode = found.attributes.inode;
            return self.open_object(inode, flags).inspect_err(|_| self.forget(inode, 1));
        }
        Err(libc::EBUSY)
    }

    pub(super) fn create_nameless(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: u32,
    ) -> Result<Opened> {
        if !self.record(parent)?.is_directory() {
            return Err(libc::ENOTDIR);
        }
        let directory = self.copy_up(parent, None)?;
        let parent_attributes = self.found(&directory)?.attributes;
        let directory_fd = self.descriptor_of(directory.number, Side::Upper)?;
        let exclusive = flags as i32 & libc::O_EXCL;
        let fd = hostfile::create_unnamed(directory_fd.as_fd(), libc::O_RDWR | exclusive, 0o600)
            .map_err(errno)?;
        let region = directory.region;
        self.set_new_attributes(region, fd.as_fd(), caller, mode, &parent_attributes)?;
        let status = hostfile::status(fd.as_fd()).map_err(errno)?;
        let fd = Arc::new(fd);
        let new = New {
            region,
            kind: libc::S_IFREG,
            place: None,
            upper: Some((Key::from(&status), Arc::clone(&fd))),
            lower: None,
        };
        let mut table = self.table();
        let record = table.learn(new)?;
        record.references += 1;
        // As for everything without a name.
        record.pinned += 1;
        record.gone = true;
        let record = record.clone();
        drop(table);
        let access = flags as i32 & libc::O_ACCMODE;
        let content = Content::File(Mutex::new((fd, Side::Upper)));
        let file = self.add_file(OpenFile { inode: record.id(), access, content });
        Ok(Opened { file, found: self.found_with(&record, &status), effects: Vec::new() })
    }

    fn add_file(&self, file: OpenFile) -> FileToken {
        let token = self.next_file.fetch_add(1, Relaxed) + 1;
        self.table().count_open(file.inode.number, true);
        write(&self.files).insert(token, Arc::new(file));
        FileToken(token)
    }

    pub(super) fn close_file(&self, file: FileToken) {
        let Some(file) = write(&self.files).remove(&file.0) else { return };
        let mut table = self.table();
        table.count_open(file.inode.number, false);
        let dead = table.take_dead();
        drop(table);
        self.bury(dead);
    }

    fn file(&self, file: FileToken) -> Result<Arc<OpenFile>> {
        read(&self.files).get(&file.0).cloned().ok_or(libc::EBADF)
    }

    /// The descriptor to read from or write to.
    fn file_descriptor(&self, file: &OpenFile) -> Result<Arc<OwnedFd>> {
        let Content::File(content) = &file.content else { return Err(libc::EISDIR) };
        let (fd, side) = lock(content).clone();
        if side == Side::Upper {
            return Ok(fd);
        }
        // Copied up since it was opened: what is read must be what is written now.
        let record = self.record(file.inode)?;
        if record.upper.is_none() {
            return Ok(fd);
        }
        let path = self.descriptor_of(record.number, Side::Upper)?;
        let fd = Arc::new(hostfile::reopen(path.as_fd(), libc::O_RDONLY).map_err(errno)?);
        *lock(content) = (Arc::clone(&fd), Side::Upper);
        Ok(fd)
    }

    fn for_writing(&self, token: FileToken) -> Result<(Arc<OpenFile>, Arc<OwnedFd>)> {
        let file = self.file(token)?;
        if file.access == libc::O_RDONLY {
            return Err(libc::EBADF);
        }
        let fd = self.file_descriptor(&file)?;
        Ok((file, fd))
    }

    /// The descriptor of an open file, if it can write.
    pub(super) fn writable_descriptor(&self, file: FileToken) -> Option<Arc<OwnedFd>> {
        self.for_writing(file).ok().map(|(_, fd)| fd)
    }

    pub(super) fn read_file(&self, file: FileToken, offset: u64, length: u32) -> Result<Vec<u8>> {
        let file = self.file(file)?;
        if file.access == libc::O_WRONLY {
            return Err(libc::EBADF);
        }
        let fd = self.file_descriptor(&file)?;
        let mut data = vec![0; (length as usize).min(MAX_IO)];
        let mut filled = 0;
        while filled < data.len() {
            let rest = data.get_mut(filled..).unwrap_or_default();
            match hostfile::read_at(fd.as_fd(), rest, offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.errno == libc::EINTR => {}
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error.errno),
            }
        }
        data.truncate(filled);
        Ok(data)
    }

    pub(super) fn write_file(
        &self,
        file: FileToken,
        offset: Option<u64>,
        kill_privileges: bool,
        data: &[u8],
    ) -> Result<Wrote> {
        let (file, fd) = self.for_writing(file)?;
        if kill_privileges {
            self.kill_privileges(file.inode)?;
        }
        let mut written = 0;
        while written < data.len() {
            let rest = data.get(written..).unwrap_or_default();
            let done = match offset {
                Some(offset) => {
                    let place = offset.checked_add(written as u64).ok_or(libc::EFBIG)?;
                    hostfile::write_at(fd.as_fd(), rest, place)
                }
                None => hostfile::append(fd.as_fd(), rest),
            };
            match done {
                Ok(0) => break,
                Ok(length) => written += length,
                Err(error) if error.errno == libc::EINTR => {}
                Err(_) if written > 0 => break,
                Err(error) => return Err(error.errno),
            }
        }
        self.wrote(&fd, written as u64)
    }

    fn wrote(&self, fd: &OwnedFd, length: u64) -> Result<Wrote> {
        let status = hostfile::status(fd.as_fd()).map_err(errno)?;
        let time = |(seconds, nanoseconds)| crate::messages::Time { seconds, nanoseconds };
        let version = Version {
            size: status.size,
            modified: time(status.modified),
            changed: time(status.changed),
        };
        Ok(Wrote { length: u32::try_from(length).unwrap_or(u32::MAX), size: status.size, version })
    }

    pub(super) fn sync_file(&self, file: FileToken, data_only: bool) -> Result<()> {
        let file = self.file(file)?;
        match &file.content {
            Content::File(_) => {
                let fd = self.file_descriptor(&file)?;
                hostfile::sync(fd.as_fd(), data_only).map_err(errno)
            }
            Content::Directory(_) => {
                let record = self.record(file.inode)?;
                if record.upper.is_none() {
                    return Ok(());
                }
                let path = self.descriptor_of(record.number, Side::Upper)?;
                let flags = libc::O_RDONLY | libc::O_DIRECTORY;
                let fd = hostfile::reopen(path.as_fd(), flags).map_err(errno)?;
                hostfile::sync(fd.as_fd(), data_only).map_err(errno)
            }
        }
    }

    pub(super) fn allocate_range(
        &self,
        file: FileToken,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        let (_, fd) = self.for_writing(file)?;
        hostfile::allocate(fd.as_fd(), mode, offset, length).map_err(errno)
    }

    pub(super) fn seek_file(&self, file: FileToken, offset: u64, whence: u32) -> Result<u64> {
        if !matches!(whence as i32, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(libc::EINVAL);
        }
        let file = self.file(file)?;
        let fd = self.file_descriptor(&file)?;
        hostfile::seek(fd.as_fd(), offset, whence).map_err(errno)
    }

    pub(super) fn copy_between(
        &self,
        from: (FileToken, u64),
        to: (FileToken, u64),
        length: u64,
    ) -> Result<Wrote> {
        /// Most bytes of one call, so that it ends in a bounded time; the caller goes on.
        const MOST: u64 = 1 << 30;
        let source = self.file(from.0)?;
        if source.access == libc::O_WRONLY {
            return Err(libc::EBADF);
        }
        let source_fd = self.file_descriptor(&source)?;
        let (_, target_fd) = self.for_writing(to.0)?;
        let length = usize::try_from(length.min(MOST)).unwrap_or(0);
        let (from_fd, to_fd) = (source_fd.as_fd(), target_fd.as_fd());
        let copied = match hostfile::copy_range(from_fd, from.1, to_fd, to.1, length) {
            Ok(copied) => copied as u64,
            // Two file systems of the host that are one to the DC.
            Err(error) if matches!(error.errno, libc::EXDEV | libc::EOPNOTSUPP) => {
                let part = u32::try_from(length.min(MAX_IO)).unwrap_or(0);
                let data = self.read_file(from.0, from.1, part)?;
                return self.write_file(to.0, Some(to.1), false, &data);
            }
            Err(error) => return Err(error.errno),
        };
        self.wrote(&target_fd, copied)
    }

    pub(super) fn list(
        &self,
        file: FileToken,
        cookie: u64,
        bytes: u32,
    ) -> Result<Vec<DirectoryEntry>> {
        let file = self.file(file)?;
        let Content::Directory(listing) = &file.content else { return Err(libc::ENOTDIR) };
        if cookie == 0 {
            let record = self.record(file.inode)?;
            let parent = record.place.as_ref().map_or(
                if record.id() == ROOT { ROOT.number } else { record.number },
                |(parent, _)| *parent,
            );
            let mut names = vec![
                (b".".to_vec(), record.number, libc::S_IFDIR),
                (b"..".to_vec(), parent, libc::S_IFDIR),
            ];
            // A removed directory has no names.
            if record.place.is_some() || record.permanent {
                names.extend(self.names(&record)?);
            }
            *lock(listing) = Arc::new(names);
        }
        let snapshot = Arc::clone(&lock(listing));
        Ok(page(&snapshot, cookie, bytes, MAX_DIRECTORY_ENTRIES))
    }
}

impl HostTree {
    /// Makes a directory, for the layout.
    pub(super) fn make_directory(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<InodeId> {
        let found = self.make_object(caller, parent, name, Make::Directory(mode))?;
        Ok(found.attributes.inode)
    }
}
