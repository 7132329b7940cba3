//! The device of a FUSE root: opening it, and cutting its connection when its server does not answer.

use dvs_sys::mount;
use dvs_sys::namespace;
use dvs_sys::process::{self, CloneOptions, SingleThreaded};
use std::path::Path;

/// Where fusectl is mounted by custom.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Ends the connection with this minor device number, so that everything that waits for it fails.
/// Best effort: the files of fusectl belong to the one who mounted, but fusectl may not be mounted,
/// and mounting it needs root.
pub(super) fn abort(alone: SingleThreaded, minor: u32) {
    let file = Path::new(CONNECTIONS).join(minor.to_string()).join("abort");
    if std::fs::write(&file, "1").is_ok() {
        return;
    }
    // In a child with mounts of its own: nothing changes for anybody else.
    let _ = process::fork(alone, CloneOptions::default(), |_| {
        let done = namespace::unshare(libc::CLONE_NEWNS)
            .and_then(|()| mount::make_private(c"/"))
            .and_then(|()| {
                mount::mount(c"fusectl", c"fusectl", c"/sys/fs/fuse/connections", 0, c"")
            });
        i32::from(done.is_err() || std::fs::write(&file, "1").is_err())
    });
    // The child is reaped with all others.
}

/// The minor device number of the file system mounted last at a place, from the mount table.
pub(super) fn minor_of(mountinfo: &str, target: &Path) -> Option<u32> {
    mount::parse_mountinfo(mountinfo)
        .iter()
        .rev()
        .find(|entry| entry.target == target && entry.kind.starts_with("fuse"))
        .map(|entry| entry.device.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_at_a_place_counts() {
        let table = "1 2 0:50 / /tmp rw - tmpfs t rw\n2 2 0:51 / /tmp rw - fuse dvs rw\n3 2 0:52 / /x rw - fuse dvs rw\n";
        assert_eq!(minor_of(table, Path::new("/tmp")), Some(51));
        assert_eq!(minor_of(table, Path::new("/y")), None);
    }
}
