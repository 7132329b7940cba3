//! What goes into the exchange and what comes out of it.

use crate::core::frame::Frame;
use crate::core::inbox::{MessageKind, Taken};
use crate::error::{CallError, ReceiveError};
use crate::ids::{Address, DcId, Lane, NodeId};

/// Most endpoints of one node.
pub const MAX_ENDPOINTS: usize = 1 << 20;
/// Number of the endpoint of a container's registry, on its home node.
pub const REGISTRY: u64 = 0;

/// So many endpoints of other nodes that are gone are remembered, so that nobody begins to wait for
/// their messages. Of one that is forgotten the receiver hears by its deadline.
pub const MAX_GONE: usize = 1024;
/// Number of the DVK's own endpoint of a container, on every node.
pub const SERVICE: u64 = u64::MAX;

/// An endpoint of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its container.
    pub dc: DcId,
    /// Its number.
    pub number: u64,
}

/// What the runtime has to do.
#[derive(Debug)]
pub enum Command<W> {
    /// Send to another node. If there is no session with that life, drop it.
    Transmit {
        /// The node.
        node: NodeId,
        /// Its life.
        incarnation: u64,
        /// Where to.
        lane: Lane,
        /// What.
        frame: Frame,
    },
    /// A call or send ended.
    Finish {
        /// Who waits.
        waiter: W,
        /// The answer.
        result: Result<Vec<u8>, CallError>,
    },
    /// A receiver has its message, or waits no longer.
    Received {
        /// Who waits.
        waiter: W,
        /// The message.
        result: Result<Taken, ReceiveError>,
    },
    /// Messages wait at an endpoint with a handler: call [`Exchange::next_for_handler`] until it
    /// gives none.
    Drain(Key),
    /// An address turned out to be void.
    Stale(Address),
}

/// A message that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// From which endpoint of this node.
    pub source: Key,
    /// To which one.
    pub to: Address,
    /// Post, call or send.
    pub kind: MessageKind,
    /// By which lane.
    pub lane: Lane,
    /// What.
    pub body: Vec<u8>,
    /// When a call or send is given up; ignored for posts.
    pub deadline: u64,
}

/// A submission that was not taken.
#[derive(Debug)]
pub struct Rejected<W> {
    /// Why.
    pub error: CallError,
    /// The message, to be tried again.
    pub submission: Submission,
    /// The waiter.
    pub waiter: Option<W>,
}

/// Figures of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndpointStatistics {
    /// Messages and notifications taken by its owner.
    pub received: u64,
    /// Messages sent by it.
    pub sent: u64,
    /// Messages for it that were refused: too many waited.
    pub refused: u64,
    /// Messages that wait now.
    pub waiting: usize,
}

/// Figures of the exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExchangeStatistics {
    /// Endpoints that exist.
    pub endpoints: usize,
    /// Calls and sends that wait for their end.
    pub calls: usize,
    /// Answers that nobody waited for any more.
    pub stray_replies: u64,
    /// Messages of other nodes to what does not exist here, or not for them.
    pub undeliverable: u64,
    /// Frames that a peer's exchange must not send.
    pub malformed: u64,
}
