//! Messages between a daemon and the processes that make a container for it.

use crate::spec::{ClockOffsets, ContainerSpec};
use serde::{Deserialize, Serialize};

/// Daemon to keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Prepare the container; the first message, exactly once. Answer: `Prepared` or `Failed`.
    Prepare(Box<ContainerSpec>),
    /// End it. The end of the connection means the same.
    End,
    /// Stop (or let go on) everything in the container by its freezer. Answer: `Frozen`.
    Freeze(bool),
}

/// Keeper to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// Everything is there but what [`Finish`] does. With it: the seccomp listener, the launcher's
    /// socket, the pidfd of pid 1, the multiplexer of its terminals, the handles of a DC's network,
    /// and, with a FUSE root, its `/dev/fuse`, which nobody has asked anything yet.
    Prepared {
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

/// Daemon to launcher, before all its requests and exactly once: make the prepared parts a container.
/// A FUSE root is looked into from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// Host name inside.
    pub hostname: String,
    /// What the clocks are ahead of the host's.
    pub clocks: ClockOffsets,
    /// Pid of the first program.
    pub first_pid: Option<u32>,
}

/// Launcher to daemon: the answer to [`Finish`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finished {
    /// Programs can be started. What could not be set up, and what that means.
    Done(Vec<String>),
    /// It did not work; the launcher ends, and the keeper everything else.
    Failed {
        /// What was tried.
        step: String,
        /// errno, 0 if none.
        errno: i32,
    },
}
