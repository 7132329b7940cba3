//! From an object's number to a descriptor of its file, and the striped locks of names and objects.

use super::HostTree;
use super::nodes::{Key, Record, Side};
use crate::messages::InodeId;
use crate::tree::Result;
use dvs_sys::hostfile;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often a search is repeated when names move under it.
const MAX_TRIES: usize = 16;
/// Locks of a kind.
const STRIPES: usize = 256;

/// A fixed number of locks for any number of objects.
#[derive(Debug)]
pub(super) struct Stripes(Vec<Mutex<()>>);

impl Default for Stripes {
    fn default() -> Self {
        Stripes((0..STRIPES).map(|_| Mutex::new(())).collect())
    }
}

impl Stripes {
    fn index(number: u64) -> usize {
        (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % STRIPES
    }

    pub(super) fn lock(&self, number: u64) -> MutexGuard<'_, ()> {
        self.0[Self::index(number)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All, in a fixed order.
    pub(super) fn lock_all(&self, numbers: [u64; 3]) -> Vec<MutexGuard<'_, ()>> {
        let indices: BTreeSet<usize> = numbers.into_iter().map(Self::index).collect();
        let lock = |index: usize| self.0[index].lock().unwrap_or_else(PoisonError::into_inner);
        indices.into_iter().map(lock).collect()
    }
}

/// A name as C wants it; [`crate::tree::check_name`] has refused NUL.
pub(super) fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| libc::EINVAL)
}

impl HostTree {
    pub(super) fn table(&self) -> MutexGuard<'_, super::nodes::Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of an object's record as it is now.
    pub(super) fn record(&self, inode: InodeId) -> Result<Record> {
        self.table().get(inode).cloned()
    }

    /// The record of a directory.
    pub(super) fn directory(&self, inode: InodeId) -> Result<Record> {
        let record = self.record(inode)?;
        if record.is_directory() { Ok(record) } else { Err(libc::ENOTDIR) }
    }

    /// An `O_PATH` descriptor of the file that counts.
    pub(super) fn descriptor(&self, record: &Record) -> Result<Arc<OwnedFd>> {
        self.descriptor_of(record.number, record.side())
    }

    /// An `O_PATH` descriptor of one of an object's files.
    pub(super) fn descriptor_of(&self, number: u64, side: Side) -> Result<Arc<OwnedFd>> {
        for _ in 0..MAX_TRIES {
            match self.search(number, side) {
                Ok(fd) => return Ok(fd),
                // A rename may have moved it, or an ancestor, between reading the place and going
                // there. While it moves, its descriptor is pinned: the next try finds that or the
                // new place.
                Err(libc::ENOENT | libc::ESTALE | libc::ENOTDIR) => {}
                Err(errno) => return Err(errno),
            }
        }

        Err(libc::ESTALE)
    }

    fn search(&self, number: u64, side: Side) -> Result<Arc<OwnedFd>> {
        let mut table = self.table();
        if let Some(fd) = table.cached(number, side) {
            return Ok(fd);
        }
        let record = table.get_mut(number)?;
        let (region, fd, key) = match side {
            Side::Lower => {
                let lower = record.lower.clone().ok_or(libc::ESTALE)?;
                let region = record.region;
                drop(table);
                let layer = self.regions[region].lower.as_ref().ok_or(libc::ESTALE)?;
                let fd = if lower.path.as_bytes() == b"." {
                    Arc::clone(&layer.fd)
                } else {
                    Arc::new(hostfile::path_beneath(layer.fd.as_fd(), &lower.path).map_err(errno)?)
                };
                (region, fd, lower.key)
            }
            Side::Upper => {
                let key = record.upper.ok_or(libc::ESTALE)?;
                let region = record.region;
                // Upwards to the first directory that has a descriptor; a region's root has one.
                let mut names = Vec::new();
                let mut place = record.place.clone().ok_or(libc::ESTALE)?;
                let mut fd = loop {
                    names.push(c_name(&place.1)?);
                    if let Some(fd) = table.cached(place.0, Side::Upper) {
                        break fd;
                    }
                    place = table.get_mut(place.0)?.place.clone().ok_or(libc::ESTALE)?;
                };
                drop(table);
                for name in names.iter().rev() {
                    fd = Arc::new(hostfile::path_at(fd.as_fd(), name).map_err(errno)?);
                }
                (region, fd, key)
            }
        };
        let found = Key::from(&hostfile::status(fd.as_fd()).map_err(errno)?);
        if found != key {
            return Err(libc::ESTALE);
        }
        let mut table = self.table();
        // Copied up or gone meanwhile: the descriptor is right for who asked, but not to be kept.
        if let Ok(record) = table.get_mut(number)
            && record.region == region
            && (side == Side::Lower || record.upper == Some(key))
        {
            table.cache(number, side, Arc::clone(&fd));
        }
        Ok(fd)
    }
}

/// The errno of a failed system call.
pub(super) fn errno(error: dvs_sys::error::SysError) -> i32 {
    error.errno
}
