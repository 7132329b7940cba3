//! What this kernel and this user can do, probed once into one value.
//!
//! Nothing else in DVS asks the kernel for its version: code looks at a [`Features`] that it is
//! given, and tests hand in one with bits switched off to walk the slower ways.

use crate::mount::parse_mountinfo;
use crate::{process, seccomp};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

/// Which cgroup hierarchies are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupFlavour {
    /// None.
    None,
    /// Controllers as hierarchies of their own (also beside an empty v2 one).
    V1,
    /// The unified hierarchy.
    V2,
}

/// The features of this node for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Received notifications are cancelled by fatal signals alone (Linux 5.19). Needed.
    pub wait_killable: bool,
    /// Answers wake up on the same core (Linux 6.6).
    pub sync_wake_up: bool,
    /// Dirty pages are found fast (Linux 6.7).
    pub pagemap_scan: bool,
    /// Reads and writes can bypass the file server (Linux 6.9).
    pub fuse_passthrough: bool,
    /// User namespaces can be made. Needed.
    pub user_namespaces: bool,
    /// `/dev/fuse` can be opened. Needed for a shared file tree.
    pub fuse: bool,
    /// Time namespaces exist.
    pub time_namespaces: bool,
    /// Children can be traced. Needed.
    pub ptrace: bool,
    /// Cgroups.
    pub cgroups: CgroupFlavour,
    /// A fresh procfs can be mounted in a container (the host's is not covered).
    pub whole_proc: bool,
}

/// One line of `dvs doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is there.
    pub present: bool,
    /// Whether DVS cannot work without.
    pub needed: bool,
    /// What it means for the user, one sentence.
    pub sentence: &'static str,
}

impl Features {
    /// The features, probed at the first call.
    #[must_use]
    pub fn get() -> Features {
        static FEATURES: OnceLock<Features> = OnceLock::new();
        *FEATURES.get_or_init(Features::probe)
    }

    /// Probes afresh. Starts a short-lived child for the user namespace and ptrace.
    #[must_use]
    pub fn probe() -> Features {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let version = parse_release(&release);
        Features {
            wait_killable: seccomp::knows_flag(seccomp::WAIT_KILLABLE_RECV),
            // Only a live listener could tell; the flag came with 6.6.
            sync_wake_up: version >= (6, 6),
            pagemap_scan: knows_pagemap_scan(),
            // Needs privilege in the initial user namespace besides the version.
            fuse_passthrough: version >= (6, 9) && process::effective_ids().0 == 0,
            user_namespaces: probe_child("unshare", libc::CLONE_NEWUSER),
            fuse: std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok(),
            time_namespaces: std::path::Path::new("/proc/self/ns/time_for_children").exists(),
            ptrace: probe_child("ptrace", 0),
            cgroups: flavour(&mountinfo),
            whole_proc: proc_is_whole(&mountinfo),
        }
    }

    /// Whether a container can be made at all.
    #[must_use]
    pub fn sufficient(&self) -> bool {
        self.findings().iter().all(|finding| finding.present || !finding.needed)
    }

    /// All of it in sentences.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let line = |name, present, needed, yes, no| Finding {
            name,
            present,
            needed,
            sentence: if present { yes } else { no },
        };
        vec![
            line(
                "seccomp notification",
                self.wait_killable,
                true,
                "Trapped system calls can be answered reliably (WAIT_KILLABLE_RECV).",
                "The kernel lacks WAIT_KILLABLE_RECV: use Linux 5.19 or later.",
            ),
            line(
                "synchronous wake-up",
                self.sync_wake_up,
                false,
                "Answers to trapped calls wake their caller on the same core.",
                "Answers to trapped calls cross cores and cost 30 to 130 microseconds instead of 5; Linux 6.6 is faster.",
            ),
            line(
                "user namespaces",
                self.user_namespaces,
                true,
                "User namespaces can be made.",
                "This user may not make user namespaces: allow them (sysctl kernel.unprivileged_userns_clone=1, or on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; user.max_user_namespaces above 0).",
            ),
            line(
                "/dev/fuse",
                self.fuse,
                true,
                "/dev/fuse can be opened.",
                "/dev/fuse cannot be opened: load the module (modprobe fuse) and let this user read and write it (chmod 666 /dev/fuse).",
            ),
            line(
                "procfs",
                self.whole_proc,
                true,
                "A container can mount its own /proc.",
                "Parts of /proc are covered here (as in a container), so no new one can be mounted: run DVS on the host, or in a container with unmasked /proc.",
            ),
            line(
                "ptrace",
                self.ptrace,
                true,
                "Children can be traced.",
                "Children cannot be traced: a security module or a filter forbids ptrace (sysctl kernel.yama.ptrace_scope must be below 3).",
            ),
            line(
                "time namespaces",
                self.time_namespaces,
                false,
                "Containers get clocks of their own.",
                "There are no time namespaces: monotonic clocks differ between nodes.",
            ),
            line(
                "cgroups",
                self.cgroups != CgroupFlavour::None,
                false,
                match self.cgroups {
                    CgroupFlavour::V1 => "Limits use cgroups v1.",
                    _ => "Limits use cgroups v2.",
                },
                "No cgroups are mounted: --cpus, --memory and --pids have no effect.",
            ),
            line(
                "dirty page scan",
                self.pagemap_scan,
                false,
                "Live migration finds changed pages fast (PAGEMAP_SCAN).",
                "The kernel lacks PAGEMAP_SCAN (Linux 6.7): live migration copies while the program is stopped.",
            ),
            line(
                "FUSE passthrough",
                self.fuse_passthrough,
                false,
                "Large files can be read past the file server.",
                "FUSE passthrough needs Linux 6.9 and root: file contents go through the file server.",
            ),
        ]
    }
}

/// Major and minor version of a release such as `6.18.0-rc1`.
fn parse_release(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn flavour(mountinfo: &str) -> CgroupFlavour {
    let table = parse_mountinfo(mountinfo);
    let controllers = |options: &str| {
        options.split(',').any(|option| ["cpu", "memory", "pids", "freezer"].contains(&option))
    };
    if table.iter().any(|entry| entry.kind == "cgroup" && controllers(&entry.super_options)) {
        CgroupFlavour::V1
    } else if table.iter().any(|entry| entry.kind == "cgroup2") {
        CgroupFlavour::V2
    } else {
        CgroupFlavour::None
    }
}

/// Whether `/proc` is a whole procfs with nothing mounted on parts of it that hides contents.
fn proc_is_whole(mountinfo: &str) -> bool {
    let table = parse_mountinfo(mountinfo);
    let whole = |target: &std::path::Path| {
        !table.iter().any(|entry| {
            entry.target != target
                && entry.target.starts_with(target)
                // The mount point of binfmt_misc is empty and covers nothing.
                && !entry.target.ends_with("sys/fs/binfmt_misc")
        })
    };
    table.iter().any(|entry| {
        entry.kind == "proc" && entry.root == std::path::Path::new("/") && whole(&entry.target)
    })
}

fn knows_pagemap_scan() -> bool {
    let Ok(file) = std::fs::File::open("/proc/self/pagemap") else { return false };
    // _IOWR('f', 16, struct pm_scan_arg); a null argument is EFAULT where the call exists.
    // SAFETY: the null pointer makes the call fail before it does anything.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), 0xc060_6610_u64 as _, 0_u64) };
    done < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Tries something in a child that shares nothing and does raw system calls only.
fn probe_child(what: &'static str, flags: i32) -> bool {
    // SAFETY: the child of this fork calls only async-signal-safe functions and `_exit`, so it does
    // not matter which locks other threads held.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: integers only; ends the child.
        unsafe {
            let done = if what == "ptrace" {
                libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)
            } else {
                libc::syscall(libc::SYS_unshare, flags)
            };
            libc::_exit(i32::from(done != 0));
        }
    }
    let mut status = -1;
    loop {
        // SAFETY: waits for the child made above; the status is a live integer.
        let done = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        let interrupted = std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR);
        if done >= 0 || !interrupted {
            return pid > 0 && done == pid && status == 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_release("6.18.0-rc1+"), (6, 18));
        assert_eq!(parse_release("5.19"), (5, 19));
        assert_eq!(parse_release("odd"), (0, 0));
    }

    #[test]
    fn cgroup_flavours_are_told_apart() {
        let v1 = "1 2 0:3 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let v2 = "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let named = "1 2 0:3 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        assert_eq!(flavour(&format!("{v2}{v1}")), CgroupFlavour::V1);
        assert_eq!(flavour(&format!("{v2}{named}")), CgroupFlavour::V2);
        assert_eq!(flavour("rubbish"), CgroupFlavour::None);
    }

    #[test]
    fn covered_procfs_is_noticed() {
        let whole = "1 2 0:3 / /proc rw - proc proc rw\n";
        let covered = "3 1 0:9 /null /proc/kcore rw - devtmpfs udev rw\n";
        assert!(proc_is_whole(whole));
        assert!(!proc_is_whole(&format!("{whole}{covered}")));
        assert!(proc_is_whole(&format!(
            "{whole}3 1 0:9 / /proc/sys/fs/binfmt_misc rw - autofs a rw\n"
        )));
        assert!(!proc_is_whole(""));
    }

    #[test]
    fn a_missing_need_is_not_sufficient() {
        let mut features = Features::get();
        features.user_namespaces = false;
        assert!(!features.sufficient());
        assert!(
            features.findings().iter().any(|f| !f.present && f.sentence.contains("namespaces"))
        );
    }
}
