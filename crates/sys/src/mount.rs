//! Mounts: `mount`, `umount2`, `pivot_root`, and the mount table.

use crate::descriptor::own;
use crate::error::{Result, check};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Mounts a file system of a type.
///
/// # Errors
/// What `mount` says: `EPERM`, `ENOENT`, `ENODEV` (no such type), `EINVAL` (options), ...
pub fn mount(kind: &CStr, source: &CStr, target: &CStr, flags: u64, options: &CStr) -> Result<()> {
    // SAFETY: all strings are NUL-terminated and live through the call.
    let done = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    };
    check("mount", i64::from(done))?;
    Ok(())
}

/// Makes a file or folder appear at another place; `recursive` with all that is mounted below it.
///
/// # Errors
/// `ENOENT`, `EINVAL` (mounts below it that may not be uncovered), `EPERM`.
pub fn bind(source: &CStr, target: &CStr, recursive: bool) -> Result<()> {
    let flags = libc::MS_BIND | if recursive { libc::MS_REC } else { 0 };
    mount(c"", source, target, flags, c"")
}

/// Changes the flags (`MS_RDONLY`, `MS_NOSUID`, ...) of one bound mount.
///
/// # Errors
/// `EPERM` for dropping flags that are locked, `EINVAL` when it is no mount point.
pub fn remount_bind(target: &CStr, flags: u64) -> Result<()> {
    mount(c"", c"none", target, libc::MS_REMOUNT | libc::MS_BIND | flags, c"")
}

/// Moves a mount with all below it to another place.
///
/// # Errors
/// `ENOENT`, `EINVAL` (no mount point, a locked mount, a folder onto a file), `EPERM`.
pub fn relocate(source: &CStr, target: &CStr) -> Result<()> {
    mount(c"", source, target, libc::MS_MOVE, c"")
}

/// Mounts below `target` no longer travel to or from other mount namespaces.
///
/// # Errors
/// `EINVAL` when it is no mount point.
pub fn make_private(target: &CStr) -> Result<()> {
    mount(c"", c"none", target, libc::MS_REC | libc::MS_PRIVATE, c"")
}

/// Unmounts (`MNT_DETACH`, `MNT_FORCE`, `UMOUNT_NOFOLLOW`).
///
/// # Errors
/// `EBUSY`, `EINVAL`, `EPERM`.
pub fn unmount(target: &CStr, flags: i32) -> Result<()> {
    // SAFETY: the string is NUL-terminated and lives through the call.
    check("umount2", i64::from(unsafe { libc::umount2(target.as_ptr(), flags) }))?;
    Ok(())
}

/// Makes the working directory, a mount point, the root (`pivot_root(".", ".")`, as the man page
/// describes). The old root lies over it until [`drop_old_root`], which must follow.
///
/// # Errors
/// `EINVAL` when the working directory is no mount point or the root's parent is shared.
pub fn pivot_root_here() -> Result<()> {
    // SAFETY: the strings are NUL-terminated literals.
    check("pivot_root", unsafe {
        libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr())
    })?;
    Ok(())
}

/// Drops the old root that [`pivot_root_here`] has left over the new one, with all below it.
///
/// # Errors
/// As [`unmount`].
pub fn drop_old_root() -> Result<()> {
    unmount(c".", libc::MNT_DETACH)
}

/// A copy of a mount (with `recursive`, of all below it) that is attached nowhere yet; it can be
/// attached even where `path` has been covered since.
///
/// # Errors
/// `ENOENT`, `EPERM`, `ENOSYS` before Linux 5.2.
pub fn detached_copy(path: &CStr, recursive: bool) -> Result<OwnedFd> {
    let recursion = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | recursion as libc::c_uint;
    // SAFETY: the path is NUL-terminated and lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    Ok(own(check("open_tree", fd)?))
}

/// Attaches a detached mount.
///
/// # Errors
/// `ENOENT`, `EPERM`, `EINVAL`.
pub fn attach(detached: BorrowedFd<'_>, target: &CStr) -> Result<()> {
    // MOVE_MOUNT_F_EMPTY_PATH
    let flags = 4_u32;
    // SAFETY: both paths are NUL-terminated and live through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            detached.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
        )
    };
    check("move_mount", done)?;
    Ok(())
}

/// Makes a mount and all below it read-only, without set-id programs and devices (Linux 5.12).
///
/// # Errors
/// `EPERM`, `EINVAL` when it is no mount point, `ENOSYS`.
pub fn restrict_tree(target: &CStr) -> Result<()> {
    // struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
    let attributes = [1_u64 | 2 | 4, 0, 0, 0];
    // SAFETY: the path is NUL-terminated, the structure has the size given; both live through the
    // call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::AT_RECURSIVE,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    check("mount_setattr", done)?;
    Ok(())
}

/// One line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Which part of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// Options of this mount.
    pub options: String,
    /// File system type.
    pub kind: String,
    /// Options of the file system.
    pub super_options: String,
}

/// Reads the text of a `mountinfo` file (proc_pid_mountinfo(5)); lines that do not fit are left out.
#[must_use]
pub fn parse_mountinfo(text: &str) -> Vec<MountEntry> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<MountEntry> {
    let mut fields = line.split(' ');
    let device = fields.nth(2)?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let target = unescape(fields.next()?);
    let options = fields.next()?.to_owned();
    // Optional fields end with a single hyphen.
    fields.by_ref().find(|field| *field == "-")?;
    let kind = fields.next()?.to_owned();
    let _source = fields.next()?;
    Some(MountEntry {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        target,
        options,
        kind,
        super_options: fields.next().unwrap_or_default().to_owned(),
    })
}

/// Octal escapes of blanks and the like, as the kernel writes them in its tables.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        if let Some(digits) = digits {
            out.push(
                digits
                    .iter()
                    .fold(0_u8, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit - b'0')),
            );
            rest = tail.get(3..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_read() {
        let text = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
                    37 35 0:57 / / rw - fuse dvs rw,user_id=0\nrubbish\n1 2 3\n";
        let table = parse_mountinfo(text);
        assert_eq!(table.len(), 2);
        assert_eq!(table[0].target, PathBuf::from("/mnt 2"));
        assert_eq!((table[0].kind.as_str(), table[0].device), ("ext3", (98, 0)));
        assert_eq!((table[1].kind.as_str(), table[1].device), ("fuse", (0, 57)));
        assert_eq!(table[1].super_options, "rw,user_id=0");
    }

    #[test]
    fn the_own_table_has_a_root() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(parse_mountinfo(&text).iter().any(|entry| entry.target.as_os_str() == "/"));
    }
}
