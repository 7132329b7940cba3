//! Furnishing a container's root: `/proc`, `/dev`, `/sys`, and what is hidden in them. Done by pid 1
//! with the new root as its working directory and the host's root still in place.

use super::{BuildError, Step};
use crate::spec::{ContainerSpec, Network, RootSpec};
use dvs_sys::mount;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Devices taken from the host.
const DEVICES: [&CStr; 6] = [c"null", c"zero", c"full", c"random", c"urandom", c"tty"];
/// Links in `/dev`.
const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("pts/ptmx", "dev/ptmx"),
    ("/proc/kcore", "dev/core"),
];
/// Hidden as OCI runtimes hide them: they tell about the host.
const HIDDEN: [&CStr; 10] = [
    c"proc/acpi",
    c"proc/asound",
    c"proc/kcore",
    c"proc/keys",
    c"proc/latency_stats",
    c"proc/timer_list",
    c"proc/timer_stats",
    c"proc/sched_debug",
    c"proc/scsi",
    c"sys/firmware",
];
/// Read-only, because they act on the host.
const READ_ONLY: [&CStr; 5] =
    [c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];
const PLAIN: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Furnishes the root in the working directory and makes it the root. Returns `ns_last_pid` of the
/// container, opened for writing, and warnings.
pub(super) fn furnish(spec: &ContainerSpec) -> Result<(File, Vec<String>), BuildError> {
    let mut warnings = Vec::new();
    // From the tree, before /dev is covered. (A bound folder may be the host's, with its /dev/shm.)
    let in_tree = matches!(spec.root, RootSpec::Fuse { .. }) && Path::new("dev/shm").is_dir();
    let shared_memory = in_tree
        .then(|| mount::detached_copy(c"dev/shm", false))
        .transpose()
        .step("find /dev/shm of the root")?;
    whole_proc()?;
    devices(spec, shared_memory)?;
    mount::mount(c"proc", c"proc", c"proc", PLAIN, c"").step("mount /proc")?;
    system(spec, &mut warnings)?;
    let last_pid = File::options()
        .read(true)
        .write(true)
        .open("proc/sys/kernel/ns_last_pid")
        .step("open ns_last_pid")?;
    for (name, value) in &spec.sysctls {
        let file = Path::new("proc/sys").join(name.replace('.', "/"));
        if let Err(error) = std::fs::write(&file, value) {
            warnings.push(format!("{name} could not be set in the container: {error}"));
        }
    }
    mask()?;
    mount::pivot_root_here().step("make it the root")?;
    std::env::set_current_dir("/").step("enter the root")?;
    Ok((last_pid, warnings))
}

/// A procfs with nothing covered, under `/dev` where the next mount hides it. The kernel lets a
/// nested container mount its own `/proc` only if its parent has a whole one somewhere.
fn whole_proc() -> Result<(), BuildError> {
    mount::mount(c"tmpfs", c"tmpfs", c"dev", PLAIN, c"mode=700,size=4k").step("mount /dev")?;
    std::fs::create_dir("dev/proc").step("make /dev/proc")?;
    mount::mount(c"proc", c"proc", c"dev/proc", PLAIN, c"").step("mount a whole /proc")
}

fn devices(spec: &ContainerSpec, shared_memory: Option<OwnedFd>) -> Result<(), BuildError> {
    mount::mount(c"tmpfs", c"tmpfs", c"dev", libc::MS_NOSUID, c"mode=755,size=64k")
        .step("mount /dev")?;
    for device in DEVICES {
        let path = |folder: &[u8]| CString::new([folder, device.to_bytes()].concat());
        let (Ok(host), Ok(own)) = (path(b"/dev/"), path(b"dev/")) else { continue };
        File::create(own.to_string_lossy().as_ref()).step("make a device")?;
        mount::bind(&host, &own, false).step("bring a device in")?;
    }
    for (to, link) in LINKS {
        std::os::unix::fs::symlink(to, link).step("link in /dev")?;
    }
    std::fs::create_dir("dev/pts").step("make /dev/pts")?;
    // The group of terminals, where it is mapped.
    let mapped =
        spec.groups.iter().any(|range| range.inside <= 5 && 5 - range.inside < range.count);
    let options = if mapped {
        c"newinstance,ptmxmode=0666,mode=620,gid=5"
    } else {
        c"newinstance,ptmxmode=0666,mode=620"
    };
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    mount::mount(c"devpts", c"devpts", c"dev/pts", flags, options).step("mount /dev/pts")?;
    std::fs::create_dir("dev/mqueue").step("make /dev/mqueue")?;
    mount::mount(c"mqueue", c"mqueue", c"dev/mqueue", PLAIN, c"").step("mount /dev/mqueue")?;
    std::fs::create_dir("dev/shm").step("make /dev/shm")?;
    match shared_memory {
        Some(tree) => mount::attach(tree.as_fd(), c"dev/shm").step("bring /dev/shm in"),
        None => {
            mount::mount(c"tmpfs", c"tmpfs", c"dev/shm", PLAIN, c"mode=1777").step("mount /dev/shm")
        }
    }
}

fn system(spec: &ContainerSpec, warnings: &mut Vec<String>) -> Result<(), BuildError> {
    if !Path::new("sys").is_dir() {
        return Ok(());
    }
    if spec.network != Network::Host {
        let mounted = mount::mount(c"sysfs", c"sysfs", c"sys", PLAIN | libc::MS_RDONLY, c"");
        if mounted.is_ok() {
            return Ok(());
        }
        warnings.push("/sys shows the host's devices: it is covered here".to_owned());
    }
    // The host's network namespace is not ours, so its sysfs can only be bound.
    mount::bind(c"/sys", c"sys", true).step("bring /sys in")?;
    mount::restrict_tree(c"sys").step("make /sys read-only")
}

/// Hides and protects; the whole procfs that nested containers need exists already.
fn mask() -> Result<(), BuildError> {
    for path in HIDDEN {
        let place = Path::new(std::str::from_utf8(path.to_bytes()).unwrap_or_default());
        let done = if place.is_dir() {
            mount::mount(c"tmpfs", c"tmpfs", path, PLAIN | libc::MS_RDONLY, c"size=4k")
        } else if place.exists() {
            mount::bind(c"dev/null", path, false)
        } else {
            Ok(())
        };
        done.step("hide a part of /proc")?;
    }
    for path in READ_ONLY {
        let place = Path::new(std::str::from_utf8(path.to_bytes()).unwrap_or_default());
        if place.exists() {
            mount::bind(path, path, true).step("protect a part of /proc")?;
            mount::remount_bind(path, PLAIN | libc::MS_RDONLY).step("protect a part of /proc")?;
        }
    }
    Ok(())
}
