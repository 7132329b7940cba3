//! Which names a directory shows, and what they mean.

use super::listing::{Listed, MAX_LISTING};
use super::nodes::{Key, Lower, New, Record, Side};
use super::resolve::{c_name, errno};
use super::{HostTree, Upper, marks, read, write};
use crate::messages::InodeId;
use crate::tree::{Life, Looked, Result, check_name};
use dvs_sys::hostfile::{self, Status};
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// File systems whose content is the host's business alone, or which could hang the server; shown as
/// empty directories. Numbers of `linux/magic.h`.
const NOT_SHOWN: [u64; 17] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x1cd1,      // devpts
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x1980_0202, // mqueue
    0x6165_676c, // pstore
    0x6265_6570, // configfs
    0xde5e_81e4, // efivarfs
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
    0x0187,      // autofs
    0x6573_5546, // fuse
];

/// A known object that stays known while this is held.
pub(super) struct Held<'a> {
    tree: &'a HostTree,
    record: Record,
    kept: bool,
}

impl Held<'_> {
    /// Leaves the reference to whoever will give it back by [`crate::tree::Tree::forget`].
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl std::ops::Deref for Held<'_> {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.tree.give_back(self.record.number, 1);
        }
    }
}

/// A file that a name means in a lower layer.
pub(super) struct Visible {
    pub(super) lower: Lower,
    pub(super) fd: Arc<OwnedFd>,
    pub(super) status: Status,
}

impl HostTree {
    pub(super) fn look_up(&self, parent: InodeId, name: &[u8]) -> Result<Looked> {
        let directory = self.directory(parent)?;
        check_name(name)?;
        let _guard = self.directory_locks.lock(directory.number);
        let name_life = self.name_life(&directory);
        let Some(held) = self.find(&directory, name)? else {
            return Ok(Looked { found: None, name_life });
        };
        // A name of a lower layer changes only by renaming or removing what it means, which no ordinary
        // run does; it is as lasting as in a directory of which the DC has nothing of its own. So every
        // kernel may keep `/usr`, by which most paths begin.
        let name_life = match name_life {
            Life::Private if self.is_of_image(&held.record) => Life::Image,
            life => life,
        };
        let found = self.found(&held)?;
        // The reference is the client's from here on.
        held.keep();
        Ok(Looked { found: Some(found), name_life })
    }

    /// How names of a directory can change.
    pub(super) fn name_life(&self, directory: &Record) -> Life {
        let region = &self.regions[directory.region];
        match region.lower_life {
            Life::Image if directory.upper.is_some() => Life::Private,
            life => life,
        }
    }

    /// Whether an object is a lower layer's, of which the DC has no copy of its own.
    fn is_of_image(&self, record: &Record) -> bool {
        self.regions[record.region].lower_life == Life::Image
            && record.upper.is_none()
            && record.lower.is_some()
    }

    fn hold(&self, record: &mut Record) -> Result<Held<'_>> {
        record.references += 1;
        Ok(Held { tree: self, record: record.clone(), kept: false })
    }

    /// Gives references to an object back.
    pub(super) fn give_back(&self, number: u64, references: u64) {
        let mut table = self.table();
        table.forget(number, references);
        let dead = table.take_dead();
        drop(table);
        self.bury(dead);
    }

    /// What a name means. The caller holds the directory's lock.
    pub(super) fn find(&self, directory: &Record, name: &[u8]) -> Result<Option<Held<'_>>> {
        if let Some(region) = read(&self.mounts).get(&(directory.number, name.to_vec())) {
            let root = self.regions[*region].root.number;
            return self.hold(self.table().get_mut(root)?).map(Some);
        }
        let name_c = c_name(name)?;
        let place = Some((directory.number, name.to_vec()));
        if directory.upper.is_some() {
            let fd = self.descriptor_of(directory.number, Side::Upper)?;
            if let Some((fd, status)) = self.upper_at(directory.region, fd.as_fd(), &name_c)? {
                let key = Key::from(&status);
                let kind = status.mode & libc::S_IFMT;
                let partner = if kind == libc::S_IFDIR {
                    read(&self.partners).get(&key).cloned()
                } else {
                    None
                };
                let new = New {
                    region: directory.region,
                    kind,
                    place,
                    upper: Some((key, fd)),
                    lower: partner.map(|lower| (lower, None)),
                };
                return self.hold(self.table().learn(new)?).map(Some);
            }
        }
        let Some(visible) = self.visible_lower(directory, name)? else { return Ok(None) };
        let kind = visible.status.mode & libc::S_IFMT;
        let lower = Some((visible.lower, Some(visible.fd)));
        let new = New { region: directory.region, kind, place, upper: None, lower };
        self.hold(self.table().learn(new)?).map(Some)
    }

    /// A name of an upper directory. The daemon's own state is never seen.
    fn upper_at(
        &self,
        region: usize,
        directory: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<Option<(Arc<OwnedFd>, Status)>> {
        let fd = match hostfile::path_at(directory, name) {
            Ok(fd) => fd,
            Err(error) if error.errno == libc::ENOENT => return Ok(None),
            Err(error) => return Err(error.errno),
        };
        let status = hostfile::status(fd.as_fd()).map_err(errno)?;
        let host = self.regions[region].upper == Upper::Host;
        if !host && self.kept && self.is_not_shown(&status)? {
            return Ok(None);
        }
        if host && self.hidden.contains(&(status.device, status.inode)) {
            return Ok(None);
        }
        Ok(Some((Arc::new(fd), status)))
    }

    /// What a lower directory shows by a name.
    pub(super) fn visible_lower(&self, directory: &Record, name: &[u8]) -> Result<Option<Visible>> {
        let Some(lower) = directory.lower.as_ref().filter(|lower| !lower.empty) else {
            return Ok(None);
        };
        if read(&self.masks).get(&lower.key).is_some_and(|masked| masked.contains(name)) {
            return Ok(None);
        }
        let parent = self.descriptor_of(directory.number, Side::Lower)?;
        let fd = match hostfile::path_at(parent.as_fd(), &c_name(name)?) {
            Ok(fd) => fd,
            // A folder that the daemon may not search shows nothing.
            Err(error) if matches!(error.errno, libc::ENOENT | libc::EACCES) => return Ok(None),
            Err(error) => return Err(error.errno),
        };
        let status = hostfile::status(fd.as_fd()).map_err(errno)?;
        let Some(empty) = self.shown(directory.region, lower.key.device, &status, || {
            hostfile::file_system(fd.as_fd()).map_or(0, |file_system| file_system.magic)
        }) else {
            return Ok(None);
        };
        let path = join(&lower.path, name)?;
        let lower = Lower { path: Arc::new(path), key: Key::from(&status), empty };
        Ok(Some(Visible { lower, fd: Arc::new(fd), status }))
    }

    /// Whether a file of a lower layer is shown (`None`: not at all; `Some(true)`: as an empty directory).
    /// Of the host's root only what everybody on the host may read is shown.
    pub(super) fn shown(
        &self,
        region: usize,
        parent_device: u64,
        status: &Status,
        magic: impl FnOnce() -> u64,
    ) -> Option<bool> {
        let is_directory = status.mode & libc::S_IFMT == libc::S_IFDIR;
        let host_root = self.regions[region].lower.as_ref().is_some_and(|layer| layer.host_root);
        if is_directory {
            let closed = host_root && status.mode & 0o005 != 0o005;
            let foreign = status.device != parent_device && NOT_SHOWN.contains(&magic());
            return Some(closed || foreign || self.hidden.contains(&(status.device, status.inode)));
        }
        let secret =
            status.mode & libc::S_IFMT == libc::S_IFREG && status.mode & libc::S_IROTH == 0;
        (!(host_root && secret)).then_some(false)
    }

    /// Whether a file of a kept upper layer is none to be seen.
    fn is_not_shown(&self, status: &Status) -> Result<bool> {
        if read(&self.damaged).contains(&Key::from(status)) {
            self.damage_met.fetch_add(1, Relaxed);
            return Err(libc::EIO);
        }
        Ok(matches!(status.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK))
    }

    /// Whether a directory's lower layer has a name, shown or masked.
    pub(super) fn lower_has(&self, directory: &Record, name: &[u8]) -> bool {
        let masked = directory.lower.as_ref().is_some_and(|lower| {
            read(&self.masks).get(&lower.key).is_some_and(|masked| masked.contains(name))
        });
        masked || self.visible_lower(directory, name).is_ok_and(|lower| lower.is_some())
    }

    /// Hides a name of a directory's lower layer, now and for ever.
    pub(super) fn mask(&self, directory: &Record, name: &[u8]) {
        if let Some(lower) = &directory.lower {
            write(&self.masks).entry(lower.key).or_default().insert(name.to_vec());
        }
    }

    /// All names that a directory shows, without `.` and `..`.
    pub(super) fn names(&self, directory: &Record) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        let mut seen = HashSet::new();
        let region = directory.region;
        if directory.upper.is_some() {
            let fd = self.descriptor_of(directory.number, Side::Upper)?;
            let host = self.regions[region].upper == Upper::Host;
            for entry in self.raw_entries(fd.as_fd())? {
                let Ok(status) = hostfile::status_at(fd.as_fd(), &c_name(&entry.name)?) else {
                    continue;
                };
                if host && self.hidden.contains(&(status.device, status.inode))
                    || !host && self.kept && marks::is_whiteout(&status)
                {
                    continue;
                }
                let number = self.table().number(region, Key::from(&status));
                seen.insert(entry.name.clone());
                listed.push((entry.name, number, status.mode & libc::S_IFMT));
            }
        }
        if let Some(lower) = directory.lower.as_ref().filter(|lower| !lower.empty) {
            let fd = self.descriptor_of(directory.number, Side::Lower)?;
            let masked = read(&self.masks).get(&lower.key).cloned().unwrap_or_default();
            for entry in self.raw_entries(fd.as_fd())? {
                if seen.contains(&entry.name) || masked.contains(&entry.name) {
                    continue;
                }
                let Ok(status) = hostfile::status_at(fd.as_fd(), &c_name(&entry.name)?) else {
                    continue;
                };
                // An empty directory is listed like another one.
                if self.shown(region, status.device, &status, || 0).is_none() {
                    continue;
                }
                let number = self.table().number(region, Key::from(&status));
                listed.push((entry.name, number, status.mode & libc::S_IFMT));
            }
        }
        // A covered name shows the root of what covers it.
        for ((parent, name), region) in &*read(&self.mounts) {
            if *parent == directory.number
                && let Some(entry) = listed.iter_mut().find(|(listed, ..)| listed == name)
            {
                entry.1 = self.regions[*region].root.number;
            }
        }
        Ok(listed)
    }

    pub(super) fn raw_entries(&self, fd: BorrowedFd<'_>) -> Result<Vec<hostfile::RawEntry>> {
        let open = hostfile::reopen(fd, libc::O_RDONLY | libc::O_DIRECTORY).map_err(errno)?;
        hostfile::entries(open.as_fd(), MAX_LISTING).map_err(errno)
    }

    /// Whether the lower part of a directory shows any name that its upper part does not replace.
    pub(super) fn lower_shows_names(&self, directory: &Record) -> Result<bool> {
        let mut only_lower = directory.clone();
        only_lower.upper = None;
        if directory.lower.is_none() {
            return Ok(false);
        }
        let names = self.names(&only_lower)?;
        if names.is_empty() || directory.upper.is_none() {
            return Ok(!names.is_empty());
        }
        let fd = self.descriptor_of(directory.number, Side::Upper)?;
        for (name, ..) in names {
            if hostfile::status_at(fd.as_fd(), &c_name(&name)?).is_err() {
                // (Whiteouts' names are masked, and not among these.)
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn join(directory: &CStr, name: &[u8]) -> Result<CString> {
    let directory = directory.to_bytes();
    let path = if directory == b"." { name.to_vec() } else { [directory, b"/", name].concat() };
    if path.len() >= libc::PATH_MAX as usize {
        return Err(libc::ENAMETOOLONG);
    }
    c_name(&path)
}
