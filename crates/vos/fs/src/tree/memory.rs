//! A whole POSIX tree in memory: for the simulator and as the model that the host tree is tested against.

use super::{
    Caller, Capacity, Effect, FileToken, Found, Life, Looked, Make, Opened, Renamed, Result, Tree,
    Version, Wrote, check_name, without_privileges,
};
use crate::messages::{
    AttributeChanges, Attributes, DirectoryEntry, InodeId, MAX_DIRECTORY_ENTRIES, MAX_IO,
    MAX_XATTR, ROOT, Time, TimeChange,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

/// Largest file, bytes: far beyond what tests need, so that a wrong offset cannot exhaust memory.
pub const MAX_FILE: u64 = 1 << 26;

#[derive(Debug, Clone)]
enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, u64>),
    Link(Vec<u8>),
    Special,
}

#[derive(Debug, Clone)]
struct Object {
    attributes: Attributes,
    body: Body,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a directory.
    parent: u64,
    /// References that lookups gave.
    references: u64,
    open: u32,
}

#[derive(Debug)]
struct OpenFile {
    object: u64,
    flags: u32,
    listing: Vec<(Vec<u8>, u64, u32)>,
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<u64, Object>,
    next: u64,
    files: HashMap<u64, OpenFile>,
    next_file: u64,
}

/// The tree.
#[derive(Debug)]
pub struct MemoryTree {
    state: Mutex<State>,
    life: Life,
}

impl Default for MemoryTree {
    fn default() -> Self {
        Self::new(Life::Private)
    }
}

impl MemoryTree {
    /// An empty tree whose root belongs to root with mode 0755; all its objects have this life.
    #[must_use]
    pub fn new(life: Life) -> Self {
        let mut state = State { next: ROOT.number + 1, ..State::default() };
        let attributes = attributes(ROOT.number, libc::S_IFDIR | 0o755, 0, 0, Time::default());
        state.objects.insert(
            ROOT.number,
            Object {
                attributes: Attributes { links: 2, ..attributes },
                body: Body::Directory(BTreeMap::new()),
                xattrs: BTreeMap::new(),
                parent: ROOT.number,
                references: 0,
                open: 0,
            },
        );
        MemoryTree { state: Mutex::new(state), life }
    }

    /// References that are held, and open files.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (u64, usize) {
        let state = self.state();
        (state.objects.values().map(|object| object.references).sum(), state.files.len())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn found(&self, object: &Object) -> Found {
        Found { attributes: object.attributes, life: self.life }
    }
}

fn attributes(number: u64, mode: u32, uid: u32, gid: u32, now: Time) -> Attributes {
    Attributes {
        inode: InodeId { number, generation: 0 },
        mode,
        links: 1,
        uid,
        gid,
        rdev: 0,
        size: 0,
        blocks: 0,
        accessed: now,
        modified: now,
        changed: now,
    }
}

impl Object {
    fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    fn entries(&self) -> Result<&BTreeMap<Vec<u8>, u64>> {
        if let Body::Directory(entries) = &self.body { Ok(entries) } else { Err(libc::ENOTDIR) }
    }

    fn entries_mut(&mut self) -> Result<&mut BTreeMap<Vec<u8>, u64>> {
        if let Body::Directory(entries) = &mut self.body { Ok(entries) } else { Err(libc::ENOTDIR) }
    }

    fn content(&mut self) -> Result<&mut Vec<u8>> {
        match &mut self.body {
            Body::File(content) => Ok(content),
            Body::Directory(_) => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }

    fn resize(&mut self, size: u64, now: Time) -> Result<()> {
        if size > MAX_FILE {
            return Err(libc::EFBIG);
        }
        self.content()?.resize(size as usize, 0);
        self.content_changed(now);
        Ok(())
    }

    fn content_changed(&mut self, now: Time) {
        if let Body::File(content) = &self.body {
            self.attributes.size = content.len() as u64;
            self.attributes.blocks = self.attributes.size.div_ceil(512);
        }
        self.attributes.modified = now;
        self.attributes.changed = now;
    }
}

impl State {
    fn object(&self, inode: InodeId) -> Result<&Object> {
        self.objects.get(&inode.number).filter(|_| inode.generation == 0).ok_or(libc::ESTALE)
    }

    fn object_mut(&mut self, inode: InodeId) -> Result<&mut Object> {
        let found = self.objects.get_mut(&inode.number).filter(|_| inode.generation == 0);
        found.ok_or(libc::ESTALE)
    }

    fn by_number(&mut self, number: u64) -> Result<&mut Object> {
        self.objects.get_mut(&number).ok_or(libc::ESTALE)
    }

    fn child(&self, parent: InodeId, name: &[u8]) -> Result<Option<u64>> {
        Ok(self.object(parent)?.entries()?.get(name).copied())
    }

    /// A directory that can take a new name: not one that has been removed.
    fn living_directory(&self, parent: InodeId) -> Result<&Object> {
        let directory = self.object(parent)?;
        directory.entries()?;
        if directory.attributes.links == 0 { Err(libc::ENOENT) } else { Ok(directory) }
    }

    fn new_object(
        &mut self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        body: Body,
    ) -> Result<u64> {
        let directory = self.living_directory(parent)?.attributes;
        let number = self.next;
        self.next += 1;
        let ids = caller.credentials;
        let inherits = directory.mode & libc::S_ISGID != 0;
        let gid = if inherits { directory.gid } else { ids.gid };
        let is_link = mode & libc::S_IFMT == libc::S_IFLNK;
        let mut mode = if is_link { mode } else { mode & !(ids.umask & 0o777) };
        let is_directory = matches!(body, Body::Directory(_));
        if inherits && is_directory {
            mode |= libc::S_ISGID;
        }
        let mut attributes = attributes(number, mode, ids.uid, gid, caller.now);
        if let Body::Link(target) = &body {
            attributes.size = target.len() as u64;
        }
        if is_directory {
            attributes.links = 2;
        }
        let parent = parent.number;
        let xattrs = BTreeMap::new();
        let object = Object { attributes, body, xattrs, parent, references: 0, open: 0 };
        self.objects.insert(number, object);
        Ok(number)
    }

    fn add_name(&mut self, parent: InodeId, name: &[u8], number: u64, now: Time) -> Result<()> {
        let is_directory = self.by_number(number)?.is_directory();
        let directory = self.object_mut(parent)?;
        directory.entries_mut()?.insert(name.to_vec(), number);
        directory.content_changed(now);
        if is_directory {
            directory.attributes.links += 1;
            self.by_number(number)?.parent = parent.number;
        }
        Ok(())
    }

    /// Removes a name; what loses its last one and is not open goes.
    fn remove_name(
        &mut self,
        parent: InodeId,
        name: &[u8],
        keep_links: bool,
        now: Time,
    ) -> Result<u64> {
        let directory = self.object_mut(parent)?;
        let number = directory.entries_mut()?.remove(name).ok_or(libc::ENOENT)?;
        directory.content_changed(now);
        let object = self.by_number(number)?;
        object.attributes.changed = now;
        let is_directory = object.is_directory();
        if is_directory {
            if !keep_links {
                object.attributes.links = 0;
            }
            self.object_mut(parent)?.attributes.links -= 1;
        } else if !keep_links {
            object.attributes.links -= 1;
        }
        self.collect(number);
        Ok(number)
    }

    fn collect(&mut self, number: u64) {
        if self.objects.get(&number).is_some_and(|object| {
            object.attributes.links == 0 && object.open == 0 && object.references == 0
        }) {
            self.objects.remove(&number);
        }
    }

    fn open_object(&mut self, number: u64, flags: u32) -> Result<FileToken> {
        self.by_number(number)?.open += 1;
        self.next_file += 1;
        let file = OpenFile { object: number, flags, listing: Vec::new() };
        self.files.insert(self.next_file, file);
        Ok(FileToken(self.next_file))
    }

    fn open_file(&mut self, file: FileToken, access: Access) -> Result<&mut Object> {
        let open = self.files.get(&file.0).ok_or(libc::EBADF)?;
        let mode = open.flags as i32 & libc::O_ACCMODE;
        let allowed = match access {
            Access::Any => true,
            Access::Read => mode != libc::O_WRONLY,
            Access::Write => mode != libc::O_RDONLY,
        };
        if !allowed {
            return Err(libc::EBADF);
        }
        self.objects.get_mut(&open.object).ok_or(libc::EBADF)
    }

    /// Whether `number` is `below` or has it somewhere above.
    fn is_below(&self, mut number: u64, below: u64) -> bool {
        loop {
            if number == below {
                return true;
            }
            match self.objects.get(&number) {
                Some(object) if number != ROOT.number => number = object.parent,
                _ => return false,
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Access {
    Any,
    Read,
    Write,
}

fn id(number: u64) -> InodeId {
    InodeId { number, generation: 0 }
}

impl Tree for MemoryTree {
    fn root(&self) -> Result<Found> {
        self.attributes(ROOT)
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Looked> {
        let mut state = self.state();
        state.object(parent)?.entries()?;
        check_name(name)?;
        let found = match state.child(parent, name)? {
            Some(number) => {
                let object = state.by_number(number)?;
                object.references += 1;
                Some(self.found(object))
            }
            None => None,
        };
        Ok(Looked { found, name_life: self.life })
    }

    fn attributes(&self, inode: InodeId) -> Result<Found> {
        self.state().object(inode).map(|object| self.found(object))
    }

    fn set_attributes(
        &self,
        caller: &Caller,
        inode: InodeId,
        _file: Option<FileToken>,
        changes: &AttributeChanges,
    ) -> Result<Found> {
        let mut state = self.state();
        let object = state.object_mut(inode)?;
        if let Some(size) = changes.size {
            object.resize(size, caller.now)?;
        }
        let attributes = &mut object.attributes;
        attributes.uid = changes.uid.unwrap_or(attributes.uid);
        attributes.gid = changes.gid.unwrap_or(attributes.gid);
        if changes.kill_privileges || changes.uid.is_some() || changes.gid.is_some() {
            attributes.mode = without_privileges(attributes.mode);
        }
        if let Some(mode) = changes.mode {
            if attributes.mode & libc::S_IFMT == libc::S_IFLNK {
                return Err(libc::EOPNOTSUPP);
            }
            attributes.mode = attributes.mode & libc::S_IFMT | mode & 0o7777;
        }
        let time = |change: TimeChange| match change {
            TimeChange::Now => caller.now,
            TimeChange::To(time) => time,
        };
        attributes.accessed = changes.accessed.map_or(attributes.accessed, time);
        attributes.modified = changes.modified.map_or(attributes.modified, time);
        attributes.changed = caller.now;
        Ok(self.found(object))
    }

    fn read_link(&self, inode: InodeId) -> Result<Vec<u8>> {
        match &self.state().object(inode)?.body {
            Body::Link(target) => Ok(target.clone()),
            _ => Err(libc::EINVAL),
        }
    }

    fn make(&self, caller: &Caller, parent: InodeId, name: &[u8], what: Make<'_>) -> Result<Found> {
        let mut state = self.state();
        state.living_directory(parent)?;
        check_name(name)?;
        if state.child(parent, name)?.is_some() {
            return Err(libc::EEXIST);
        }
        let (mode, body) = match what {
            Make::Directory(mode) => {
                (libc::S_IFDIR | mode & 0o7777, Body::Directory(BTreeMap::new()))
            }
            Make::Link(target) => {
                if target.is_empty() || target.contains(&0) {
                    return Err(libc::ENOENT);
                }
                if target.len() >= libc::PATH_MAX as usize {
                    return Err(libc::ENAMETOOLONG);
                }
                (libc::S_IFLNK | 0o777, Body::Link(target.to_vec()))
            }
            Make::Node(mode, _) => {
                let kind = mode & libc::S_IFMT;
                let mode = mode & 0o7777;
                match kind {
                    0 | libc::S_IFREG => (libc::S_IFREG | mode, Body::File(Vec::new())),
                    libc::S_IFIFO | libc::S_IFSOCK => (kind | mode, Body::Special),
                    libc::S_IFCHR | libc::S_IFBLK => return Err(libc::EPERM),
                    _ => return Err(libc::EINVAL),
                }
            }
        };
        let number = state.new_object(caller, parent, mode, body)?;
        state.add_name(parent, name, number, caller.now)?;
        let object = state.by_number(number)?;
        object.references += 1;
        Ok(self.found(object))
    }

    fn link(&self, caller: &Caller, inode: InodeId, parent: InodeId, name: &[u8]) -> Result<Found> {
        let mut state = self.state();
        state.living_directory(parent)?;
        check_name(name)?;
        if state.object(inode)?.is_directory() {
            return Err(libc::EPERM);
        }
        if state.child(parent, name)?.is_some() {
            return Err(libc::EEXIST);
        }
        state.add_name(parent, name, inode.number, caller.now)?;
        let object = state.object_mut(inode)?;
        object.attributes.links += 1;
        object.attributes.changed = caller.now;
        object.references += 1;
        Ok(self.found(object))
    }

    fn unlink(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>> {
        let mut state = self.state();
        state.object(parent)?.entries()?;
        check_name(name)?;
        let number = state.child(parent, name)?.ok_or(libc::ENOENT)?;
        if state.by_number(number)?.is_directory() {
            return Err(libc::EISDIR);
        }
        state.remove_name(parent, name, false, caller.now).map(|number| Some(id(number)))
    }

    fn remove_directory(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Option<InodeId>> {
        let mut state = self.state();
        state.object(parent)?.entries()?;
        check_name(name)?;
        let number = state.child(parent, name)?.ok_or(libc::ENOENT)?;
        if !state.by_number(number)?.entries()?.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        state.remove_name(parent, name, false, caller.now).map(|number| Some(id(number)))
    }

    fn rename(
        &self,
        caller: &Caller,
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
        let mut state = self.state();
        state.object(parent)?.entries()?;
        state.object(new_parent)?.entries()?;
        check_name(name)?;
        check_name(new_name)?;
        let moved = state.child(parent, name)?.ok_or(libc::ENOENT)?;
        let other = state.child(new_parent, new_name)?;
        if no_replace && other.is_some() {
            return Err(libc::EEXIST);
        }
        if exchange && other.is_none() {
            return Err(libc::ENOENT);
        }
        state.living_directory(new_parent)?;
        let moves_directory = state.by_number(moved)?.is_directory();
        if moves_directory && state.is_below(new_parent.number, moved) {
            return Err(libc::EINVAL);
        }
        if let Some(other) = other {
            let other_is_directory = state.by_number(other)?.is_directory();
            if exchange && other_is_directory && state.is_below(parent.number, other) {
                return Err(libc::EINVAL);
            }
            if other == moved {
                return Ok(Renamed { moved: Some(id(moved)), other: None });
            }
            if !exchange {
                if state.is_below(parent.number, other) {
                    return Err(libc::ENOTEMPTY);
                }
                match (moves_directory, other_is_directory) {
                    (true, false) => return Err(libc::ENOTDIR),
                    (false, true) => return Err(libc::EISDIR),
                    (true, true) if !state.by_number(other)?.entries()?.is_empty() => {
                        return Err(libc::ENOTEMPTY);
                    }
                    _ => {}
                }
            }
        }
        let now = caller.now;
        state.remove_name(parent, name, true, now)?;
        if let Some(other) = other {
            state.remove_name(new_parent, new_name, exchange, now)?;
            if exchange {
                state.add_name(parent, name, other, now)?;
            }
        }
        state.add_name(new_parent, new_name, moved, now)?;
        state.by_number(moved)?.attributes.changed = now;
        Ok(Renamed { moved: Some(id(moved)), other: other.map(id) })
    }

    fn open(&self, caller: &Caller, inode: InodeId, flags: u32) -> Result<Opened> {
        let mut state = self.state();
        let object = state.object_mut(inode)?;
        let access = flags as i32 & libc::O_ACCMODE;
        let mut effects = Vec::new();
        match &object.body {
            Body::Directory(_) if access != libc::O_RDONLY => return Err(libc::EISDIR),
            Body::Directory(_) => {}
            Body::File(_) if flags as i32 & libc::O_DIRECTORY != 0 => return Err(libc::ENOTDIR),
            Body::File(_) => {
                if flags as i32 & libc::O_TRUNC != 0 && access != libc::O_RDONLY {
                    object.resize(0, caller.now)?;
                    effects.push(Effect::Content(inode));
                }
            }
            Body::Link(_) => return Err(libc::ELOOP),
            Body::Special => return Err(libc::ENXIO),
        }
        let found = self.found(object);
        let file = state.open_object(inode.number, flags)?;
        Ok(Opened { file, found, effects })
    }

    fn create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
    ) -> Result<Opened> {
        let exclusive = flags as i32 & libc::O_EXCL != 0;
        match self.make(caller, parent, name, Make::Node(libc::S_IFREG | mode & 0o7777, 0)) {
            Ok(found) => {
                let file = self.state().open_object(found.attributes.inode.number, flags)?;
                Ok(Opened { file, found, effects: Vec::new() })
            }
            Err(libc::EEXIST) if !exclusive && check_name(name).is_ok() => {
                let found = self.lookup(parent, name)?.found.ok_or(libc::ESTALE)?;
                let inode = found.attributes.inode;
                self.open(caller, inode, flags).inspect_err(|_| self.forget(inode, 1))
            }
            Err(errno) => Err(errno),
        }
    }

    fn create_unnamed(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: u32,
    ) -> Result<Opened> {
        let mut state = self.state();
        let mode = libc::S_IFREG | mode & 0o7777;
        let number = state.new_object(caller, parent, mode, Body::File(Vec::new()))?;
        let object = state.by_number(number)?;
        object.attributes.links = 0;
        object.references += 1;
        let found = self.found(object);
        let file = state.open_object(number, flags)?;
        Ok(Opened { file, found, effects: Vec::new() })
    }

    fn read(&self, file: FileToken, offset: u64, length: u32) -> Result<Vec<u8>> {
        let mut state = self.state();
        let content = state.open_file(file, Access::Read)?.content()?;
        let length = (length as usize).min(MAX_IO);
        let start = (offset.min(content.len() as u64)) as usize;
        let end = start.saturating_add(length).min(content.len());
        Ok(content[start..end].to_vec())
    }

    fn write(
        &self,
        caller: &Caller,
        file: FileToken,
        offset: Option<u64>,
        kill_privileges: bool,
        data: &[u8],
    ) -> Result<Wrote> {
        let mut state = self.state();
        let object = state.open_file(file, Access::Write)?;
        let content = object.content()?;
        let start = offset.unwrap_or(content.len() as u64);
        let end = start.checked_add(data.len() as u64).filter(|end| *end <= MAX_FILE);
        let end = end.ok_or(libc::EFBIG)?;
        if !data.is_empty() {
            if (content.len() as u64) < end {
                content.resize(end as usize, 0);
            }
            content[start as usize..end as usize].copy_from_slice(data);
            object.content_changed(caller.now);
        }
        if kill_privileges {
            object.attributes.mode = without_privileges(object.attributes.mode);
        }
        let (size, version) = (object.attributes.size, Version::from(&object.attributes));
        Ok(Wrote { length: data.len() as u32, size, version })
    }

    fn sync(&self, file: FileToken, _data_only: bool) -> Result<()> {
        self.state().open_file(file, Access::Any).map(|_| ())
    }

    fn allocate(
        &self,
        caller: &Caller,
        file: FileToken,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        let mut state = self.state();
        let object = state.open_file(file, Access::Write)?;
        let end = offset.checked_add(length).filter(|end| *end <= MAX_FILE).ok_or(libc::EFBIG)?;
        if length == 0 {
            return Err(libc::EINVAL);
        }
        let (keep, punch) = (libc::FALLOC_FL_KEEP_SIZE as u32, libc::FALLOC_FL_PUNCH_HOLE as u32);
        let content = object.content()?;
        match mode {
            0 => {
                if (content.len() as u64) < end {
                    content.resize(end as usize, 0);
                    object.content_changed(caller.now);
                }
            }
            mode if mode == keep => {}
            mode if mode == keep | punch => {
                let size = content.len() as u64;
                content[offset.min(size) as usize..end.min(size) as usize].fill(0);
                object.content_changed(caller.now);
            }
            _ => return Err(libc::EOPNOTSUPP),
        }
        Ok(())
    }

    fn seek(&self, file: FileToken, offset: u64, whence: u32) -> Result<u64> {
        let mut state = self.state();
        let size = state.open_file(file, Access::Any)?.content()?.len() as u64;
        match whence as i32 {
            libc::SEEK_DATA | libc::SEEK_HOLE if offset >= size => Err(libc::ENXIO),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(libc::EINVAL),
        }
    }

    fn copy_range(
        &self,
        caller: &Caller,
        from: (FileToken, u64),
        to: (FileToken, u64),
        length: u64,
    ) -> Result<Wrote> {
        let length = u32::try_from(length.min(MAX_IO as u64)).unwrap_or(0);
        let data = self.read(from.0, from.1, length)?;
        self.write(caller, to.0, Some(to.1), false, &data)
    }

    fn read_directory(
        &self,
        file: FileToken,
        cookie: u64,
        bytes: u32,
    ) -> Result<Vec<DirectoryEntry>> {
        let mut state = self.state();
        let state = &mut *state;
        let open = state.files.get_mut(&file.0).ok_or(libc::EBADF)?;
        if cookie == 0 {
            let directory = state.objects.get(&open.object).ok_or(libc::EBADF)?;
            let kind = |number: u64| {
                state.objects.get(&number).map_or(0, |o| o.attributes.mode & libc::S_IFMT)
            };
            let mut listing = vec![
                (b".".to_vec(), open.object, libc::S_IFDIR),
                (b"..".to_vec(), directory.parent, libc::S_IFDIR),
            ];
            let names = directory.entries()?;
            listing.extend(names.iter().map(|(name, n)| (name.clone(), *n, kind(*n))));
            open.listing = listing;
        }
        Ok(super::host::listing::page(&open.listing, cookie, bytes, MAX_DIRECTORY_ENTRIES))
    }

    fn close(&self, file: FileToken) {
        let mut state = self.state();
        if let Some(open) = state.files.remove(&file.0) {
            if let Some(object) = state.objects.get_mut(&open.object) {
                object.open -= 1;
            }
            state.collect(open.object);
        }
    }

    fn capacity(&self, inode: InodeId) -> Result<Capacity> {
        let state = self.state();
        state.object(inode)?;
        let files = state.objects.len() as u64;
        Ok(Capacity {
            block_size: 4096,
            blocks: 1 << 20,
            free: 1 << 19,
            available: 1 << 19,
            files: files + (1 << 20),
            files_free: 1 << 20,
        })
    }

    fn get_xattr(&self, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        super::host::xattr::check_name(name)?;
        self.state().object(inode)?.xattrs.get(name).cloned().ok_or(libc::ENODATA)
    }

    fn list_xattrs(&self, inode: InodeId) -> Result<Vec<u8>> {
        let state = self.state();
        Ok(state
            .object(inode)?
            .xattrs
            .keys()
            .flat_map(|name| [name, &b"\0"[..]].concat())
            .collect())
    }

    fn set_xattr(&self, inode: InodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        super::host::xattr::check_name(name)?;
        if value.len() > MAX_XATTR {
            return Err(libc::E2BIG);
        }
        let mut state = self.state();
        let object = state.object_mut(inode)?;
        if !matches!(object.body, Body::File(_) | Body::Directory(_)) {
            return Err(libc::EPERM);
        }
        let exists = object.xattrs.contains_key(name);
        match flags as i32 {
            libc::XATTR_CREATE if exists => return Err(libc::EEXIST),
            libc::XATTR_REPLACE if !exists => return Err(libc::ENODATA),
            _ => {}
        }
        object.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn remove_xattr(&self, inode: InodeId, name: &[u8]) -> Result<()> {
        super::host::xattr::check_name(name)?;
        self.state().object_mut(inode)?.xattrs.remove(name).map(|_| ()).ok_or(libc::ENODATA)
    }

    fn forget(&self, inode: InodeId, references: u64) {
        let mut state = self.state();
        if let Ok(object) = state.object_mut(inode) {
            object.references = object.references.saturating_sub(references);
        }
        state.collect(inode.number);
    }
}
