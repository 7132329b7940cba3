//! What a folder holds, in a form that can be compared: names, kinds, modes, contents.
//!
//! Times, inode numbers and owners are left out: they differ between any two runs, or between a
//! container and its host, without a program having done anything else.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Most entries of one tree.
const MAX_ENTRIES: usize = 100_000;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is: `file`, `folder`, `link`, ...
    pub kind: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// Hard links, of files.
    pub links: u64,
    /// Contents of a file, target of a link.
    pub content: Vec<u8>,
}

/// Entries by path.
pub type Tree = BTreeMap<String, Entry>;

/// Reads a folder; what cannot be read is kept with the error as its content.
#[must_use]
pub fn read(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    walk(folder, "", &mut tree);
    tree
}

fn walk(folder: &Path, prefix: &str, tree: &mut Tree) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if tree.len() >= MAX_ENTRIES {
            return;
        }
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let kind = metadata.file_type();
        let mut links = 0;
        let (kind, content) = if kind.is_dir() {
            walk(&path, &format!("{name}/"), tree);
            ("folder", Vec::new())
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).unwrap_or_default();
            ("link", target.into_os_string().into_encoded_bytes())
        } else if kind.is_file() {
            links = metadata.nlink();
            let bytes = std::fs::read(&path);
            ("file", bytes.unwrap_or_else(|error| error.to_string().into_bytes()))
        } else if kind.is_fifo() {
            ("fifo", Vec::new())
        } else if kind.is_socket() {
            ("socket", Vec::new())
        } else {
            ("device", Vec::new())
        };
        let mode = metadata.permissions().mode() & 0o7777;
        tree.insert(name, Entry { kind, mode, links, content });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_seen_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("d")).expect("d");
        std::fs::write(at("d/f"), "x").expect("f");
        std::os::unix::fs::symlink("nowhere", at("l")).expect("l");
        std::fs::hard_link(at("d/f"), at("h")).expect("h");
        let tree = read(folder.path());
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["d", "d/f", "h", "l"]);
        assert_eq!((tree["d/f"].links, tree["d/f"].content.as_slice()), (2, &b"x"[..]));
        assert_eq!(tree["l"].content, b"nowhere");
    }
}
