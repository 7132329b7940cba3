//! What the linux personalities of one DC say to each other, one per node.
//!
//! A frame is the version followed by one postcard value. A peer's bytes are checked here: a frame of
//! another version, over the bound or with bytes left over is an error, never a partial value.

use crate::core::Placement;
use crate::core::sharing::Thing;
use crate::core::usage::Usage;
use dvs_carry::CarriedDescriptor;
use dvs_container::launch::{LaunchSpec, MAX_STRINGS, SignalSender};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of these messages.
pub const VERSION: u16 = 2;
/// Longest frame: a program's strings and its descriptors.
pub const MAX_FRAME: usize = MAX_STRINGS + (64 << 10);

/// Why a frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error(
        "a peer speaks version {0} of the linux personality's messages, this node {VERSION}; run the same version of dvs on both"
    )]
    Version(u16),
    /// Not a message.
    #[error("a peer's message could not be understood")]
    Malformed,
    /// Over [`MAX_FRAME`].
    #[error("a message of {0} bytes is over the bound of {MAX_FRAME}")]
    TooLong(usize),
}

/// Encodes a message.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_extend(message, VERSION.to_le_bytes().to_vec())
        .map_err(|_| FrameError::Malformed)?;
    if bytes.len() > MAX_FRAME { Err(FrameError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Decodes a message.
///
/// # Errors
/// See [`FrameError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    if bytes.len() > MAX_FRAME {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let (version, rest) = bytes.split_first_chunk().ok_or(FrameError::Malformed)?;
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    match postcard::take_from_bytes(rest) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}

/// Asked of another node and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Hold this program ready. Answer: `Prepared`, `Impossible` or `NotPrepared`.
    Prepare(Box<Prepare>),
    /// Parent, process group and session of a process of the node, in the DC's pids. Answer:
    /// `Identity`.
    Identity {
        /// Its pid.
        pid: u32,
    },
    /// A ghost shall join this process group (0: its own). Answer: `Done`.
    SetGroup {
        /// The ghost's pid.
        pid: u32,
        /// The group.
        group: u32,
    },
    /// A ghost shall begin a session. Answer: `Done`.
    NewSession {
        /// The ghost's pid.
        pid: u32,
    },
    /// A ghost shall be sent this signal when its parent ends (0: none). Answer: `Done`.
    DeathSignal {
        /// The ghost's pid.
        pid: u32,
        /// The signal.
        signal: u8,
    },
    /// A placed program there shall have this limit, or priority. Answer: `Done`.
    Set {
        /// Its pid.
        pid: u32,
        /// What.
        setting: Setting,
    },
    /// The same, to the node whose pid it is, for a program of the asker. Answer: `Done`.
    SetFor {
        /// Its pid.
        pid: u32,
        /// What.
        setting: Setting,
        /// Who wants it.
        setter: Setter,
    },
    /// The nice value of a process there. Answer: `Nice`.
    NiceOf {
        /// Its pid.
        pid: u32,
    },
    /// A signal for a process or group that is known there. Answer: `Done`.
    Signal {
        /// Process (above 0) or process group (below -1).
        target: i32,
        /// Signal, 0 to test.
        signal: i32,
        /// Who sends it.
        sender: SignalSender,
    },
}

/// A program to be held ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Number of the attempt.
    pub placement: Placement,
    /// Attempts below this one are over.
    pub lowest_open: Placement,
    /// The program; its list of descriptors is empty.
    pub spec: LaunchSpec,
    /// Its process group and session in the DC's pids. They change only by the program's own calls,
    /// which come back to the home node.
    pub group: u32,
    /// See `group`.
    pub session: u32,
    /// Its descriptors as they are carried.
    pub descriptors: Vec<CarriedDescriptor>,
}

/// A setting of a program that others may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Setting {
    /// A resource limit.
    Limit {
        /// `RLIMIT_*`.
        resource: u32,
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// Nice value.
    Nice(i32),
}

/// Who wants to change a setting of another process: ids in the container's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setter {
    /// Real and effective user.
    pub users: (u32, u32),
    /// Real group.
    pub group: u32,
    /// Has the capability that makes the ids irrelevant.
    pub capable: bool,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A nice value, or errno.
    Nice(Result<i32, i32>),
    /// The program is held at its first instruction.
    Prepared,
    /// It cannot be executed; the errno of `execve`.
    Impossible(i32),
    /// It could not be prepared there; it may well run elsewhere.
    NotPrepared,
    /// Identity of a process.
    Identity(Result<Identity, i32>),
    /// 0 or errno.
    Done(i32),
}

/// Where a process stands, in the DC's pids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Parent.
    pub parent: u32,
    /// Process group.
    pub group: u32,
    /// Session.
    pub session: u32,
    /// Real and saved user id: who may signal it.
    pub users: (u32, u32),
}

/// Told to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// To the node that holds a program: let it run.
    Release(Placement),
    /// End it, held or running.
    Abort(Placement),
    /// Its end is known.
    Acknowledge(Placement),
    /// A ghost took this signal.
    Signal {
        /// The ghost's placement.
        placement: Placement,
        /// The signal.
        signal: i32,
        /// Its sender.
        sender: SignalSender,
        /// Sent by a terminal: for the program's whole process group there.
        terminal: bool,
        /// For `SIGSTOP` and `SIGCONT`: the number of this order to the program.
        order: u32,
        /// Answer with [`Note::Delivered`] when the program has it.
        confirm: bool,
    },
    /// A stop signal of terminals is pending at the ghost: would the program stop by default?
    /// Answered by [`Note::StopAnswer`].
    StopAsked {
        /// The ghost's placement.
        placement: Placement,
        /// The signal.
        signal: i32,
        /// Its sender.
        sender: SignalSender,
        /// The number of the order that a stop is.
        order: u32,
    },
    /// A signal goes to the ghost's process group at home: for the program's children that are in the
    /// group.
    GroupSignal {
        /// The ghost's placement.
        placement: Placement,
        /// The signal.
        signal: i32,
        /// Its sender.
        sender: SignalSender,
        /// For the program itself, too: all of the group gets it at once. The [`Note::Signal`] that
        /// follows when the ghost has taken it is then no second one.
        whole: bool,
    },
    /// To the home node: still wanted?
    Query(Placement),
    /// The program ended.
    Ended {
        /// Which.
        placement: Placement,
        /// Wait status.
        status: i32,
        /// What it and its children used.
        usage: Usage,
    },
    /// The program stopped.
    Stopped {
        /// Which.
        placement: Placement,
        /// By what.
        signal: i32,
        /// The last order that it had carried out before.
        order: u32,
    },
    /// The program goes on.
    Continued {
        /// Which.
        placement: Placement,
        /// The last order that it had carried out before.
        order: u32,
    },
    /// The program has the signal (or is gone).
    Delivered {
        /// Which.
        placement: Placement,
        /// The signal.
        signal: i32,
    },
    /// A program of the sending node shares something.
    Shares(Thing),
    /// Answer to [`Note::StopAsked`]: the program was stopped (true), or has got the signal.
    StopAnswer {
        /// Which.
        placement: Placement,
        /// Stopped.
        stop: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_checked() {
        let note = Note::Ended { placement: Placement(7), status: 9, usage: Usage::default() };
        let bytes = encode(&note).unwrap();
        assert_eq!(decode::<Note>(&bytes), Ok(note));
        assert_eq!(decode::<Note>(&bytes[..bytes.len() - 1]), Err(FrameError::Malformed));
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(decode::<Note>(&longer), Err(FrameError::Malformed));
        let mut other = bytes;
        other[0] = 9;
        assert_eq!(decode::<Note>(&other), Err(FrameError::Version(9)));
        assert_eq!(decode::<Note>(&[]), Err(FrameError::Malformed));
        let long = vec![0; MAX_FRAME + 1];
        assert_eq!(decode::<Note>(&long), Err(FrameError::TooLong(MAX_FRAME + 1)));
    }
}
