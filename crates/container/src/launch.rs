//! What a launcher is told to start inside a container, and what it reports.
//!
//! The launcher of a (node, DC) lives outside the guest's pid namespace and inside its other
//! namespaces; it creates processes in the guest's pid namespace (`setns`, `clone3` with `set_tid`),
//! holds them at their exec stop where asked (prepare), releases or ends them (commit, abort), and
//! reports how they end. These are the messages between it and the daemon; descriptors travel beside
//! them by `SCM_RIGHTS`, in the order in which [`DescriptorSource::Passed`] counts them.

use serde::{Deserialize, Serialize};

/// Most descriptors passed with one launch (the kernel's own limit is 253).
pub const MAX_PASSED: usize = 250;
/// Most bytes of arguments and environment together, as Linux's default (a quarter of 8 MiB of stack).
pub const MAX_STRINGS: usize = 2 << 20;

/// Flags without which a launcher opens nothing.
pub const OPEN_FLAGS: i32 = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;

/// A byte string without NUL that becomes a C string.
pub type Bytes = serde_bytes_vec::ByteVec;

mod serde_bytes_vec {
    use serde::{Deserialize, Serialize};
    /// Bytes, encoded as one block.
    #[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    pub struct ByteVec(#[serde(with = "serde_bytes")] pub Vec<u8>);
    impl From<&str> for ByteVec {
        fn from(text: &str) -> Self {
            ByteVec(text.as_bytes().to_vec())
        }
    }
    impl From<Vec<u8>> for ByteVec {
        fn from(bytes: Vec<u8>) -> Self {
            ByteVec(bytes)
        }
    }
}

/// Number by which daemon and launcher speak of one launched program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LaunchId(pub u64);

/// Everything that a program starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// Pid inside the container (`set_tid`), or the namespace's next one.
    pub pid: Option<u32>,
    /// File to execute, relative to `directory` unless absolute; the guest's tree.
    pub path: Bytes,
    /// Search `path` in the environment's PATH when it has no slash (`execvpe`).
    pub search_path: bool,
    /// Argument vector.
    pub arguments: Vec<Bytes>,
    /// Environment, `NAME=value`.
    pub environment: Vec<Bytes>,
    /// Working directory.
    pub directory: Bytes,
    /// File creation mask.
    pub umask: u32,
    /// Resource limits: (`RLIMIT_*`, soft, hard).
    pub limits: Vec<(u32, u64, u64)>,
    /// User and groups, in the container's ids.
    pub credentials: LaunchCredentials,
    /// Blocked signals, bit n-1 for signal n.
    pub blocked_signals: u64,
    /// Ignored signals.
    pub ignored_signals: u64,
    /// Scheduling: nice value.
    pub nice: i32,
    /// CPUs allowed as the program's own choice, as a bit mask; `None`: all of the node.
    pub affinity: Option<u64>,
    /// Session and process group.
    pub session: SessionSpec,
    /// Open descriptors; every other one is closed.
    pub descriptors: Vec<DescriptorSpec>,
    /// Hold the program at its exec stop until released.
    pub hold: bool,
    /// Ptrace, seccomp and parent-death state that a program inherits: `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Out-of-memory score adjustment.
    pub oom_score_adjust: Option<i32>,
}

impl LaunchSpec {
    /// A program of the container's root with no descriptors, in `/`, in a session of its own.
    #[must_use]
    pub fn new(path: &str, arguments: &[&str]) -> Self {
        LaunchSpec {
            pid: None,
            path: path.into(),
            search_path: false,
            arguments: arguments.iter().map(|argument| (*argument).into()).collect(),
            environment: Vec::new(),
            directory: "/".into(),
            umask: 0o022,
            limits: Vec::new(),
            credentials: LaunchCredentials::default(),
            blocked_signals: 0,
            ignored_signals: 0,
            nice: 0,
            affinity: None,
            session: SessionSpec::New { terminal: None },
            descriptors: Vec::new(),
            hold: false,
            no_new_privileges: false,
            oom_score_adjust: None,
        }
    }
}

/// Ids of a program inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LaunchCredentials {
    /// Real, effective, saved user id.
    pub uids: [u32; 3],
    /// Real, effective, saved group id.
    pub gids: [u32; 3],
    /// Supplementary groups; `None`: leave as they are.
    pub groups: Option<Vec<u32>>,
    /// Effective, permitted, inheritable, ambient and bounding capability sets; `None`: what exec
    /// and the container's bounding set give.
    pub capabilities: Option<[u64; 5]>,
}

/// Session and process group of a launched program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionSpec {
    /// A session of its own; the descriptor with this number becomes its terminal.
    New {
        /// Guest descriptor number of the terminal, if any.
        terminal: Option<i32>,
    },
    /// A process group of its own in the launcher's session.
    OwnGroup,
    /// The process group of another launched program.
    GroupOf {
        /// Pid inside the container of the group's leader.
        leader: u32,
    },
}

/// One descriptor of a launched program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorSpec {
    /// Its number in the program.
    pub number: i32,
    /// Where it comes from.
    pub source: DescriptorSource,
}

/// Where a descriptor comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DescriptorSource {
    /// The n-th descriptor passed beside the message.
    Passed(u16),
    /// Opened by the new process itself, in the guest's tree and with its credentials.
    Open {
        /// Path.
        path: Bytes,
        /// `O_*` flags.
        flags: u32,
        /// Offset to seek to, if any.
        offset: Option<u64>,
    },
    /// Another of this list, by its number in the program (shares the open file description).
    DuplicateOf(i32),
}

/// Daemon to launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LauncherRequest {
    /// Start (or prepare, with `hold`) a program. Answer: `Launched` or `Failed`.
    Launch {
        /// The daemon's number for it.
        id: LaunchId,
        /// What.
        spec: Box<LaunchSpec>,
    },
    /// Let a held program go on.
    Release {
        /// Which.
        id: LaunchId,
    },
    /// End a program that is held or being started; it never runs. No `Exited` follows.
    Abort {
        /// Which.
        id: LaunchId,
    },
    /// Send a signal from inside the container. Answer: `Signalled`.
    Signal {
        /// The daemon's number for this request.
        request: u64,
        /// Process (> 0), process group (< -1) or everything but pid 1 (-1), in the container's pids.
        target: i32,
        /// Signal number, 0 to test.
        signal: i32,
        /// Sender to show in `si_pid` and `si_uid`, with `si_code` `SI_QUEUE`, and the value queued.
        sender: Option<SignalSender>,
    },
    /// Open a file of the guest's tree. Answer: `Opened`, with the descriptor.
    Open {
        /// The daemon's number for this request.
        request: u64,
        /// Absolute path.
        path: Bytes,
        /// `O_*` flags; [`OPEN_FLAGS`] are required, so that nothing is waited for.
        flags: i32,
    },
    /// Have a running program stop or go on because another process, which stands for it, has done so.
    /// Neither is reported; what the program does by itself is reported with the number of the last
    /// order before it, so that the two can be told apart however they cross. No answer.
    Order {
        /// Which.
        id: LaunchId,
        /// Number of the order, rising.
        number: u32,
        /// `SIGSTOP`, or a signal to send from inside the container: `SIGCONT` to go on.
        signal: i32,
        /// Sender to show; none for `SIGSTOP`.
        sender: SignalSender,
    },
    /// Choose or read from where the container's pids are taken. Answer: `Pids`.
    AimPids {
        /// The daemon's number for this request.
        request: u64,
        /// The number that the next process shall get if it is free; `None`: only read.
        next: Option<u32>,
    },
}

/// Whom a signal shows as its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalSender {
    /// Pid inside the container.
    pub pid: u32,
    /// User id inside the container.
    pub uid: u32,
    /// `si_code`; negative ones are delivered as they are, others as `SI_QUEUE`.
    pub code: i32,
    /// `si_value`.
    pub value: u64,
}

/// Launcher to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LauncherEvent {
    /// The program exists: runs, or is held at its exec stop.
    Launched {
        /// Which.
        id: LaunchId,
        /// Pid inside the container.
        pid: u32,
        /// Pid in the daemon's namespace.
        host_pid: u32,
    },
    /// It could not be started; nothing is left of it.
    Failed {
        /// Which.
        id: LaunchId,
        /// errno.
        errno: i32,
        /// The step that failed.
        step: LaunchStep,
    },
    /// It ended.
    Exited {
        /// Which.
        id: LaunchId,
        /// Wait status as `waitpid` gives it.
        status: i32,
        /// CPU time used by it and its waited-for children, microseconds: user, system.
        cpu: (u64, u64),
        /// Largest resident size in KiB.
        max_resident: u64,
    },
    /// It was stopped by a signal, not by an order.
    Stopped {
        /// Which.
        id: LaunchId,
        /// Signal.
        signal: i32,
        /// Number of the last order carried out before (0: none).
        order: u32,
    },
    /// It goes on after a stop, not by an order.
    Continued {
        /// Which.
        id: LaunchId,
        /// Number of the last order carried out before (0: none).
        order: u32,
    },
    /// Answer to `Signal`.
    Signalled {
        /// The daemon's number.
        request: u64,
        /// 0 or errno.
        errno: i32,
    },
    /// Answer to `AimPids`.
    Pids {
        /// The daemon's number.
        request: u64,
        /// The number taken last (`ns_last_pid`), or errno.
        last: Result<u32, i32>,
    },
    /// Answer to `Open`.
    Opened {
        /// The daemon's number.
        request: u64,
        /// 0 or errno.
        errno: i32,
    },
    /// A request was malformed or over a bound and had no effect.
    Rejected,
}

/// Where a launch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaunchStep {
    /// The message was malformed or over a bound.
    Request,
    /// `clone3` (EEXIST: the pid is taken; EAGAIN: a limit).
    Clone,
    /// Credentials, limits, mask, session.
    Setup,
    /// Working directory.
    Directory,
    /// A descriptor could not be opened.
    Descriptor,
    /// `execve`: the program's own errno.
    Exec,
}
