//! Operations on names: lookup, making, renaming, listing.

use super::convert;
use super::nodes::Place;
use super::serve::{Answer, Served, Session, is_special};
use crate::cache::{Mark, Until};
use crate::client::{Answer as ClientAnswer, Found};
use dvs_fs::messages::{
    DirectoryEntry, Entry as TreeEntry, Handle, InodeId, MAX_NAME, Operation as Ask, Outcome,
};
use dvs_sys::fuse::Header;
use dvs_sys::fuse::abi::{ROOT_ID, open};
use dvs_sys::fuse::reply::{Body, Entry};
use dvs_sys::fuse::request::ReadArguments;
use std::time::Duration;

/// Bytes of a READDIRPLUS record beside the name; used to ask the server for about what fits.
const PLUS_RECORD: u32 = 152 + 16;
/// Bytes of a READDIR record that has a short name.
const PLAIN_RECORD: u32 = 24 + 16;

impl Session {
    pub(super) fn lookup(&self, h: &Header, name: &[u8], body: &mut Body) -> Served {
        if name.len() > MAX_NAME {
            return Err(libc::ENAMETOOLONG);
        }
        if h.node == ROOT_ID && name.starts_with(crate::attach::NAME_PREFIX.as_bytes()) {
            return self.lookup_attached(h, name, body);
        }
        if h.node == ROOT_ID && name.starts_with(crate::fifo::FIFO_PREFIX.as_bytes()) {
            return self.lookup_fifo(h, name, body);
        }
        let (parent, place) = self.directory(h.node)?;
        let credentials = convert::credentials(h);
        let mut found = self.client.lookup(credentials, parent, name)?;
        let entry = match self.entry(h, place.below(name), found) {
            Some(entry) => entry,
            // The name is kept here, but the kernel has forgotten the object meanwhile.
            None => {
                found = self.client.lookup_at_server(credentials, parent, name)?;
                self.entry(h, place.below(name), found).ok_or(libc::EIO)?
            }
        };
        let mut entry = entry;
        if !entry.name_valid.is_zero() {
            self.note_kept_names(h.node, found.name);
        }
        // The node is entered and the name noted: later recalls reach the kernel.
        if self.client.name_changed(found.mark, parent, name) {
            entry.name_valid = Duration::ZERO;
        }
        let inode = found.attributes.map(|attributes| attributes.inode);
        if inode.is_some_and(|inode| self.client.attributes_changed(found.mark, inode)) {
            entry.attr_valid = Duration::ZERO;
        }
        if entry.node == 0 && entry.name_valid.is_zero() {
            return Err(libc::ENOENT);
        }
        body.entry(&entry);
        Ok(Answer::Body)
    }

    /// A directory and where it is.
    fn directory(&self, node: u64) -> Result<(InodeId, Place), i32> {
        let (inode, place) = self.node(node, |node| (node.inode, node.place))?;
        Ok((inode.ok_or(libc::ENOTDIR)?, place))
    }

    /// The entry for a lookup's answer; the kernel gets a reference. `None`: the object is not known
    /// here any more, and the server has counted no reference.
    fn entry(&self, h: &Header, place: Place, found: Found) -> Option<Entry> {
        let Some(attributes) = found.attributes else {
            let name_valid = self.name_valid(found.name, found.in_kernel);
            return Some(Entry { name_valid, ..Entry::default() });
        };
        let writers = self.wants_writers_end(h, &attributes);
        let node = if writers {
            self.nodes.lock().unwrap().enter_writers(attributes.inode, found.counted)?
        } else {
            self.nodes.lock().unwrap().enter(attributes.inode, place, found.counted)?
        };
        let special = is_special(attributes.mode);
        match attributes.mode & libc::S_IFMT {
            libc::S_IFIFO => self.hooks.fifo_seen(h.pid),
            libc::S_IFSOCK => self.hooks.socket_seen(h.pid),
            _ => {}
        }
        let name_valid =
            if special { Duration::ZERO } else { self.name_valid(found.name, found.in_kernel) };
        let attr_valid = self.attr_valid(&attributes, found.attributes_until);
        Some(Entry {
            node,
            generation: 0,
            name_valid,
            attr_valid,
            attr: convert::attr(&attributes),
        })
    }

    /// How long the kernel may keep a name.
    fn name_valid(&self, until: Until, in_kernel: bool) -> Duration {
        if in_kernel { self.client.remaining(until) } else { Duration::ZERO }
    }

    /// The kernel is about to be told that it may keep a name of the directory.
    fn note_kept_names(&self, directory: u64, until: Until) {
        let _ = self.node(directory, |node| node.keeps_names = node.keeps_names.max(until));
    }

    /// MKNOD, MKDIR, SYMLINK, LINK.
    pub(super) fn make(
        &self,
        h: &Header,
        name: &[u8],
        body: &mut Body,
        operation: impl FnOnce(InodeId, Vec<u8>) -> Ask,
    ) -> Served {
        if name.len() > MAX_NAME {
            return Err(libc::ENAMETOOLONG);
        }
        let (parent, place) = self.directory(h.node)?;
        let operation = operation(parent, name.to_vec());
        let answer = self.client.perform(convert::credentials(h), operation)?;
        let Outcome::Entry(entry) = answer.outcome else { return Err(libc::EIO) };
        let mut made = self.made(&entry, place.below(name), answer.attributes)?;
        let kept = (answer.name, answer.in_kernel, answer.mark);
        made.name_valid = self.made_name_valid(h.node, (parent, name), &entry, kept);
        body.entry(&made);
        Ok(Answer::Body)
    }

    /// How long the kernel may keep the name of something just made in a directory. (It holds the
    /// directory's lock until it has taken the answer, so no recall can come in between.)
    pub(super) fn made_name_valid(
        &self,
        directory: u64,
        (parent, name): (InodeId, &[u8]),
        entry: &TreeEntry,
        (until, in_kernel, mark): (Until, bool, Mark),
    ) -> Duration {
        let special = entry.attributes.is_none_or(|attributes| is_special(attributes.mode));
        if special || !in_kernel || until == Until::Never {
            return Duration::ZERO;
        }
        self.note_kept_names(directory, until);
        if self.client.name_changed(mark, parent, name) {
            Duration::ZERO
        } else {
            self.client.remaining(until)
        }
    }

    /// The entry of something just made. The kernel takes these attributes without a look at what
    /// was invalidated meanwhile, so on a container of several nodes it may
    /// not keep them; the client does.
    pub(super) fn made(&self, entry: &TreeEntry, place: Place, until: Until) -> Result<Entry, i32> {
        let attributes = entry.attributes.ok_or(libc::EIO)?;
        let attr_valid = self.unchecked_attr_valid(&attributes, until);
        let node =
            self.nodes.lock().unwrap().enter(attributes.inode, place, true).ok_or(libc::EIO)?;
        Ok(Entry { node, attr_valid, attr: convert::attr(&attributes), ..Entry::default() })
    }

    pub(super) fn rename(
        &self,
        h: &Header,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        flags: u32,
    ) -> Served {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(libc::EINVAL);
        }
        if new_name.len() > MAX_NAME {
            return Err(libc::ENAMETOOLONG);
        }
        // The kernel moves what it keeps of a name.
        let [from, to] = [h.node, new_parent].map(|id| self.node(id, |node| node.keeps_names));
        let longest = from?.max(to?);
        self.note_kept_names(h.node, longest);
        self.note_kept_names(new_parent, longest);
        let operation = Ask::Rename {
            parent: self.inode(h.node)?,
            name: name.to_vec(),
            new_parent: self.inode(new_parent)?,
            new_name: new_name.to_vec(),
            flags,
        };
        self.done(h, operation)
    }

    pub(super) fn open_dir(&self, h: &Header, flags: u32, body: &mut Body) -> Served {
        let inode = self.inode(h.node)?;
        let answer = self.client.perform(convert::credentials(h), Ask::Open { inode, flags })?;
        let Outcome::Opened { handle, content } = answer.outcome else { return Err(libc::EIO) };
        // The kernel's own listings are kept only where they can never change.
        let keep =
            if content.milliseconds == u32::MAX { open::CACHE_DIR | open::KEEP_CACHE } else { 0 };
        body.open(handle.0, keep);
        Ok(Answer::Body)
    }

    pub(super) fn read_dir(
        &self,
        h: &Header,
        arguments: ReadArguments,
        plus: bool,
        body: &mut Body,
    ) -> Served {
        let (inode, place) = self.directory(h.node)?;
        let limit = arguments.size as usize;
        let record = if plus { PLUS_RECORD } else { PLAIN_RECORD };
        let operation = Ask::ReadDirectory {
            inode,
            handle: Handle(arguments.handle),
            cookie: arguments.offset,
            bytes: (arguments.size / record).max(1) * PLAIN_RECORD,
            plus,
        };
        let sent = self.client.now();
        let ClientAnswer { outcome: Outcome::Directory(entries), mark, .. } =
            self.client.perform(convert::credentials(h), operation)?
        else {
            return Err(libc::EIO);
        };
        let mut full = false;
        let mut unused = Vec::new();
        let kept = entries.iter().filter_map(|it| it.entry).filter(|it| it.in_kernel);
        let longest = kept.map(|it| Until::from_lease(it.name_lease, sent)).max();
        if let Some(longest) = longest {
            self.note_kept_names(h.node, longest);
        }
        for entry in &entries {
            if full {
                unused.extend(entry.entry.and_then(|it| it.attributes).map(|it| (it.inode, 1)));
                continue;
            }
            let what = plus.then(|| self.plus_entry((inode, place), entry, sent, mark));
            let numbers = (entry.inode, entry.cookie, entry.kind);
            if !body.dirent(limit, what.as_ref(), numbers, &entry.name) {
                full = true;
                if let Some(what) = what.filter(|what| what.node != 0) {
                    unused.extend(self.nodes.lock().unwrap().forget(what.node, 1));
                }
            }
        }
        self.client.forget(&unused);
        Ok(Answer::Body)
    }

    fn plus_entry(
        &self,
        (directory, place): (InodeId, Place),
        listed: &DirectoryEntry,
        sent: u64,
        mark: Mark,
    ) -> Entry {
        // The kernel makes nothing of an entry without a node, and `.` and `..` must have none.
        let Some((entry, attributes)) =
            listed.entry.and_then(|entry| Some((entry, entry.attributes?)))
        else {
            return Entry::default();
        };
        if matches!(listed.name.as_slice(), b"." | b"..") {
            self.client.forget(&[(attributes.inode, 1)]);
            return Entry::default();
        }
        let Ok(mut made) = self.made(&entry, place.below(&listed.name), Until::Never) else {
            return Entry::default();
        };
        // The kernel holds the directory's lock until it has taken the listing.
        let changed = self.client.name_changed(mark, directory, &listed.name)
            || self.client.attributes_changed(mark, attributes.inode);
        if !is_special(attributes.mode) && !changed {
            let until = Until::from_lease(entry.name_lease, sent);
            made.name_valid = self.name_valid(until, entry.in_kernel);
            let until = Until::from_lease(entry.attributes_lease, sent);
            made.attr_valid = self.attr_valid(&attributes, until);
        }
        made
    }
}
