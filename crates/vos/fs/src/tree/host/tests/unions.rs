//! Image and writable part as one tree.

use super::*;

fn tree_with_image() -> (Folder, HostTree) {
    let folder = Folder::new("union");
    folder.file("image/dir/a", "old a");
    folder.file("image/dir/sub/b", "old b");
    folder.file("image/c", "old c");
    std::os::unix::fs::symlink("dir/a", folder.at("image/link")).expect("linked");
    let tree = open(&folder, Vec::new());
    (folder, tree)
}

fn number(tree: &HostTree, path: &str) -> u64 {
    at(tree, path).expect("there").attributes.inode.number
}

#[test]
fn writing_copies_up_and_leaves_the_image_alone() {
    let (folder, tree) = tree_with_image();
    let before = number(&tree, "dir/a");
    append(&tree, "dir/a", " and new").expect("written");
    assert_eq!(read(&tree, "dir/a"), Ok("old a and new".into()));
    assert_eq!(std::fs::read(folder.at("image/dir/a")).expect("read"), b"old a");
    assert_eq!(number(&tree, "dir/a"), before, "copying up keeps the number");
    assert_eq!(read(&tree, "dir/sub/b"), Ok("old b".into()));
    assert_eq!(list(&tree, "dir"), Ok(vec!["a".into(), "sub".into()]));
}

#[test]
fn an_open_reader_sees_what_is_written_after_copying_up() {
    let (_folder, tree) = tree_with_image();
    let inode = at(&tree, "c").expect("there").attributes.inode;
    let reader = tree.open(&CALLER, inode, libc::O_RDONLY as u32).expect("opened").file;
    assert_eq!(read_open(&tree, reader), Ok(b"old c".to_vec()));
    append(&tree, "c", "!").expect("written");
    assert_eq!(read_open(&tree, reader), Ok(b"old c!".to_vec()));
}

#[test]
fn removed_names_stay_removed_and_new_directories_begin_empty() {
    let (folder, tree) = tree_with_image();
    assert_eq!(remove_directory(&tree, "dir"), Err(libc::ENOTEMPTY));
    unlink(&tree, "dir/a").expect("removed");
    assert_eq!(at(&tree, "dir/a"), Err(libc::ENOENT));
    unlink(&tree, "dir/sub/b").expect("removed");
    remove_directory(&tree, "dir/sub").expect("removed");
    remove_directory(&tree, "dir").expect("removed");
    assert_eq!(at(&tree, "dir"), Err(libc::ENOENT));
    make_directory(&tree, "dir").expect("made");
    assert_eq!(list(&tree, "dir"), Ok(vec![]));
    assert_eq!(at(&tree, "dir/a"), Err(libc::ENOENT));
    write(&tree, "dir/a", "new").expect("written");
    unlink(&tree, "dir/a").expect("removed");
    assert_eq!(at(&tree, "dir/a"), Err(libc::ENOENT));
    assert!(folder.at("image/dir/sub/b").exists());
}

#[test]
fn directories_of_the_image_move_with_what_is_in_them() {
    let (folder, tree) = tree_with_image();
    let before = number(&tree, "dir");
    rename(&tree, "dir", "moved", 0).expect("renamed");
    assert_eq!(number(&tree, "moved"), before);
    assert_eq!(at(&tree, "dir"), Err(libc::ENOENT));
    assert_eq!(read(&tree, "moved/sub/b"), Ok("old b".into()));
    append(&tree, "moved/sub/b", "!").expect("written");
    assert_eq!(read(&tree, "moved/sub/b"), Ok("old b!".into()));
    make_directory(&tree, "dir").expect("made");
    assert_eq!(list(&tree, "dir"), Ok(vec![]));
    assert_eq!(rename(&tree, "moved", "moved/sub/x", 0), Err(libc::EINVAL));
    rename(&tree, "moved/sub", "dir/sub", 0).expect("renamed");
    assert_eq!(list(&tree, "moved"), Ok(vec!["a".into()]));
    assert_eq!(read(&tree, "dir/sub/b"), Ok("old b!".into()));
    rename(&tree, "dir", "moved/a", libc::RENAME_EXCHANGE).expect("exchanged");
    assert_eq!(read(&tree, "dir"), Ok("old a".into()));
    assert_eq!(read(&tree, "moved/a/sub/b"), Ok("old b!".into()));
    assert_eq!(std::fs::read(folder.at("image/dir/sub/b")).expect("read"), b"old b");
}

#[test]
fn renaming_over_names_of_the_image() {
    let (_folder, tree) = tree_with_image();
    write(&tree, "new", "new").expect("written");
    assert_eq!(rename(&tree, "new", "c", libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    rename(&tree, "new", "c", 0).expect("renamed");
    assert_eq!(read(&tree, "c"), Ok("new".into()));
    make_directory(&tree, "empty").expect("made");
    assert_eq!(rename(&tree, "empty", "dir", 0), Err(libc::ENOTEMPTY));
    assert_eq!(rename(&tree, "empty", "c", 0), Err(libc::ENOTDIR));
    assert_eq!(rename(&tree, "c", "dir", 0), Err(libc::EISDIR));
    unlink(&tree, "c").expect("removed");
    assert_eq!(at(&tree, "c"), Err(libc::ENOENT), "the image's file does not come back");
}

#[test]
fn what_is_removed_while_open_works_on() {
    let (_folder, tree) = tree_with_image();
    let inode = at(&tree, "c").expect("there").attributes.inode;
    let file = tree.open(&CALLER, inode, libc::O_RDONLY as u32).expect("opened").file;
    unlink(&tree, "c").expect("removed");
    assert_eq!(read_open(&tree, file), Ok(b"old c".to_vec()));
    assert_eq!(tree.attributes(inode).expect("still known").attributes.links, 0);
    // Opened again through /proc/self/fd, for writing: a copy without a name.
    let writer = tree.open(&CALLER, inode, libc::O_RDWR as u32).expect("opened").file;
    tree.write(&CALLER, writer, Some(0), false, b"NEW").expect("written");
    assert_eq!(read_open(&tree, file), Ok(b"NEW c".to_vec()));
    assert_eq!(at(&tree, "c"), Err(libc::ENOENT));
    tree.close(file);
    tree.close(writer);
    tree.forget(inode, 1);
    assert_eq!(tree.attributes(inode), Err(libc::ESTALE));

    write(&tree, "d", "d").expect("written");
    let inode = at(&tree, "d").expect("there").attributes.inode;
    unlink(&tree, "d").expect("removed");
    let again = tree.open(&CALLER, inode, libc::O_RDONLY as u32).expect("opened").file;
    assert_eq!(read_open(&tree, again), Ok(b"d".to_vec()));
}

#[test]
fn hard_links_are_one_object() {
    let (folder, tree) = tree_with_image();
    std::fs::hard_link(folder.at("image/c"), folder.at("image/c2")).expect("linked");
    let c = at(&tree, "c").expect("there").attributes;
    assert_eq!(number(&tree, "c2"), c.inode.number);
    append(&tree, "c2", "!").expect("written");
    assert_eq!(read(&tree, "c"), Ok("old c!".into()), "two names of the image stay one file");
    let (parent, name) = above(&tree, "dir/c3").expect("a parent");
    let linked = tree.link(&CALLER, c.inode, parent, name).expect("linked");
    assert_eq!(linked.attributes.inode, c.inode);
    append(&tree, "dir/c3", "?").expect("written");
    assert_eq!(read(&tree, "c"), Ok("old c!?".into()));
    // rename(2) between two names of one file does nothing.
    rename(&tree, "dir/c3", "c", 0).expect("nothing");
    assert!(at(&tree, "dir/c3").is_ok() && at(&tree, "c").is_ok());
}

#[test]
fn links_are_never_followed_by_the_server() {
    let (folder, tree) = tree_with_image();
    std::os::unix::fs::symlink("/etc", folder.at("image/out")).expect("linked");
    let link = at(&tree, "out").expect("there").attributes;
    assert_eq!(link.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(tree.read_link(link.inode), Ok(b"/etc".to_vec()));
    assert_eq!(tree.lookup(link.inode, b"passwd").unwrap_err(), libc::ENOTDIR);
    assert_eq!(tree.open(&CALLER, link.inode, 0).unwrap_err(), libc::ELOOP);
    assert_eq!(read(&tree, "link").unwrap_err(), libc::ELOOP);
}

#[test]
fn special_files_are_seen_and_never_opened() {
    let folder = Folder::new("special");
    let share_folder = folder.folder("share");
    let tree = open(&folder, vec![share(&share_folder, "/share", ShareMode::ReadWrite)]);
    let (parent, name) = above(&tree, "share/fifo").expect("a parent");
    let fifo = tree.make(&CALLER, parent, name, Make::Node(libc::S_IFIFO | 0o600, 0));
    let fifo = fifo.expect("made").attributes;
    assert_eq!(fifo.mode & libc::S_IFMT, libc::S_IFIFO);
    assert_eq!(tree.open(&CALLER, fifo.inode, libc::O_RDWR as u32).unwrap_err(), libc::ENXIO);
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let made = tree.make(&CALLER, parent, b"device", Make::Node(kind | 0o666, 0x103));
        assert_eq!(made.unwrap_err(), libc::EPERM);
    }
    assert_eq!(list(&tree, "share"), Ok(vec!["fifo".into()]));
}

#[test]
fn hostile_names_are_refused_by_every_operation() {
    let (_folder, tree) = tree_with_image();
    let long = vec![b'x'; 256];
    let names: [&[u8]; 8] = [b"", b".", b"..", b"a/b", b"/", b"../upper", b"a\0b", long.as_slice()];
    for name in names {
        assert!(tree.lookup(ROOT, name).is_err(), "{name:?}");
        assert!(tree.make(&CALLER, ROOT, name, Make::Directory(0o755)).is_err());
        assert!(tree.create(&CALLER, ROOT, name, 0o644, libc::O_RDWR as u32).is_err());
        assert!(tree.unlink(&CALLER, ROOT, name).is_err());
        assert!(tree.remove_directory(&CALLER, ROOT, name).is_err());
        assert!(tree.rename(&CALLER, ROOT, name, ROOT, b"z", 0).is_err());
        assert!(tree.rename(&CALLER, ROOT, b"c", ROOT, name, 0).is_err());
        let c = at(&tree, "c").expect("still there").attributes.inode;
        assert!(tree.link(&CALLER, c, ROOT, name).is_err());
    }
    let unknown = InodeId { number: 1 << 40, generation: 0 };
    let wrong = InodeId { number: ROOT.number, generation: 1 };
    assert_eq!(tree.attributes(unknown).unwrap_err(), libc::ESTALE);
    assert_eq!(tree.attributes(wrong).unwrap_err(), libc::ESTALE);
}

#[test]
fn listing_goes_on_while_entries_are_removed() {
    let (_folder, tree) = tree_with_image();
    make_directory(&tree, "many").expect("made");
    for n in 0..100 {
        write(&tree, &format!("many/{n:03}"), "").expect("written");
    }
    let inode = at(&tree, "many").expect("there").attributes.inode;
    let file = tree.open(&CALLER, inode, libc::O_RDONLY as u32).expect("opened").file;
    let (mut cookie, mut seen) = (0, 0);
    loop {
        let page = tree.read_directory(file, cookie, 200).expect("read");
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        for entry in page.iter().filter(|entry| !entry.name.starts_with(b".")) {
            tree.unlink(&CALLER, inode, &entry.name).expect("each is seen once");
            seen += 1;
        }
    }
    assert_eq!((seen, list(&tree, "many")), (100, Ok(vec![])));
}

#[test]
fn descriptors_and_records_are_bounded() {
    let (_folder, tree) = tree_with_image();
    make_directory(&tree, "many").expect("made");
    let many = at(&tree, "many").expect("there").attributes.inode;
    let mut known = Vec::new();
    for n in 0..super::super::nodes::MAX_CACHED + 500 {
        let what = Make::Node(libc::S_IFREG | 0o644, 0);
        known.push(tree.make(&CALLER, many, format!("{n}").as_bytes(), what).expect("made"));
    }
    assert!(tree.table().load().1 <= super::super::nodes::MAX_CACHED + 16);
    // What has no descriptor any more is found again.
    for found in &known {
        let inode = found.attributes.inode;
        assert_eq!(tree.attributes(inode).expect("found").attributes.inode, inode);
    }
    for found in known {
        tree.forget(found.attributes.inode, 1);
    }
    assert!(tree.table().load().0 < 100, "{:?}", tree.table().load());
}
