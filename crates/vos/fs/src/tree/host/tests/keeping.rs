//! Upper layers that outlive their server: what is found again, what is refused, what is told of damage.

use super::*;
use crate::tree::host::recover::Wrong;
use std::os::unix::fs::MetadataExt;

fn kept(folder: &Folder) -> TreeConfig {
    let image = Image::Directory(folder.folder("image"));
    TreeConfig { kept: true, ..configuration(folder, image, Vec::new(), own_ids()) }
}

fn furnished(name: &str) -> (Folder, TreeConfig) {
    let folder = Folder::new(name);
    for file in ["a", "dir/b", "dir/sub/c", "other/d"] {
        folder.file(&format!("image/{file}"), file);
    }
    let config = kept(&folder);
    (folder, config)
}

fn numbers(tree: &HostTree, paths: &[&str]) -> Vec<u64> {
    paths.iter().map(|path| at(tree, path).expect("there").attributes.inode.number).collect()
}

#[test]
fn the_next_server_goes_on() {
    let (_folder, config) = furnished("goes-on");
    let paths = ["a", "moved", "moved/b", "moved/sub/c", "other/d", "new"];
    let before = {
        let tree = HostTree::open(&config).expect("a tree");
        append(&tree, "a", "!").expect("written");
        rename(&tree, "dir", "moved", 0).expect("renamed");
        make_directory(&tree, "dir").expect("made");
        unlink(&tree, "moved/b").expect("removed");
        write(&tree, "moved/b", "again").expect("written");
        write(&tree, "new", "new").expect("written");
        numbers(&tree, &paths)
    };
    let tree = HostTree::open(&config).expect("the tree again");
    assert_eq!(tree.recovered().wrong, 0);
    assert_eq!(numbers(&tree, &paths), before);
    assert_eq!(read(&tree, "a"), Ok("a!".into()));
    assert_eq!(list(&tree, "dir"), Ok(vec![]));
    assert_eq!(list(&tree, "moved"), Ok(vec!["b".into(), "sub".into()]));
    assert_eq!(read(&tree, "moved/b"), Ok("again".into()));
    assert_eq!(read(&tree, "moved/sub/c"), Ok("dir/sub/c".into()));
    assert_eq!(read(&tree, "etc/hostname"), Ok("box\n".into()));
}

#[test]
fn directories_with_whiteouts_are_removed_and_replaced() {
    let (folder, config) = furnished("whiteouts");
    let tree = HostTree::open(&config).expect("a tree");
    unlink(&tree, "dir/sub/c").expect("removed");
    remove_directory(&tree, "dir/sub").expect("removed, a name of the image");
    unlink(&tree, "dir/b").expect("removed");
    make_directory(&tree, "new").expect("made");
    write(&tree, "new/x", "x").expect("written");
    rename(&tree, "new", "dir", 0).expect("a directory that only has whiteouts is empty");
    assert_eq!(list(&tree, "dir"), Ok(vec!["x".into()]));
    unlink(&tree, "other/d").expect("removed");
    rename(&tree, "other", "elsewhere", 0).expect("renamed");
    remove_directory(&tree, "elsewhere").expect("removed, a name of the upper layer alone");
    drop(tree);
    assert_eq!(std::fs::read_dir(folder.at("upper/work")).expect("read").count(), 0);
    let tree = HostTree::open(&config).expect("the tree again");
    assert_eq!(list(&tree, "dir"), Ok(vec!["x".into()]));
    assert_eq!(at(&tree, "other"), Err(libc::ENOENT));
    assert_eq!(at(&tree, "elsewhere"), Err(libc::ENOENT));
    assert!(!list(&tree, "").expect("listed").contains(&"other".into()));
}

#[test]
fn an_unfinished_layout_begins_anew_and_another_configuration_is_refused() {
    let (folder, config) = furnished("refused");
    drop(HostTree::open(&config).expect("a tree"));
    let other = TreeConfig { image: Image::Directory(folder.folder("dir")), ..config.clone() };
    let error = HostTree::open(&other).expect_err("another image");
    assert!(error.to_string().contains("another image"), "{error}");
    std::fs::write(folder.at("upper/ready"), "dvs tree 99\n").expect("written");
    let error = HostTree::open(&config).expect_err("another version");
    assert!(error.to_string().contains("another version"), "{error}");
    // As after a crash in the middle of the layout.
    std::fs::remove_file(folder.at("upper/ready")).expect("removed");
    folder.file(&["upper", "work", "copy-7", "below"].join("/"), "left");
    folder.file("upper/root/half", "made");
    assert!(HostTree::check(&config).is_err(), "nothing there to look at");
    let tree = HostTree::open(&config).expect("a new tree");
    assert_eq!(at(&tree, "half"), Err(libc::ENOENT));
    assert_eq!(read(&tree, "a"), Ok("a".into()));
}

#[test]
fn damage_is_named_counted_and_not_spread() {
    let (folder, config) = furnished("damage");
    {
        let tree = HostTree::open(&config).expect("a tree");
        append(&tree, "dir/b", "!").expect("written");
        append(&tree, "dir/sub/c", "!").expect("written");
        write(&tree, "fine", "fine").expect("written");
    }
    let damage = |path: &str, name: &str, value: &str| {
        let path = folder.at(&format!("upper/root/{path}"));
        let set = std::process::Command::new("python3")
            .args(["-c", "import os,sys; os.setxattr(*map(os.fsencode, sys.argv[1:4]))"])
            .arg(path)
            .args([name, value])
            .status();
        set.is_ok_and(|status| status.success())
    };
    if !damage("dir/b", "user.dvs.layer", "nonsense") {
        println!("SKIPPED: python3 cannot set an attribute here");
        return;
    }
    std::fs::remove_dir_all(folder.at("image/dir/sub")).expect("removed");
    let expected = [(b"dir/b".to_vec(), Wrong::Mark), (b"dir/sub".to_vec(), Wrong::LowerGone)];
    let looked = HostTree::check(&config).expect("looked at");
    let mut found: Vec<_> = looked.findings.iter().map(|it| (it.path.clone(), it.what)).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, expected);
    assert!(
        looked.findings.iter().any(|it| it.to_string().contains("/dir/b: its mark is damaged"))
    );
    let tree = HostTree::open(&config).expect("the tree again");
    assert_eq!(tree.recovered().wrong, 2);
    assert_eq!(at(&tree, "dir/b"), Err(libc::EIO));
    assert_eq!(tree.damage_met(), 1);
    assert_eq!(read(&tree, "fine"), Ok("fine".into()));
    assert_eq!(read(&tree, "dir/sub/c"), Ok("dir/sub/c!".into()));
}

#[test]
fn marks_are_not_for_guests() {
    let (folder, config) = furnished("hidden-marks");
    let tree = HostTree::open(&config).expect("a tree");
    append(&tree, "a", "!").expect("written");
    let inode = at(&tree, "a").expect("there").attributes.inode;
    assert_eq!(tree.get_xattr(inode, b"user.dvs.layer"), Err(libc::EOPNOTSUPP));
    assert_eq!(tree.set_xattr(inode, b"user.dvs.layer", b"x", 0), Err(libc::EOPNOTSUPP));
    assert_eq!(tree.list_xattrs(inode), Ok(Vec::new()));
    // The image's whiteouts are the image's business.
    assert_eq!(std::fs::metadata(folder.at("upper/root/a")).expect("there").nlink(), 1);
}
