//! What can go wrong with a message, a name or a connection.

use crate::ids::{Address, DcId, NodeId};
use serde::{Deserialize, Serialize};

/// Why a message was not delivered or not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CallError {
    /// The node ended, or was given up, before it answered. Whether it acted is not known.
    #[error("node {node} is gone; whether it acted on the message is not known")]
    NodeGone {
        /// The node.
        node: NodeId,
    },
    /// There is no link to the node (yet). Nothing was sent.
    #[error("no link to node {node}; connect to it first")]
    NotConnected {
        /// The node.
        node: NodeId,
    },
    /// The endpoint does not exist (any more). Resolve its name again.
    #[error("{address} does not exist (any more); resolve its name again")]
    NoEndpoint {
        /// The address that was tried.
        address: Address,
    },
    /// The container is not open on that node, or not to this one.
    #[error("container {dc} is not open on node {node}, or closed to this node")]
    NoDc {
        /// The container.
        dc: DcId,
        /// The node that refused.
        node: NodeId,
    },
    /// Too many messages wait at the destination or on the way. Nothing was sent; try again later.
    #[error("{address} has too many messages waiting; try again later")]
    Busy {
        /// The destination.
        address: Address,
    },
    /// The sender may not call the endpoint, or not do with it what it wanted to. Nothing was done.
    #[error("{address} does not permit this; its owner can grant the right")]
    Denied {
        /// The endpoint.
        address: Address,
    },
    /// The one who waited gave up. Whether the server acted is not known.
    #[error("the wait for {address} was cancelled; whether it acted is not known")]
    Cancelled {
        /// The server.
        address: Address,
    },
    /// The server gave the request up without an answer.
    #[error("{address} dropped the request without an answer")]
    Dropped {
        /// The server.
        address: Address,
    },
    /// No answer within the time given. Whether the server acted is not known.
    #[error("{address} did not answer in time; whether it acted is not known")]
    TimedOut {
        /// The server.
        address: Address,
    },
    /// The message is longer than [`crate::MAX_MESSAGE`].
    #[error("a message of {size} bytes is longer than the limit of {} bytes", crate::MAX_MESSAGE)]
    TooLarge {
        /// Bytes of the message.
        size: usize,
    },
    /// Source and destination are in different containers.
    #[error("container {from} cannot reach container {to}")]
    OtherDc {
        /// Container of the source.
        from: DcId,
        /// Container of the destination.
        to: DcId,
    },
    /// The endpoint that sent or received was closed, or its node was.
    #[error("the own endpoint is closed")]
    Closed,
    /// A call that waits was made by a handler; it would hold up the link that brings the answer.
    #[error("a handler must not wait; use call_with or post")]
    InHandler,
    /// Request or answer cannot be decoded.
    #[error("the message cannot be decoded; do both sides run the same version?")]
    Malformed,
}

/// Why no message was received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// None came in time.
    #[error("no message came in time")]
    TimedOut,
    /// The receiver gave up.
    #[error("the wait for a message was cancelled")]
    Cancelled,
    /// The endpoint was closed.
    #[error("the endpoint is closed")]
    Closed,
    /// The only endpoint that could have sent it is gone.
    #[error("{address}, whose message was waited for, is gone")]
    Gone {
        /// The endpoint.
        address: Address,
    },
    /// The only node that could have sent it is gone.
    #[error("node {node}, whose message was waited for, is gone")]
    NodeGone {
        /// The node.
        node: NodeId,
    },
    /// Too many receivers wait at the endpoint.
    #[error("too many receivers wait at the endpoint")]
    TooMany,
    /// A handler is set at the endpoint, or the caller is a handler itself.
    #[error("receive is not possible in a handler, nor at an endpoint that has one")]
    InHandler,
}

/// Why a name was not bound or resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NameError {
    /// Another endpoint has the name.
    #[error("the name {name:?} is taken by {holder}")]
    Taken {
        /// The name.
        name: String,
        /// Who has it.
        holder: Address,
    },
    /// Nobody bound the name in time.
    #[error("no endpoint bound the name {name:?} in time")]
    NotBound {
        /// The name.
        name: String,
    },
    /// The one who waited for the name gave up.
    #[error("the wait for a name was cancelled")]
    Cancelled,
    /// Empty or too long.
    #[error("a name has 1 to {} bytes", crate::core::registry::MAX_NAME)]
    BadName,
    /// A bound of the registry is reached.
    #[error("the container's registry is full")]
    Full,
    /// The node tried to bind what is not its own.
    #[error("a node may bind and unbind its own endpoints only")]
    NotYours,
    /// The registry's node cannot be asked.
    #[error("the container's registry cannot be asked: {0}")]
    Registry(#[from] CallError),
}

/// Why a listening socket or a link was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket itself.
    #[error("{path}: {error}")]
    Socket {
        /// Its path.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The process at the other end belongs to somebody else.
    #[error("{path}: the process there runs as uid {uid}, which is neither ours nor root")]
    WrongUser {
        /// Path of the socket.
        path: String,
        /// Uid of the other process.
        uid: u32,
    },
    /// The two nodes do not fit.
    #[error("handshake with node {node}: {error}")]
    Handshake {
        /// The node.
        node: NodeId,
        /// Why not.
        error: crate::core::hello::HelloError,
    },
    /// TLS: one of the two does not accept what the other has shown.
    #[error("{address}: {error}; is it a node of this cluster, and are both clocks right?")]
    Tls {
        /// Where to.
        address: String,
        /// What TLS said.
        error: std::io::Error,
    },
    /// Hosts speak by certificates, and this node has none.
    #[error("this node has no certificate for links to other hosts; make a cluster or join one")]
    NoCredentials,
    /// No handshake in time.
    #[error("node {node} did not answer the handshake in time")]
    TimedOut {
        /// The node.
        node: NodeId,
    },
    /// The own node is closed.
    #[error("the own node is closed")]
    Closed,
    /// Bound reached.
    #[error("a node has at most {} peers", crate::MAX_PEERS)]
    TooManyPeers,
}
