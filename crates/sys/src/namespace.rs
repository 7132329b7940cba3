//! Namespaces: leaving and entering them, id maps, time offsets, host name, the loopback device.

use crate::descriptor::own;
use crate::error::{Result, SysError, check};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A range of ids that a user namespace maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside, as the writer's user namespace sees it.
    pub outside: u32,
    /// Number of ids.
    pub count: u32,
}

/// Leaves namespaces (`CLONE_NEW*`).
///
/// # Errors
/// `EPERM`, `ENOSPC` (too many), `EINVAL`.
pub fn unshare(flags: i32) -> Result<()> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | CLONE_NEWTIME;
    if flags & !namespaces != 0 {
        return Err(SysError::new("unshare", libc::EINVAL));
    }
    // SAFETY: only namespaces are left; memory, descriptors and threads stay as they are.
    check("unshare", i64::from(unsafe { libc::unshare(flags) }))?;
    Ok(())
}

/// `CLONE_NEWTIME`, which shares a bit with the exit signal and so is for `unshare` and `setns` only.
pub const CLONE_NEWTIME: i32 = 0x80;

/// Enters a namespace: `fd` names a namespace, or (with several flags) a process by its pidfd.
///
/// # Errors
/// `EPERM`, `EINVAL`, `ESRCH`, `EUSERS`.
pub fn enter(fd: BorrowedFd<'_>, flags: i32) -> Result<()> {
    // SAFETY: integers only.
    check("setns", i64::from(unsafe { libc::setns(fd.as_raw_fd(), flags) }))?;
    Ok(())
}

/// Writes the id maps of a process that is new in its user namespace. `deny_groups` must be set where
/// the writer has no privilege; the process can then not change its supplementary groups.
///
/// # Errors
/// `EPERM` for ids that the writer may not map, `EINVAL` for overlapping or empty ranges.
pub fn write_id_maps(
    pid: u32,
    users: &[IdRange],
    groups: &[IdRange],
    deny_groups: bool,
) -> Result<()> {
    if deny_groups {
        write_file(&format!("/proc/{pid}/setgroups"), "deny", "write(setgroups)")?;
    }
    write_file(&format!("/proc/{pid}/uid_map"), &map_text(users), "write(uid_map)")?;
    write_file(&format!("/proc/{pid}/gid_map"), &map_text(groups), "write(gid_map)")
}

fn map_text(ranges: &[IdRange]) -> String {
    ranges
        .iter()
        .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
        .collect()
}

/// Sets what the monotonic and boot clocks of the caller's future children will be ahead of the
/// host's, in nanoseconds (after `unshare(CLONE_NEWTIME)`, before the first child).
///
/// # Errors
/// `ERANGE` when a clock would be negative, `EACCES` after the first child.
pub fn write_time_offsets(monotonic: i64, boot: i64) -> Result<()> {
    open_time_offsets()?.write(monotonic, boot)
}

/// The file through which [`write_time_offsets`] acts, to be opened while the process is dumpable
/// (afterwards its files in `/proc` belong to root) and written later.
#[derive(Debug)]
pub struct TimeOffsets {
    offsets: std::fs::File,
    /// `/proc/self/ns`, by path only: found also when `/proc` is not there any more.
    namespaces: OwnedFd,
}

/// Opens it for the calling process.
///
/// # Errors
/// What opening it says; `ENOENT` without time namespaces.
pub fn open_time_offsets() -> Result<TimeOffsets> {
    let file = std::fs::OpenOptions::new().write(true).open("/proc/self/timens_offsets");
    let offsets = file.map_err(|error| {
        SysError::new("open(timens_offsets)", error.raw_os_error().unwrap_or(libc::EIO))
    })?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated and static.
    let folder = unsafe { libc::open(c"/proc/self/ns".as_ptr(), flags) };
    Ok(TimeOffsets { offsets, namespaces: own(check("open(/proc/self/ns)", i64::from(folder))?) })
}

impl TimeOffsets {
    /// See [`write_time_offsets`].
    ///
    /// # Errors
    /// As it.
    pub fn write(&self, monotonic: i64, boot: i64) -> Result<()> {
        let text = offsets_text(monotonic, boot);
        (&self.offsets).write_all(text.as_bytes()).map_err(|error| {
            SysError::new("write(timens_offsets)", error.raw_os_error().unwrap_or(libc::EIO))
        })
    }

    /// As [`enter_own_time_namespace`].
    ///
    /// # Errors
    /// As it.
    pub fn enter(&self) -> Result<()> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: the descriptor is open for the length of the call, the name NUL-terminated and static.
        let file = unsafe {
            libc::openat(self.namespaces.as_raw_fd(), c"time_for_children".as_ptr(), flags)
        };
        let file = own(check("open(time_for_children)", i64::from(file))?);
        // SAFETY: integers only.
        check("setns", i64::from(unsafe { libc::setns(file.as_raw_fd(), CLONE_NEWTIME) }))?;
        Ok(())
    }
}

fn offsets_text(monotonic: i64, boot: i64) -> String {
    let second = 1_000_000_000;
    let line = |clock: &str, offset: i64| {
        format!("{clock} {} {}\n", offset.div_euclid(second), offset.rem_euclid(second))
    };
    line("monotonic", monotonic) + &line("boottime", boot)
}

/// The time namespace in which the caller's children begin becomes its own, too.
///
/// # Errors
/// `EUSERS` with several threads, and what opening the file says.
pub fn enter_own_time_namespace() -> Result<()> {
    let file = std::fs::File::open("/proc/self/ns/time_for_children").map_err(|error| {
        SysError::new("open(time_for_children)", error.raw_os_error().unwrap_or(libc::EIO))
    })?;
    // SAFETY: integers only.
    check("setns", i64::from(unsafe { libc::setns(file.as_raw_fd(), CLONE_NEWTIME) }))?;
    Ok(())
}

/// Sets the host name of the own UTS namespace.
///
/// # Errors
/// `EPERM`, `EINVAL` for more than 64 bytes.
pub fn set_host_name(name: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `len` bytes.
    let done = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    check("sethostname", i64::from(done))?;
    Ok(())
}

/// Brings the loopback device of the own network namespace up.
///
/// # Errors
/// `EPERM`, `ENODEV`.
pub fn loopback_up() -> Result<()> {
    // SAFETY: integers only.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let socket = own(check("socket", i64::from(socket))?);
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check("ioctl(SIOCSIFFLAGS)", i64::from(done))?;
    Ok(())
}

/// Writes a file of `/proc` or `/sys` in one write.
///
/// # Errors
/// What opening and writing it say.
pub fn write_file(path: &str, text: &str, call: &'static str) -> Result<()> {
    let failed =
        |error: std::io::Error| SysError::new(call, error.raw_os_error().unwrap_or(libc::EIO));
    let mut file = std::fs::OpenOptions::new().write(true).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_one_line_a_range() {
        let ranges = [
            IdRange { inside: 0, outside: 100_000, count: 65_536 },
            IdRange { inside: 70_000, outside: 1000, count: 1 },
        ];
        assert_eq!(map_text(&ranges), "0 100000 65536\n70000 1000 1\n");
    }

    #[test]
    fn only_namespaces_can_be_left() {
        assert_eq!(unshare(libc::CLONE_FILES).unwrap_err().errno, libc::EINVAL);
    }
}
