//! The host tree: unions, hidden places, hostile names, and the same random operations on it and on the
//! tree in memory.

mod keeping;
mod model;
mod places;
mod unions;

use super::HostTree;
use crate::config::{IdMap, Image, Share, ShareMode, TreeConfig};
use crate::messages::{Credentials, InodeId, ROOT, Time};
use crate::tree::{Caller, FileToken, Found, Make, Tree};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A folder of a test, removed with all that is in it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("dvs-fs-{}-{number}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a new folder");
        Folder(path)
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir_all(&path).expect("a new folder");
        path
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("its folder");
        std::fs::write(&path, content).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) const CALLER: Caller = Caller {
    credentials: Credentials { uid: 0, gid: 0, pid: 1, umask: 0 },
    now: Time { seconds: 1_000, nanoseconds: 0 },
};

pub(crate) fn own_ids() -> IdMap {
    let (uid, gid) = dvs_sys::process::effective_ids();
    IdMap::for_daemon(uid, gid)
}

/// A tree over `image/` and `upper/` of a folder.
pub(crate) fn open(folder: &Folder, shares: Vec<Share>) -> HostTree {
    open_with(folder, Image::Directory(folder.folder("image")), shares, own_ids())
}

pub(crate) fn open_with(folder: &Folder, image: Image, shares: Vec<Share>, ids: IdMap) -> HostTree {
    HostTree::open(&configuration(folder, image, shares, ids)).expect("a tree")
}

pub(crate) fn configuration(
    folder: &Folder,
    image: Image,
    shares: Vec<Share>,
    ids: IdMap,
) -> TreeConfig {
    let upper = folder.folder("upper");
    let hostname = "box".into();
    TreeConfig { image, upper, kept: false, shares, ids, hidden: Vec::new(), hostname }
}

pub(crate) fn share(host: &Path, path: &str, mode: ShareMode) -> Share {
    Share { host: host.to_owned(), path: path.into(), mode }
}

/// What a path means, going down from the root.
pub(crate) fn at(tree: &dyn Tree, path: &str) -> Result<Found, i32> {
    let mut found = tree.root()?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let looked = tree.lookup(found.attributes.inode, name.as_bytes())?;
        found = looked.found.ok_or(libc::ENOENT)?;
    }
    Ok(found)
}

/// The directory of a path, and its last name.
pub(crate) fn above<'a>(tree: &dyn Tree, path: &'a str) -> Result<(InodeId, &'a [u8]), i32> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = if directory.is_empty() { ROOT } else { at(tree, directory)?.attributes.inode };
    Ok((parent, name.as_bytes()))
}

pub(crate) fn read_open(tree: &dyn Tree, file: FileToken) -> Result<Vec<u8>, i32> {
    tree.read(file, 0, 1 << 20)
}

pub(crate) fn read(tree: &dyn Tree, path: &str) -> Result<String, i32> {
    let inode = at(tree, path)?.attributes.inode;
    let file = tree.open(&CALLER, inode, libc::O_RDONLY as u32)?.file;
    let content = read_open(tree, file);
    tree.close(file);
    Ok(String::from_utf8_lossy(&content?).into_owned())
}

pub(crate) fn write(tree: &dyn Tree, path: &str, content: &str) -> Result<(), i32> {
    let (parent, name) = above(tree, path)?;
    let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC) as u32;
    let file = tree.create(&CALLER, parent, name, 0o644, flags)?.file;
    let wrote = tree.write(&CALLER, file, Some(0), false, content.as_bytes());
    tree.close(file);
    wrote.map(|_| ())
}

pub(crate) fn append(tree: &dyn Tree, path: &str, content: &str) -> Result<(), i32> {
    let inode = at(tree, path)?.attributes.inode;
    let file = tree.open(&CALLER, inode, libc::O_WRONLY as u32)?.file;
    let wrote = tree.write(&CALLER, file, None, false, content.as_bytes());
    tree.close(file);
    wrote.map(|_| ())
}

pub(crate) fn make_directory(tree: &dyn Tree, path: &str) -> Result<Found, i32> {
    let (parent, name) = above(tree, path)?;
    tree.make(&CALLER, parent, name, Make::Directory(0o755))
}

pub(crate) fn unlink(tree: &dyn Tree, path: &str) -> Result<(), i32> {
    let (parent, name) = above(tree, path)?;
    tree.unlink(&CALLER, parent, name).map(|_| ())
}

pub(crate) fn remove_directory(tree: &dyn Tree, path: &str) -> Result<(), i32> {
    let (parent, name) = above(tree, path)?;
    tree.remove_directory(&CALLER, parent, name).map(|_| ())
}

pub(crate) fn rename(tree: &dyn Tree, from: &str, to: &str, flags: u32) -> Result<(), i32> {
    let (parent, name) = above(tree, from)?;
    let (new_parent, new_name) = above(tree, to)?;
    tree.rename(&CALLER, parent, name, new_parent, new_name, flags).map(|_| ())
}

/// The names of a directory, sorted, without `.` and `..`.
pub(crate) fn list(tree: &dyn Tree, path: &str) -> Result<Vec<String>, i32> {
    let inode = at(tree, path)?.attributes.inode;
    let file = tree.open(&CALLER, inode, libc::O_RDONLY as u32)?.file;
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        // Small pages, so that going on is tested too.
        let page = tree.read_directory(file, cookie, 100)?;
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        names.extend(page.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
    }
    tree.close(file);
    names.retain(|name| name != "." && name != "..");
    names.sort();
    Ok(names)
}
