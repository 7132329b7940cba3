//! One node: the operations of a root file system, done by other processes.

mod common;

use common::real::Real;
use common::stub::Stub;
use common::{WAIT, in_child, mount, mount_with, until};
use dvs_fs::messages::InodeId;
use dvs_fs::tree::Life;
use dvs_fs::tree::memory::MemoryTree;
use dvs_fs_client::{Hooks, Opening};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

#[test]
fn files_and_names() {
    in_child("files_and_names", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        node.shell(
            "mkdir d; echo one > d/a; cat d/a | grep -qx one; echo two >> d/a; mv d/a d/b
             test ! -e d/a; test $(wc -l < d/b) = 2; ln d/b d/c; test $(stat -c %h d/b) = 2
             ln -s b d/s; test $(readlink d/s) = b; test $(cat d/s | wc -l) = 2
             rm d/b; test $(stat -c %h d/c) = 1; test ! -e d/s; mkfifo d/f; test -p d/f
             chmod 640 d/c; test $(stat -c %a d/c) = 640; chown 12:13 d/c
             test $(stat -c %u:%g d/c) = 12:13; touch -d @1000 d/c; test $(stat -c %Y d/c) = 1000
             truncate -s 5 d/c; test $(stat -c %s d/c) = 5; ls -la d > /dev/null
             test \"$(ls d | tr '\\n' ' ')\" = 'c f s '; rm -r d; test ! -e d; df . > /dev/null",
        );
        node.helper("unlinked", "u", &[]);
        assert!(!node.at("u").exists());
        node.helper("unnamed", "", &[]);
        assert_eq!(fs::read(node.at("named")).unwrap(), b"named");
        assert_eq!(fs::metadata(node.at("named")).unwrap().nlink(), 1);
    });
}

#[test]
fn large_files_survive() {
    in_child("large_files_survive", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        let data: Vec<u8> = (0..9_000_001u32).map(|it| (it * 7 % 251) as u8).collect();
        fs::write(node.at("big"), &data).unwrap();
        assert_eq!(fs::read(node.at("big")).unwrap(), data);
        node.shell(
            "cp big copy; cmp big copy; dd if=big of=part bs=1M skip=2 count=3 2>/dev/null
            test $(stat -c %s part) = 3145728; rm copy",
        );
        assert!(stub.count("write") < 40, "writes are large: {}", stub.count("write"));
        assert!(fs::read(node.at("part")).unwrap() == data[2 << 20..5 << 20]);
    });
}

#[test]
fn many_names_are_listed_once() {
    in_child("many_names_are_listed_once", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        let mut want: Vec<String> =
            (0..777).map(|it| format!("name-{it:04}-{}", "x".repeat(it % 90))).collect();
        for name in &want {
            fs::write(node.at(name), name).unwrap();
        }
        want.sort();
        for _ in 0..3 {
            let mut got: Vec<String> = fs::read_dir(&node.path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            got.sort();
            assert_eq!(got, want);
            node.shell("test $(ls -l | grep -c name-) = 777");
        }
    });
}

#[test]
fn mapped_memory_is_read_and_written() {
    in_child("mapped_memory_is_read_and_written", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write(node.at("m"), vec![b'.'; 10_000]).unwrap();
        node.helper("map-write", "m", &["5000", "mapped"]);
        assert_eq!(node.helper("map-read", "m", &["5000", "6"]), "mapped");
        assert_eq!(&fs::read(node.at("m")).unwrap()[4999..5007], b".mapped.");
    });
}

#[test]
fn a_program_just_written_runs() {
    in_child("a_program_just_written_runs", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        for round in 0..50 {
            let script = format!("#!/bin/sh\necho {round}\n");
            fs::write(node.at("p"), script).unwrap();
            fs::set_permissions(node.at("p"), fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(node.shell("./p"), round.to_string());
            node.shell("cp /bin/true t; ./t; rm t");
        }
    });
}

#[test]
fn attributes_are_asked_for_once() {
    in_child("attributes_are_asked_for_once", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write(node.at("f"), "x").unwrap();
        fs::metadata(node.at("f")).unwrap();
        let before = stub.count("lookup") + stub.count("attributes");
        for _ in 0..100 {
            fs::metadata(node.at("f")).unwrap();
            assert!(!node.at("absent").exists());
        }
        let after = stub.count("lookup") + stub.count("attributes");
        assert!(after - before <= 3, "{}", after - before);
        // Content is kept from one open to the next.
        fs::read(node.at("f")).unwrap();
        fs::read(node.at("f")).unwrap();
        let reads = stub.count("read");
        for _ in 0..20 {
            assert_eq!(fs::read(node.at("f")).unwrap(), b"x");
        }
        assert!(stub.count("read") <= reads + 2, "{} {reads}", stub.count("read"));
    });
}

#[test]
fn special_files_and_shared_memory_are_announced() {
    #[derive(Default)]
    struct Seen {
        fifos: AtomicU32,
        sockets: AtomicU32,
        shared: Mutex<Vec<(u32, bool)>>,
    }
    impl Hooks for Seen {
        fn fifo_seen(&self, pid: u32) {
            assert_ne!(pid, 0);
            self.fifos.fetch_add(1, Ordering::Relaxed);
        }
        fn socket_seen(&self, _: u32) {
            self.sockets.fetch_add(1, Ordering::Relaxed);
        }
        fn shared_memory_seen(&self, pid: u32, writable: bool) {
            self.shared.lock().unwrap().push((pid, writable));
        }
    }
    in_child("special_files_and_shared_memory_are_announced", || {
        let seen = Arc::new(Seen::default());
        let stub = Stub::new();
        let node = mount_with(&stub, 1, Arc::clone(&seen) as _);
        node.shell("mkfifo f; mkdir -p dev/shm x/shm; echo > x/shm/n; ls > /dev/null");
        assert!(seen.shared.lock().unwrap().is_empty());
        // Each lookup is seen, since nothing of it is kept.
        let fifos = || seen.fifos.load(Ordering::Relaxed);
        for _ in 0..3 {
            let before = fifos();
            assert!(fs::metadata(node.at("f")).unwrap().file_type().is_fifo());
            assert!(fifos() > before);
        }
        let _socket = std::os::unix::net::UnixListener::bind(node.at("s")).unwrap();
        fs::metadata(node.at("s")).unwrap();
        assert!(seen.sockets.load(Ordering::Relaxed) > 0);
        node.shell("echo > dev/shm/segment; cat dev/shm/segment");
        let shared = seen.shared.lock().unwrap().clone();
        assert!(shared.iter().any(|(_, writable)| *writable), "{shared:?}");
        assert!(shared.iter().any(|(_, writable)| !*writable), "{shared:?}");
        // The kernel joins the two ends of a FIFO of one node.
        assert_eq!(node.shell("cat f & echo through > f; wait"), "through");
    });
}

#[test]
fn writers_of_a_fifo_get_an_end_of_their_own() {
    #[derive(Default)]
    struct Bridge {
        /// The bridge itself opens.
        own: AtomicBool,
        opened: Mutex<Vec<(InodeId, bool)>>,
    }
    impl Hooks for Bridge {
        fn bridges_fifos(&self) -> bool {
            true
        }
        fn opening(&self, pid: u32) -> Option<Opening> {
            loop {
                let line = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
                let words: Vec<&str> = line.split_whitespace().collect();
                match words[0] {
                    "running" => std::thread::yield_now(),
                    number if number == libc::SYS_openat.to_string() => {
                        let flags = i32::from_str_radix(&words[3][2..], 16).unwrap();
                        let own = self.own.load(Ordering::SeqCst);
                        return (!own).then_some(Opening { thread: pid, call: line, flags });
                    }
                    _ => return None,
                }
            }
        }
        fn fifo_opening(&self, fifo: InodeId, writers: bool, _: Opening) -> Result<(), i32> {
            self.opened.lock().unwrap().push((fifo, writers));
            Ok(())
        }
    }
    in_child("writers_of_a_fifo_get_an_end_of_their_own", || {
        let bridge = Arc::new(Bridge::default());
        let stub = Stub::new();
        let node = mount_with(&stub, 1, Arc::clone(&bridge) as _);
        node.shell("mkfifo f");
        let open = |path: &str, read: bool, write: bool| {
            let flags = libc::O_NONBLOCK;
            fs::File::options().read(read).write(write).custom_flags(flags).open(path)
        };
        let path = node.at("f");
        let path = path.to_str().unwrap();
        let mut reader = open(path, true, false).unwrap();
        let error = open(path, false, true).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO), "the reader is at the other one");
        let opened = bridge.opened.lock().unwrap().clone();
        let fifo = opened[0].0;
        assert_eq!(opened, [(fifo, false), (fifo, true)]);
        bridge.own.store(true, Ordering::SeqCst);
        let ours = node.client.open_fifo(fifo, true, |name| {
            let name = node.at(std::str::from_utf8(&name[1..]).unwrap());
            open(name.to_str().unwrap(), true, false).map_err(|error| error.raw_os_error().unwrap())
        });
        let real = node.client.open_fifo(fifo, false, |name| {
            let name = node.at(std::str::from_utf8(&name[1..]).unwrap());
            open(name.to_str().unwrap(), false, true).map_err(|error| error.raw_os_error().unwrap())
        });
        bridge.own.store(false, Ordering::SeqCst);
        let (mut ours, mut real) = (ours.unwrap(), real.unwrap());
        let mut writer = open(path, false, true).unwrap();
        writer.write_all(b"through").unwrap();
        let mut bytes = [0; 16];
        assert_eq!(ours.read(&mut bytes).unwrap(), 7);
        real.write_all(&bytes[..7]).unwrap();
        assert_eq!(reader.read(&mut bytes).unwrap(), 7);
        // Nobody can tell the two apart.
        let (one, two) = (writer.metadata().unwrap(), reader.metadata().unwrap());
        assert!(one.file_type().is_fifo() && (one.ino(), one.mode()) == (two.ino(), two.mode()));
        assert_eq!(fs::metadata(path).unwrap().ino(), one.ino());
        open(path, true, true).unwrap();
        assert_eq!(bridge.opened.lock().unwrap().last(), Some(&(fifo, false)), "both: as a reader");
        let used = node.client.open_fifo(fifo, true, |name| Ok(name.to_vec())).unwrap();
        let name = node.at(std::str::from_utf8(&used[1..]).unwrap());
        assert_eq!(
            open(name.to_str().unwrap(), true, false).unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
    });
}

#[test]
fn extended_attributes() {
    in_child("extended_attributes", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write(node.at("f"), "x").unwrap();
        let script = "
import os, errno
os.setxattr('f', 'user.a', b'one'); assert os.getxattr('f', 'user.a') == b'one'
os.setxattr('f', 'user.b', b'x' * 4000); assert sorted(os.listxattr('f')) == ['user.a', 'user.b']
try: os.setxattr('f', 'user.a', b'', os.XATTR_CREATE); assert False
except OSError as e: assert e.errno == errno.EEXIST
os.removexattr('f', 'user.a'); assert os.listxattr('f') == ['user.b']
try: os.getxattr('f', 'user.a'); assert False
except OSError as e: assert e.errno == errno.ENODATA
";
        if std::process::Command::new("python3").arg("--version").output().is_err() {
            println!("SKIPPED: extended_attributes: python3 is missing");
            return;
        }
        fs::write("/mnt/x.py", script).unwrap();
        node.shell("python3 /mnt/x.py");
    });
}

#[test]
fn a_cut_link_is_a_delay() {
    in_child("a_cut_link_is_a_delay", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        node.link.as_ref().unwrap().lose.store(3, Ordering::Relaxed);
        node.shell(
            "mkdir d; for i in 1 2 3 4 5 6 7 8 9; do echo $i >> d/log; echo $i > d/$i; done
             test \"$(tr '\\n' ' ' < d/log)\" = '1 2 3 4 5 6 7 8 9 '; rm -r d; test ! -e d",
        );
        node.link.as_ref().unwrap().lose.store(0, Ordering::Relaxed);
        assert_eq!(stub.repeated(), 0, "nothing was done twice");
    });
}

#[test]
fn a_server_that_is_gone_gives_errors_and_no_hang() {
    in_child("a_server_that_is_gone_gives_errors_and_no_hang", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write(node.at("f"), "x").unwrap();
        node.link.as_ref().unwrap().gone.store(true, Ordering::Relaxed);
        assert_eq!(fs::write(node.at("g"), "x").unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(node.client.is_gone());
    });
}

#[test]
fn unmounting_ends_every_thread() {
    in_child("unmounting_ends_every_thread", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        let path = node.at("f");
        fs::write(&path, "x").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        fs::read(&path).unwrap();
                        fs::write(&path, "y").unwrap();
                    }
                });
            }
        });
        assert!(!node.handle.is_over());
        node.unmount();
        assert!(node.handle.wait(WAIT), "readers are left: {:?}", node.handle);
        until("the waiters to end", || node.handle.threads() == 0);
    });
}

#[test]
fn aborting_ends_every_thread_and_every_waiter() {
    in_child("aborting_ends_every_thread_and_every_waiter", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write(node.at("l"), "").unwrap();
        let holder = node.start("lock-hold", "l", &["0", "0"]);
        assert_eq!(holder.line(), "held");
        let waiter = node.start("lock-interrupted", "l", &[]);
        assert_eq!(waiter.line(), "waiting");
        until("the waiter to wait", || node.handle.threads() > 2 && stub.count("lock") >= 2);
        // The number of a FUSE connection is the minor number of its device.
        let number = fs::metadata(&node.path).unwrap().dev() & 0xff;
        let control = "/sys/fs/fuse/connections";
        let abort = format!("{control}/{number}/abort");
        if !std::path::Path::new(&abort).exists() {
            let target = std::ffi::CString::new(control).unwrap();
            if dvs_sys::mount::mount(c"fusectl", c"fusectl", &target, 0, c"").is_err() {
                println!("SKIPPED: aborting_ends_every_thread: fusectl cannot be mounted");
                return;
            }
        }
        fs::write(abort, "1").unwrap();
        assert!(node.handle.wait(WAIT), "readers are left: {:?}", node.handle);
        until("the waiters to end", || node.handle.threads() == 0);
        waiter.finish();
        holder.finish();
    });
}

#[test]
fn a_bug_in_one_operation_takes_nothing_else_away() {
    struct Buggy;
    impl Hooks for Buggy {
        fn fifo_seen(&self, _: u32) {
            panic!("a bug, as the test wants it");
        }
    }
    in_child("a_bug_in_one_operation_takes_nothing_else_away", || {
        let stub = Stub::new();
        let node = mount_with(&stub, 1, Arc::new(Buggy));
        node.shell("mkfifo f; echo works > g");
        for _ in 0..20 {
            let error = fs::metadata(node.at("f")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            assert_eq!(fs::read_to_string(node.at("g")).unwrap(), "works\n");
        }
    });
}

/// `DVS_RUN='pjdfstest -c ...' cargo test -p dvs-fs-client --test mount foreign -- --ignored
/// --nocapture`: runs a foreign suite's command in a directory of a mount. `DVS_TREE` says of which
/// tree: `strict` (the server of these tests), `memory`, `upper` (the DC's own part of a host tree)
/// or `share` (a shared folder).
#[test]
#[ignore = "runs the command in DVS_RUN, by hand"]
fn foreign() {
    in_child("foreign", || {
        let tree = std::env::var("DVS_TREE").unwrap_or_default();
        for folder in ["/mnt/image", "/mnt/upper", "/mnt/share"] {
            fs::create_dir(folder).unwrap();
        }
        let config = dvs_fs::TreeConfig {
            kept: false,
            image: dvs_fs::Image::Directory("/mnt/image".into()),
            upper: "/mnt/upper".into(),
            shares: vec![dvs_fs::Share {
                host: "/mnt/share".into(),
                path: "/share".into(),
                mode: dvs_fs::ShareMode::ReadWrite,
            }],
            ids: dvs_fs::IdMap::Identity,
            hidden: Vec::new(),
            hostname: "dc".into(),
        };
        let (node, folder) = match tree.as_str() {
            "memory" => (mount(&Real::new(Arc::new(MemoryTree::new(Life::Private))), 1), ""),
            "upper" => (mount(&Real::host(&config), 1), "srv"),
            "share" => (mount(&Real::host(&config), 1), "share"),
            _ => (mount(&Stub::new(), 1), ""),
        };
        let folder = node.at(folder);
        fs::create_dir_all(&folder).unwrap();
        let command = std::env::var("DVS_RUN").unwrap_or_else(|_| "true".into());
        let status = std::process::Command::new("sh")
            .args(["-c", &command])
            .current_dir(folder)
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    });
}
