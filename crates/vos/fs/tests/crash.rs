//! A server that is killed at any moment: the next one finds every acknowledged change, and of the one under
//! way all or nothing.
//!
//! A child process changes a kept tree by a seeded load, one operation after another, and tells how many it
//! has done; it is killed; the tree is opened again and compared with a model that did as many.

use dvs_fs::messages::{AttributeChanges, Credentials, InodeId, ROOT, Time};
use dvs_fs::tree::host::HostTree;
use dvs_fs::tree::memory::MemoryTree;
use dvs_fs::tree::{Caller, Life, Make, Tree};
use dvs_fs::{IdMap, Image, TreeConfig};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Kills in an ordinary run; `DVS_SEEDS` asks for more.
const KILLS: u64 = 25;
/// Most operations before a kill.
const MOST: u64 = 400;
/// Names the child's folder and seed.
const CHILD: &str = "DVS_TEST_CRASH";

const CALLER: Caller = Caller {
    credentials: Credentials { uid: 0, gid: 0, pid: 1, umask: 0 },
    now: Time { seconds: 1_000, nanoseconds: 0 },
};

#[allow(dead_code, reason = "shared with the crate's own tests")]
#[path = "../src/test_random.rs"]
mod test_random;
use test_random::Random;

fn find(tree: &dyn Tree, path: &[String]) -> Result<InodeId, i32> {
    let mut inode = ROOT;
    for name in path {
        let found = tree.lookup(inode, name.as_bytes())?.found.ok_or(libc::ENOENT)?;
        inode = found.attributes.inode;
    }
    Ok(inode)
}

/// One operation, the same for the same random numbers; what it answers does not matter.
fn operate(tree: &dyn Tree, random: &mut Random, number: u64) -> Result<(), i32> {
    let mut path = || -> Vec<String> {
        let depth = 1 + random.below(3);
        let names = ["a", "b", "c", "d"];
        let below = (0..depth).map(|_| names[random.below(4) as usize].to_owned());
        std::iter::once("w".to_owned()).chain(below).collect()
    };
    let (mut here, mut there) = (path(), path());
    let what = random.below(20);
    let mode = 0o600 | random.below(0o100) as u32;
    let (name, new_name) = (here.clone(), there.clone());
    let last = |path: &mut Vec<String>| path.pop().unwrap_or_default();
    match what {
        0..=3 => {
            let name = last(&mut here);
            let parent = find(tree, &here)?;
            let kinds = [
                Make::Directory(mode | 0o100),
                Make::Node(libc::S_IFREG | mode, 0),
                Make::Link(b"some/where"),
                Make::Directory(0o755),
            ];
            tree.make(&CALLER, parent, name.as_bytes(), kinds[what as usize])?;
        }
        4..=6 => {
            let inode = find(tree, &name)?;
            let file = tree.open(&CALLER, inode, libc::O_WRONLY as u32)?.file;
            let text = format!("<{number}>");
            let wrote = tree.write(&CALLER, file, None, false, text.as_bytes());
            tree.close(file);
            wrote?;
        }
        7..=9 => {
            let name = last(&mut here);
            tree.unlink(&CALLER, find(tree, &here)?, name.as_bytes())?;
        }
        10 => {
            let name = last(&mut here);
            tree.remove_directory(&CALLER, find(tree, &here)?, name.as_bytes())?;
        }
        11..=15 => {
            let (name, new_name) = (last(&mut here), last(&mut there));
            let flags = [0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE];
            let flags = flags[(what - 11) as usize];
            let (from, to) = (find(tree, &here)?, find(tree, &there)?);
            tree.rename(&CALLER, from, name.as_bytes(), to, new_name.as_bytes(), flags)?;
        }
        16 => {
            let inode = find(tree, &name)?;
            let new = last(&mut there);
            tree.link(&CALLER, inode, find(tree, &there)?, new.as_bytes())?;
        }
        17 => {
            let inode = find(tree, &new_name)?;
            let file = tree.open(&CALLER, inode, libc::O_RDONLY as u32)?.file;
            let synced = tree.sync(file, false);
            tree.close(file);
            synced?;
        }
        18 => {
            let changes = AttributeChanges { size: Some(3), ..AttributeChanges::default() };
            tree.set_attributes(&CALLER, find(tree, &name)?, None, &changes)?;
        }
        _ => {
            let changes = AttributeChanges { mode: Some(mode), ..AttributeChanges::default() };
            tree.set_attributes(&CALLER, find(tree, &name)?, None, &changes)?;
        }
    }
    Ok(())
}

/// Everything that is below `w`: by path, what it is, and its content.
fn dump(tree: &dyn Tree) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut pending =
        vec![(String::from("w"), find(tree, &["w".to_owned()]).expect("the root of it"))];
    while let Some((path, inode)) = pending.pop() {
        let attributes = tree.attributes(inode).expect("attributes").attributes;
        let kind = attributes.mode & libc::S_IFMT;
        let content = match kind {
            libc::S_IFREG => {
                let file = tree.open(&CALLER, inode, libc::O_RDONLY as u32).expect("opened").file;
                let data = tree.read(file, 0, 1 << 20).expect("read");
                tree.close(file);
                format!("{} {}", attributes.links, String::from_utf8_lossy(&data))
            }
            libc::S_IFLNK => format!("{:?}", tree.read_link(inode)),
            _ => String::new(),
        };
        if kind == libc::S_IFDIR {
            let file = tree.open(&CALLER, inode, libc::O_RDONLY as u32).expect("opened").file;
            let listed = tree.read_directory(file, 0, 1 << 16).expect("listed");
            tree.close(file);
            for entry in listed.iter().filter(|entry| !entry.name.starts_with(b".")) {
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                let found = tree.lookup(inode, &entry.name).expect("looked up").found;
                let found = found.expect("what is listed is there").attributes.inode;
                assert_eq!(found.number, entry.inode, "{path}/{name}");
                pending.push((format!("{path}/{name}"), found));
            }
        }
        all.insert(path, format!("{:o} {content}", attributes.mode));
    }
    all
}

const DIRECTORIES: [&str; 6] = ["w", "w/a", "w/a/b", "w/b", "w/c", "w/c/d"];
const FILES: [&str; 6] = ["w/a/a", "w/a/b/c", "w/a/b/d", "w/c/a", "w/d", "w/c/d/a"];

fn furnish_image(image: &Path) {
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
    };
    for directory in DIRECTORIES {
        std::fs::create_dir_all(image.join(directory)).expect("made");
        set(&image.join(directory), 0o755);
    }
    for file in FILES {
        std::fs::write(image.join(file), file).expect("written");
        set(&image.join(file), 0o644);
    }
}

fn furnish_model(tree: &dyn Tree) {
    let place = |path: &str| -> (InodeId, String) {
        let mut names: Vec<String> = path.split('/').map(str::to_owned).collect();
        let last = names.pop().unwrap_or_default();
        (find(tree, &names).expect("a parent"), last)
    };
    for directory in DIRECTORIES {
        let (parent, name) = place(directory);
        tree.make(&CALLER, parent, name.as_bytes(), Make::Directory(0o755)).expect("made");
    }
    for path in FILES {
        let (parent, name) = place(path);
        let flags = (libc::O_WRONLY | libc::O_CREAT) as u32;
        let file = tree.create(&CALLER, parent, name.as_bytes(), 0o644, flags).expect("made").file;
        tree.write(&CALLER, file, Some(0), false, path.as_bytes()).expect("written");
        tree.close(file);
    }
}

fn config(folder: &Path) -> TreeConfig {
    let (uid, gid) = dvs_sys::process::effective_ids();
    TreeConfig {
        image: Image::Directory(folder.join("image")),
        upper: folder.join("upper"),
        kept: true,
        shares: Vec::new(),
        ids: IdMap::for_daemon(uid, gid),
        hidden: Vec::new(),
        hostname: "box".into(),
    }
}

/// The child: works until it is killed.
fn work(folder: &Path, seed: u64, begin: u64) {
    let tree = HostTree::open(&config(folder)).expect("a tree");
    let mut random = Random::new(seed);
    // What was done in earlier lives only moves the random numbers on.
    let nothing = MemoryTree::new(Life::Private);
    furnish_model(&nothing);
    for number in 0..begin {
        let _ = operate(&nothing, &mut random, number);
    }
    let mut out = std::io::stdout();
    for number in begin.. {
        let _ = operate(&tree, &mut random, number);
        if out.write_all(b".\n").is_err() {
            return;
        }
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_killed_server_loses_nothing_and_does_nothing_by_halves() {
    if let Ok(child) = std::env::var(CHILD) {
        let mut words = child.split(' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (seed, begin) = (number(), number());
        let folder = std::env::var_os("DVS_TEST_FOLDER").expect("a folder");
        return work(Path::new(&folder), seed, begin);
    }
    let given = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = given("DVS_SEED").unwrap_or_else(|| dvs_sys::clock::real() as u64) | 1;
    let kills = given("DVS_SEEDS").unwrap_or(KILLS);
    println!("crash: DVS_SEED={seed}");
    let mut chance = Random::new(seed ^ 0x5555_5555);
    let path = std::env::temp_dir().join(format!("dvs-crash-{}", std::process::id()));
    let folder = Folder(path);
    std::fs::create_dir_all(folder.0.join("upper")).expect("made");
    furnish_image(&folder.0.join("image"));
    let model = MemoryTree::new(Life::Private);
    furnish_model(&model);
    let mut random = Random::new(seed);
    let mut done = 0;
    let mut by_halves = 0;
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "a_killed_server_loses_nothing_and_does_nothing_by_halves"])
            .args(["--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{seed} {done}"))
            .env("DVS_TEST_FOLDER", &folder.0)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stdout.take().expect("its output"));
        let wanted = 1 + chance.below(MOST);
        let (mut count, mut line) = (0, String::new());
        while count < wanted {
            line.clear();
            assert_ne!(lines.read_line(&mut line).expect("read"), 0, "the child ended by itself");
            count += u64::from(line.ends_with(".\n"));
        }
        // Somewhere in the middle of the next ones.
        for _ in 0..chance.below(3000) {
            std::hint::spin_loop();
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        loop {
            line.clear();
            if lines.read_line(&mut line).expect("read") == 0 {
                break;
            }
            count += u64::from(line.ends_with(".\n"));
        }
        for number in done..done + count {
            let _ = operate(&model, &mut random, number);
        }
        done += count;
        let tree = HostTree::open(&config(&folder.0)).expect("the tree again");
        assert_eq!(tree.recovered().findings, [], "kill {kill}");
        let (found, before) = (dump(&tree), dump(&model));
        drop(tree);
        if found != before {
            // Then the operation under way was done as well, and whole.
            let _ = operate(&model, &mut random, done);
            done += 1;
            by_halves += 1;
            assert_eq!(found, dump(&model), "kill {kill} after {done} operations");
        }
    }
    println!("{kills} kills in {done} operations; {by_halves} between doing and telling");
}
