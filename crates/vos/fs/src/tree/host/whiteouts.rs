//! Changes of names in a kept upper layer, each by one rename, so that it is done or not done whenever the
//! server, or the machine, stops.
//!
//! What a rename takes away is moved to the work folder and removed there; what a crash leaves there is
//! removed at the next start.

use super::copyup::Temporary;
use super::marks::{self, Mark};
use super::nodes::Record;
use super::resolve::errno;
use super::{HostTree, Upper};
use crate::tree::Result;
use dvs_sys::hostfile::{self, Status};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

impl HostTree {
    /// Whether the names that a directory loses leave whiteouts, and new ones come through the work
    /// folder.
    pub(super) fn keeps_marks(&self, region: usize) -> bool {
        self.kept && self.regions.get(region).is_some_and(|region| region.upper == Upper::Private)
    }

    /// Whether an upper directory has a whiteout by this name.
    pub(super) fn has_whiteout(&self, directory: BorrowedFd<'_>, name: &CStr) -> bool {
        hostfile::status_at(directory, name).is_ok_and(|status| marks::is_whiteout(&status))
    }

    fn new_whiteout(&self) -> Result<Temporary<'_>> {
        let work = self.work.as_fd();
        let name = self.temporary_name();
        hostfile::make_whiteout_at(work, &name).map_err(errno)?;
        Ok(Temporary { work, name, directory: false, moved: false })
    }

    /// Removes an upper name. `uncovers`: the lower layer has the name too, and must not show it.
    pub(super) fn remove_upper(
        &self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        is_directory: bool,
        uncovers: bool,
    ) -> Result<()> {
        if !is_directory {
            if !uncovers {
                return hostfile::unlink_at(directory, name, false).map_err(errno);
            }
            let mut whiteout = self.new_whiteout()?;
            hostfile::rename_at(whiteout.work, &whiteout.name, directory, name, 0)
                .map_err(errno)?;
            whiteout.moved = true;
            return Ok(());
        }
        if !uncovers {
            match hostfile::unlink_at(directory, name, true) {
                Err(error) if error.errno == libc::ENOTEMPTY => {}
                other => return other.map_err(errno),
            }
        }
        let victim = hostfile::path_at(directory, name).map_err(errno)?;
        if !self.has_only_whiteouts(victim.as_fd())? {
            return Err(libc::ENOTEMPTY);
        }
        let mut moved = if uncovers {
            let whiteout = self.new_whiteout()?;
            let (work, flags) = (whiteout.work, libc::RENAME_EXCHANGE);
            hostfile::rename_at(work, &whiteout.name, directory, name, flags).map_err(errno)?;
            whiteout
        } else {
            let (work, own) = (self.work.as_fd(), self.temporary_name());
            let flags = libc::RENAME_NOREPLACE;
            hostfile::rename_at(directory, name, work, &own, flags).map_err(errno)?;
            Temporary { work, name: own, directory: true, moved: false }
        };
        moved.directory = true;
        self.remove_whiteouts(victim.as_fd());
        Ok(())
    }

    fn has_only_whiteouts(&self, directory: BorrowedFd<'_>) -> Result<bool> {
        for entry in self.raw_entries(directory)? {
            let name = super::resolve::c_name(&entry.name)?;
            if !self.has_whiteout(directory, &name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Empties a directory that has only whiteouts and no name any more. What stays goes with the work
    /// folder's next cleaning.
    fn remove_whiteouts(&self, directory: BorrowedFd<'_>) {
        for entry in self.raw_entries(directory).unwrap_or_default() {
            if let Ok(name) = super::resolve::c_name(&entry.name) {
                let _ = hostfile::unlink_at(directory, &name, false);
            }
        }
    }

    /// Gives a new object of the work folder its name, in place of a whiteout if there is one.
    pub(super) fn place_new(
        &self,
        new: &mut Temporary<'_>,
        directory: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<()> {
        let rename = |flags| hostfile::rename_at(new.work, &new.name, directory, name, flags);
        match rename(libc::RENAME_NOREPLACE) {
            Ok(()) => new.moved = true,
            Err(error) if error.errno == libc::EEXIST && self.has_whiteout(directory, name) => {
                if new.directory {
                    rename(libc::RENAME_EXCHANGE).map_err(errno)?;
                    // The temporary name is now the whiteout's.
                    new.directory = false;
                } else {
                    rename(0).map_err(errno)?;
                    new.moved = true;
                }
            }
            Err(error) => return Err(error.errno),
        }
        Ok(())
    }

    /// Renames between upper directories. `uncovers`: the lower layer has the old name too.
    pub(super) fn move_upper(
        &self,
        (from, name): (BorrowedFd<'_>, &CStr),
        (to, new_name): (BorrowedFd<'_>, &CStr),
        source: &Record,
        target: Option<&Record>,
        uncovers: bool,
    ) -> Result<()> {
        if source.is_directory() && target.is_none() && self.has_whiteout(to, new_name) {
            // A directory does not replace a whiteout; but they can change places.
            let flags = libc::RENAME_EXCHANGE;
            hostfile::rename_at(from, name, to, new_name, flags).map_err(errno)?;
            if !uncovers {
                let _ = hostfile::unlink_at(from, name, false);
            }
            return Ok(());
        }
        let flags = if uncovers { libc::RENAME_WHITEOUT } else { 0 };
        let rename = || hostfile::rename_at(from, name, to, new_name, flags);
        match rename() {
            Err(error) if error.errno == libc::ENOTEMPTY && target.is_some() => {
                self.empty_really(to, new_name)?;
                rename().map_err(errno)
            }
            other => other.map_err(errno),
        }
    }

    /// Puts a really empty directory in the place of one that has whiteouts only.
    fn empty_really(&self, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let old = hostfile::path_at(directory, name).map_err(errno)?;
        if !self.has_only_whiteouts(old.as_fd())? {
            return Err(libc::ENOTEMPTY);
        }
        let status = hostfile::status(old.as_fd()).map_err(errno)?;
        let (work, own) = (self.work.as_fd(), self.temporary_name());
        hostfile::make_directory_at(work, &own, 0o700).map_err(errno)?;
        let temporary = Temporary { work, name: own, directory: true, moved: false };
        let new = hostfile::path_at(work, &temporary.name).map_err(errno)?;
        copy_owner_and_mode(new.as_fd(), &status)?;
        let mark = Mark::read(old.as_fd())?;
        Mark { lower: None, ..mark }.write(new.as_fd())?;
        let flags = libc::RENAME_EXCHANGE;
        hostfile::rename_at(work, &temporary.name, directory, name, flags).map_err(errno)?;
        self.remove_whiteouts(old.as_fd());
        Ok(())
    }
}

fn copy_owner_and_mode(fd: BorrowedFd<'_>, status: &Status) -> Result<()> {
    let own = hostfile::status(fd).map_err(errno)?;
    if (own.uid, own.gid) != (status.uid, status.gid) {
        hostfile::set_owner(fd, Some(status.uid), Some(status.gid)).map_err(errno)?;
    }
    hostfile::set_mode(fd, status.mode & 0o7777).map_err(errno)
}
