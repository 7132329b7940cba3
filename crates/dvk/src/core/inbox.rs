//! What waits at one endpoint: messages, pending notifications, receivers.

use crate::ids::{Address, Lane, NodeId};
use std::collections::{BTreeMap, VecDeque};

/// Most messages that one node may have waiting at one endpoint.
pub const WINDOW_MESSAGES: usize = 1024;
/// Above this many waiting bytes of one node no more are taken.
pub const WINDOW_BYTES: usize = 8 << 20;
/// A receiving node gives credit back after this part of the window.
pub const CREDIT_PART: usize = 4;
/// Most sources whose notifications are pending at one endpoint.
pub const MAX_NOTIFIERS: usize = 16 << 10;
/// Most receivers that wait at one endpoint.
pub const MAX_RECEIVERS: usize = 1024;

/// How a message was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Nobody waits for it.
    Post,
    /// Its sender waits for an answer.
    Call,
    /// Its sender waits until it is received.
    Send,
    /// Pending bits; the body is empty.
    Notify,
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyToken {
    /// Who waits.
    pub caller: Address,
    /// Who was asked.
    pub server: Address,
    /// Number of the call at the caller's node.
    pub request: u64,
    /// The call's lane.
    pub lane: Lane,
}

/// A message that was taken from an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Who sent it; vouched for by the DVK.
    pub source: Address,
    /// How.
    pub kind: MessageKind,
    /// Its content.
    pub body: Vec<u8>,
    /// Bits of a notification, 0 otherwise.
    pub bits: u64,
    /// Where the answer to a call goes.
    pub reply: Option<ReplyToken>,
}

/// Whose messages a receiver wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Anybody's.
    Any,
    /// Only this endpoint's.
    One(Address),
}

impl From {
    fn matches(self, source: &Address) -> bool {
        match self {
            From::Any => true,
            From::One(wanted) => wanted == *source,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) source: Address,
    pub(crate) kind: MessageKind,
    pub(crate) body: Vec<u8>,
    /// Number of the call or send at its node.
    pub(crate) request: u64,
    pub(crate) lane: Lane,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    messages: usize,
    bytes: usize,
    consumed_posts: usize,
    consumed_bytes: usize,
}

/// Credit that a sender's node gets back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credit {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) posts: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    messages: VecDeque<Waiting>,
    notifiers: VecDeque<Address>,
    bits: BTreeMap<Address, u64>,
    shares: BTreeMap<(NodeId, u64), Share>,
    /// Receivers in the order of their coming.
    pub(crate) receivers: VecDeque<(u64, From)>,
}

impl Inbox {
    /// Whether one more message of a node fits, `slack` times the window being the bound.
    pub(crate) fn fits(&self, node: NodeId, incarnation: u64, slack: usize) -> bool {
        self.shares.get(&(node, incarnation)).is_none_or(|share| {
            share.messages < WINDOW_MESSAGES * slack && share.bytes < WINDOW_BYTES * slack
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn push(&mut self, message: Waiting) {
        let share =
            self.shares.entry((message.source.node, message.source.incarnation)).or_default();
        share.messages += 1;
        share.bytes += message.body.len();
        self.messages.push_back(message);
    }

    /// False when too many sources are pending.
    pub(crate) fn notify(&mut self, source: Address, bits: u64) -> bool {
        if let Some(pending) = self.bits.get_mut(&source) {
            *pending |= bits;
            return true;
        }
        if self.bits.len() >= MAX_NOTIFIERS {
            return false;
        }
        self.bits.insert(source, bits);
        self.notifiers.push_back(source);
        true
    }

    /// The next thing for a receiver: pending notifications first, then messages in order.
    pub(crate) fn take(&mut self, from: From) -> Option<(Waiting, u64)> {
        if let Some(at) = self.notifiers.iter().position(|source| from.matches(source)) {
            let source = self.notifiers.remove(at)?;
            let bits = self.bits.remove(&source)?;
            let message = Waiting {
                source,
                kind: MessageKind::Notify,
                body: Vec::new(),
                request: 0,
                lane: Lane::Small,
            };
            return Some((message, bits));
        }
        let at = self.messages.iter().position(|message| from.matches(&message.source))?;
        let message = self.messages.remove(at)?;
        self.uncount(&message);
        Some((message, 0))
    }

    fn uncount(&mut self, message: &Waiting) {
        let key = (message.source.node, message.source.incarnation);
        if let Some(share) = self.shares.get_mut(&key) {
            share.messages = share.messages.saturating_sub(1);
            share.bytes = share.bytes.saturating_sub(message.body.len());
        }
    }

    /// Counts a post as consumed; credit is due now and then.
    pub(crate) fn consumed(&mut self, source: Address, bytes: usize) -> Option<Credit> {
        let (node, incarnation) = (source.node, source.incarnation);
        let share = self.shares.get_mut(&(node, incarnation))?;
        share.consumed_posts += 1;
        share.consumed_bytes += bytes;
        if share.consumed_posts < WINDOW_MESSAGES / CREDIT_PART
            && share.consumed_bytes < WINDOW_BYTES / CREDIT_PART
        {
            return None;
        }
        let credit =
            Credit { node, incarnation, posts: share.consumed_posts, bytes: share.consumed_bytes };
        share.consumed_posts = 0;
        share.consumed_bytes = 0;
        Some(credit)
    }

    /// Takes back a call or send that its sender no longer waits for.
    pub(crate) fn cancel(&mut self, source: Address, request: u64) -> bool {
        let found = self.messages.iter().position(|message| {
            message.source == source
                && message.request == request
                && matches!(message.kind, MessageKind::Call | MessageKind::Send)
        });
        let Some(message) = found.and_then(|at| self.messages.remove(at)) else { return false };
        self.uncount(&message);
        true
    }

    /// Everything that waits, when the endpoint goes.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waiting> + '_ {
        self.messages.drain(..)
    }

    /// The nodes that ever sent something, with their lives.
    pub(crate) fn senders(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        self.shares.keys().copied()
    }

    /// The life of a node is over: its share is forgotten, and what it still waited for is dropped.
    pub(crate) fn node_gone(&mut self, node: NodeId, incarnation: u64) {
        self.messages.retain(|message| {
            message.kind == MessageKind::Post
                || message.source.node != node
                || message.source.incarnation != incarnation
        });
        self.shares.remove(&(node, incarnation));
    }
}
