//! Messages between a daemon and the keeper of a container.

use crate::spec::ContainerSpec;
use serde::{Deserialize, Serialize};

/// Daemon to keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Build the container; the first message, exactly once.
    Start(Box<ContainerSpec>),
    /// End it. The end of the connection means the same.
    End,
    /// Stop (or let go on) everything in the container by its freezer. Answer: `Frozen`.
    Freeze(bool),
}

/// Keeper to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// The root file system is mounted. With it: its `/dev/fuse`, which must be served from now on.
    Fuse,
    /// The container is there. With it: the seccomp listener, the launcher's socket, the pidfd of
    /// pid 1, the multiplexer of its terminals, and the handles of a DC's network.
    Built {
        /// Pid of pid 1 outside.
        init: u32,
        /// Pid of the launcher.
        launcher: u32,
        /// What could not be set up, and what that means.
        warnings: Vec<String>,
        /// Cgroup folders of the container.
        cgroups: Vec<String>,
    },
    /// The container could not be built; nothing is left of it.
    Failed {
        /// What was tried.
        step: String,
        /// errno, 0 if none.
        errno: i32,
    },
    /// The answer to `Freeze`: errno, or 0.
    Frozen(i32),
    /// All processes and cgroups of the container are gone (or could not be removed: what is left).
    Ended {
        /// What is left, one sentence each.
        left: Vec<String>,
    },
}
