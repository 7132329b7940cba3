//! Making, linking, removing and renaming: everything that changes which names there are.
//!
//! Each takes the lock of the directories whose names it changes, so that a lookup sees the state before
//! or after. What loses its name keeps a descriptor as long as somebody refers to it.

use super::copyup::Temporary;
use super::nodes::{Key, New, Record, Side};
use super::resolve::{c_name, errno};
use super::union::Held;
use super::{HostTree, read, write};
use crate::messages::InodeId;
use crate::tree::{Caller, Found, Make, Renamed, Result, check_name};
use dvs_sys::hostfile::{self, SetTime};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How often a rename starts anew because the names moved under it.
const MAX_TRIES: usize = 64;

impl HostTree {
    fn is_covered(&self, directory: InodeId, name: &[u8]) -> bool {
        read(&self.mounts).contains_key(&(directory.number, name.to_vec()))
    }

    /// What a name means at this moment.
    fn peek(&self, directory: &Record, name: &[u8]) -> Result<Option<Held<'_>>> {
        let _names = self.directory_locks.lock(directory.number);
        self.find(directory, name)
    }

    pub(super) fn make_object(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        what: Make<'_>,
    ) -> Result<Found> {
        match what {
            Make::Node(mode, _) if matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) => {
                self.make_file(caller, parent, name, mode).map(|(found, _)| found)
            }
            Make::Node(mode, _) => {
                // Checked before anything is copied up. No device of a guest acts on the host.
                match mode & libc::S_IFMT {
                    libc::S_IFIFO | libc::S_IFSOCK => {}
                    libc::S_IFCHR | libc::S_IFBLK => {
                        self.absent(parent, name)?;
                        return Err(libc::EPERM);
                    }
                    _ => return Err(libc::EINVAL),
                }
                let kind = mode & libc::S_IFMT;
                self.make_with(caller, parent, name, mode, |directory, name| {
                    hostfile::make_node_at(directory, name, kind | 0o600).map_err(errno)
                })
                .map(|(found, ())| found)
            }
            Make::Directory(mode) => self
                .make_with(caller, parent, name, mode, |directory, name| {
                    hostfile::make_directory_at(directory, name, 0o700).map_err(errno)
                })
                .map(|(found, ())| found),
            Make::Link(target) => {
                if target.is_empty() {
                    return Err(libc::ENOENT);
                }
                if target.len() >= libc::PATH_MAX as usize {
                    return Err(libc::ENAMETOOLONG);
                }
                let target = c_name(target).map_err(|_| libc::ENOENT)?;
                self.make_with(caller, parent, name, 0o777, |directory, name| {
                    hostfile::make_link_at(&target, directory, name).map_err(errno)
                })
                .map(|(found, ())| found)
            }
        }
    }

    /// Makes a regular file and answers it open for reading and writing.
    pub(super) fn make_file(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<(Found, OwnedFd)> {
        self.make_with(caller, parent, name, mode, |directory, name| {
            hostfile::create_at(directory, name, libc::O_RDWR, 0o600).map_err(errno)
        })
    }

    /// Checks that a name can be made in a directory.
    fn absent(&self, parent: InodeId, name: &[u8]) -> Result<()> {
        let directory = self.directory(parent)?;
        check_name(name)?;
        if self.peek(&directory, name)?.is_some() { Err(libc::EEXIST) } else { Ok(()) }
    }

    /// Makes an object by `make`, which is given the upper directory.
    fn make_with<T>(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        make: impl FnOnce(BorrowedFd<'_>, &CStr) -> Result<T>,
    ) -> Result<(Found, T)> {
        // What exists is told before what is forbidden, and nothing is copied up for it.
        self.absent(parent, name)?;
        let directory = self.copy_up(parent, None)?;
        let _names = self.directory_locks.lock(directory.number);
        if self.find(&directory, name)?.is_some() {
            return Err(libc::EEXIST);
        }
        let fd = self.descriptor_of(directory.number, Side::Upper)?;
        let parent_attributes = self.found(&directory)?.attributes;
        let name_c = c_name(name)?;
        if self.keeps_marks(directory.region) {
            let own = self.temporary_name();
            let made = make(self.work.as_fd(), &own)?;
            let work = self.work.as_fd();
            let mut new = Temporary { work, name: own, directory: false, moved: false };
            let object = Arc::new(hostfile::path_at(work, &new.name).map_err(errno)?);
            let status = hostfile::status(object.as_fd()).map_err(errno)?;
            new.directory = status.mode & libc::S_IFMT == libc::S_IFDIR;
            let region = directory.region;
            self.set_new_attributes(region, object.as_fd(), caller, mode, &parent_attributes)?;
            self.place_new(&mut new, fd.as_fd(), &name_c)?;
            return self.learn_made(&directory, name, object).map(|found| (found, made));
        }
        let made = make(fd.as_fd(), &name_c)?;
        let is_directory = |mode: u32| mode & libc::S_IFMT == libc::S_IFDIR;
        let finish = || -> Result<Arc<OwnedFd>> {
            let object = Arc::new(hostfile::path_at(fd.as_fd(), &name_c).map_err(errno)?);
            let region = directory.region;
            self.set_new_attributes(region, object.as_fd(), caller, mode, &parent_attributes)?;
            Ok(object)
        };
        let object = finish().inspect_err(|_| {
            let made = hostfile::status_at(fd.as_fd(), &name_c);
            let made_directory = made.is_ok_and(|status| is_directory(status.mode));
            let _ = hostfile::unlink_at(fd.as_fd(), &name_c, made_directory);
        })?;
        self.learn_made(&directory, name, object).map(|found| (found, made))
    }

    /// Enters an object that was made in a directory; answers it with a reference.
    fn learn_made(&self, directory: &Record, name: &[u8], object: Arc<OwnedFd>) -> Result<Found> {
        let status = hostfile::status(object.as_fd()).map_err(errno)?;
        let new = New {
            region: directory.region,
            kind: status.mode & libc::S_IFMT,
            place: Some((directory.number, name.to_vec())),
            upper: Some((Key::from(&status), object)),
            lower: None,
        };
        let mut table = self.table();
        let record = table.learn(new)?;
        record.references += 1;
        let record = record.clone();
        drop(table);
        Ok(self.found_with(&record, &status))
    }

    pub(super) fn link_object(
        &self,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Found> {
        let directory = self.directory(parent)?;
        check_name(name)?;
        let record = self.record(inode)?;
        if record.is_directory() {
            return Err(libc::EPERM);
        }
        self.absent(parent, name)?;
        if record.region != directory.region {
            return Err(libc::EXDEV);
        }
        let record = self.copy_up(inode, None)?;
        let directory = self.copy_up(parent, None)?;
        let _names = self.directory_locks.lock(directory.number);
        if self.find(&directory, name)?.is_some() {
            return Err(libc::EEXIST);
        }
        let fd = self.descriptor_of(record.number, Side::Upper)?;
        let directory_fd = self.descriptor_of(directory.number, Side::Upper)?;
        let name_c = c_name(name)?;
        if self.keeps_marks(directory.region) {
            let (work, own) = (self.work.as_fd(), self.temporary_name());
            hostfile::link_descriptor(fd.as_fd(), work, &own).map_err(errno)?;
            let mut new = Temporary { work, name: own, directory: false, moved: false };
            self.place_new(&mut new, directory_fd.as_fd(), &name_c)?;
        } else {
            hostfile::link_descriptor(fd.as_fd(), directory_fd.as_fd(), &name_c).map_err(errno)?;
        }
        let mut table = self.table();
        table.set_place(record.number, Some((directory.number, name.to_vec())));
        let known = table.get_mut(record.number)?;
        known.references += 1;
        let record = known.clone();
        drop(table);
        self.found(&record)
    }

    pub(super) fn remove(
        &self,
        parent: InodeId,
        name: &[u8],
        directory_wanted: bool,
    ) -> Result<Option<InodeId>> {
        for _ in 0..MAX_TRIES {
            if let Some(removed) = self.try_remove(parent, name, directory_wanted)? {
                return Ok(Some(removed));
            }
        }
        Err(libc::EBUSY)
    }

    /// One try; nothing when the name has come to mean another directory meanwhile.
    fn try_remove(
        &self,
        parent: InodeId,
        name: &[u8],
        directory_wanted: bool,
    ) -> Result<Option<InodeId>> {
        let directory = self.directory(parent)?;
        check_name(name)?;
        let check = |victim: &Record| match (victim.is_directory(), directory_wanted) {
            (true, false) => Err(libc::EISDIR),
            (false, true) => Err(libc::ENOTDIR),
            _ if self.is_covered(parent, name) => Err(libc::EBUSY),
            (true, true) if self.lower_shows_names(victim)? => Err(libc::ENOTEMPTY),
            _ => Ok(()),
        };
        let peeked = self.peek(&directory, name)?.ok_or(libc::ENOENT)?;
        check(&peeked)?;
        let victim_number = peeked.number;
        let directory = self.copy_up(parent, None)?;
        // The victim's too, so that nothing is made in a directory while it goes.
        let _names =
            self.directory_locks.lock_all([directory.number, victim_number, victim_number]);
        let victim = self.find(&directory, name)?.ok_or(libc::ENOENT)?;
        if directory_wanted && victim.number != victim_number {
            return Ok(None);
        }
        check(&victim)?;
        let directory_fd = self.descriptor_of(directory.number, Side::Upper)?;
        let links = self.pin(&victim)?;
        let uncovers = self.lower_has(&directory, name);
        let kept = self.keeps_marks(directory.region);
        let done = c_name(name).and_then(|name| match (victim.upper.is_some(), kept) {
            (true, true) => {
                self.remove_upper(directory_fd.as_fd(), &name, directory_wanted, uncovers)
            }
            (true, false) => {
                hostfile::unlink_at(directory_fd.as_fd(), &name, directory_wanted).map_err(errno)
            }
            (false, true) => hostfile::make_whiteout_at(directory_fd.as_fd(), &name).map_err(errno),
            (false, false) => {
                let now = SetTime::Now;
                hostfile::set_times(directory_fd.as_fd(), SetTime::Keep, now).map_err(errno)
            }
        });
        if done.is_ok() {
            if uncovers {
                self.mask(&directory, name);
            }
            self.lose_name(&victim, links);
        }
        self.unpin(&victim);
        done.map(|()| Some(victim.id()))
    }

    /// Keeps the descriptor of an object while its name changes; answers its links.
    fn pin(&self, record: &Record) -> Result<u32> {
        let fd = self.descriptor(record)?;
        let links = hostfile::status(fd.as_fd()).map_err(errno)?.links;
        let mut table = self.table();
        table.cache(record.number, record.side(), fd);
        table.get_mut(record.number)?.pinned += 1;
        Ok(links)
    }

    fn unpin(&self, record: &Record) {
        let mut table = self.table();
        if let Ok(known) = table.get_mut(record.number) {
            known.pinned = known.pinned.saturating_sub(1);
        }
    }

    /// The name at which an object was found is gone.
    fn lose_name(&self, record: &Record, links: u32) {
        let last = record.is_directory() || links <= 1;
        if record.is_directory()
            && let Some(key) = &record.upper
        {
            write(&self.partners).remove(key);
        }
        let mut table = self.table();
        table.set_place(record.number, None);
        if let Ok(known) = table.get_mut(record.number) {
            known.gone = last;
        }
    }

    /// Forgets what was kept beside files that exist no longer.
    pub(super) fn bury(&self, dead: Vec<Key>) {
        if !dead.is_empty() {
            let mut overrides = write(&self.overrides);
            for key in dead {
                overrides.remove(&key);
            }
        }
    }

    pub(super) fn move_name(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<Renamed> {
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        let no_replace = flags & libc::RENAME_NOREPLACE != 0;
        if flags & !(libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE) != 0 || exchange && no_replace
        {
            return Err(libc::EINVAL);
        }
        for _ in 0..MAX_TRIES {
            if let Some(renamed) =
                self.try_move(parent, name, new_parent, new_name, exchange, no_replace)?
            {
                return Ok(renamed);
            }
        }
        Err(libc::EBUSY)
    }

    /// One try; nothing when the names were changed while what they mean was copied up.
    fn try_move(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        exchange: bool,
        no_replace: bool,
    ) -> Result<Option<Renamed>> {
        let from = self.directory(parent)?;
        let to = self.directory(new_parent)?;
        check_name(name)?;
        check_name(new_name)?;
        let source = self.peek(&from, name)?.ok_or(libc::ENOENT)?;
        let target = self.peek(&to, new_name)?;
        if no_replace && target.is_some() {
            return Err(libc::EEXIST);
        }
        if exchange && target.is_none() {
            return Err(libc::ENOENT);
        }
        if self.is_covered(parent, name) || self.is_covered(new_parent, new_name) {
            return Err(libc::EBUSY);
        }
        if from.region != to.region {
            return Err(libc::EXDEV);
        }
        if let Some(error) = self.move_error(&source, target.as_deref(), &from, &to, exchange)? {
            return Err(error);
        }
        if target.as_ref().is_some_and(|target| target.number == source.number) {
            // Two names of one object: rename(2) does nothing.
            return Ok(Some(Renamed { moved: Some(source.id()), other: None }));
        }
        // The names may have gone meanwhile, and their objects with them: then look again.
        let up = |inode: InodeId| match self.copy_up(inode, None) {
            Err(libc::ESTALE) => Ok(None),
            other => other.map(Some),
        };
        if source.upper.is_none() && up(source.id())?.is_none() {
            return Ok(None);
        }
        if let Some(target) = target.as_ref().filter(|target| exchange && target.upper.is_none())
            && up(target.id())?.is_none()
        {
            return Ok(None);
        }
        let (from, to) = (self.copy_up(parent, None)?, self.copy_up(new_parent, None)?);
        // A replaced directory's too, so that nothing is made in it while it goes.
        let replaced = target.as_ref().map_or(to.number, |target| target.number);
        let _names = self.directory_locks.lock_all([from.number, to.number, replaced]);
        let now_source = self.find(&from, name)?;
        let now_target = self.find(&to, new_name)?;
        let Some(now_source) =
            now_source.filter(|now| now.number == source.number && now.upper.is_some())
        else {
            return Ok(None);
        };
        let number = |record: &Option<Held<'_>>| record.as_ref().map(|record| record.number);
        let target_is_up = now_target.as_ref().is_none_or(|t| !exchange || t.upper.is_some());
        if number(&now_target) != number(&target) || !target_is_up {
            return Ok(None);
        }
        self.move_locked(&from, name, &now_source, &to, new_name, now_target.as_deref(), exchange)
            .map(Some)
    }

    /// What `rename(2)` says of source and target that the upper layer alone could not tell.
    fn move_error(
        &self,
        source: &Record,
        target: Option<&Record>,
        from: &Record,
        to: &Record,
        exchange: bool,
    ) -> Result<Option<i32>> {
        // Into itself, or over a directory that it is in.
        if source.is_directory() && self.is_below(to.number, source.number) {
            return Ok(Some(libc::EINVAL));
        }
        let Some(target) = target.filter(|target| target.number != source.number) else {
            return Ok(None);
        };
        if self.is_below(from.number, target.number) {
            return Ok(Some(if exchange { libc::EINVAL } else { libc::ENOTEMPTY }));
        }
        if exchange {
            return Ok(None);
        }
        Ok(match (source.is_directory(), target.is_directory()) {
            (true, false) => Some(libc::ENOTDIR),
            (false, true) => Some(libc::EISDIR),
            (true, true) if self.lower_shows_names(target)? => Some(libc::ENOTEMPTY),
            _ => None,
        })
    }

    fn is_below(&self, number: u64, above: u64) -> bool {
        let mut table = self.table();
        let mut next = Some(number);
        while let Some(number) = next {
            if number == above {
                return true;
            }
            next = table
                .get_mut(number)
                .ok()
                .and_then(|record| record.place.as_ref().map(|(parent, _)| *parent));
        }
        false
    }

    #[expect(clippy::too_many_arguments, reason = "the two ends of a rename, looked up")]
    fn move_locked(
        &self,
        from: &Record,
        name: &[u8],
        source: &Record,
        to: &Record,
        new_name: &[u8],
        target: Option<&Record>,
        exchange: bool,
    ) -> Result<Renamed> {
        if let Some(target) = target
            && let Some(error) = self.move_error(source, Some(target), from, to, exchange)?
        {
            return Err(error);
        }
        let from_fd = self.descriptor_of(from.number, Side::Upper)?;
        let to_fd = self.descriptor_of(to.number, Side::Upper)?;
        self.pin(source)?;
        let links = match target.map(|target| self.pin(target)).transpose() {
            Ok(links) => links.unwrap_or(0),
            Err(errno) => {
                self.unpin(source);
                return Err(errno);
            }
        };
        let uncovers = !exchange && self.lower_has(from, name);
        let flags = if exchange { libc::RENAME_EXCHANGE } else { 0 };
        let done = c_name(name).and_then(|name| {
            let new_name = c_name(new_name)?;
            if self.keeps_marks(from.region) && !exchange {
                let old = (from_fd.as_fd(), name.as_c_str());
                let new = (to_fd.as_fd(), new_name.as_c_str());
                return self.move_upper(old, new, source, target, uncovers);
            }
            hostfile::rename_at(from_fd.as_fd(), &name, to_fd.as_fd(), &new_name, flags)
                .map_err(errno)
        });
        if done.is_ok() {
            if uncovers {
                self.mask(from, name);
            }
            if let Some(target) = target {
                if exchange {
                    let place = Some((from.number, name.to_vec()));
                    self.table().set_place(target.number, place);
                } else {
                    self.lose_name(target, links);
                }
            }
            self.table().set_place(source.number, Some((to.number, new_name.to_vec())));
        }
        self.unpin(source);
        if let Some(target) = target {
            self.unpin(target);
        }
        done.map(|()| Renamed { moved: Some(source.id()), other: target.map(Record::id) })
    }
}
