//! What the daemons of the nodes say to each other about the life of a container.
//!
//! Every daemon has an endpoint `daemon` in a system container of its own; these are the calls to it.
//! Inside the container itself its servers and parts have endpoints of their own (see [`super::part`]).

use crate::managing::{NewLimits, Usage};
use crate::membership::core::Roster;
use crate::protocol::{NetworkOption, NodeInfo, ProcessInfo};
use dvs_dvk::Address;
use dvs_pm::placement::Policy;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Version of these messages.
pub(crate) const VERSION: u16 = 2;
/// Most processes of one node told in one answer.
pub(crate) const MAX_PROCESSES: usize = 8192;

/// What every part of a container has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// The container's number in the DVK.
    pub(crate) id: u64,
    /// Its name.
    pub(crate) name: String,
    /// Its home node.
    pub(crate) home: u16,
    /// Numbers and names of its nodes, the home first.
    pub(crate) members: Vec<(u16, String)>,
    /// How programs are placed.
    pub(crate) policy: Policy,
    /// Host name inside.
    pub(crate) hostname: String,
    /// Network.
    pub(crate) network: NetworkOption,
    /// CPU limit on each node, thousandths.
    pub(crate) millicpus: Option<u32>,
    /// Memory limit on each node, bytes.
    pub(crate) memory: Option<u64>,
    /// Limit of processes on each node.
    pub(crate) pids: Option<u32>,
    /// User that a container of an ordinary user shows its one id as.
    pub(crate) single: (u32, u32),
    /// Clocks of the container when this was sent: monotonic and boot time, nanoseconds. A node sets
    /// its own part's to them; what the message takes to arrive is the error.
    pub(crate) clocks: (i64, i64),
    /// Endpoint of the file-system server.
    pub(crate) files: Address,
    /// Endpoint of the process manager.
    pub(crate) manager: Address,
    /// Endpoint of the net server, if the container has a network over its nodes.
    pub(crate) net_server: Option<Address>,
}

/// Endpoints of one node's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartAddresses {
    /// The linux personality.
    pub(crate) linux: Address,
    /// The carrier of descriptors.
    pub(crate) carry: Address,
    /// Hears from the process manager.
    pub(crate) member: Address,
    /// The member of the network, if there is one.
    pub(crate) network: Option<Address>,
}

/// A call to another daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    /// The asking daemon's name. Answer: `Done`.
    Hello {
        /// Its name.
        name: String,
        /// Where it takes links of other hosts.
        address: Option<SocketAddr>,
    },
    /// Build a part of the container. Answer: `Joined`.
    Join(Box<Description>),
    /// All parts are there: these are their endpoints. Answer: `Done`.
    Begin {
        /// The container.
        dc: u64,
        /// Every node's.
        parts: Vec<(u16, PartAddresses)>,
    },
    /// End the part. Answer: `Left`.
    Leave {
        /// The container.
        dc: u64,
    },
    /// Processes of the part. Answer: `Processes`.
    Processes {
        /// The container.
        dc: u64,
    },
    /// The members of the cluster, from the registrar. Answer: `Done`.
    Roster(Box<Roster>),
    /// To the registrar: certify a new key of the asking node. Answer: `Certificate`.
    Renew {
        /// The key's public part.
        public: Vec<u8>,
    },
    /// To the registrar: the asking node shows its new certificate everywhere. Answer: `Done`.
    Renewed,
    /// Facts about the node. Answer: `Info`.
    Info,
    /// From the home of a command to a node that is reached through it alone: link to another such
    /// node. Answer: `Done`.
    Meet {
        /// Its number.
        node: u16,
        /// Its name.
        name: String,
    },
    /// Freeze the part, or let it go on. Answer: `Done`.
    Freeze {
        /// The container.
        dc: u64,
        /// Freeze.
        frozen: bool,
    },
    /// What the part uses. Answer: `Usage`.
    Usage {
        /// The container.
        dc: u64,
    },
    /// Give the part other limits. Answer: `Limited`.
    Limit {
        /// The container.
        dc: u64,
        /// To what.
        limits: NewLimits,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Done.
    Done,
    /// The part is there.
    Joined {
        /// Its endpoints.
        addresses: PartAddresses,
        /// For the user.
        warnings: Vec<String>,
    },
    /// The part is gone; what it did.
    Left(PartStatistics),
    /// Its processes.
    Processes(Vec<ProcessInfo>),
    /// What it uses.
    Usage(Box<Usage>),
    /// What could not be changed, a sentence each.
    Limited(Vec<String>),
    /// It did not work; a sentence.
    Failed(String),
    /// A new certificate.
    Certificate {
        /// It, DER.
        certificate: Vec<u8>,
        /// When it ends, seconds since 1970.
        ends: u64,
    },
    /// Facts.
    Info(Box<NodeInfo>),
}

/// What one part did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct PartStatistics {
    /// Programs taken from other nodes.
    pub(crate) received: u64,
    /// Programs that stayed, by reason.
    pub(crate) stayed: Vec<(String, u64)>,
}

/// Encodes a message.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Plain data into memory: it cannot fail; and an empty message is refused by the other side.
    postcard::to_extend(message, VERSION.to_le_bytes().to_vec()).unwrap_or_default()
}

/// Decodes one, which must be whole and of our version.
///
/// # Errors
/// A sentence.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let Some((version, body)) = bytes.split_first_chunk() else {
        return Err("an empty message between daemons".into());
    };
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(format!(
            "another daemon speaks version {version} of the messages between daemons, this one {VERSION}; run the same version of dvs on both"
        ));
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err("a message between daemons could not be understood".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_messages_of_our_version_are_taken() {
        let bytes = encode(&Call::Leave { dc: 7 });
        assert_eq!(decode::<Call>(&bytes), Ok(Call::Leave { dc: 7 }));
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode::<Call>(&longer).is_err());
        assert!(decode::<Call>(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode::<Call>(&[]).is_err());
        let mut other = bytes;
        other[0] = 9;
        assert!(decode::<Call>(&other).unwrap_err().contains("version 9"));
    }
}
