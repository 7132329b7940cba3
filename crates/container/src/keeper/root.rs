//! A container's root and what stands in it: `/proc`, `/dev`, `/sys`, and what is hidden in them.
//!
//! It is put together on a *stage*, a small tmpfs that is the working directory of the launcher while
//! it prepares: `root` is the root file system, which nobody looks into yet, and beside it stand
//! `proc`, `dev` and `sys`, which pid 1 mounts. Then the stage takes the place of the host's tree, and
//! at the start everything only has to be moved into the root.

use super::{BuildError, Step};
use crate::spec::{ContainerSpec, Network, RootSpec};
use dvs_sys::mount;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Name of the root on the stage.
pub(super) const ROOT: &str = "root";
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

/// Mounts the stage at a place of the host, makes it the working directory and mounts the root on it,
/// without looking into it.
pub(super) fn set_stage(
    place: &CStr,
    root: &RootSpec,
    device: Option<&File>,
) -> Result<(), BuildError> {
    mount::make_private(c"/").step("separate mounts")?;
    // Before the stage covers a place of it.
    let bound = match root {
        RootSpec::Bind { path, .. } => {
            let path = CString::new(path.as_os_str().as_bytes())
                .map_err(|_| BuildError::new("the root's path", libc::EINVAL))?;
            Some(mount::detached_copy(&path, true).step("find the root")?)
        }
        RootSpec::Fuse { .. } => None,
    };
    mount::mount(c"tmpfs", c"tmpfs", place, PLAIN, c"mode=700,size=64k").step("mount the stage")?;
    std::env::set_current_dir(Path::new(std::ffi::OsStr::from_bytes(place.to_bytes())))
        .step("enter the stage")?;
    for folder in [ROOT, "proc", "dev", "sys"] {
        std::fs::create_dir(folder).step("make a folder on the stage")?;
    }
    match (root, device, bound) {
        (RootSpec::Fuse { max_read }, Some(device), _) => {
            let mut options = format!(
                "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
                device.as_raw_fd()
            );
            if let Some(size) = max_read {
                options.push_str(&format!(",max_read={size}"));
            }
            let options = CString::new(options).unwrap_or_default();
            mount::mount(c"fuse", c"dvs", c"root", 0, &options).step("mount the root")
        }
        (RootSpec::Bind { writable, .. }, _, Some(bound)) => {
            mount::attach(bound.as_fd(), c"root").step("mount the root")?;
            if !writable {
                mount::remount_bind(c"root", libc::MS_RDONLY).step("make the root read-only")?;
            }
            Ok(())
        }
        _ => Err(BuildError::new("mount the root", libc::EBADF)),
    }
}

/// Mounts what stands beside the root. Returns `ns_last_pid` of the container, opened for writing,
/// and warnings.
pub(super) fn furnish(spec: &ContainerSpec) -> Result<(File, Vec<String>), BuildError> {
    let mut warnings = Vec::new();
    devices(spec)?;
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
    Ok((last_pid, warnings))
}

/// Makes the stage, which is the working directory, the root of everybody in the mount namespace, and
/// drops the host's tree: a container that waits must not keep file systems in use that the host
/// unmounts.
pub(super) fn leave_host() -> Result<(), BuildError> {
    mount::pivot_root_here().step("make the stage the root")?;
    mount::drop_old_root().step("drop the host's tree")
}

/// Moves everything from the stage into the root and makes it the root of all processes of the
/// container; [`drop_stage`] must follow. `from_tree`: `/dev/shm` is the root's own. (A bound folder
/// may be the host's, with its `/dev/shm`.)
pub(super) fn assemble(from_tree: bool) -> Result<(), BuildError> {
    // The first look into the file system.
    std::env::set_current_dir(ROOT).step("enter the root")?;
    // Before /dev is covered.
    let shared_memory = (from_tree && Path::new("dev/shm").is_dir())
        .then(|| mount::detached_copy(c"dev/shm", false))
        .transpose()
        .step("find /dev/shm of the root")?;
    mount::relocate(c"../dev", c"dev").step("mount /dev")?;
    if let Some(tree) = shared_memory {
        mount::attach(tree.as_fd(), c"dev/shm").step("bring /dev/shm in")?;
    }
    mount::relocate(c"../proc", c"proc").step("mount /proc")?;
    if Path::new("sys").is_dir() {
        mount::relocate(c"../sys", c"sys").step("mount /sys")?;
    }
    mount::pivot_root_here().step("make it the root")
}

/// Drops the stage, after [`assemble`].
pub(super) fn drop_stage() -> Result<(), BuildError> {
    mount::drop_old_root().step("drop the stage")?;
    std::env::set_current_dir("/").step("enter the root")
}

fn devices(spec: &ContainerSpec) -> Result<(), BuildError> {
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
    // A procfs with nothing covered, on a folder that the next mount hides. The kernel lets a nested
    // container mount its own /proc only if its parent has a whole one somewhere.
    mount::mount(c"tmpfs", c"tmpfs", c"dev/mqueue", PLAIN, c"mode=700,size=4k")
        .step("mount /dev/mqueue")?;
    std::fs::create_dir("dev/mqueue/proc").step("make a place for a whole /proc")?;
    mount::mount(c"proc", c"proc", c"dev/mqueue/proc", PLAIN, c"").step("mount a whole /proc")?;
    mount::mount(c"mqueue", c"mqueue", c"dev/mqueue", PLAIN, c"").step("mount /dev/mqueue")?;
    std::fs::create_dir("dev/shm").step("make /dev/shm")?;
    // Covered by the root's own, if it has one.
    mount::mount(c"tmpfs", c"tmpfs", c"dev/shm", PLAIN, c"mode=1777").step("mount /dev/shm")
}

fn system(spec: &ContainerSpec, warnings: &mut Vec<String>) -> Result<(), BuildError> {
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
