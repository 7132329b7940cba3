//! What the carriers of two nodes say to each other.
//!
//! *Home* is the node where a program was asked for, *away* the node where its body runs. Every
//! total is absolute (bytes since the stream began), so a repeated message changes nothing. Messages
//! of one pair of nodes arrive in the order in which they were posted, or the peer is gone.

use crate::fifo::{FifoId, FifoMessage};
use serde::{Deserialize, Serialize};

/// Version of this protocol; leads every encoded message.
pub const PROTOCOL: u8 = 2;
/// Most payload bytes of one [`CarryMessage::StreamData`] and of one read or write of a description.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Bytes of stream data that one message carries at most; small, so that streams take turns.
pub const MAX_STREAM_DATA: usize = 64 << 10;
/// Bytes of one record: what a pipe writes atomically (`PIPE_BUF`).
pub const MAX_RECORD: usize = 4096;
/// Most records of one message.
pub const MAX_RECORDS: usize = 4096;
/// Most bytes of an encoded message.
pub const MAX_MESSAGE: usize = MAX_PAYLOAD + (64 << 10);

/// A program that was placed: unique among its home node's programs, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProgramKey {
    /// Home node.
    pub home: u16,
    /// The home's number of this placement.
    pub number: u64,
}

/// A byte stream between a pipe or terminal at home and its stand-in away; the home's number.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct StreamId(pub u64);

/// An open file description kept at home; the home's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DescriptionId(pub u64);

/// Terminal attributes, as `struct termios`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalAttributes {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// Line discipline.
    pub line: u8,
    /// `c_cc`.
    pub characters: [u8; 32],
}

/// Terminal size in characters and pixels, as `struct winsize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
    /// Pixels across.
    pub width: u16,
    /// Pixels down.
    pub height: u16,
}

/// What `fstat` says about a shared description, ids and inode as the home's kernel gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileAttributes {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub links: u64,
    /// Owner; in the DC's ids where the exporter was given a map.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `st_rdev`.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Access, modification, change: seconds and nanoseconds.
    pub times: [(i64, u32); 3],
}

/// Where a read or write of a shared description happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Position {
    /// At the description's own position, which it moves (`read`, `write`; `O_APPEND` as it is).
    Sequential,
    /// The description's position is set to this first (`lseek`).
    At(u64),
}

/// An operation on a shared description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DescriptionOperation {
    /// Answer: `Data`.
    Read {
        /// Where.
        position: Position,
        /// At most [`MAX_PAYLOAD`] bytes.
        length: u32,
    },
    /// Answer: `Written`.
    Write {
        /// Where.
        position: Position,
        /// At most [`MAX_PAYLOAD`] bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Answer: `Attributes`.
    Attributes,
    /// `ftruncate`. Answer: `Done`.
    Truncate {
        /// New length.
        length: u64,
    },
    /// `fsync` or `fdatasync`. Answer: `Done`.
    Sync {
        /// `fdatasync`.
        data_only: bool,
    },
    /// `flock`. Without `LOCK_NB` the answer waits for the lock. Answer: `Done`.
    Lock {
        /// `LOCK_SH`, `LOCK_EX` or `LOCK_UN`, with `LOCK_NB`.
        operation: i32,
    },
    /// `lseek(SEEK_DATA | SEEK_HOLE)` without moving the position for good. Answer: `Offset`.
    Seek {
        /// From where.
        offset: u64,
        /// `SEEK_DATA` or `SEEK_HOLE`.
        whence: u32,
    },
}

/// The answer to a [`DescriptionOperation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DescriptionOutcome {
    /// Bytes read (none: the end), and the position afterwards.
    Data {
        /// Bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        /// Position of the description now; 0 where it has none.
        position: u64,
    },
    /// Bytes taken, and the position afterwards.
    Written {
        /// How many.
        length: u32,
        /// Position of the description now.
        position: u64,
    },
    /// What `fstat` says.
    Attributes(FileAttributes),
    /// An offset.
    Offset(u64),
    /// Nothing more to say.
    Done,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CarryMessage {
    /// Away to home: the stand-in exists, the stream may begin.
    StreamReady {
        /// Which.
        stream: StreamId,
    },
    /// Sender to receiver: bytes. Output goes from away to home, input from home to away.
    StreamData {
        /// Which.
        stream: StreamId,
        /// Lengths of the writes that the bytes were made by; empty: not known (input). Their sum is
        /// the number of bytes and each is at most [`MAX_RECORD`].
        records: Vec<u16>,
        /// At most [`MAX_STREAM_DATA`] bytes.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Receiver to sender: as many bytes may be sent in all.
    StreamCredit {
        /// Which.
        stream: StreamId,
        /// Absolute.
        total: u64,
    },
    /// Sender to receiver: nothing follows (end of file).
    StreamEnd {
        /// Which.
        stream: StreamId,
    },
    /// Receiver to sender: nobody reads any more.
    StreamBroken {
        /// Which.
        stream: StreamId,
        /// Bytes that were really read before (input only).
        consumed: u64,
    },
    /// Away to home: so many bytes of an input stream have really been read by the body.
    Consumed {
        /// Which.
        stream: StreamId,
        /// Absolute.
        total: u64,
    },
    /// Away to home: everything that the body wrote before its end has been sent.
    Drained {
        /// Whose.
        program: ProgramKey,
    },
    /// Home to away: the terminal at home has another size now.
    TerminalResized {
        /// Which.
        stream: StreamId,
        /// New size.
        size: TerminalSize,
    },
    /// Away to home: do this on a shared description.
    DescriptionRequest {
        /// The asker's number, for the reply.
        request: u64,
        /// Which.
        description: DescriptionId,
        /// What.
        operation: DescriptionOperation,
    },
    /// Away to home: a waiting request (for a lock) is not wanted any more. It is answered `EINTR`,
    /// unless its answer is under way.
    DescriptionCancel {
        /// The request's number.
        request: u64,
    },
    /// Home to away: the answer, or an errno.
    DescriptionReply {
        /// The request's number.
        request: u64,
        /// Outcome or errno (positive).
        result: Result<DescriptionOutcome, i32>,
    },
    /// Away to home: nobody there has the description open any more.
    DescriptionDropped {
        /// Which.
        description: DescriptionId,
    },
    /// Away to home, before [`CarryMessage::Drained`]: the program left the description at another
    /// position than its reads and writes did.
    DescriptionMoved {
        /// Whose.
        program: ProgramKey,
        /// Which.
        description: DescriptionId,
        /// Where it is to be.
        position: u64,
    },
    /// About a FIFO of the tree.
    Fifo {
        /// Which.
        fifo: FifoId,
        /// What.
        what: FifoMessage,
    },
}

/// A message could not be decoded; the sender is broken or hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`MAX_MESSAGE`].
    #[error("carry message of {0} bytes is over the limit of {MAX_MESSAGE}")]
    TooLong(usize),
    /// Another version, or nothing at all.
    #[error("carry message is not of protocol version {PROTOCOL}")]
    Version,
    /// Not an encoding of a message, or bytes left over.
    #[error("carry message is malformed")]
    Malformed,
    /// A field is over its bound.
    #[error("carry message has a field over its bound: {0}")]
    Bound(&'static str),
}

impl CarryMessage {
    /// Bytes for a link.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Serialising plain data into memory cannot fail.
        postcard::to_extend(self, vec![PROTOCOL]).unwrap_or_default()
    }

    /// From a link, with every bound checked.
    pub fn decode(bytes: &[u8]) -> Result<CarryMessage, MessageError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(MessageError::TooLong(bytes.len()));
        }
        let Some((&PROTOCOL, body)) = bytes.split_first() else {
            return Err(MessageError::Version);
        };
        let (message, rest) =
            postcard::take_from_bytes::<CarryMessage>(body).map_err(|_| MessageError::Malformed)?;
        if !rest.is_empty() {
            return Err(MessageError::Malformed);
        }
        message.check()?;
        Ok(message)
    }

    /// Whether every field is within its bound.
    pub fn check(&self) -> Result<(), MessageError> {
        match self {
            CarryMessage::StreamData { records, bytes, .. } => {
                if bytes.is_empty() || bytes.len() > MAX_STREAM_DATA {
                    return Err(MessageError::Bound("bytes"));
                }
                if records.len() > MAX_RECORDS {
                    return Err(MessageError::Bound("records"));
                }
                let sum: usize = records.iter().map(|&length| usize::from(length)).sum();
                let each = records.iter().all(|&l| l > 0 && usize::from(l) <= MAX_RECORD);
                if !records.is_empty() && (sum != bytes.len() || !each) {
                    return Err(MessageError::Bound("records"));
                }
            }
            CarryMessage::DescriptionRequest { operation, .. } => match operation {
                DescriptionOperation::Read { length, .. }
                    if usize::try_from(*length).unwrap_or(usize::MAX) > MAX_PAYLOAD =>
                {
                    return Err(MessageError::Bound("length"));
                }
                DescriptionOperation::Write { data, .. } if data.len() > MAX_PAYLOAD => {
                    return Err(MessageError::Bound("data"));
                }
                _ => {}
            },
            CarryMessage::DescriptionReply {
                result: Ok(DescriptionOutcome::Data { data, .. }),
                ..
            } if data.len() > MAX_PAYLOAD => {
                return Err(MessageError::Bound("data"));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        for message in [
            CarryMessage::StreamData {
                stream: StreamId(7),
                records: vec![2, 1],
                bytes: b"abc".into(),
            },
            CarryMessage::Drained { program: ProgramKey { home: 1, number: 9 } },
            CarryMessage::DescriptionReply { request: 3, result: Err(28) },
            CarryMessage::DescriptionRequest {
                request: 1,
                description: DescriptionId(4),
                operation: DescriptionOperation::Read { position: Position::At(5), length: 6 },
            },
        ] {
            assert_eq!(CarryMessage::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn the_largest_messages_fit() {
        let write = CarryMessage::DescriptionRequest {
            request: u64::MAX,
            description: DescriptionId(u64::MAX),
            operation: DescriptionOperation::Write {
                position: Position::At(u64::MAX),
                data: vec![1; MAX_PAYLOAD],
            },
        };
        assert_eq!(CarryMessage::decode(&write.encode()), Ok(write));
    }

    #[test]
    fn hostile_bytes_are_refused() {
        assert_eq!(CarryMessage::decode(&[]), Err(MessageError::Version));
        assert_eq!(CarryMessage::decode(&[PROTOCOL + 1, 0, 0]), Err(MessageError::Version));
        assert_eq!(CarryMessage::decode(&[PROTOCOL, 250]), Err(MessageError::Malformed));
        let mut longer = CarryMessage::StreamEnd { stream: StreamId(1) }.encode();
        longer.push(0);
        assert_eq!(CarryMessage::decode(&longer), Err(MessageError::Malformed));
        let too_long = vec![PROTOCOL; MAX_MESSAGE + 1];
        assert_eq!(CarryMessage::decode(&too_long), Err(MessageError::TooLong(MAX_MESSAGE + 1)));
        for (records, bytes) in [
            (vec![1u16], vec![]),
            (vec![1, 1], vec![0u8; 3]),
            (vec![0, 3], vec![0; 3]),
            (vec![4097], vec![0; 4097]),
            (vec![], vec![0; MAX_STREAM_DATA + 1]),
            (vec![1; MAX_RECORDS + 1], vec![0; MAX_RECORDS + 1]),
        ] {
            let message = CarryMessage::StreamData { stream: StreamId(1), records, bytes };
            assert!(matches!(CarryMessage::decode(&message.encode()), Err(MessageError::Bound(_))));
        }
        let read = CarryMessage::DescriptionRequest {
            request: 1,
            description: DescriptionId(1),
            operation: DescriptionOperation::Read {
                position: Position::Sequential,
                length: u32::MAX,
            },
        };
        assert_eq!(CarryMessage::decode(&read.encode()), Err(MessageError::Bound("length")));
    }
}
