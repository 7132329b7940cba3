//! Attached descriptions: a program here shares the offset of a description that is elsewhere. Here
//! "elsewhere" is a file on the test's own disk, with one real offset.

mod common;

use common::stub::Stub;
use common::{Node, Running, in_child, mount, until};
use dvs_fs::messages::{Attributes, InodeId, Time};
use dvs_fs_client::{AttachToken, Attached, CallId, Moved, Position, RemoteDescription};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// An open file description with its one offset.
struct Home {
    file: Mutex<File>,
    closed: AtomicU32,
}

impl Home {
    fn open(path: &str, options: &OpenOptions) -> Arc<Home> {
        let file = Mutex::new(options.open(path).unwrap());
        Arc::new(Home { file, closed: AtomicU32::new(0) })
    }

    fn position(&self) -> u64 {
        self.file.lock().unwrap().stream_position().unwrap()
    }
}

fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn seek(file: &mut File, position: Position) -> Result<(), i32> {
    if let Position::At(offset) = position {
        file.seek(SeekFrom::Start(offset)).map_err(|error| errno(&error))?;
    }
    Ok(())
}

/// One of possibly several views of it.
struct View(Arc<Home>);

impl RemoteDescription for View {
    fn read(&self, _: CallId, position: Position, length: u32) -> Result<Moved<Vec<u8>>, i32> {
        let mut file = self.0.file.lock().unwrap();
        seek(&mut file, position)?;
        let mut what = vec![0; length as usize];
        let count = file.read(&mut what).map_err(|error| errno(&error))?;
        what.truncate(count);
        let position = file.stream_position().map_err(|error| errno(&error))?;
        Ok(Moved { what, position })
    }

    fn write(&self, _: CallId, position: Position, data: &[u8]) -> Result<Moved<u32>, i32> {
        let mut file = self.0.file.lock().unwrap();
        seek(&mut file, position)?;
        let count = file.write(data).map_err(|error| errno(&error))?;
        let position = file.stream_position().map_err(|error| errno(&error))?;
        Ok(Moved { what: u32::try_from(count).unwrap(), position })
    }

    fn attributes(&self) -> Result<Attributes, i32> {
        let it = self.0.file.lock().unwrap().metadata().map_err(|error| errno(&error))?;
        let time = |seconds, nanoseconds: i64| Time {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap(),
        };
        Ok(Attributes {
            inode: InodeId { number: it.ino(), generation: 0 },
            mode: it.mode(),
            links: u32::try_from(it.nlink()).unwrap(),
            uid: it.uid(),
            gid: it.gid(),
            rdev: 0,
            size: it.size(),
            blocks: it.blocks(),
            accessed: time(it.atime(), it.atime_nsec()),
            modified: time(it.mtime(), it.mtime_nsec()),
            changed: time(it.ctime(), it.ctime_nsec()),
        })
    }

    fn set_size(&self, size: u64) -> Result<(), i32> {
        self.0.file.lock().unwrap().set_len(size).map_err(|error| errno(&error))
    }

    fn interrupt(&self, _: CallId) {}

    fn closed(&self) {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
    }
}

fn attach(node: &Node, home: &Arc<Home>, flags: i32, position: u64) -> AttachToken {
    let like = Attached { inode: None, flags: flags.cast_unsigned(), position };
    node.client.attach(Arc::new(View(Arc::clone(home))), like).unwrap()
}

fn closed(home: &Home, times: u32) {
    until("the description to be closed", || home.closed.load(Ordering::Relaxed) == times);
}

#[test]
fn a_shared_offset_is_shared() {
    in_child("a_shared_offset_is_shared", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write("/mnt/input", "0123456789abcdef").unwrap();
        let home = Home::open("/mnt/input", OpenOptions::new().read(true));
        home.file.lock().unwrap().seek(SeekFrom::Start(2)).unwrap();
        // Opened at 0 although the shared offset is 2: the opener did not seek, and was told so.
        let token = attach(&node, &home, libc::O_RDONLY, 0);
        assert_eq!(node.helper("read-twice", token.name(), &[]), "23456789");
        closed(&home, 1);
        assert_eq!(home.position(), 10);
        let mut rest = String::new();
        home.file.lock().unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "abcdef");
    });
}

#[test]
fn a_seek_is_a_seek() {
    in_child("a_seek_is_a_seek", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write("/mnt/input", "0123456789abcdef").unwrap();
        let home = Home::open("/mnt/input", OpenOptions::new().read(true).write(true));
        let token = attach(&node, &home, libc::O_RDWR, 0);
        // dd: seeks from 4 to 4 + 6, writes there.
        let script = format!(
            "exec 9<> {}; dd bs=4 count=1 status=none <&9
             printf XY | dd bs=1 seek=6 conv=notrunc status=none >&9; cat <&9",
            token.name()
        );
        assert_eq!(node.shell(&script), "0123cdef");
        closed(&home, 1);
        assert_eq!(fs::read_to_string("/mnt/input").unwrap(), "0123456789XYcdef");
    });
}

#[test]
fn a_name_is_good_once_and_only_as_it_is() {
    in_child("a_name_is_good_once_and_only_as_it_is", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write("/mnt/input", "x").unwrap();
        let home = Home::open("/mnt/input", OpenOptions::new().read(true));
        let token = attach(&node, &home, libc::O_RDONLY, 0);
        assert!(!node.at(".dvs-attached-0").exists());
        assert!(!fs::read_dir(&node.path).unwrap().any(|it| it.is_ok()), "it is not listed");
        assert_eq!(node.shell(&format!("cat {}", token.name())), "x");
        closed(&home, 1);
        assert_eq!(node.shell(&format!("cat {} 2>/dev/null || echo gone", token.name())), "gone");
        // Taken back before it is opened.
        let token = attach(&node, &home, libc::O_RDONLY, 0);
        node.client.detach(&token);
        closed(&home, 2);
        assert!(!node.at(token.name()).exists());
        // Looked at and not opened: closed when the kernel forgets it, at the latest at the end.
        let token = attach(&node, &home, libc::O_RDONLY, 0);
        assert!(node.at(token.name()).exists());
        node.unmount();
        closed(&home, 3);
    });
}

#[test]
fn writers_on_two_nodes_share_one_offset() {
    in_child("writers_on_two_nodes_share_one_offset", || {
        let stub = Stub::new();
        let nodes = [mount(&stub, 1), mount(&stub, 2)];
        for append in [false, true] {
            const LINES: usize = 200;
            let path = format!("/mnt/output-{append}");
            let mut options = OpenOptions::new();
            options.create(true).write(true).append(append);
            let home = Home::open(&path, &options);
            let flags = libc::O_WRONLY | if append { libc::O_APPEND } else { 0 };
            let writers: Vec<Running> = (0..4)
                .map(|at| {
                    let node = &nodes[at % 2];
                    let token = attach(node, &home, flags, 0);
                    let word = format!("writer-{at}");
                    node.start("write-line", token.name(), &[&word, &LINES.to_string()])
                })
                .collect();
            for writer in writers {
                assert_eq!(writer.finish(), 0);
            }
            closed(&home, 4);
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), 4 * LINES, "append: {append}");
            for at in 0..4 {
                let own = format!("writer-{at} ");
                let numbers: Vec<usize> =
                    text.lines().filter_map(|line| line.strip_prefix(&own)?.parse().ok()).collect();
                assert_eq!(numbers, (0..LINES).collect::<Vec<_>>(), "writer {at}");
            }
        }
    });
}

#[test]
fn an_inherited_descriptor_is_shared_by_children_here_too() {
    in_child("an_inherited_descriptor_is_shared_by_children_here_too", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        let home = Home::open("/mnt/out", OpenOptions::new().create(true).write(true));
        home.file.lock().unwrap().write_all(b"home\n").unwrap();
        // The opener seeks to the shared offset, as the launcher does.
        let token = attach(&node, &home, libc::O_WRONLY, 5);
        node.helper("inherit", token.name(), &["5"]);
        closed(&home, 1);
        let text = fs::read_to_string("/mnt/out").unwrap();
        assert_eq!(text, "home\nparent\nchild\nparent\n\0\0\0\0\0");
    });
}

#[test]
fn a_description_is_opened_again_through_proc() {
    in_child("a_description_is_opened_again_through_proc", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        fs::write("/mnt/io", "0123456789").unwrap();
        let home = Home::open("/mnt/io", OpenOptions::new().read(true).write(true));
        let token = attach(&node, &home, libc::O_RDWR, 0);
        let script = format!(
            "exec 9<> {}; head -c 4 <&9 > /dev/null; cat /proc/self/fd/9
             printf ab >> /proc/self/fd/9; cat /proc/self/fd/9
             printf xy > /proc/self/fd/9; cat /proc/self/fd/9",
            token.name()
        );
        assert_eq!(node.shell(&script), "01234567890123456789abxy");
        closed(&home, 1);
    });
}

#[test]
fn a_file_of_the_tree_is_itself() {
    in_child("a_file_of_the_tree_is_itself", || {
        // The home is node 1, whose open file is a file of the tree; node 2 attaches to it.
        let stub = Stub::new();
        let (a, b) = (mount(&stub, 1), mount(&stub, 2));
        fs::write(a.at("log"), "").unwrap();
        let number = fs::metadata(a.at("log")).unwrap().ino();
        let path = a.at("log").into_os_string().into_string().unwrap();
        let home = Home::open(&path, OpenOptions::new().write(true));
        let inode = Some(InodeId { number, generation: 0 });
        let like = Attached { inode, flags: libc::O_WRONLY.cast_unsigned(), position: 0 };
        for round in 0..20 {
            let position = home.position();
            let like = Attached { position, ..like };
            let token = b.client.attach(Arc::new(View(Arc::clone(&home))), like).unwrap();
            let at = position.to_string();
            let word = format!("away-{round}");
            b.helper("write-line", token.name(), &[&word, "1", &at]);
            home.file.lock().unwrap().write_all(format!("home-{round}\n").as_bytes()).unwrap();
            // Seen by both through the tree, at once.
            let end = format!("away-{round} 0\nhome-{round}\n");
            for node in [&a, &b] {
                let text = fs::read_to_string(node.at("log")).unwrap();
                assert!(text.ends_with(&end), "{text}");
                assert_eq!(fs::metadata(node.at("log")).unwrap().size(), text.len() as u64);
            }
        }
        // Whoever has the name may open it, as who inherits a descriptor may use it.
        fs::set_permissions(a.at("log"), fs::Permissions::from_mode(0o600)).unwrap();
        let like = Attached { position: home.position(), ..like };
        let token = b.client.attach(Arc::new(View(Arc::clone(&home))), like).unwrap();
        let at = like.position.to_string();
        let mut command = common::helper("write-line", &b.at(token.name()), &["nobody", "1", &at]);
        assert!(command.uid(65534).gid(65534).status().unwrap().success());
        assert!(fs::read_to_string(b.at("log")).unwrap().ends_with("nobody 0\n"));
        let mut command = common::helper("append", &b.at("log"), &["nobody", "1"]);
        let refused = command.uid(65534).gid(65534).stderr(Stdio::null()).status().unwrap();
        assert_eq!(refused.code(), Some(1), "the file itself stays closed to it");
        // The same inode, and its true attributes, also by the descriptor.
        let token = b.client.attach(Arc::new(View(Arc::clone(&home))), like).unwrap();
        let shown =
            b.shell(&format!("exec 9> {}; stat -L -c '%i %a' /proc/self/fd/9", token.name()));
        assert_eq!(shown, format!("{number} 600"));
        // A thread that serves the mount and closes the file, which is on it, must not do so while
        // this process ends: nobody would answer it.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while Arc::strong_count(&home) > 1 {
            assert!(std::time::Instant::now() < end, "what was attached is not closed");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
}

/// A description whose reads block until they are interrupted.
#[derive(Default)]
struct Blocking {
    interrupted: Mutex<HashSet<CallId>>,
    changed: Condvar,
    reading: AtomicU32,
    closed: AtomicU32,
}

impl RemoteDescription for Blocking {
    fn read(&self, call: CallId, _: Position, _: u32) -> Result<Moved<Vec<u8>>, i32> {
        self.reading.fetch_add(1, Ordering::Relaxed);
        let set = self.interrupted.lock().unwrap();
        let (set, _) = self
            .changed
            .wait_timeout_while(set, Duration::from_secs(100), |set| !set.contains(&call))
            .unwrap();
        if set.contains(&call) {
            return Err(libc::EINTR);
        }
        Ok(Moved { what: Vec::new(), position: 0 })
    }

    fn write(&self, _: CallId, _: Position, _: &[u8]) -> Result<Moved<u32>, i32> {
        Err(libc::EBADF)
    }

    fn attributes(&self) -> Result<Attributes, i32> {
        let home = Home::open("/dev/null", OpenOptions::new().read(true));
        let attributes = View(home).attributes()?;
        Ok(Attributes { mode: libc::S_IFREG | 0o644, ..attributes })
    }

    fn interrupt(&self, call: CallId) {
        self.interrupted.lock().unwrap().insert(call);
        self.changed.notify_all();
    }

    fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn blocked_reads_end_by_a_signal_and_stop_nobody() {
    in_child("blocked_reads_end_by_a_signal_and_stop_nobody", || {
        let stub = Stub::new();
        let node = mount(&stub, 1);
        let description = Arc::new(Blocking::default());
        let readers: Vec<Running> = (0..40)
            .map(|_| {
                let like = Attached { inode: None, flags: 0, position: 0 };
                let token = node.client.attach(Arc::clone(&description) as _, like).unwrap();
                let reader = node.start("read-blocked", token.name(), &[]);
                assert_eq!(reader.line(), "waiting");
                reader
            })
            .collect();
        until("all to read", || description.reading.load(Ordering::Relaxed) == 40);
        node.shell("echo works > f; grep -q works f");
        for (at, mut reader) in readers.into_iter().enumerate() {
            if at % 2 == 0 {
                reader.signal(libc::SIGUSR1);
                assert_eq!(reader.line(), "interrupted");
                assert_eq!(reader.finish(), 0);
            } else {
                reader.child.kill().unwrap();
                reader.finish();
            }
        }
        until("all to be closed", || description.closed.load(Ordering::Relaxed) == 40);
    });
}
