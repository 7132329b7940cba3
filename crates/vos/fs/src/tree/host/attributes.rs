//! Attributes: what a DC sees of a file's, and how it changes them.
//!
//! A daemon that is root gives the files of its private upper layer the very owner and mode that the DC
//! sees. Without privilege it cannot: there every file belongs to the daemon's user and is open to it,
//! and what the DC says is kept beside (`overrides`).

use super::marks::Mark;
use super::nodes::{Key, Record, Side};
use super::resolve::{c_name, errno};
use super::{HostTree, Upper, read, write};
use crate::config::IdMap;
use crate::messages::{AttributeChanges, Attributes, InodeId, MAX_XATTR, Time, TimeChange};
use crate::tree::{Caller, Capacity, FileToken, Found, Result, without_privileges};
use dvs_sys::hostfile::{self, SetTime, Status};
use std::os::fd::{AsFd, BorrowedFd};

/// What the DC says of a file in a private upper layer that the daemon cannot make true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Override {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permission bits.
    pub(super) mode: u32,
}

/// Most overrides that are remembered; more fail with `ENOSPC`.
const MAX_OVERRIDES: usize = 1 << 21;

fn time((seconds, nanoseconds): (i64, u32)) -> Time {
    Time { seconds, nanoseconds }
}

/// Device number as `st_rdev` packs it into 32 bits.
fn packed((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

impl HostTree {
    /// Ids and mode of a private upper layer are kept beside.
    fn overrides_in(&self, region: usize) -> bool {
        self.regions[region].upper == Upper::Private && self.ids != IdMap::Identity
    }

    /// The object as the DC sees it.
    pub(super) fn found(&self, record: &Record) -> Result<Found> {
        let fd = self.descriptor(record)?;
        let status = hostfile::status(fd.as_fd()).map_err(errno)?;
        Ok(self.found_with(record, &status))
    }

    pub(super) fn found_with(&self, record: &Record, status: &Status) -> Found {
        let region = &self.regions[record.region];
        let side = record.side();
        let mut attributes = Attributes {
            inode: record.id(),
            mode: status.mode,
            links: status.links,
            uid: self.ids.uid_shown(status.uid),
            gid: self.ids.gid_shown(status.gid),
            rdev: packed(status.rdev),
            size: status.size,
            blocks: status.blocks,
            accessed: time(status.accessed),
            modified: time(status.modified),
            changed: time(status.changed),
        };
        if side == Side::Upper
            && self.overrides_in(record.region)
            && let Some(kept) = read(&self.overrides).get(&Key::from(status))
        {
            attributes.uid = kept.uid;
            attributes.gid = kept.gid;
            attributes.mode = status.mode & libc::S_IFMT | kept.mode;
        }
        let removed = record.place.is_none() && !record.permanent;
        if removed && side == Side::Lower {
            // The image still has the name that the DC has removed.
            attributes.links = attributes.links.saturating_sub(1);
        } else if record.is_directory() && record.lower.is_some() && !removed {
            // Of merged directories nobody counts the subdirectories; 1 says so (find -noleaf).
            attributes.links = 1;
        } else if record.is_directory() && removed {
            attributes.links = 0;
        }
        let life = match side {
            Side::Upper => region.upper_life,
            Side::Lower => region.lower_life,
        };
        Found { attributes, life }
    }

    /// Gives a new file its owner and mode. `parent`: attributes of its directory.
    pub(super) fn set_new_attributes(
        &self,
        region: usize,
        fd: BorrowedFd<'_>,
        caller: &Caller,
        mode: u32,
        parent: &Attributes,
    ) -> Result<()> {
        let status = hostfile::status(fd).map_err(errno)?;
        let kind = status.mode & libc::S_IFMT;
        let ids = caller.credentials;
        let inherits = parent.mode & libc::S_ISGID != 0;
        let gid = if inherits { parent.gid } else { ids.gid };
        let mut mode = mode & 0o7777 & !(ids.umask & 0o777);
        if inherits && kind == libc::S_IFDIR {
            mode |= libc::S_ISGID;
        }
        if kind == libc::S_IFLNK {
            mode = 0o777;
        }
        self.set_owner_and_mode(region, fd, &status, ids.uid, gid, mode)
    }

    /// Gives a copy the owner, mode and times of its original.
    pub(super) fn set_copied_attributes(
        &self,
        fd: BorrowedFd<'_>,
        key: Key,
        original: &Status,
    ) -> Result<()> {
        let status = hostfile::status(fd).map_err(errno)?;
        debug_assert!(Key::from(&status) == key);
        let mode = original.mode & 0o7777;
        let (uid, gid) = (self.ids.uid_shown(original.uid), self.ids.gid_shown(original.gid));
        // All regions with a lower and an upper layer have a private upper one.
        self.set_owner_and_mode(0, fd, &status, uid, gid, mode)?;
        let to = |(seconds, nanoseconds): (i64, u32)| SetTime::To(seconds, nanoseconds);
        hostfile::set_times(fd, to(original.accessed), to(original.modified)).map_err(errno)
    }

    fn set_owner_and_mode(
        &self,
        region: usize,
        fd: BorrowedFd<'_>,
        status: &Status,
        uid: u32,
        gid: u32,
        mode: u32,
    ) -> Result<()> {
        let is_link = status.mode & libc::S_IFMT == libc::S_IFLNK;
        if self.overrides_in(region) {
            let shown = (self.ids.uid_shown(status.uid), self.ids.gid_shown(status.gid));
            self.set_override(region, fd, status, Override { uid, gid, mode }, shown)?;
            return Ok(());
        }
        // On the host's folders a rootless daemon owns what its DC makes, whoever asked there.
        if self.ids == IdMap::Identity && (status.uid, status.gid) != (uid, gid) {
            hostfile::set_owner(fd, Some(uid), Some(gid)).map_err(errno)?;
        }
        if !is_link && status.mode & 0o7777 != mode {
            hostfile::set_mode(fd, mode).map_err(errno)?;
        }
        Ok(())
    }

    /// Remembers what cannot be made true, and makes true what can and must: the daemon can always use
    /// its own files.
    fn set_override(
        &self,
        region: usize,
        fd: BorrowedFd<'_>,
        status: &Status,
        kept: Override,
        shown: (u32, u32),
    ) -> Result<()> {
        let kind = status.mode & libc::S_IFMT;
        let own = if kind == libc::S_IFDIR { 0o700 } else { 0o600 };
        // Set-id bits on the host would act for the daemon's user.
        let real = kept.mode & 0o777 | own;
        // Also where the mode is the same: the change is to be seen in the file's ctime.
        if kind == libc::S_IFLNK {
            hostfile::set_owner(fd, None, None).map_err(errno)?;
        } else {
            hostfile::set_mode(fd, real).map_err(errno)?;
        }
        let real = if kind == libc::S_IFLNK { 0o777 } else { real };
        let mut overrides = write(&self.overrides);
        let key = Key::from(status);
        let needed = shown != (kept.uid, kept.gid) || real != kept.mode;
        if needed && overrides.len() >= MAX_OVERRIDES && !overrides.contains_key(&key) {
            return Err(libc::ENOSPC);
        }
        // Links and special files cannot carry a mark: theirs lasts as long as the server.
        if self.keeps_marks(region) && matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
            let owner = needed.then_some((kept.uid, kept.gid, kept.mode));
            let mark = Mark::read(fd)?;
            if mark.owner != owner {
                Mark { owner, ..mark }.write(fd)?;
            }
        }
        if needed {
            overrides.insert(key, kept);
        } else {
            overrides.remove(&key);
        }
        Ok(())
    }

    pub(super) fn change_attributes(
        &self,
        inode: InodeId,
        file: Option<FileToken>,
        changes: &AttributeChanges,
    ) -> Result<Found> {
        let limit = changes.size;
        let known = self.record(inode)?;
        if changes.size.is_some() {
            match known.kind {
                libc::S_IFREG => {}
                libc::S_IFDIR => return Err(libc::EISDIR),
                _ => return Err(libc::EINVAL),
            }
        }
        if changes.mode.is_some() && known.kind == libc::S_IFLNK {
            return Err(libc::EOPNOTSUPP);
        }
        let record = self.copy_up(inode, limit)?;
        let fd = self.descriptor_of(record.number, Side::Upper)?;
        let fd = fd.as_fd();
        if let Some(size) = changes.size {
            let open = file.and_then(|file| self.writable_descriptor(file));
            match open {
                Some(open) => hostfile::set_length(open.as_fd(), size).map_err(errno)?,
                None => {
                    let open = hostfile::reopen(fd, libc::O_WRONLY).map_err(errno)?;
                    hostfile::set_length(open.as_fd(), size).map_err(errno)?;
                }
            }
        }
        if changes.uid.is_some()
            || changes.gid.is_some()
            || changes.mode.is_some()
            || changes.kill_privileges
        {
            self.change_owner_and_mode(&record, fd, changes)?;
        }
        let to = |change: Option<TimeChange>| match change {
            None => SetTime::Keep,
            Some(TimeChange::Now) => SetTime::Now,
            Some(TimeChange::To(time)) => SetTime::To(time.seconds, time.nanoseconds),
        };
        if changes.accessed.is_some() || changes.modified.is_some() {
            hostfile::set_times(fd, to(changes.accessed), to(changes.modified)).map_err(errno)?;
        }
        self.found(&self.record(inode)?)
    }

    fn change_owner_and_mode(
        &self,
        record: &Record,
        fd: BorrowedFd<'_>,
        changes: &AttributeChanges,
    ) -> Result<()> {
        let status = hostfile::status(fd).map_err(errno)?;
        let now = self.found_with(record, &status).attributes;
        let uid = changes.uid.unwrap_or(now.uid);
        let gid = changes.gid.unwrap_or(now.gid);
        let mut mode = now.mode;
        // chown(2) clears them for everybody; the client's kernel has decided for everything else.
        if changes.kill_privileges || changes.uid.is_some() || changes.gid.is_some() {
            mode = without_privileges(mode);
        }
        let mode = changes.mode.unwrap_or(mode) & 0o7777;
        if self.overrides_in(record.region) {
            let shown = (self.ids.uid_shown(status.uid), self.ids.gid_shown(status.gid));
            let kept = Override { uid, gid, mode };
            return self.set_override(record.region, fd, &status, kept, shown);
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            let on_host = |id: Option<u32>, map: &dyn Fn(u32) -> Option<u32>| match id {
                None => Ok(None),
                Some(id) => map(id).map(Some).ok_or(libc::EPERM),
            };
            let uid = on_host(changes.uid, &|id| self.ids.uid_on_host(id))?;
            let gid = on_host(changes.gid, &|id| self.ids.gid_on_host(id))?;
            hostfile::set_owner(fd, uid, gid).map_err(errno)?;
        }
        let is_link = record.kind == libc::S_IFLNK;
        let real = hostfile::status(fd).map_err(errno)?.mode & 0o7777;
        if !is_link && (changes.mode.is_some() || real != mode) {
            hostfile::set_mode(fd, mode).map_err(errno)?;
        }
        Ok(())
    }

    /// Clears set-uid and set-gid of a file that is written to.
    pub(super) fn kill_privileges(&self, inode: InodeId) -> Result<()> {
        let record = self.record(inode)?;
        let fd = self.descriptor(&record)?;
        let status = hostfile::status(fd.as_fd()).map_err(errno)?;
        let now = self.found_with(&record, &status).attributes;
        if without_privileges(now.mode) == now.mode {
            return Ok(());
        }
        let changes = AttributeChanges { kill_privileges: true, ..AttributeChanges::default() };
        self.change_owner_and_mode(&record, fd.as_fd(), &changes)
    }

    pub(super) fn capacity_at(&self, inode: InodeId) -> Result<Capacity> {
        let record = self.record(inode)?;
        // Of where a change would go.
        let root = self.record(self.regions[record.region].root)?;
        let fd = self.descriptor(&root)?;
        let found = hostfile::file_system(fd.as_fd()).map_err(errno)?;
        Ok(Capacity {
            block_size: u32::try_from(found.block_size).unwrap_or(4096),
            blocks: found.blocks,
            free: found.free,
            available: found.available,
            files: found.files,
            files_free: found.files_free,
        })
    }

    pub(super) fn xattr(&self, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        super::xattr::check_name(name)?;
        let record = self.record(inode)?;
        if !matches!(record.kind, libc::S_IFREG | libc::S_IFDIR) {
            return Err(libc::ENODATA);
        }
        let fd = self.descriptor(&record)?;
        match hostfile::get_xattr(fd.as_fd(), &c_name(name)?, MAX_XATTR) {
            // As for a file without any.
            Err(error) if error.errno == libc::EOPNOTSUPP => Err(libc::ENODATA),
            other => other.map_err(errno),
        }
    }

    pub(super) fn xattr_names(&self, inode: InodeId) -> Result<Vec<u8>> {
        let record = self.record(inode)?;
        if !matches!(record.kind, libc::S_IFREG | libc::S_IFDIR) {
            return Ok(Vec::new());
        }
        let fd = self.descriptor(&record)?;
        let names = match hostfile::list_xattrs(fd.as_fd(), MAX_XATTR) {
            Err(error) if error.errno == libc::EOPNOTSUPP => return Ok(Vec::new()),
            other => other.map_err(errno)?,
        };
        let mut shown: Vec<&[u8]> = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| name.split_last().is_some_and(|(_, name)| super::xattr::is_shown(name)))
            .collect();
        shown.sort_unstable();
        Ok(shown.concat())
    }

    pub(super) fn change_xattr(
        &self,
        inode: InodeId,
        name: &[u8],
        value: Option<(&[u8], u32)>,
    ) -> Result<()> {
        super::xattr::check_name(name)?;
        let record = self.record(inode)?;
        let region = &self.regions[record.region];
        if !region.writable {
            return Err(libc::EROFS);
        }
        if !matches!(record.kind, libc::S_IFREG | libc::S_IFDIR) {
            return Err(libc::EPERM);
        }
        // A capability on a host's file would hold for the host as well.
        if name == super::xattr::CAPABILITY
            && value.is_some()
            && (self.ids != IdMap::Identity || region.upper == Upper::Host)
        {
            return Err(libc::EPERM);
        }
        let record = self.copy_up(inode, None)?;
        let fd = self.descriptor_of(record.number, Side::Upper)?;
        let name = c_name(name)?;
        match value {
            Some((value, flags)) => hostfile::set_xattr(fd.as_fd(), &name, value, flags),
            None => hostfile::remove_xattr(fd.as_fd(), &name),
        }
        .map_err(errno)
    }
}
