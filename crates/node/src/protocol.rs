//! What the command line and the daemon of a node say to each other over the control socket.
//!
//! Frames of [`crate::wire`]; the first one in each direction is a [`Hello`]. Afterwards the command
//! line sends [`Request`]s; each is answered by one [`Response`], except [`Request::Signal`], which
//! has none, and `Run` and `Exec`, which are answered by `Started` and later by `Ended`. The end of
//! the connection ends the program of an `Exec` and the container of a `Run`.

use crate::managing::{ManageRequest, ManageResponse};
use dvs_pm::placement::Policy;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of these messages; different versions refuse each other with a sentence.
pub const PROTOCOL: u32 = 2;
/// First field of a hello.
pub const MAGIC: u32 = 0x6476_7321;
/// Most bytes of a container's or node's name.
pub const MAX_NAME: usize = 63;
/// Most shared folders of one container.
pub const MAX_SHARES: usize = 64;

/// First frame of either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Version of the program, for people.
    pub version: String,
}

impl Hello {
    /// Ours.
    #[must_use]
    pub fn ours() -> Self {
        Hello { magic: MAGIC, protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// Command line to daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you? Answer: `Node`.
    Node,
    /// Link to other daemons of the cluster. Answer: `Done`.
    Link(Vec<Peer>),
    /// Make a container and run a program in it. Descriptors beside it: standard input, output and
    /// error unless `program.terminal`. Answers: `Started`, then `Ended`.
    Run(Box<ContainerOptions>, Box<ProgramOptions>),
    /// Run a program in a container that exists. Answers: `Started`, then `Ended`.
    Exec(String, Box<ProgramOptions>),
    /// Send a signal to the running program of this connection. No answer.
    Signal {
        /// Number.
        signal: i32,
        /// To its whole process group, as a terminal does.
        group: bool,
    },
    /// End the container that runs on this connection at once. No answer; `Ended` follows.
    EndNow,
    /// Processes of a container, or of all. Answer: `Processes`.
    Processes(Option<String>),
    /// Containers whose home is this node. Answer: `Containers`.
    Containers,
    /// End a container and remove it. Answer: `Done`.
    Remove(String),
    /// About containers that are there, or shall live without a connection.
    Manage(ManageRequest),
    /// End the daemon. Answer: `Done`, then the daemon ends all that it runs.
    Stop {
        /// Also when containers run on it.
        force: bool,
    },
    /// All nodes of the cluster, as this one knows them. Answer: `Nodes`.
    Cluster,
    /// Let a number of nodes join. Answer: `Token`.
    Token {
        /// For so many seconds.
        life: u64,
        /// So many nodes.
        uses: u32,
    },
    /// Remove a node from the cluster for good. Answer: `Done`.
    RemoveNode(String),
    /// Replace the node's certificate. Answer: `Done`.
    Rotate,
    /// Take in nodes at the far ends of byte streams: numbers and names; the streams come beside it,
    /// in the same order. Answer: `Done`, when all are linked with each other.
    TakeIn(Vec<(u16, String)>),
}

/// Daemon to command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Nothing more to say.
    Done,
    /// To `Node`.
    Node(NodeInfo),
    /// The program runs. With a terminal its other end comes beside it.
    Started {
        /// Name of the container.
        container: String,
        /// Pid inside.
        pid: u32,
        /// What the user should know although it works (a limit that cannot be set, ...).
        warnings: Vec<String>,
    },
    /// Something that the user should know happened; the program goes on.
    Notice(String),
    /// The program ended, and the container of a `Run` is gone from every node.
    Ended(Ended),
    /// To `Processes`.
    Processes(Vec<ProcessInfo>),
    /// To `Containers`.
    Containers(Vec<ContainerInfo>),
    /// To `Manage`.
    Manage(ManageResponse),
    /// It did not work.
    Failed(Failure),
    /// To `Cluster`.
    Nodes(Vec<NodeInfo>),
    /// To `Token`.
    Token(String),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Exit code for the command line: [`EXIT_DVS`], [`EXIT_CANNOT_EXECUTE`], [`EXIT_NOT_FOUND`].
    pub exit: u8,
    /// One line: what, where, what to do.
    pub message: String,
}

/// DVS itself failed.
pub const EXIT_DVS: u8 = 125;
/// The program was found and cannot be executed.
pub const EXIT_CANNOT_EXECUTE: u8 = 126;
/// The program was not found.
pub const EXIT_NOT_FOUND: u8 = 127;

impl Failure {
    /// A failure of DVS itself.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { exit: EXIT_DVS, message: message.into() }
    }
}

/// Another daemon of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Its link socket.
    pub link: PathBuf,
}

/// A daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u16,
    /// Its process.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// CPUs it may use, in thousandths.
    pub millicpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// When it started, seconds since 1970.
    pub started: u64,
    /// Containers that have a part on it.
    pub containers: u32,
    /// Numbers of the daemons that it is linked to.
    pub linked: Vec<u16>,
    /// It ends with the command that started it.
    pub ephemeral: bool,
    /// Its link socket.
    pub link: PathBuf,
    /// Where it takes links of other hosts, if it belongs to a cluster of hosts.
    pub address: Option<String>,
    /// Links that it has or had.
    pub links: Vec<LinkInfo>,
    /// It is known and cannot be reached; then only name, number and address are known.
    pub down: bool,
    /// Connections of others that were refused or dropped because of what came by them.
    pub refused: u64,
    /// Why it is of no use to its cluster, if so.
    pub warning: Option<String>,
}

/// One node's link to another, by its lanes together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInfo {
    /// The other node.
    pub node: u16,
    /// Whether every lane has a connection.
    pub open: bool,
    /// Connections that were open, one after the other.
    pub connections: u64,
    /// Messages sent.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Messages received.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Messages sent again after a cut.
    pub resent: u64,
    /// Bytes that wait for an acknowledgement.
    pub waiting_bytes: u64,
}

/// What image a container shows below its own files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ImageOption {
    /// The host's own root, read-only, private places hidden.
    #[default]
    Host,
    /// A directory.
    Directory(PathBuf),
}

/// How a shared folder may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareMode {
    /// Writes reach the host.
    ReadWrite,
    /// No writes.
    ReadOnly,
    /// Writes stay in the container.
    CopyOnWrite,
}

/// A host folder shown in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareOption {
    /// On the host of the home node; absolute.
    pub host: PathBuf,
    /// In the container; absolute.
    pub path: PathBuf,
    /// Mode.
    pub mode: ShareMode,
}

/// What network a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NetworkOption {
    /// A loopback of its own on each node.
    #[default]
    None,
    /// The host's.
    Host,
    /// One address and one localhost over all nodes.
    Dc,
}

/// A container to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerOptions {
    /// Its name; none: one is made up.
    pub name: Option<String>,
    /// On how many nodes; none: on all that are linked.
    pub nodes: Option<u16>,
    /// How programs are placed.
    pub placement: Policy,
    /// Image.
    pub image: ImageOption,
    /// Shared folders, outer before inner.
    pub shares: Vec<ShareOption>,
    /// Host name inside; none: the container's name.
    pub hostname: Option<String>,
    /// Network.
    pub network: NetworkOption,
    /// CPU limit on each node, in thousandths of a CPU.
    pub millicpus: Option<u32>,
    /// Memory limit on each node, bytes.
    pub memory: Option<u64>,
    /// Limit of processes and threads on each node.
    pub pids: Option<u32>,
    /// What users call it by, (name, value).
    pub labels: Vec<(String, String)>,
    /// Signal that asks its first program to end; none: SIGTERM.
    pub stop_signal: Option<i32>,
    /// Seconds until it is ended by force after that; none: 10.
    pub stop_seconds: Option<u32>,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// A byte string, encoded as one block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Text(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text(text.as_bytes().to_vec())
    }
}

/// A program to be run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProgramOptions {
    /// Program and arguments; at least one.
    pub arguments: Vec<Text>,
    /// Environment, `NAME=value`. Where `HOME` is missing the user's home is put in.
    pub environment: Vec<Text>,
    /// Working directory; none: `/`.
    pub directory: Option<PathBuf>,
    /// `USER[:GROUP]`, names or numbers; none: root.
    pub user: Option<String>,
    /// File creation mask.
    pub umask: u32,
    /// Resource limits of the caller: (`RLIMIT_*`, soft, hard).
    pub limits: Vec<(u32, u64, u64)>,
    /// Signals that the caller ignores, bit n-1 for signal n.
    pub ignored_signals: u64,
    /// A terminal of its own, of this size.
    pub terminal: Option<WindowSize>,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub how: EndedHow,
    /// What the container did; only for `Run`.
    pub statistics: Option<Statistics>,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndedHow {
    /// `exit(n)`.
    Exited(u8),
    /// By a signal.
    Signalled(u8),
    /// Its container or node was ended under it; a sentence says why.
    Lost(String),
}

impl EndedHow {
    /// As the kernel's wait status says it.
    #[must_use]
    pub fn of_status(status: i32) -> Self {
        let signal = status & 0x7f;
        if signal == 0 {
            EndedHow::Exited(u8::try_from((status >> 8) & 0xff).unwrap_or(u8::MAX))
        } else {
            EndedHow::Signalled(u8::try_from(signal).unwrap_or(0))
        }
    }

    /// Exit code of the command line, as a shell's.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            EndedHow::Exited(code) => *code,
            EndedHow::Signalled(signal) => 128_u8.saturating_add(*signal),
            EndedHow::Lost(_) => EXIT_DVS,
        }
    }
}

/// What a container did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// Programs started (execs) per node, in the order of the nodes' numbers.
    pub nodes: Vec<NodeStatistics>,
    /// Programs that stayed where they were, by reason, most frequent first.
    pub stayed: Vec<(String, u64)>,
    /// From the start of the program to its end, microseconds.
    pub wall_microseconds: u64,
}

/// What one node did for a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeStatistics {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Programs that it took from other nodes.
    pub placed: u64,
    /// Programs that were started on it and stayed.
    pub stayed: u64,
}

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Container's name.
    pub container: String,
    /// Pid inside.
    pub pid: u32,
    /// Parent's pid inside.
    pub parent: u32,
    /// Node's name.
    pub node: String,
    /// Effective user inside.
    pub user: u32,
    /// State letter as `ps` has it.
    pub state: char,
    /// CPU time, microseconds.
    pub cpu_microseconds: u64,
    /// Command line.
    pub command: String,
    /// Why it runs where it runs.
    pub why: String,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Its name.
    pub name: String,
    /// Its number, for people: hexadecimal.
    pub id: String,
    /// Names of its nodes, the home first.
    pub nodes: Vec<String>,
    /// Image.
    pub image: String,
    /// Placement policy.
    pub placement: String,
    /// First program.
    pub command: String,
    /// When it was made, seconds since 1970.
    pub created: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_exit_codes() {
        assert_eq!(EndedHow::of_status(3 << 8).exit_code(), 3);
        assert_eq!(EndedHow::of_status(9).exit_code(), 137);
        assert_eq!(EndedHow::of_status(6 | 0x80).exit_code(), 134, "with a core dump");
        assert_eq!(EndedHow::Lost(String::new()).exit_code(), 125);
    }
}
