//! What a thread is opening, seen while it waits in the call: FIFOs are opened without anybody being
//! asked, but not without their attributes being asked for (see `dvs_fs_client::fifo`).

use super::Personality;
use super::shared::write_if_room;
use dvs_pm::placement::Policy;
use dvs_sys::process::pidfd_open;
use dvs_sys::task::{TaskMemory, TaskStatus, duplicate_descriptor};
use std::time::Duration;

/// How often a thread that is about to wait is looked at until it does.
const MAX_LOOKS: u32 = 20_000;
/// The time between two looks, after the first few.
const PAUSE: Duration = Duration::from_micros(100);
/// Looks without a pause.
const QUICK_LOOKS: u32 = 100;

/// A call that opens a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenCall {
    /// The thread's pid outside.
    pub thread: u32,
    /// Its line in `/proc/PID/syscall`: the same as long as it is in this very call.
    pub line: String,
    /// `O_*` flags.
    pub flags: i32,
}

/// Where a thread is, by its line.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// On a processor, or waiting for one: the kernel does not say.
    Running,
    /// In a call that opens, with these flags.
    Opens(i32),
    /// In one whose flags are in memory, there.
    OpensBy(u64),
    /// Somewhere else.
    Elsewhere,
}

fn place(line: &str) -> Place {
    let mut words = line.split_ascii_whitespace();
    let number = match words.next() {
        Some("running") | None => return Place::Running,
        Some(number) => number.parse().unwrap_or(-1_i64),
    };
    let arguments: Vec<u64> = words
        .map_while(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok())
        .collect();
    let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
    // Flags are an `int`: the upper half means nothing.
    let flags = |index: usize| Place::Opens(argument(index) as u32 as i32);
    match number {
        libc::SYS_open => flags(1),
        libc::SYS_openat => flags(2),
        libc::SYS_creat => Place::Opens(libc::O_WRONLY),
        libc::SYS_openat2 => Place::OpensBy(argument(2)),
        _ => Place::Elsewhere,
    }
}

fn line(thread: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{thread}/syscall")).ok()
}

impl OpenCall {
    /// Whether the thread is still in it.
    #[must_use]
    pub fn is_going_on(thread: u32, call: &str) -> bool {
        line(thread).is_some_and(|now| now == call || place(&now) == Place::Running)
    }
}

impl Personality {
    /// Whether programs of the DC may run on other nodes.
    #[must_use]
    pub fn is_spread(&self) -> bool {
        self.config.policy != Policy::Home
            && self.placement.lock().unwrap().nodes().nth(1).is_some()
    }

    /// What a thread (its pid outside) is opening; it must be about to wait for the file system.
    /// `None`: nothing, or it is the launcher, which opens for the bridge.
    #[must_use]
    pub fn opening(&self, thread: u32) -> Option<OpenCall> {
        if thread == self.launcher.process() {
            return None;
        }
        for look in 0..MAX_LOOKS {
            let line = line(thread)?;
            let flags = match place(&line) {
                Place::Running => {
                    if look >= QUICK_LOOKS {
                        std::thread::sleep(PAUSE);
                    } else {
                        std::thread::yield_now();
                    }
                    continue;
                }
                Place::Opens(flags) => flags,
                Place::OpensBy(address) => {
                    let bytes = TaskMemory::new(thread).bytes(address, 8).ok()?;
                    u64::from_ne_bytes(bytes.try_into().ok()?) as u32 as i32
                }
                Place::Elsewhere => return None,
            };
            return (flags & libc::O_PATH == 0).then_some(OpenCall { thread, line, flags });
        }
        log::warn!("thread {thread} waits for the file system and is never seen to wait");
        None
    }

    /// Says on a program's stderr why its FIFO could not be opened.
    pub fn fifo_refused(&self, thread: u32, why: &str) {
        let Ok(status) = TaskStatus::read(thread) else { return };
        let name = String::from_utf8_lossy(&status.name);
        let line = format!(
            "dvs: {name}: {why}; this program runs on node {}; run with --place home\n",
            self.config.node
        );
        let process = pidfd_open(status.process);
        if let Ok(stderr) = process.and_then(|process| duplicate_descriptor(&process, 2)) {
            write_if_room(stderr, line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_open_are_recognized() {
        let at = |number: i64| {
            format!("{number} 0xffffff9c 0x7ffd 0x80241 0x1b6 0x0 0x0 0x7ffc 0x7f12\n")
        };
        assert_eq!(place(&at(libc::SYS_openat)), Place::Opens(0x80241));
        assert_eq!(place(&at(libc::SYS_open)), Place::Opens(0x7ffd));
        assert_eq!(place(&at(libc::SYS_creat)), Place::Opens(libc::O_WRONLY));
        assert_eq!(place(&at(libc::SYS_openat2)), Place::OpensBy(0x80241));
        assert_eq!(place(&at(libc::SYS_newfstatat)), Place::Elsewhere);
        assert_eq!(place("running\n"), Place::Running);
        assert_eq!(place("-1 0x7ffc 0x7f12\n"), Place::Elsewhere);
        assert_eq!(place("257\n"), Place::Opens(0));
        assert_eq!(place("x y z"), Place::Elsewhere);
    }

    #[test]
    fn a_thread_that_waits_in_an_open_is_seen_there() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("f");
        let status = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(status.success());
        let mut reader = std::process::Command::new("cat").arg(&fifo).spawn().unwrap();
        let waits = || line(reader.id()).filter(|line| matches!(place(line), Place::Opens(_)));
        let mut seen = None;
        for _ in 0..10_000 {
            // Its loader opens files too, and does not wait there.
            seen = waits().filter(|first| {
                std::thread::sleep(Duration::from_millis(20));
                OpenCall::is_going_on(reader.id(), first)
            });
            if seen.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let call = seen.expect("the reader waits for a writer");
        std::fs::write(&fifo, "").unwrap();
        assert!(reader.wait().unwrap().success());
        assert!(!OpenCall::is_going_on(reader.id(), &call));
    }
}
