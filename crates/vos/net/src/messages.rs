//! What the members of a DC's network and its server say to each other.
//!
//! Requests name their socket, and a socket has one entry: repeating a request changes nothing, so no
//! numbers of requests and no kept answers are needed.

use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};

/// Version of these messages.
pub const VERSION: u16 = 1;
/// Longest message.
pub const MAX_MESSAGE: usize = 512;

/// What a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A socket's claim on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Its protocol.
    pub protocol: Protocol,
    /// Address and port.
    pub address: SocketAddr,
    /// An IPv6 socket that takes no IPv4.
    pub only_v6: bool,
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// The user whose socket it is: `SO_REUSEPORT` is shared with the same user alone.
    pub user: u32,
}

/// Member to server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// A socket (`SO_COOKIE`) of the asking node is to be bound. Answer: `Done` once every node knows
    /// what it needs to know, `InUse` or `Full`.
    Bind {
        /// The socket.
        socket: u64,
        /// Its claim.
        binding: Binding,
    },
    /// It is to listen. Answer: as for `Bind`.
    Listen {
        /// The socket.
        socket: u64,
        /// Its claim.
        binding: Binding,
    },
    /// It is gone, or was not bound after all. No answer.
    Release {
        /// The socket.
        socket: u64,
    },
    /// Where is who takes what is sent to this address? Answer: `At`.
    Find {
        /// Its protocol.
        protocol: Protocol,
        /// The address.
        target: SocketAddr,
    },
}

/// Where somebody listens, and how it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node.
    pub node: u16,
    /// Whether packets of IPv4 reach it.
    pub takes_v4: bool,
}

/// Server to member, in answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is so now.
    Done,
    /// The port is another's.
    InUse,
    /// No room in the server's tables.
    Full,
    /// There, or nowhere.
    At(Option<Place>),
}

/// A way for datagrams: the port, and the address if it is one alone.
pub type RouteKey = (u16, Option<Ipv4Addr>);

/// Server to member, unasked; confirmed with a [`Confirmation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// Datagrams to a port go to this node from now on (`None`: to nobody in particular). What has a
    /// lower version than what is known of the same key is old.
    Route {
        /// Counts all changes.
        version: u64,
        /// Which.
        key: RouteKey,
        /// Where to.
        node: Option<u16>,
    },
    /// Does this socket still exist?
    Verify {
        /// The socket.
        socket: u64,
        /// Its protocol.
        protocol: Protocol,
    },
}

/// A member's answer to a [`Notice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Confirmation {
    /// Done; or the socket exists.
    Yes,
    /// There is no such socket.
    Gone,
}

/// A message could not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of the network that is malformed, too long or of another version")]
pub struct Malformed;

/// Encodes a message.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Plain data into memory: it cannot fail; and an empty message is refused by the other side.
    postcard::to_extend(message, VERSION.to_le_bytes().to_vec()).unwrap_or_default()
}

/// Decodes one, which must be whole and of our version.
///
/// # Errors
/// [`Malformed`].
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let (version, body) = bytes.split_first_chunk().ok_or(Malformed)?;
    if u16::from_le_bytes(*version) != VERSION || bytes.len() > MAX_MESSAGE {
        return Err(Malformed);
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_messages_of_our_version_are_taken() {
        let target = "[::ffff:1.2.3.4]:5".parse().unwrap();
        let ask = Ask::Find { protocol: Protocol::Udp, target };
        let bytes = encode(&ask);
        assert_eq!(decode::<Ask>(&bytes), Ok(ask));
        for length in 0..bytes.len() {
            assert_eq!(decode::<Ask>(&bytes[..length]), Err(Malformed));
        }
        let mut other = bytes.clone();
        other[0] ^= 1;
        assert_eq!(decode::<Ask>(&other), Err(Malformed));
        assert_eq!(decode::<Ask>(&[bytes, vec![0]].concat()), Err(Malformed));
    }
}
