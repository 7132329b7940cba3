//! A FUSE server of a fixed, tiny tree, just enough to be a container's root: the folders that a
//! container needs, a program that exits with its effective user id, the same set-user-id, and a file
//! whose opening is never answered. The layout of messages is that of `linux/fuse.h`, version 7.31.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// geteuid; exit with what it says.
const PROGRAM: [u8; 16] =
    [0xb8, 0x6b, 0, 0, 0, 0x0f, 0x05, 0x89, 0xc7, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05];

struct Node {
    parent: u64,
    name: &'static str,
    mode: u32,
}

/// Node 1 is the root; the others follow.
const NODES: [Node; 8] = [
    Node { parent: 0, name: "", mode: libc::S_IFDIR | 0o755 },
    Node { parent: 1, name: "proc", mode: libc::S_IFDIR | 0o755 },
    Node { parent: 1, name: "dev", mode: libc::S_IFDIR | 0o755 },
    Node { parent: 1, name: "sys", mode: libc::S_IFDIR | 0o755 },
    Node { parent: 3, name: "shm", mode: libc::S_IFDIR | 0o1777 },
    Node { parent: 1, name: "program", mode: libc::S_IFREG | 0o755 },
    Node { parent: 1, name: "set-user-id", mode: libc::S_IFREG | 0o4755 },
    Node { parent: 1, name: "hang", mode: libc::S_IFREG | 0o644 },
];
const HANG: u64 = 8;

/// What a test can see of the server.
#[derive(Default)]
pub(crate) struct Seen {
    /// Somebody waits for the file that is never opened.
    pub(crate) hanging: AtomicBool,
    /// The server has ended, because the file system has.
    pub(crate) ended: AtomicBool,
}

/// Serves on a thread of its own until the file system ends.
pub(crate) fn serve(device: OwnedFd, seen: Arc<Seen>) {
    std::thread::spawn(move || {
        let mut device = File::from(device);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match device.read(&mut buffer) {
                Ok(length) => {
                    if let Some(reply) = answer(&buffer[..length], &seen) {
                        // ENOENT: the request was interrupted.
                        let _ = device.write(&reply);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // ENODEV, ECONNABORTED: unmounted or aborted.
                Err(_) => break,
            }
        }
        seen.ended.store(true, Ordering::SeqCst);
    });
}

fn answer(request: &[u8], seen: &Seen) -> Option<Vec<u8>> {
    let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
    let (opcode, unique, node) = (word(4), long(8), long(16));
    let result = match opcode {
        1 => {
            let name = request[40..].split(|byte| *byte == 0).next().unwrap_or_default();
            let found = NODES.iter().position(|entry| {
                entry.parent == node && entry.name.as_bytes() == name && !name.is_empty()
            });
            found.map(|index| entry(index as u64 + 1)).ok_or(libc::ENOENT)
        }
        // FORGET, INTERRUPT, BATCH_FORGET have no answer.
        2 | 36 | 42 => return None,
        3 => Ok([words(&[10, 0, 0, 0]), attributes(node)].concat()),
        14 if node == HANG => {
            seen.hanging.store(true, Ordering::SeqCst);
            return None;
        }
        14 | 27 => Ok(vec![0; 16]),
        15 => {
            let (offset, size) = (long(48) as usize, word(56) as usize);
            let file = elf();
            let rest = file.get(offset..).unwrap_or_default();
            Ok(rest[..rest.len().min(size)].to_vec())
        }
        17 => Ok(vec![0; 80]),
        18 | 25 | 29 | 38 => Ok(Vec::new()),
        // max_readahead, flags, max_background and threshold, max_write, time_gran, max_pages.
        26 => {
            Ok(words(&[7, 31, 1 << 17, 0, 12 << 16 | 16, 1 << 17, 1, 32, 0, 0, 0, 0, 0, 0, 0, 0]))
        }
        _ => Err(libc::ENOSYS),
    };
    let (error, body) = match result {
        Ok(body) => (0, body),
        Err(errno) => (-errno, Vec::new()),
    };
    let mut reply = words(&[16 + body.len() as u32, error as u32]);
    reply.extend(unique.to_le_bytes());
    reply.extend(body);
    Some(reply)
}

fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn entry(node: u64) -> Vec<u8> {
    let n = node as u32;
    // nodeid, generation, entry_valid, attr_valid, two times nanoseconds.
    [words(&[n, 0, 1, 0, 10, 0, 10, 0, 0, 0]), attributes(node)].concat()
}

fn attributes(node: u64) -> Vec<u8> {
    let n = node as u32;
    let mode = NODES.get((node - 1) as usize).map_or(0, |entry| entry.mode);
    let size = elf().len() as u32;
    // ino, size, blocks, three times, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags.
    let mut list = vec![n, 0, size, 0, 1, 0];
    list.extend([0; 9]);
    list.extend([mode, 1, 0, 0, 0, 4096, 0]);
    words(&list)
}

/// A static executable of one segment.
fn elf() -> Vec<u8> {
    let (base, headers) = (0x40_0000_u64, 120_u64);
    let size = headers + PROGRAM.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // ET_EXEC, x86-64, version; entry, program headers at 64, no sections.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([base + headers, 64, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable, the whole file.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    file.extend([0, base, base, size, size, 4096].iter().flat_map(|word: &u64| word.to_le_bytes()));
    file.extend(PROGRAM);
    file
}
