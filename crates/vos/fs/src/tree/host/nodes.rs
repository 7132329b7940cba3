//! The table of known objects: which number means which file of which layer.
//!
//! An object is identified by its backing file (device, inode, birth time: inode numbers are used
//! again, births are not). It keeps its number when it is renamed and when it is copied up, for the
//! number then means both files. Descriptors are a cache: an object is found again by its parent and
//! name, or by its path in an immutable layer; only what has lost its name keeps one for good.
//!
//! All of this is one short lock; no system call is made under it.

use crate::messages::{InodeId, ROOT};
use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Most cached descriptors; the least recently used are closed.
pub(super) const MAX_CACHED: usize = 2048;
/// Most numbers that are remembered for objects that nobody refers to.
const MAX_NUMBERS: usize = 1 << 21;

/// Numbers are below this: a double holds each exactly, as some languages want it.
const NUMBERS: u64 = (1 << 53) - 1;

/// A number for a backing file that is the same whenever it is asked for, so that the next server
/// shows the same. (A mix of 64 bits as of splitmix64, Steele and others, OOPSLA 2014.)
fn stable_number(region: usize, key: &Key) -> u64 {
    let device = if key.born == (0, 0) { key.device } else { 0 };
    let parts = [region as u64, device, key.inode, key.born.0 as u64, u64::from(key.born.1)];
    let mixed = parts.into_iter().fold(0_u64, |state, part| {
        let mut z = (state ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    });
    mixed & NUMBERS
}

/// Identity of a backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) born: (i64, u32),
}

impl From<&dvs_sys::hostfile::Status> for Key {
    fn from(status: &dvs_sys::hostfile::Status) -> Self {
        Key { device: status.device, inode: status.inode, born: status.born }
    }
}

/// An object of a read-only layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lower {
    /// Path from the layer's root; `.` for the root.
    pub(super) path: Arc<CString>,
    pub(super) key: Key,
    /// A directory whose content is not shown.
    pub(super) empty: bool,
}

/// Which of an object's two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Upper,
    Lower,
}

/// A known object.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) region: usize,
    /// `S_IFMT` bits.
    pub(super) kind: u32,
    /// One of its names; none for the root and for what has lost its name.
    pub(super) place: Option<(u64, Vec<u8>)>,
    pub(super) upper: Option<Key>,
    pub(super) lower: Option<Lower>,
    pub(super) upper_fd: Option<Arc<OwnedFd>>,
    pub(super) lower_fd: Option<Arc<OwnedFd>>,
    /// The descriptors stay: the root of a region, or something without a name or about to be renamed.
    pub(super) pinned: u32,
    /// Root of a region, or covered by one: never forgotten.
    pub(super) permanent: bool,
    /// Its last name has been removed.
    pub(super) gone: bool,
    /// References that the core holds.
    pub(super) references: u64,
    /// Records whose place is in this directory.
    children: u64,
    open: u64,
    /// Used since the descriptor cache last looked.
    used: bool,
}

impl Record {
    pub(super) fn id(&self) -> InodeId {
        InodeId { number: self.number, generation: 0 }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// The file that counts.
    pub(super) fn side(&self) -> Side {
        if self.upper.is_some() { Side::Upper } else { Side::Lower }
    }

    fn fd(&self, side: Side) -> Option<&Arc<OwnedFd>> {
        match side {
            Side::Upper => self.upper_fd.as_ref(),
            Side::Lower => self.lower_fd.as_ref(),
        }
    }

    fn descriptors(&self) -> usize {
        usize::from(self.upper_fd.is_some()) + usize::from(self.lower_fd.is_some())
    }
}

/// A newly found object.
#[derive(Debug)]
pub(super) struct New {
    pub(super) region: usize,
    pub(super) kind: u32,
    pub(super) place: Option<(u64, Vec<u8>)>,
    pub(super) upper: Option<(Key, Arc<OwnedFd>)>,
    pub(super) lower: Option<(Lower, Option<Arc<OwnedFd>>)>,
}

/// All known objects.
#[derive(Debug, Default)]
pub(super) struct Table {
    records: HashMap<u64, Record>,
    by_key: HashMap<(usize, Key), u64>,
    /// Numbers of objects, also of those that have been forgotten.
    numbers: HashMap<(usize, Key), u64>,
    /// Files that exist no longer.
    dead: Vec<Key>,
    /// Records with descriptors, in the order in which they will be looked at.
    cached: VecDeque<u64>,
}

impl Table {
    pub(super) fn get(&self, inode: InodeId) -> Result<&Record, i32> {
        self.records.get(&inode.number).filter(|_| inode.generation == 0).ok_or(libc::ESTALE)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Result<&mut Record, i32> {
        self.records.get_mut(&number).ok_or(libc::ESTALE)
    }

    /// The number of a backing file, for a listing.
    pub(super) fn number(&mut self, region: usize, key: Key) -> u64 {
        if let Some(number) = self.numbers.get(&(region, key)) {
            return *number;
        }
        if self.numbers.len() >= MAX_NUMBERS {
            let records = &self.records;
            self.numbers.retain(|_, number| records.contains_key(number));
        }
        let mut number = stable_number(region, &key);
        while number <= ROOT.number || self.records.contains_key(&number) {
            number = number.wrapping_add(1) & NUMBERS;
        }
        self.numbers.insert((region, key), number);
        number
    }

    /// A backing file's number, as an earlier server gave it.
    pub(super) fn know_number(&mut self, region: usize, key: Key, number: u64) {
        self.numbers.insert((region, key), number & NUMBERS);
    }

    /// Adds an object, or learns a place of a known one. Answers its record.
    pub(super) fn learn(&mut self, new: New) -> Result<&mut Record, i32> {
        let keys = [
            new.upper.as_ref().map(|(key, _)| *key),
            new.lower.as_ref().map(|(lower, _)| lower.key),
        ];
        let known = keys.iter().flatten().find_map(|key| self.by_key.get(&(new.region, *key)));
        let number = match known.copied() {
            Some(number) => {
                self.set_place(number, new.place);
                number
            }
            None => {
                let first = keys.iter().flatten().next().copied().ok_or(libc::EIO)?;
                let number = self.number(new.region, first);
                self.insert(number, new.region, new.kind, new.place);
                number
            }
        };
        if let Some((key, fd)) = new.upper {
            self.set_upper(number, key, fd);
        }
        if let Some((lower, fd)) = new.lower {
            let record = self.get_mut(number)?;
            let region = record.region;
            record.lower.get_or_insert_with(|| lower.clone());
            self.by_key.insert((region, lower.key), number);
            self.numbers.insert((region, lower.key), number);
            if let Some(fd) = fd {
                self.cache(number, Side::Lower, fd);
            }
        }
        self.get_mut(number)
    }

    /// Adds the root of the tree or of a region.
    pub(super) fn add_root(&mut self, number: Option<u64>, new: New) -> Result<u64, i32> {
        if let Some(number) = number {
            let keys = [
                new.upper.as_ref().map(|(key, _)| *key),
                new.lower.as_ref().map(|(lower, _)| lower.key),
            ];
            for key in keys.into_iter().flatten() {
                self.numbers.insert((new.region, key), number);
            }
        }
        let record = self.learn(new)?;
        record.permanent = true;
        record.pinned += 1;
        Ok(record.number)
    }

    fn insert(&mut self, number: u64, region: usize, kind: u32, place: Option<(u64, Vec<u8>)>) {
        let record = Record {
            number,
            region,
            kind,
            place: None,
            upper: None,
            lower: None,
            upper_fd: None,
            lower_fd: None,
            pinned: 0,
            permanent: false,
            gone: false,
            references: 0,
            children: 0,
            open: 0,
            used: true,
        };
        self.records.insert(number, record);
        self.set_place(number, place);
    }

    /// The object is now found there, or nowhere.
    pub(super) fn set_place(&mut self, number: u64, place: Option<(u64, Vec<u8>)>) {
        let Some(record) = self.records.get_mut(&number) else { return };
        if record.place == place || record.permanent {
            return;
        }
        if let Some((parent, _)) = &place
            && let Some(parent) = self.records.get_mut(parent)
        {
            parent.children += 1;
        }
        let Some(record) = self.records.get_mut(&number) else { return };
        let had_place = record.place.is_some();
        if place.is_none() && had_place {
            record.pinned += 1;
        } else if place.is_some() && !had_place {
            record.pinned = record.pinned.saturating_sub(1);
        }
        if let Some((old, _)) = std::mem::replace(&mut record.place, place)
            && let Some(old_parent) = self.records.get_mut(&old)
        {
            old_parent.children = old_parent.children.saturating_sub(1);
            self.release(old);
        }
    }

    /// The object has a file in the upper layer.
    pub(super) fn set_upper(&mut self, number: u64, key: Key, fd: Arc<OwnedFd>) {
        let Some(record) = self.records.get_mut(&number) else { return };
        let region = record.region;
        record.upper = Some(key);
        self.by_key.insert((region, key), number);
        self.numbers.insert((region, key), number);
        self.cache(number, Side::Upper, fd);
    }

    /// The descriptor of an object, if there is one.
    pub(super) fn cached(&mut self, number: u64, side: Side) -> Option<Arc<OwnedFd>> {
        let record = self.records.get_mut(&number)?;
        let fd = record.fd(side).cloned();
        record.used |= fd.is_some();
        fd
    }

    /// Keeps a descriptor, and closes those that were not used for long.
    pub(super) fn cache(&mut self, number: u64, side: Side, fd: Arc<OwnedFd>) {
        let Some(record) = self.records.get_mut(&number) else { return };
        let before = record.descriptors();
        match side {
            Side::Upper => record.upper_fd = Some(fd),
            Side::Lower => record.lower_fd = Some(fd),
        }
        record.used = true;
        if before == 0 {
            self.cached.push_back(number);
        }
        // The clock algorithm: what was used since the last round gets another one.
        let mut looked_at = 0;
        while self.cached.len() > MAX_CACHED && looked_at < 2 * MAX_CACHED {
            looked_at += 1;
            let Some(oldest) = self.cached.pop_front() else { break };
            let Some(record) = self.records.get_mut(&oldest) else { continue };
            if record.pinned > 0 || record.used {
                record.used = false;
                self.cached.push_back(oldest);
            } else {
                record.upper_fd = None;
                record.lower_fd = None;
            }
        }
    }

    /// Gives references back.
    pub(super) fn forget(&mut self, number: u64, references: u64) {
        if let Some(record) = self.records.get_mut(&number) {
            record.references = record.references.saturating_sub(references);
        }
        self.release(number);
    }

    /// An open file of the object begins or ends.
    pub(super) fn count_open(&mut self, number: u64, more: bool) {
        if let Some(record) = self.records.get_mut(&number) {
            record.open = if more { record.open + 1 } else { record.open.saturating_sub(1) };
        }
        if !more {
            self.release(number);
        }
    }

    /// Drops an object that nothing needs, and its parents likewise.
    pub(super) fn release(&mut self, mut number: u64) {
        loop {
            let Some(record) = self.records.get(&number) else { return };
            if record.references > 0 || record.children > 0 || record.open > 0 || record.permanent {
                return;
            }
            let Some(record) = self.records.remove(&number) else { return };
            let keys = [record.upper, record.lower.as_ref().map(|lower| lower.key)];
            for key in keys.into_iter().flatten() {
                self.by_key.remove(&(record.region, key));
                if record.gone {
                    self.numbers.remove(&(record.region, key));
                    self.dead.push(key);
                }
            }
            let Some((parent, _)) = record.place else { return };
            let Some(parent_record) = self.records.get_mut(&parent) else { return };
            parent_record.children = parent_record.children.saturating_sub(1);
            number = parent;
        }
    }

    /// The files that exist no longer since this was last asked.
    pub(super) fn take_dead(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.dead)
    }

    /// Known objects and cached descriptors.
    #[cfg(test)]
    pub(super) fn load(&self) -> (usize, usize) {
        (self.records.len(), self.records.values().map(Record::descriptors).sum())
    }
}
