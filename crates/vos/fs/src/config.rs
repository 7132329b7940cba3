//! What the tree of a DC is made of.

use std::path::PathBuf;

/// The tree of a DC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeConfig {
    /// The read-only part below everything.
    pub image: Image,
    /// An existing, empty folder for the writable part, private to the daemon. Removing it is the
    /// caller's task.
    pub upper: PathBuf,
    /// The writable part is to outlive the server: the folder may then be one that an earlier server
    /// with the same configuration has left, however it ended.
    pub kept: bool,
    /// Folders of the host that the DC sees.
    pub shares: Vec<Share>,
    /// Users and groups.
    pub ids: IdMap,
    /// Host folders that are shown empty wherever they appear in the image (the daemon's own state).
    pub hidden: Vec<PathBuf>,
    /// Name of the DC's host, for `/etc/hostname` and `/etc/hosts`.
    pub hostname: String,
}

/// The read-only part of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// The host's own `/`, with private places and secrets hidden.
    Host,
    /// A folder that holds a root file system, shown as it is.
    Directory(PathBuf),
}

/// A folder of the host inside the DC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Folder on the host, absolute.
    pub host: PathBuf,
    /// Where the DC sees it, absolute; missing directories on the way are made.
    pub path: PathBuf,
    /// What the DC may do there.
    pub mode: ShareMode,
}

/// What a DC may do in a shared folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareMode {
    /// Changes reach the host.
    ReadWrite,
    /// No change.
    ReadOnly,
    /// Changes stay in the DC.
    CopyOnWrite,
}

/// How ids of the host appear in the DC and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdMap {
    /// The same numbers (the daemon is root).
    Identity,
    /// Only the daemon's own user exists on the host (rootless). Other owners are shown as nobody, the
    /// host's root as root.
    Single {
        /// The daemon's user on the host.
        host_uid: u32,
        /// The daemon's group on the host.
        host_gid: u32,
        /// What that user is in the DC.
        uid: u32,
        /// What that group is in the DC.
        gid: u32,
    },
}

/// User and group of everything that has no owner in the DC.
pub const NOBODY: u32 = 65534;

impl IdMap {
    /// The map for a daemon that runs as these host ids and shows its user as the DC's root.
    #[must_use]
    pub fn for_daemon(host_uid: u32, host_gid: u32) -> Self {
        if host_uid == 0 {
            IdMap::Identity
        } else {
            IdMap::Single { host_uid, host_gid, uid: 0, gid: 0 }
        }
    }

    /// A host user in the DC.
    #[must_use]
    pub fn uid_shown(&self, host: u32) -> u32 {
        match *self {
            IdMap::Identity => host,
            IdMap::Single { host_uid, uid, .. } => shown(host, host_uid, uid),
        }
    }

    /// A host group in the DC.
    #[must_use]
    pub fn gid_shown(&self, host: u32) -> u32 {
        match *self {
            IdMap::Identity => host,
            IdMap::Single { host_gid, gid, .. } => shown(host, host_gid, gid),
        }
    }

    /// A user of the DC on the host, if there is one.
    #[must_use]
    pub fn uid_on_host(&self, dc: u32) -> Option<u32> {
        match *self {
            IdMap::Identity => Some(dc),
            IdMap::Single { host_uid, uid, .. } => (dc == uid).then_some(host_uid),
        }
    }

    /// A group of the DC on the host, if there is one.
    #[must_use]
    pub fn gid_on_host(&self, dc: u32) -> Option<u32> {
        match *self {
            IdMap::Identity => Some(dc),
            IdMap::Single { host_gid, gid, .. } => (dc == gid).then_some(host_gid),
        }
    }
}

fn shown(host: u32, own: u32, own_shown: u32) -> u32 {
    if host == own {
        own_shown
    } else if host == 0 {
        0
    } else {
        NOBODY
    }
}

/// A tree could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A folder of the configuration cannot be used.
    #[error("{what} {path}: {error}", path = path.display())]
    Folder {
        /// What it was to be: "image", "shared folder", "state folder".
        what: &'static str,
        /// Its path on the host.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// A share's place in the DC cannot be made.
    #[error("cannot show {host} at {path} in the container: {error}", host = host.display(), path = path.display())]
    Place {
        /// The shared folder.
        host: PathBuf,
        /// Its place.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// A kept folder cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Kept {
        /// The folder.
        path: PathBuf,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// A path of the configuration is not absolute, or holds `..`.
    #[error("{path} must be an absolute path without '..'", path = path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
}
