//! The same random operations on the host tree and on the tree in memory, which must answer the same.

use super::*;
use crate::messages::{AttributeChanges, TimeChange};
use crate::test_random::Random;
use crate::tree::Life;
use crate::tree::memory::MemoryTree;
use std::collections::HashMap;

const STEPS: usize = 3000;
const ROUNDS: usize = 6;
const MOST_OPEN: usize = 8;

/// What is compared of an object; times and blocks are the file systems' own.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    links: u32,
    owner: (u32, u32),
    size: u64,
}

/// One of the two trees, with the files that were opened in it.
struct Side {
    tree: Box<dyn Tree>,
    open: Vec<(FileToken, InodeId)>,
    /// Numbers by their order of appearance: the identity of objects must agree, not their numbers.
    names: HashMap<u64, usize>,
}

impl Side {
    fn seen(&mut self, found: &Found) -> Seen {
        let a = &found.attributes;
        let is_directory = a.mode & libc::S_IFMT == libc::S_IFDIR;
        Seen {
            mode: a.mode,
            links: if is_directory { 0 } else { a.links },
            owner: (a.uid, a.gid),
            size: if is_directory { 0 } else { a.size },
        }
    }

    /// The object's order of appearance.
    fn identity(&mut self, found: &Found) -> usize {
        let next = self.names.len();
        *self.names.entry(found.attributes.inode.number).or_insert(next)
    }

    fn run(&mut self, step: &Step) -> Result<String, i32> {
        let tree = &*self.tree;
        Ok(match step {
            Step::Look(path) => {
                let found = at(tree, path)?;
                format!("{:?} {}", self.seen(&found), self.identity(&found))
            }
            Step::Read(path) => read(tree, path)?,
            Step::List(path) => format!("{:?}", list(tree, path)?),
            Step::Write(path, content) => format!("{:?}", write(tree, path, content)?),
            Step::Append(path, content) => format!("{:?}", append(tree, path, content)?),
            Step::Make(path, kind) => {
                let (parent, name) = above(tree, path)?;
                let what = match kind {
                    0 => Make::Directory(0o755),
                    1 => Make::Link(b"some/where"),
                    2 => Make::Node(libc::S_IFIFO | 0o640, 0),
                    _ => Make::Node(libc::S_IFREG | 0o604, 0),
                };
                let found = tree.make(&CALLER, parent, name, what)?;
                format!("{:?} {}", self.seen(&found), self.identity(&found))
            }
            Step::Unlink(path) => format!("{:?}", unlink(tree, path)?),
            Step::RemoveDirectory(path) => format!("{:?}", remove_directory(tree, path)?),
            Step::Rename(from, to, flags) => format!("{:?}", rename(tree, from, to, *flags)?),
            Step::Link(from, to) => {
                let inode = at(tree, from)?.attributes.inode;
                let (parent, name) = above(tree, to)?;
                let found = tree.link(&CALLER, inode, parent, name)?;
                format!("{:?} {}", self.seen(&found), self.identity(&found))
            }
            Step::Open(path) => {
                let inode = at(tree, path)?.attributes.inode;
                let file = tree.open(&CALLER, inode, libc::O_RDWR as u32)?.file;
                self.open.push((file, inode));
                String::new()
            }
            Step::UseOpen(which, content) => {
                let (file, inode) = *self.open.get(*which).ok_or(0)?;
                let wrote = tree.write(&CALLER, file, None, false, content.as_bytes())?;
                let data = tree.read(file, 0, 4096)?;
                let found = tree.attributes(inode)?;
                format!("{} {:?} {:?}", wrote.size, data, self.seen(&found))
            }
            Step::Close(which) => {
                if *which < self.open.len() {
                    let (file, _) = self.open.swap_remove(*which);
                    tree.close(file);
                }
                String::new()
            }
            Step::Change(path, changes) => {
                let inode = at(tree, path)?.attributes.inode;
                let found = tree.set_attributes(&CALLER, inode, None, changes)?;
                let modified = changes.modified.map(|_| found.attributes.modified);
                format!("{:?} {modified:?}", self.seen(&found))
            }
            Step::Xattr(path, value) => {
                let inode = at(tree, path)?.attributes.inode;
                let kind = at(tree, path)?.attributes.mode & libc::S_IFMT;
                if kind != libc::S_IFREG && kind != libc::S_IFDIR {
                    return Ok(String::new());
                }
                match value {
                    Some(value) => tree.set_xattr(inode, b"user.test", value, 0)?,
                    None => tree.remove_xattr(inode, b"user.test")?,
                }
                format!("{:?}", tree.get_xattr(inode, b"user.test"))
            }
        })
    }
}

#[derive(Debug)]
enum Step {
    Look(String),
    Read(String),
    List(String),
    Write(String, String),
    Append(String, String),
    Make(String, u64),
    Unlink(String),
    RemoveDirectory(String),
    Rename(String, String, u32),
    Link(String, String),
    Open(String),
    UseOpen(usize, String),
    Close(usize),
    Change(String, AttributeChanges),
    Xattr(String, Option<Vec<u8>>),
}

fn path(random: &mut Random) -> String {
    let names = ["a", "b", "c", "d"];
    let depth = 1 + random.below(3) as usize;
    let parts: Vec<&str> = (0..depth).map(|_| names[random.below(4) as usize]).collect();
    format!("w/{}", parts.join("/"))
}

fn step(random: &mut Random, number: usize) -> Step {
    let here = path(random);
    match random.below(30) {
        0..=3 => Step::Look(here),
        4..=5 => Step::Read(here),
        6..=8 => Step::List(here),
        9..=10 => Step::Write(here, format!("w{number}")),
        11..=12 => Step::Append(here, format!("a{number}")),
        13..=15 => Step::Make(here, random.below(5)),
        16..=17 => Step::Unlink(here),
        18 => Step::RemoveDirectory(here),
        19..=22 => {
            let flags = [0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE];
            Step::Rename(here, path(random), flags[random.below(4) as usize])
        }
        23 => Step::Link(here, path(random)),
        24 => Step::Open(here),
        25 => Step::UseOpen(random.below(MOST_OPEN as u64) as usize, format!("o{number}")),
        26 => Step::Close(random.below(MOST_OPEN as u64) as usize),
        27 => Step::Xattr(here, random.percent(70).then(|| vec![number as u8; 3])),
        _ => {
            let mut changes = AttributeChanges::default();
            match random.below(4) {
                0 => changes.mode = Some(random.below(0o1000) as u32 | 0o600),
                1 => changes.size = Some(random.below(20)),
                2 => {
                    let time = Time { seconds: random.below(1 << 30) as i64, nanoseconds: 7 };
                    changes.modified = Some(TimeChange::To(time));
                }
                _ => {
                    changes.uid = Some(random.below(3) as u32);
                    changes.gid = Some(random.below(3) as u32);
                }
            }
            Step::Change(here, changes)
        }
    }
}

/// Some objects that both trees begin with: in the host tree they are the image's.
fn furnish(tree: &dyn Tree) {
    make_directory(tree, "w").expect("made");
    for directory in ["w/a", "w/a/b", "w/b", "w/c", "w/c/d"] {
        make_directory(tree, directory).expect("made");
    }
    for file in ["w/a/a", "w/a/b/c", "w/a/b/d", "w/c/a", "w/d", "w/c/d/a"] {
        write(tree, file, file).expect("written");
    }
}

/// How often a kept tree is closed and opened again.
const REOPEN_EVERY: usize = 200;

/// A kept tree opened again.
type Again<'a> = &'a dyn Fn() -> HostTree;

/// `again`: the host tree is kept, and now and then opened anew, by which nothing must change.
fn compare(mut random: Random, host: HostTree, again: Option<Again<'_>>) {
    // An ordinary user's links and special files cannot carry their owners.
    let plain = again.is_some() && own_ids() != IdMap::Identity;
    let memory = MemoryTree::new(Life::Private);
    furnish(&memory);
    let mut sides = [
        Side { tree: Box::new(memory), open: Vec::new(), names: HashMap::new() },
        Side { tree: Box::new(host), open: Vec::new(), names: HashMap::new() },
    ];
    for number in 0..STEPS {
        if let Some(again) = again.filter(|_| number % REOPEN_EVERY == REOPEN_EVERY - 1) {
            for side in &mut sides {
                for (file, _) in std::mem::take(&mut side.open) {
                    side.tree.close(file);
                }
            }
            sides[1].tree = Box::new(MemoryTree::new(Life::Private));
            sides[1].tree = Box::new(again());
        }
        let mut step = step(&mut random, number);
        if let Step::Make(_, kind @ (1 | 2)) = &mut step
            && plain
        {
            *kind = 3;
        }
        if matches!(step, Step::Open(_)) && sides[0].open.len() >= MOST_OPEN {
            step = Step::Close(0);
        }
        let [memory, host] = &mut sides;
        let (expected, found) = (memory.run(&step), host.run(&step));
        assert_eq!(found, expected, "step {number}: {step:?}");
    }
}

#[test]
fn the_union_behaves_like_one_file_system() {
    let mut random = Random::from_environment("union model");
    for _ in 0..ROUNDS {
        let folder = Folder::new("model");
        // The image is filled through a first tree over nothing.
        let image = Folder::new("model-image");
        std::fs::create_dir_all(image.at("image")).expect("made");
        let source = open(&image, Vec::new());
        furnish(&source);
        let image = Image::Directory(image.at("upper/root"));
        let host = open_with(&folder, image, Vec::new(), own_ids());
        compare(Random::new(random.next()), host, None);
    }
}

#[test]
fn the_rootless_union_behaves_like_one_file_system() {
    let mut random = Random::from_environment("rootless model");
    let (host_uid, host_gid) = dvs_sys::process::effective_ids();
    let ids = IdMap::Single { host_uid, host_gid, uid: 0, gid: 0 };
    for _ in 0..ROUNDS {
        let folder = Folder::new("model");
        let image = Folder::new("model-image");
        std::fs::create_dir_all(image.at("image")).expect("made");
        let source = open(&image, Vec::new());
        furnish(&source);
        let image = Image::Directory(image.at("upper/root"));
        let host = open_with(&folder, image, Vec::new(), ids);
        compare(Random::new(random.next()), host, None);
    }
}

#[test]
fn a_shared_folder_behaves_like_one_file_system() {
    let mut random = Random::from_environment("share model");
    for mode in [ShareMode::ReadWrite, ShareMode::CopyOnWrite] {
        for _ in 0..ROUNDS / 2 {
            let folder = Folder::new("model");
            let source = Folder::new("model-share");
            std::fs::create_dir_all(source.at("image")).expect("made");
            furnish(&open(&source, Vec::new()));
            let shares = vec![share(&source.at("upper/root/w"), "/w", mode)];
            if mode == ShareMode::ReadWrite && own_ids() != IdMap::Identity {
                println!("SKIPPED: only root can change owners in the host's folders");
                continue;
            }
            compare(Random::new(random.next()), open(&folder, shares), None);
        }
    }
}

#[test]
fn a_kept_union_is_the_same_when_it_is_opened_again() {
    let mut random = Random::from_environment("kept model");
    for round in 0..ROUNDS {
        let folder = Folder::new("model");
        let image = Folder::new("model-image");
        std::fs::create_dir_all(image.at("image")).expect("made");
        furnish(&open(&image, Vec::new()));
        let root = image.at("upper/root");
        let (image, shares) = if round % 2 == 0 {
            (Image::Directory(root), Vec::new())
        } else {
            let below = share(&root.join("w"), "/w", ShareMode::CopyOnWrite);
            (Image::Directory(folder.folder("image")), vec![below])
        };
        let config = configuration(&folder, image, shares, own_ids());
        let config = TreeConfig { kept: true, ..config };
        let again = || {
            let tree = HostTree::open(&config).expect("a tree that was kept");
            assert_eq!(tree.recovered().findings, []);
            assert_eq!(std::fs::read_dir(folder.at("upper/work")).expect("read").count(), 0);
            tree
        };
        compare(Random::new(random.next()), again(), Some(&again));
    }
}
