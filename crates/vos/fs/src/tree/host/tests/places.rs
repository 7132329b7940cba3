//! The host's root as the image, shared folders, ids.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn the_host_shows_its_programs_and_not_its_secrets() {
    let folder = Folder::new("host");
    let tree = open_with(&folder, Image::Host, Vec::new(), own_ids());
    for place in ["home", "root", "tmp", "var/tmp", "mnt", "media", "boot", "proc", "sys"] {
        assert_eq!(list(&tree, place), Ok(vec![]), "{place}");
    }
    assert_eq!(list(&tree, "run"), Ok(vec!["lock".into()]));
    assert_eq!(list(&tree, "dev"), Ok(vec!["shm".into()]));
    assert_eq!(at(&tree, "tmp").expect("there").attributes.mode & 0o7777, 0o1777);
    assert_eq!(at(&tree, "dev/shm").expect("there").attributes.mode & 0o7777, 0o1777);
    assert_eq!(at(&tree, "lost+found").unwrap_err(), libc::ENOENT);
    assert_eq!(read(&tree, "etc/hostname"), Ok("box\n".into()));
    let passwd = std::fs::read_to_string("/etc/passwd").expect("read");
    assert_eq!(read(&tree, "etc/passwd"), Ok(passwd));
    // Everything below /etc that others may not read.
    let mut checked = 0;
    for entry in std::fs::read_dir("/etc").expect("listed") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("text");
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        if meta.is_file() && meta.permissions().mode() & 0o004 == 0 {
            checked += 1;
            assert_eq!(at(&tree, &format!("etc/{name}")).unwrap_err(), libc::ENOENT, "{name}");
            assert!(!list(&tree, "etc").expect("listed").contains(&name));
        } else if meta.is_dir() && meta.permissions().mode() & 0o005 != 0o005 {
            checked += 1;
            assert_eq!(list(&tree, &format!("etc/{name}")), Ok(vec![]), "{name}");
        }
    }
    if checked == 0 {
        println!("SKIPPED: this host's /etc holds nothing that others may not read");
    }
    assert_eq!(at(&tree, "etc/shadow").unwrap_err(), libc::ENOENT);
}

#[test]
fn secrets_are_those_that_others_may_not_read() {
    // The rule itself, on a folder that stands for the host's root.
    let folder = Folder::new("secrets");
    folder.file("image/etc/shadow", "secret");
    folder.file("image/private/key", "secret");
    let mode = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.at(name), permissions).expect("set");
    };
    mode("image/etc/shadow", 0o640);
    mode("image/private", 0o700);
    let mut tree = open(&folder, Vec::new());
    assert_eq!(read(&tree, "etc/shadow"), Ok("secret".into()), "an image is shown as it is");
    tree.regions[0].lower.as_mut().expect("an image").host_root = true;
    assert_eq!(at(&tree, "etc/shadow").unwrap_err(), libc::ENOENT);
    assert!(!list(&tree, "etc").expect("listed").contains(&"shadow".into()));
    assert_eq!(list(&tree, "private"), Ok(vec![]));
    assert_eq!(at(&tree, "private/key").unwrap_err(), libc::ENOENT);
    assert_eq!(rename(&tree, "etc/shadow", "etc/x", 0), Err(libc::ENOENT));
    // The DC can have its own by the same name.
    write(&tree, "etc/shadow", "own").expect("written");
    write(&tree, "private/key", "own").expect("written");
    rename(&tree, "private", "public", 0).expect("renamed");
    assert_eq!(list(&tree, "public"), Ok(vec!["key".into()]));
    assert_eq!(read(&tree, "public/key"), Ok("own".into()));
    unlink(&tree, "etc/shadow").expect("removed");
    assert_eq!(at(&tree, "etc/shadow").unwrap_err(), libc::ENOENT);
}

#[test]
fn shared_folders_are_shown_where_they_belong() {
    let folder = Folder::new("shares");
    folder.file("rw/file", "host");
    folder.file("ro/file", "host");
    folder.file("cow/dir/file", "host");
    let tree = open(
        &folder,
        vec![
            share(&folder.at("cow"), "/home/u/rw/inner", ShareMode::CopyOnWrite),
            share(&folder.at("rw"), "/home/u/rw", ShareMode::ReadWrite),
            share(&folder.at("ro"), "/ro", ShareMode::ReadOnly),
        ],
    );
    // For writing: the host sees it, and what the host does is seen.
    append(&tree, "home/u/rw/file", "+dc").expect("written");
    assert_eq!(std::fs::read_to_string(folder.at("rw/file")).expect("read"), "host+dc");
    std::fs::write(folder.at("rw/late"), "late").expect("written");
    assert_eq!(read(&tree, "home/u/rw/late"), Ok("late".into()));
    std::fs::rename(folder.at("rw/late"), folder.at("rw/later")).expect("renamed");
    assert_eq!(at(&tree, "home/u/rw/late").unwrap_err(), libc::ENOENT);
    assert_eq!(read(&tree, "home/u/rw/later"), Ok("late".into()));
    // Read-only: nothing can be changed.
    assert_eq!(read(&tree, "ro/file"), Ok("host".into()));
    assert_eq!(write(&tree, "ro/new", "x"), Err(libc::EROFS));
    assert_eq!(append(&tree, "ro/file", "x"), Err(libc::EROFS));
    assert_eq!(unlink(&tree, "ro/file"), Err(libc::EROFS));
    assert_eq!(rename(&tree, "ro/file", "ro/x", 0), Err(libc::EROFS));
    let inode = at(&tree, "ro/file").expect("there").attributes.inode;
    let changes = crate::messages::AttributeChanges { mode: Some(0o777), ..Default::default() };
    assert_eq!(tree.set_attributes(&CALLER, inode, None, &changes), Err(libc::EROFS));
    assert_eq!(tree.set_xattr(inode, b"user.x", b"", 0), Err(libc::EROFS));
    // Copied on write: the DC sees its changes, the host does not.
    append(&tree, "home/u/rw/inner/dir/file", "+dc").expect("written");
    unlink(&tree, "home/u/rw/inner/dir/file").expect("removed");
    write(&tree, "home/u/rw/inner/dir/new", "new").expect("written");
    assert_eq!(list(&tree, "home/u/rw/inner/dir"), Ok(vec!["new".into()]));
    assert_eq!(std::fs::read_to_string(folder.at("cow/dir/file")).expect("read"), "host");
    assert!(!folder.at("cow/dir/new").exists());
    // Places of shares cannot go away, and nothing crosses their borders.
    assert_eq!(remove_directory(&tree, "ro"), Err(libc::EBUSY));
    assert_eq!(rename(&tree, "ro", "x", 0), Err(libc::EBUSY));
    assert_eq!(rename(&tree, "home/u/rw/file", "x", 0), Err(libc::EXDEV));
    assert!(list(&tree, "home/u/rw").expect("listed").contains(&"inner".into()));
}

#[test]
fn the_daemons_own_state_is_not_seen_through_a_share() {
    let folder = Folder::new("state");
    folder.file("project/file", "x");
    let upper = folder.folder("project/state");
    let config = TreeConfig {
        kept: false,
        image: Image::Directory(folder.folder("image")),
        upper,
        shares: vec![share(&folder.at("project"), "/work", ShareMode::ReadWrite)],
        ids: own_ids(),
        hidden: Vec::new(),
        hostname: "box".into(),
    };
    let tree = HostTree::open(&config).expect("a tree");
    assert_eq!(list(&tree, "work"), Ok(vec!["file".into()]));
    assert_eq!(at(&tree, "work/state").unwrap_err(), libc::ENOENT);
    assert_eq!(make_directory(&tree, "work/state").unwrap_err(), libc::EEXIST);
}

#[test]
fn wrong_configurations_are_refused_with_their_path() {
    let folder = Folder::new("config");
    let image = || Image::Directory(folder.folder("image"));
    let config = |image, shares| TreeConfig {
        kept: false,
        image,
        upper: Folder::new("upper").0.clone(),
        shares,
        ids: own_ids(),
        hidden: Vec::new(),
        hostname: "box".into(),
    };
    let missing = folder.at("missing");
    let error = |config: TreeConfig| {
        std::fs::create_dir_all(&config.upper).expect("made");
        let error = HostTree::open(&config).expect_err("refused").to_string();
        std::fs::remove_dir_all(&config.upper).expect("removed");
        error
    };
    assert!(error(config(Image::Directory(missing.clone()), Vec::new())).contains("missing"));
    let shares = vec![share(&missing, "/x", ShareMode::ReadOnly)];
    assert!(error(config(image(), shares)).contains("missing"));
    for path in ["relative", "/a/../b", "/"] {
        let shares = vec![share(&folder.folder("ok"), path, ShareMode::ReadOnly)];
        assert!(error(config(image(), shares)).contains(path), "{path}");
    }
}

#[test]
fn rootless_ids_and_modes_are_kept_beside() {
    // As root the map of an ordinary daemon can be tried too: what is wanted is what is shown.
    let folder = Folder::new("ids");
    let (host_uid, host_gid) = dvs_sys::process::effective_ids();
    let ids = IdMap::Single { host_uid, host_gid, uid: 0, gid: 0 };
    let image = Image::Directory(folder.folder("image"));
    let tree = open_with(&folder, image, Vec::new(), ids);
    // Those of /tmp and the like.
    let kept = super::super::read(&tree.overrides).len();
    write(&tree, "file", "x").expect("written");
    let inode = at(&tree, "file").expect("there").attributes.inode;
    let changes = crate::messages::AttributeChanges {
        uid: Some(1000),
        gid: Some(100),
        mode: Some(0o4000),
        ..Default::default()
    };
    let changed = tree.set_attributes(&CALLER, inode, None, &changes).expect("changed");
    let seen = (changed.attributes.uid, changed.attributes.gid, changed.attributes.mode & 0o7777);
    assert_eq!(seen, (1000, 100, 0o4000));
    let real = std::fs::metadata(folder.at("upper/root/file")).expect("stat");
    assert_eq!(real.uid(), host_uid);
    assert_eq!(real.mode() & 0o7777, 0o600, "set-uid does not act on the host");
    assert_eq!(read(&tree, "file"), Ok("x".into()), "mode 0 keeps the DC's root out of nothing");
    rename(&tree, "file", "other", 0).expect("renamed");
    assert_eq!(at(&tree, "other").expect("there").attributes.uid, 1000);
    unlink(&tree, "other").expect("removed");
    tree.forget(inode, 100);
    let now = super::super::read(&tree.overrides).len();
    assert_eq!(now, kept, "nothing is kept of what is gone");
}

#[test]
fn new_files_belong_to_who_made_them() {
    if dvs_sys::process::effective_ids().0 != 0 {
        println!("SKIPPED: only root can give files away");
        return;
    }
    let folder = Folder::new("owners");
    let tree = open(&folder, vec![share(&folder.folder("rw"), "/rw", ShareMode::ReadWrite)]);
    let mut caller = CALLER;
    caller.credentials.uid = 1000;
    caller.credentials.gid = 1001;
    caller.credentials.umask = 0o027;
    let rw = at(&tree, "rw").expect("there").attributes.inode;
    let found = tree.make(&caller, rw, b"dir", Make::Directory(0o2777)).expect("made");
    let seen = found.attributes;
    assert_eq!((seen.uid, seen.gid, seen.mode & 0o7777), (1000, 1001, 0o2750));
    caller.credentials.gid = 5;
    let inner = tree.make(&caller, seen.inode, b"sub", Make::Directory(0o777)).expect("made");
    assert_eq!((inner.attributes.gid, inner.attributes.mode & 0o7777), (1001, 0o2750));
    let real = std::fs::metadata(folder.at("rw/dir/sub")).expect("stat");
    assert_eq!((real.uid(), real.gid(), real.mode() & 0o7777), (1000, 1001, 0o2750));
    // A write by an ordinary user takes set-uid away.
    let flags = (libc::O_RDWR | libc::O_EXCL) as u32;
    let opened = tree.create(&caller, seen.inode, b"suid", 0o4755, flags).expect("made");
    tree.write(&caller, opened.file, Some(0), true, b"x").expect("written");
    let after = tree.attributes(opened.found.attributes.inode).expect("there").attributes;
    assert_eq!(after.mode & 0o7777, 0o750);
    // File capabilities would hold on the host.
    let set = tree.set_xattr(after.inode, b"security.capability", &[1; 20], 0);
    assert_eq!(set, Err(libc::EPERM));
    assert_eq!(tree.set_xattr(after.inode, b"trusted.x", b"", 0), Err(libc::EOPNOTSUPP));
}
