//! The tree as a union of folders of the host.
//!
//! A tree is made of *regions*: the root, and one for each shared folder. A region has a read-only
//! *lower* layer (the image, or a folder that is copied on write), or an *upper* one that takes changes
//! (the DC's state folder, or a folder that is shared for writing), or both.
//!
//! How the two layers of a region meet (in memory while the server lives; in a kept upper layer also on
//! the files themselves, see `marks`):
//! - A name is that of the upper directory if it is there, else that of the lower one unless it is
//!   *masked* (removed, or never to be seen).
//! - An upper directory is merged with a lower one only if it was copied up from it; which one is
//!   remembered by the upper directory's identity (`partners`). So directories of the image are renamed
//!   without copying what is in them, and a new directory never shows an old one's content.
//! - What changes is copied up first and keeps its number.
//!
//! The idea is that of overlayfs (kernel documentation, `filesystems/overlayfs.rst`); its marks in the
//! upper layer are written only where that is to be kept, so that the rest works on every file system.
//!
//! Safety: every name is looked up relative to an `O_PATH` directory and never followed; the guest's
//! kernel resolves links. Nothing but regular files and directories is ever opened. No device node is
//! ever made. See [`dvs_sys::hostfile`].

mod attributes;
mod copyup;
mod files;
mod kept;
mod layout;
pub mod listing;
mod marks;
mod names;
mod nodes;
pub mod recover;
mod resolve;
#[cfg(test)]
mod tests;
mod union;
mod whiteouts;
pub mod xattr;

use super::{
    Caller, Capacity, FileToken, Found, Life, Looked, Make, Opened, Renamed, Result, Tree, Wrote,
};
use crate::config::IdMap;
use crate::messages::{AttributeChanges, DirectoryEntry, InodeId};
use attributes::Override;
use files::OpenFile;
use nodes::{Key, Lower, Table};
use resolve::Stripes;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

/// A read-only layer.
#[derive(Debug)]
struct Layer {
    fd: Arc<OwnedFd>,
    /// The host's own root: secrets are not shown.
    host_root: bool,
}

/// What the upper layer of a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upper {
    /// The DC's own: ids and modes are what the DC says.
    Private,
    /// A folder of the host.
    Host,
}

/// A part of the tree with its own layers.
#[derive(Debug)]
struct Region {
    lower: Option<Layer>,
    /// Changes can be made.
    writable: bool,
    upper: Upper,
    /// The region's root.
    root: InodeId,
    /// Of what only the lower layer has, and of names.
    lower_life: Life,
    /// Of what the upper layer has.
    upper_life: Life,
}

/// The tree.
#[derive(Debug)]
pub struct HostTree {
    regions: Vec<Region>,
    ids: IdMap,
    /// Directories that are shown empty (as device and inode).
    hidden: HashSet<(u64, u64)>,
    /// The private upper layers are to outlive the server.
    kept: bool,
    /// Files of kept upper layers whose marks make no sense.
    damaged: RwLock<HashSet<Key>>,
    /// How often a program has met one of them.
    damage_met: AtomicU64,
    /// What was found when the tree was opened.
    recovered: recover::Recovered,
    /// Where temporary files of copying are made; on the file system of all private upper layers.
    work: OwnedFd,
    next_work: AtomicU64,
    table: Mutex<Table>,
    /// Names that lower directories no longer show.
    masks: RwLock<HashMap<Key, HashSet<Vec<u8>>>>,
    /// Upper directories that are merged with a lower one.
    partners: RwLock<HashMap<Key, Lower>>,
    /// Ids and modes that the private upper layer cannot have (rootless).
    overrides: RwLock<HashMap<Key, Override>>,
    /// Regions by the directory and name that they cover.
    mounts: RwLock<HashMap<(u64, Vec<u8>), usize>>,
    files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next_file: AtomicU64,
    /// Held while a directory's names change or are looked up.
    directory_locks: Stripes,
    /// Held while an object is copied up. Taken before a directory's.
    object_locks: Stripes,
}

impl HostTree {
    /// What was found in a kept upper layer when the tree was opened.
    #[must_use]
    pub fn recovered(&self) -> &recover::Recovered {
        &self.recovered
    }

    /// How often a program has met an object whose mark is damaged, and got `EIO`.
    #[must_use]
    pub fn damage_met(&self) -> u64 {
        self.damage_met.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Tree for HostTree {
    fn root(&self) -> Result<Found> {
        self.attributes(crate::messages::ROOT)
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Looked> {
        self.look_up(parent, name)
    }

    fn attributes(&self, inode: InodeId) -> Result<Found> {
        let record = self.record(inode)?;
        self.found(&record)
    }

    fn set_attributes(
        &self,
        _caller: &Caller,
        inode: InodeId,
        file: Option<FileToken>,
        changes: &AttributeChanges,
    ) -> Result<Found> {
        self.change_attributes(inode, file, changes)
    }

    fn read_link(&self, inode: InodeId) -> Result<Vec<u8>> {
        let record = self.record(inode)?;
        if record.kind != libc::S_IFLNK {
            return Err(libc::EINVAL);
        }
        use std::os::fd::AsFd;
        dvs_sys::hostfile::read_link(self.descriptor(&record)?.as_fd()).map_err(resolve::errno)
    }

    fn make(&self, caller: &Caller, parent: InodeId, name: &[u8], what: Make<'_>) -> Result<Found> {
        self.make_object(caller, parent, name, what)
    }

    fn link(
        &self,
        _caller: &Caller,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Found> {
        self.link_object(inode, parent, name)
    }

    fn unlink(&self, _caller: &Caller, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>> {
        self.remove(parent, name, false)
    }

    fn remove_directory(
        &self,
        _caller: &Caller,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Option<InodeId>> {
        self.remove(parent, name, true)
    }

    fn rename(
        &self,
        _caller: &Caller,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<Renamed> {
        self.move_name(parent, name, new_parent, new_name, flags)
    }

    fn open(&self, _caller: &Caller, inode: InodeId, flags: u32) -> Result<Opened> {
        self.open_object(inode, flags)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
    ) -> Result<Opened> {
        self.create_file(caller, parent, name, mode, flags)
    }

    fn create_unnamed(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: u32,
    ) -> Result<Opened> {
        self.create_nameless(caller, parent, mode, flags)
    }

    fn read(&self, file: FileToken, offset: u64, length: u32) -> Result<Vec<u8>> {
        self.read_file(file, offset, length)
    }

    fn write(
        &self,
        _caller: &Caller,
        file: FileToken,
        offset: Option<u64>,
        kill_privileges: bool,
        data: &[u8],
    ) -> Result<Wrote> {
        self.write_file(file, offset, kill_privileges, data)
    }

    fn sync(&self, file: FileToken, data_only: bool) -> Result<()> {
        self.sync_file(file, data_only)
    }

    fn allocate(
        &self,
        _caller: &Caller,
        file: FileToken,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        self.allocate_range(file, offset, length, mode)
    }

    fn seek(&self, file: FileToken, offset: u64, whence: u32) -> Result<u64> {
        self.seek_file(file, offset, whence)
    }

    fn copy_range(
        &self,
        _caller: &Caller,
        from: (FileToken, u64),
        to: (FileToken, u64),
        length: u64,
    ) -> Result<Wrote> {
        self.copy_between(from, to, length)
    }

    fn read_directory(
        &self,
        file: FileToken,
        cookie: u64,
        bytes: u32,
    ) -> Result<Vec<DirectoryEntry>> {
        self.list(file, cookie, bytes)
    }

    fn close(&self, file: FileToken) {
        self.close_file(file);
    }

    fn capacity(&self, inode: InodeId) -> Result<Capacity> {
        self.capacity_at(inode)
    }

    fn get_xattr(&self, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.xattr(inode, name)
    }

    fn list_xattrs(&self, inode: InodeId) -> Result<Vec<u8>> {
        self.xattr_names(inode)
    }

    fn set_xattr(&self, inode: InodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.change_xattr(inode, name, Some((value, flags)))
    }

    fn remove_xattr(&self, inode: InodeId, name: &[u8]) -> Result<()> {
        self.change_xattr(inode, name, None)
    }

    fn forget(&self, inode: InodeId, references: u64) {
        self.give_back(inode.number, references);
    }

    fn is_slow_to_change(&self, inode: InodeId) -> bool {
        /// Copied in about a millisecond.
        const QUICK: u64 = 1 << 20;
        let Ok(record) = self.record(inode) else { return false };
        record.upper.is_none()
            && record.kind == libc::S_IFREG
            && self.found(&record).is_ok_and(|found| found.attributes.size > QUICK)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}
