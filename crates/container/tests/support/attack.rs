//! A hostile guest: tries to get at pid 1, the launcher, the host's files and other namespaces, and
//! prints `GAVE name` for everything that gives. Nothing may.

use dvs_sys::{mount, namespace, process, ptrace};
use std::fs;
use std::os::fd::AsFd;
use std::process::Command;

/// Attacks a child of the launcher that waits before its exec.
pub(crate) fn run_on(pid: u32) -> i32 {
    let mut attack = Attack { gave: 0 };
    process_of_ours(&mut attack, pid);
    println!("done");
    i32::from(attack.gave != 0)
}

struct Attack {
    gave: u32,
}

impl Attack {
    fn must_fail<T, E: std::fmt::Debug>(&mut self, name: &str, result: Result<T, E>) {
        match result {
            Ok(_) => {
                self.gave += 1;
                println!("GAVE {name}");
            }
            Err(error) => println!("held {name}: {error:?}"),
        }
    }

    fn must_hold(&mut self, name: &str, held: bool) {
        self.must_fail(name, if held { Err(()) } else { Ok(()) });
    }
}

fn command(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// `marker`: a file of the host that must not be reached (it is outside the bound root).
pub(crate) fn run(marker: &str) -> i32 {
    let mut attack = Attack { gave: 0 };
    process_of_ours(&mut attack, 1);
    no_trace_outside(&mut attack);
    host_files(&mut attack, marker);
    kernel(&mut attack);
    mounts(&mut attack);
    nested(&mut attack, marker);
    signals(&mut attack);
    println!("done");
    i32::from(attack.gave != 0)
}

/// A process of ours in the guest's sight: pid 1, or a child that has not got to its exec.
fn process_of_ours(attack: &mut Attack, pid: u32) {
    let pidfd = process::pidfd_open(pid);
    match &pidfd {
        Ok(pidfd) => {
            for number in 0..20 {
                let stolen = process::pidfd_getfd(pidfd.as_fd(), number);
                attack.must_fail("descriptor of ours", stolen);
            }
            let all = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUSER;
            attack.must_fail("namespaces of ours by pidfd", namespace::enter(pidfd.as_fd(), all));
        }
        Err(error) => println!("held pidfd of ours: {error}"),
    }
    attack.must_fail("tracing ours", ptrace::seize(pid, 0));
    for file in ["mem", "environ", "maps", "auxv", "syscall", "stack", "io", "pagemap"] {
        let read = fs::read(format!("/proc/{pid}/{file}")).and_then(|bytes| {
            if bytes.is_empty() { Err(std::io::Error::other("empty")) } else { Ok(()) }
        });
        attack.must_fail(&format!("/proc/{pid}/{file}"), read);
    }
    for link in ["exe", "root", "cwd", "ns/mnt", "ns/user", "ns/pid", "ns/net"] {
        let path = format!("/proc/{pid}/{link}");
        attack.must_fail(&path, fs::read_link(&path));
        attack.must_fail(&path, fs::File::open(&path));
    }
    attack.must_fail("its descriptors", fs::read_dir(format!("/proc/{pid}/fd")));
    attack.must_fail("its root", fs::read_dir(format!("/proc/{pid}/root/etc")));
    let write = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"));
    attack.must_fail("writing memory of ours", write);
    let adjust = fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
    attack.must_fail("the OOM score of ours", adjust);
}

fn no_trace_outside(attack: &mut Attack) {
    // A launcher is no process here: no parent to be seen, no number to be addressed.
    attack.must_hold(
        "a parent outside",
        process::parent_id() <= 1
            || fs::metadata(format!("/proc/{}", process::parent_id())).is_ok(),
    );
    let outside: Vec<String> = fs::read_dir("/proc")
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
                .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
                .filter(|name| name.contains("dvs-keeper") || name.contains("dvs-launcher"))
                .collect()
        })
        .unwrap_or_default();
    attack.must_hold("processes of DVS in /proc", outside.is_empty());
}

fn host_files(attack: &mut Attack, marker: &str) {
    attack.must_fail("a file outside the root", fs::metadata(marker));
    let up = "../".repeat(64);
    attack.must_fail("a file above the root", fs::metadata(format!("{up}{marker}")));
    attack.must_fail(
        "a file above the own root",
        fs::metadata(format!("/proc/self/root/{up}{marker}")),
    );
    if let Ok(entries) = fs::read_dir("/proc") {
        for entry in entries.flatten() {
            for place in ["root", "cwd"] {
                let path = entry.path().join(place).join(format!("{up}{marker}"));
                if path.starts_with("/proc/self") || path.starts_with("/proc/thread-self") {
                    continue;
                }
                if fs::metadata(&path).is_ok() {
                    attack.must_hold(&format!("{}", path.display()), false);
                }
            }
        }
    }
    // The old trick: chroot below, leave by a directory that is still above.
    let escape = fs::create_dir_all("/dev/shm/jail")
        .and_then(|()| std::os::unix::fs::chroot("/dev/shm/jail"))
        .and_then(|()| std::env::set_current_dir(&up))
        .and_then(|()| std::os::unix::fs::chroot("."));
    if escape.is_ok() {
        attack.must_fail("leaving by chroot", fs::metadata(marker));
        attack.must_fail("leaving by chroot, relative", fs::metadata(format!("{up}{marker}")));
    }
}

fn kernel(attack: &mut Attack) {
    for (file, text) in [
        ("/proc/sysrq-trigger", "h"),
        ("/proc/sys/kernel/core_pattern", "core"),
        ("/proc/sys/kernel/ns_last_pid", "5"),
        ("/proc/sys/kernel/hostname", "x"),
        ("/proc/sys/vm/drop_caches", "1"),
        ("/proc/sys/net/ipv4/ip_forward", "1"),
        ("/proc/irq/default_smp_affinity", "1"),
        ("/sys/power/state", "mem"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
    ] {
        attack.must_fail(file, fs::write(file, text));
    }
    for file in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/dev/mem", "/dev/kmsg"] {
        let read = fs::File::open(file).and_then(|mut file| {
            let mut byte = [0];
            std::io::Read::read_exact(&mut file, &mut byte)
        });
        attack.must_fail(file, read);
    }
    let node = "/dev/shm/disk";
    attack.must_fail("a device node", command(&["mknod", node, "b", "8", "0"]));
    attack.must_fail("a device node", command(&["mknod", "/dev/disk", "c", "1", "1"]));
    let io_uring = command(&["sh", "-c", "test -e /proc/self/root/dev/fuse"]);
    attack.must_fail("/dev/fuse", io_uring);
    attack.must_fail("setting the host name", namespace::set_host_name(b"owned"));
    attack.must_fail("the loopback device", namespace::loopback_up());
}

fn mounts(attack: &mut Attack) {
    let shm = c"/dev/shm";
    attack.must_fail("mounting tmpfs", mount::mount(c"tmpfs", c"tmpfs", shm, 0, c""));
    attack.must_fail("mounting proc", mount::mount(c"proc", c"proc", shm, 0, c""));
    attack.must_fail("binding", mount::bind(c"/etc", shm, false));
    attack.must_fail("remounting /proc/sys", mount::remount_bind(c"/proc/sys", 0));
    for place in [c"/proc/sys", c"/proc/kcore", c"/proc", c"/dev", c"/sys", c"/dev/shm"] {
        attack.must_fail("unmounting", mount::unmount(place, libc::MNT_DETACH));
    }
    attack.must_fail("leaving the mount namespace", namespace::unshare(libc::CLONE_NEWNS));
    attack.must_fail("leaving the network namespace", namespace::unshare(libc::CLONE_NEWNET));
}

/// A nested user namespace gives capabilities there; none of them may reach outside.
fn nested(attack: &mut Attack, marker: &str) {
    let script = format!(
        "umount /proc/sys 2>/dev/null && echo GAVE umount of a mask\n\
         umount -l /dev 2>/dev/null && echo GAVE umount of dev\n\
         mkdir -p /dev/shm/n 2>/dev/null; mount -t tmpfs t /dev/shm/n 2>/dev/null\n\
         echo 1 > /proc/sys/vm/drop_caches 2>/dev/null && echo GAVE sysctl\n\
         test -e {marker} && echo GAVE marker\n\
         test -e /proc/1/root/{marker} && echo GAVE marker by proc\n\
         if mount -t proc proc /proc 2>/dev/null; then\n\
           echo 1 > /proc/sys/vm/drop_caches 2>/dev/null && echo GAVE sysctl of a new proc\n\
           echo h > /proc/sysrq-trigger 2>/dev/null && echo GAVE sysrq of a new proc\n\
           echo nested-proc-ok\n\
         fi\n\
         mknod /dev/shm/n/disk b 8 0 2>/dev/null && echo GAVE device\n\
         true"
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-c", &script])
        .output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            print!("{text}");
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            attack.must_hold("a nested user namespace", !text.contains("GAVE"));
        }
        Err(error) => println!("no unshare: {error}"),
    }
}

/// Last: signals to everything. Pid 1 and the launcher must survive; the test looks.
fn signals(attack: &mut Attack) {
    for signal in [libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV, libc::SIGTERM, libc::SIGINT] {
        // Accepted or refused, but without effect.
        let _ = process::kill(1, signal);
    }
    let _ = process::prlimit(1, libc::RLIMIT_NOFILE, Some((1, 1)));
    let _ = process::set_nice(1, 19);
    let _ = process::kill(-1, libc::SIGKILL);
    // Our own group; ignored by us for the moment of the call is not possible, so a child sends it.
    let _ = command(&["setsid", "sh", "-c", "kill -KILL 0"]);
    attack.must_hold("killing pid 1", fs::metadata("/proc/1").is_ok());
}
