//! The three forms of an inherited descriptor: as the program has it at home, as it travels, and as
//! it is opened away.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::messages::{DescriptionId, FileAttributes, StreamId, TerminalAttributes, TerminalSize};

/// Most descriptors of one program that are carried (the launcher passes at most 250).
pub const MAX_DESCRIPTORS: usize = 250;

/// A descriptor of the program that asked for exec, without those that exec closes.
#[derive(Debug)]
pub struct InheritedDescriptor {
    /// Its number in the program.
    pub number: i32,
    /// A duplicate (`pidfd_getfd`): the same open file description.
    pub fd: OwnedFd,
    /// `flags` of its fdinfo: access mode and status flags.
    pub flags: u32,
    /// `pos` of its fdinfo.
    pub position: u64,
    /// Text of its `/proc/PID/fd` link, in the container's tree.
    pub path: Vec<u8>,
}

/// A descriptor on its way; part of the linux personality's own messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedDescriptor {
    /// Its number in the program.
    pub number: i32,
    /// What it becomes.
    pub what: Carried,
}

/// What a descriptor becomes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carried {
    /// Shares the open file description of another one of the list, which stands before it.
    DuplicateOf(i32),
    /// The write end of a pipe.
    Output {
        /// The stream that empties it; `None`: nobody reads at home, so nobody does away.
        stream: Option<StreamId>,
        /// File status flags (`O_NONBLOCK`).
        flags: u32,
        /// Bytes that may be sent at once.
        credit: u64,
        /// Owner of the pipe: user and group.
        owner: (u32, u32),
    },
    /// The read end of a pipe.
    Input {
        /// The stream that fills it; `None`: at its end already.
        stream: Option<StreamId>,
        /// File status flags (`O_NONBLOCK`).
        flags: u32,
        /// Owner of the pipe: user and group.
        owner: (u32, u32),
    },
    /// A terminal, for output.
    Terminal {
        /// The stream that empties it.
        stream: StreamId,
        /// Access mode and status flags.
        flags: u32,
        /// Bytes that may be sent at once.
        credit: u64,
        /// Owner: user and group.
        owner: (u32, u32),
        /// Attributes at home.
        attributes: TerminalAttributes,
        /// Size at home.
        size: TerminalSize,
    },
    /// A shared open file description: kept at home, reads and writes are done there.
    Description {
        /// Which.
        description: DescriptionId,
        /// Access mode and status flags.
        flags: u32,
        /// Its position now.
        position: u64,
        /// What `fstat` says now; nothing for a file of the tree.
        attributes: FileAttributes,
        /// Its number in the DC's tree, if it is there.
        inode: Option<u64>,
        /// Its path at home, for messages and `/proc`.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// Opened anew by path: devices without state, directories, `O_PATH`.
    Path {
        /// Path in the container's tree.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// `O_*` flags.
        flags: u32,
        /// Offset to seek to.
        offset: Option<u64>,
    },
}

/// A descriptor as the launcher makes it away.
#[derive(Debug)]
pub struct LocalDescriptor {
    /// Its number in the program.
    pub number: i32,
    /// What it is.
    pub what: Local,
}

/// What a launcher does for one descriptor.
#[derive(Debug)]
pub enum Local {
    /// Pass this one, and close the own copy once the program has it: a copy that is kept open
    /// would hide the end of the stream.
    Fd(OwnedFd),
    /// Opened by the new process itself, in the guest's tree.
    Open {
        /// Path.
        path: Vec<u8>,
        /// `O_*` flags.
        flags: u32,
        /// Offset to seek to.
        offset: Option<u64>,
    },
    /// Another of the list, by its number in the program.
    DuplicateOf(i32),
}

/// Why a program cannot leave its home: the text is shown by `ps --why` and the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The read end of a pipe that other programs may read too (make's jobserver, a second placed
    /// reader): bytes could go to the wrong one.
    #[error("descriptor {number} is a pipe with other readers")]
    SharedReader {
        /// Its number in the program.
        number: i32,
    },
    /// Standard input is a terminal: interactive programs stay at home.
    #[error("descriptor {number} reads from a terminal")]
    TerminalInput {
        /// Its number in the program.
        number: i32,
    },
    /// A kind of descriptor that cannot be carried.
    #[error("descriptor {number} is {kind}, which cannot be carried")]
    Unsupported {
        /// Its number in the program.
        number: i32,
        /// What it is.
        kind: Kind,
    },
    /// More than [`MAX_DESCRIPTORS`], or more streams than a node carries.
    #[error("too many open descriptors")]
    TooMany,
    /// A system call on the duplicate failed.
    #[error("descriptor {number} could not be examined: errno {errno}")]
    Failed {
        /// Its number in the program.
        number: i32,
        /// errno.
        errno: i32,
    },
    /// The node is known to be gone, or the carrier ends.
    #[error("the other node is gone")]
    NodeGone,
}

/// Kinds of descriptors that cannot be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A socket.
    Socket,
    /// A FIFO opened for reading and writing.
    ReadWritePipe,
    /// A FIFO of the file tree that is open for reading and writing, or not read at this moment.
    TreeFifo,
    /// The controlling terminal's own device.
    ControllingTerminal,
    /// The master side of a pseudo terminal.
    TerminalMaster,
    /// Another character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// epoll, eventfd, signalfd, timerfd, inotify, pidfd and the like.
    Anonymous,
    /// A file opened with `O_DIRECT`.
    DirectFile,
    /// A memfd.
    MemoryFile,
    /// A file from outside the tree that has been carried here: what it is cannot be asked here.
    ForeignFile,
    /// A directory that has no name any more.
    DeletedDirectory,
    /// Anything else.
    Unknown,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Kind::Socket => "a socket",
            Kind::ReadWritePipe => "a FIFO open for reading and writing",
            Kind::TreeFifo => "a named FIFO open for both, or that nobody reads now",
            Kind::ControllingTerminal => "the controlling terminal",
            Kind::TerminalMaster => "a terminal's master",
            Kind::CharacterDevice => "a character device",
            Kind::BlockDevice => "a block device",
            Kind::Anonymous => "an epoll, eventfd, signalfd, timerfd, inotify or pidfd",
            Kind::DirectFile => "a file opened with O_DIRECT",
            Kind::MemoryFile => "a memfd",
            Kind::ForeignFile => {
                "a file from outside the container, carried here from another node"
            }
            Kind::DeletedDirectory => "a deleted directory",
            Kind::Unknown => "of an unknown kind",
        })
    }
}
