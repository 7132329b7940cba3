//! Operations on names: lookup, making, renaming, listing.

use super::convert;
use super::nodes::Place;
use super::serve::{Answer, Served, Session, is_special};
use crate::cache::Until;
use crate::client::{Answer as ClientAnswer, FOREVER, Found};
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
        self.note_kept_names(h.node, &entry);
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
            return Some(Entry { name_valid: names_valid(found.name), ..Entry::default() });
        };
        let writers = self.wants_writers_end(h, &attributes);
        let (node, confirmed) = if writers {
            (self.nodes.lock().unwrap().enter_writers(attributes.inode, found.counted)?, false)
        } else {
            let mut nodes = self.nodes.lock().unwrap();
            let node = nodes.enter(attributes.inode, place, found.counted)?;
            (node, nodes.of(attributes.inode)?.confirmed)
        };
        let special = is_special(attributes.mode);
        match attributes.mode & libc::S_IFMT {
            libc::S_IFIFO => self.hooks.fifo_seen(h.pid),
            libc::S_IFSOCK => self.hooks.socket_seen(h.pid),
            _ => {}
        }
        // An invalidation that comes before the kernel has made its inode finds nothing; so a new
        // inode's attributes are not kept by the kernel until it has asked once more.
        let attr_valid = if confirmed {
            self.attr_valid(&attributes, found.attributes_until)
        } else {
            Duration::ZERO
        };
        Some(Entry {
            node,
            generation: 0,
            name_valid: if special { Duration::ZERO } else { names_valid(found.name) },
            attr_valid,
            attr: convert::attr(&attributes),
        })
    }

    fn note_kept_names(&self, directory: u64, entry: &Entry) {
        if !entry.name_valid.is_zero() {
            let _ = self.node(directory, |node| node.keeps_names = true);
        }
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
        let entry = self.made(&entry, place.below(name))?;
        body.entry(&entry);
        Ok(Answer::Body)
    }

    /// The entry of something just made. The kernel takes these attributes without a look at what
    /// was invalidated meanwhile, so it may keep nothing; the client does.
    pub(super) fn made(&self, entry: &TreeEntry, place: Place) -> Result<Entry, i32> {
        let attributes = entry.attributes.ok_or(libc::EIO)?;
        let node =
            self.nodes.lock().unwrap().enter(attributes.inode, place, true).ok_or(libc::EIO)?;
        Ok(Entry { node, attr: convert::attr(&attributes), ..Entry::default() })
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
        let ClientAnswer { outcome: Outcome::Directory(entries), .. } =
            self.client.perform(convert::credentials(h), operation)?
        else {
            return Err(libc::EIO);
        };
        let mut full = false;
        let mut unused = Vec::new();
        if plus
            && entries
                .iter()
                .any(|it| it.entry.is_some_and(|it| it.name_lease.milliseconds == u32::MAX))
        {
            self.node(h.node, |node| node.keeps_names = true)?;
        }
        for entry in &entries {
            if full {
                unused.extend(entry.entry.and_then(|it| it.attributes).map(|it| (it.inode, 1)));
                continue;
            }
            let what = plus.then(|| self.plus_entry(place, entry));
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

    fn plus_entry(&self, place: Place, listed: &DirectoryEntry) -> Entry {
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
        let Ok(mut made) = self.made(&entry, place.below(&listed.name)) else {
            return Entry::default();
        };
        // The client may keep what was listed; the kernel only names that never change.
        if !is_special(attributes.mode) {
            made.name_valid = names_valid(Until::from_lease(entry.name_lease, 0));
        }
        made
    }
}

/// How long the kernel may keep a name: see the crate's documentation.
fn names_valid(until: Until) -> Duration {
    if until == Until::Always { FOREVER } else { Duration::ZERO }
}
