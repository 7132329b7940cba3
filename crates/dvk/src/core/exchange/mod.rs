//! The message exchange of one node: endpoints, calls, receivers, deadlines, credit.
//!
//! `W` is what the runtime needs to wake whoever waits; the exchange keeps it and gives it back once.
//! Commands are to be carried out in order, by the thread that made them arise.
//!
//! Flow control: a node may have [`super::inbox::WINDOW_MESSAGES`] messages (and a bound of bytes)
//! at one endpoint. Its own exchange counts and refuses what is above (back-pressure); the
//! receiver's enforces twice as much, so that only a node that breaks the rule notices. So a stalled
//! receiver delays nobody but those who send to it.

mod delivery;
mod manage;
mod remote;
#[cfg(test)]
mod tests;
mod types;

pub use manage::Manage;
pub use types::{
    Command, EndpointStatistics, ExchangeStatistics, Key, MAX_ENDPOINTS, MAX_GONE, REGISTRY,
    Rejected, SERVICE, Submission,
};

use super::Map;
use super::frame::{Frame, Header, Kind, MAX_MESSAGE, Status};
use super::inbox::{
    From, Inbox, MAX_RECEIVERS, MessageKind, ReplyToken, Taken, WINDOW_BYTES, WINDOW_MESSAGES,
    Waiting,
};
use super::rights::{Permissions, Rights};
use crate::error::{CallError, ReceiveError};
use crate::ids::{Address, DcId, Lane, NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug)]
struct Dc {
    members: Option<BTreeSet<NodeId>>,
}

#[derive(Debug, Default)]
struct Endpoint {
    inbox: Inbox,
    handler: bool,
    draining: bool,
    statistics: EndpointStatistics,
    permissions: Permissions,
}

#[derive(Debug)]
struct Call<W> {
    waiter: W,
    source: Key,
    to: Address,
    deadline: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Receiver<W> {
    waiter: W,
    key: Key,
    from: From,
    deadline: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Window {
    messages: usize,
    bytes: usize,
}

/// State machine of one node's exchange.
#[derive(Debug)]
pub struct Exchange<W> {
    node: NodeId,
    incarnation: u64,
    dcs: Map<DcId, Dc>,
    endpoints: Map<Key, Endpoint>,
    calls: Map<u64, Call<W>>,
    receivers: Map<u64, Receiver<W>>,
    deadlines: BTreeSet<(u64, u64)>,
    windows: Map<Address, Window>,
    peers: BTreeMap<NodeId, u64>,
    /// Endpoints of peers that are known to be gone, in the order of their going.
    gone: VecDeque<Address>,
    next_number: u64,
    next_request: u64,
    statistics: ExchangeStatistics,
}

impl<W> Exchange<W> {
    /// The exchange of one life of a node.
    #[must_use]
    pub fn new(node: NodeId, incarnation: u64) -> Self {
        Exchange {
            node,
            incarnation,
            dcs: Map::default(),
            endpoints: Map::default(),
            calls: Map::default(),
            receivers: Map::default(),
            deadlines: BTreeSet::new(),
            windows: Map::default(),
            peers: BTreeMap::new(),
            gone: VecDeque::new(),
            next_number: 1,
            next_request: 1,
            statistics: ExchangeStatistics::default(),
        }
    }

    /// Opens a container; endpoints may be made in it, and every node may send to them.
    pub fn open_dc(&mut self, dc: DcId) {
        self.dcs.entry(dc).or_insert(Dc { members: None });
    }

    /// Whether a container is open.
    #[must_use]
    pub fn is_open(&self, dc: DcId) -> bool {
        self.dcs.contains_key(&dc)
    }

    /// From now on only these nodes (and this one) reach the container's endpoints here.
    pub fn restrict_dc(&mut self, dc: DcId, members: BTreeSet<NodeId>) {
        if let Some(state) = self.dcs.get_mut(&dc) {
            state.members = Some(members);
        }
    }

    /// Closes a container and all its endpoints here.
    pub fn close_dc(&mut self, dc: DcId, out: &mut Vec<Command<W>>) {
        let mut keys: Vec<Key> =
            self.endpoints.keys().filter(|key| key.dc == dc).copied().collect();
        keys.sort_unstable();
        // First of all: their own end counts more than that of whom they wait for.
        let mut receives: Vec<u64> = self
            .receivers
            .iter()
            .filter(|(_, receiver)| receiver.key.dc == dc)
            .map(|(id, _)| *id)
            .collect();
        receives.sort_unstable();
        for id in receives {
            self.end_receive(id, ReceiveError::Closed, out);
        }
        for key in keys {
            self.unbind(key, out);
        }
        self.dcs.remove(&dc);
    }

    /// Makes an endpoint. None: the container is not open, or too many endpoints exist.
    pub fn bind(&mut self, dc: DcId) -> Option<Key> {
        let number = u64::from(self.node.0) << 48 | self.next_number;
        let key = self.bind_number(dc, number)?;
        self.next_number += 1;
        Some(key)
    }

    /// Makes the endpoint of a container's registry.
    pub fn bind_registry(&mut self, dc: DcId) -> Option<Key> {
        self.bind_number(dc, REGISTRY)
    }

    /// Makes the DVK's own endpoint of a container.
    pub fn bind_service(&mut self, dc: DcId) -> Option<Key> {
        self.bind_number(dc, SERVICE)
    }

    fn bind_number(&mut self, dc: DcId, number: u64) -> Option<Key> {
        let key = Key { dc, number };
        if !self.dcs.contains_key(&dc)
            || self.endpoints.len() >= MAX_ENDPOINTS
            || self.endpoints.contains_key(&key)
        {
            return None;
        }
        self.endpoints.insert(key, Endpoint::default());
        Some(key)
    }

    /// The address of an endpoint of this node.
    #[must_use]
    pub fn address(&self, key: Key) -> Address {
        Address { dc: key.dc, node: self.node, incarnation: self.incarnation, number: key.number }
    }

    /// Ends an endpoint: its receivers and calls fail, those who called it hear that it is gone.
    pub fn unbind(&mut self, key: Key, out: &mut Vec<Command<W>>) {
        let Some(mut endpoint) = self.endpoints.remove(&key) else { return };
        let address = self.address(key);
        for (id, _) in std::mem::take(&mut endpoint.inbox.receivers) {
            self.end_receive(id, ReceiveError::Closed, out);
        }
        let mut own: Vec<u64> =
            self.calls.iter().filter(|(_, call)| call.source == key).map(|(id, _)| *id).collect();
        own.sort_unstable();
        for id in own {
            self.end_call(id, true, out, |_| Err(CallError::Closed));
        }
        self.source_gone(address, out);
        let waiting: Vec<Waiting> = endpoint.inbox.drain().collect();
        for message in waiting {
            self.refuse(&message, address, Status::NoEndpoint, out);
        }
        let senders: Vec<(NodeId, u64)> = endpoint.inbox.senders().collect();
        for (node, incarnation) in senders {
            if node == self.node {
                self.windows.remove(&address);
            } else {
                let frame = self.frame(Kind::Gone, key.dc, key.number, 0, 0, Vec::new());
                out.push(Command::Transmit { node, incarnation, lane: Lane::Small, frame });
            }
        }
    }

    /// A handler takes the endpoint's messages from now on.
    pub fn set_handler(&mut self, key: Key, out: &mut Vec<Command<W>>) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        endpoint.handler = true;
        let receivers = std::mem::take(&mut endpoint.inbox.receivers);
        endpoint.draining = true;
        for (id, _) in receivers {
            self.end_receive(id, ReceiveError::InHandler, out);
        }
        out.push(Command::Drain(key));
    }

    /// The next message for an endpoint's handler. Only the thread that was told to drain asks.
    pub fn next_for_handler(&mut self, key: Key, out: &mut Vec<Command<W>>) -> Option<Taken> {
        let taken = self.take(key, From::Any, out);
        if taken.is_none()
            && let Some(endpoint) = self.endpoints.get_mut(&key)
        {
            endpoint.draining = false;
        }
        taken
    }

    /// Sends a message. `room`: whether the link to the destination's node takes more. Returns the
    /// number of a call or send, for [`Exchange::cancel`]; 0 for a post.
    ///
    /// # Errors
    /// When nothing was sent.
    #[allow(clippy::result_large_err)] // the message goes back to be tried again
    pub fn submit(
        &mut self,
        submission: Submission,
        waiter: Option<W>,
        room: bool,
        out: &mut Vec<Command<W>>,
    ) -> Result<u64, Rejected<W>> {
        if let Err(error) = self.check(&submission, room) {
            return Err(Rejected { error, submission, waiter });
        }
        let Submission { source, to, kind, lane, body, deadline } = submission;
        let window = self.windows.entry(to).or_default();
        window.messages += 1;
        window.bytes += body.len();
        if let Some(endpoint) = self.endpoints.get_mut(&source) {
            endpoint.statistics.sent += 1;
        }
        let mut request = 0;
        if let Some(waiter) = waiter {
            request = self.next_request;
            self.next_request += 1;
            self.deadlines.insert((deadline, request));
            self.calls.insert(request, Call { waiter, source, to, deadline, bytes: body.len() });
        }
        if to.node == self.node {
            let source = self.address(source);
            let key = Key { dc: to.dc, number: to.number };
            self.deliver(key, Waiting { source, kind, body, request, lane }, out);
        } else {
            let kind = match kind {
                MessageKind::Post | MessageKind::Notify => Kind::Post,
                MessageKind::Call => Kind::Call,
                MessageKind::Send => Kind::Send,
            };
            let frame = self.frame(kind, to.dc, source.number, to.number, request, body);
            let (node, incarnation) = (to.node, to.incarnation);
            out.push(Command::Transmit { node, incarnation, lane, frame });
        }
        Ok(request)
    }

    fn check(&self, submission: &Submission, room: bool) -> Result<(), CallError> {
        let Submission { source, to, body, .. } = submission;
        self.check_destination(*source, to)?;
        if body.len() > MAX_MESSAGE {
            return Err(CallError::TooLarge { size: body.len() });
        }
        let full = self.windows.get(to).is_some_and(|window| {
            window.messages >= WINDOW_MESSAGES || window.bytes >= WINDOW_BYTES
        });
        if full || (!room && to.node != self.node) {
            return Err(CallError::Busy { address: *to });
        }
        Ok(())
    }

    fn check_destination(&self, source: Key, to: &Address) -> Result<(), CallError> {
        if source.dc != to.dc {
            return Err(CallError::OtherDc { from: source.dc, to: to.dc });
        }
        if !self.endpoints.contains_key(&source) {
            return Err(CallError::Closed);
        }
        if to.node == self.node {
            if to.incarnation != self.incarnation {
                return Err(CallError::NoEndpoint { address: *to });
            }
            let key = Key { dc: to.dc, number: to.number };
            return self.allows(&self.address(source), key, Rights::CALL);
        }
        match self.peers.get(&to.node) {
            Some(incarnation) if *incarnation == to.incarnation => Ok(()),
            Some(incarnation) if *incarnation > to.incarnation => {
                Err(CallError::NodeGone { node: to.node })
            }
            _ => Err(CallError::NotConnected { node: to.node }),
        }
    }

    /// Sets pending bits at an endpoint.
    ///
    /// # Errors
    /// When the destination cannot be reached.
    pub fn notify(
        &mut self,
        source: Key,
        to: &Address,
        bits: u64,
        out: &mut Vec<Command<W>>,
    ) -> Result<(), CallError> {
        self.check_destination(source, to)?;
        if to.node == self.node {
            let source = self.address(source);
            self.deliver_bits(Key { dc: to.dc, number: to.number }, source, bits, out);
        } else {
            let frame = self.frame(Kind::Notify, to.dc, source.number, to.number, bits, Vec::new());
            let (node, incarnation) = (to.node, to.incarnation);
            out.push(Command::Transmit { node, incarnation, lane: Lane::Small, frame });
        }
        Ok(())
    }

    /// Takes the next message, or waits for it. Returns the number of a receive that waits.
    pub fn receive(
        &mut self,
        key: Key,
        from: From,
        deadline: u64,
        waiter: W,
        out: &mut Vec<Command<W>>,
    ) -> Option<u64> {
        let refusal = match self.endpoints.get(&key) {
            None => Some(ReceiveError::Closed),
            Some(endpoint) if endpoint.handler => Some(ReceiveError::InHandler),
            Some(endpoint) if endpoint.inbox.receivers.len() >= MAX_RECEIVERS => {
                Some(ReceiveError::TooMany)
            }
            Some(_) => None,
        };
        if let Some(error) = refusal {
            out.push(Command::Received { waiter, result: Err(error) });
            return None;
        }
        if let Some(taken) = self.take(key, from, out) {
            out.push(Command::Received { waiter, result: Ok(taken) });
            return None;
        }
        if let From::One(address) = from
            && let Some(error) = self.cannot_send(&address)
        {
            out.push(Command::Received { waiter, result: Err(error) });
            return None;
        }
        let id = self.next_request;
        self.next_request += 1;
        self.deadlines.insert((deadline, id));
        self.receivers.insert(id, Receiver { waiter, key, from, deadline });
        if let Some(endpoint) = self.endpoints.get_mut(&key) {
            endpoint.inbox.receivers.push_back((id, from));
        }
        Some(id)
    }

    /// Why nothing can come from an endpoint, if nothing can.
    fn cannot_send(&self, source: &Address) -> Option<ReceiveError> {
        if source.node != self.node {
            if self.peers.get(&source.node) != Some(&source.incarnation) {
                return Some(ReceiveError::NodeGone { node: source.node });
            }
            let gone = self.gone.contains(source);
            return gone.then_some(ReceiveError::Gone { address: *source });
        }
        let key = Key { dc: source.dc, number: source.number };
        let exists = source.incarnation == self.incarnation && self.endpoints.contains_key(&key);
        (!exists).then_some(ReceiveError::Gone { address: *source })
    }

    /// Ends a waiting call, send or receive. False if it has ended already.
    pub fn cancel(&mut self, id: u64, out: &mut Vec<Command<W>>) -> bool {
        self.give_up(id, ReceiveError::Cancelled, out, |address| CallError::Cancelled { address })
    }

    fn give_up(
        &mut self,
        id: u64,
        receive: ReceiveError,
        out: &mut Vec<Command<W>>,
        call: impl FnOnce(Address) -> CallError,
    ) -> bool {
        if self.calls.contains_key(&id) {
            self.end_call(id, true, out, |to| Err(call(to)));
            return true;
        }
        self.end_receive(id, receive, out)
    }

    /// Answers a call. A caller that is gone, or waits no longer, is no error.
    pub fn reply(
        &mut self,
        token: ReplyToken,
        answer: Result<Vec<u8>, Status>,
        out: &mut Vec<Command<W>>,
    ) {
        let (status, body) = match answer {
            Ok(body) if body.len() > MAX_MESSAGE => (Status::TooLarge, Vec::new()),
            Ok(body) => (Status::Done, body),
            Err(status) => (status, Vec::new()),
        };
        self.answer(token, status, body, out);
    }

    fn answer(
        &mut self,
        token: ReplyToken,
        status: Status,
        body: Vec<u8>,
        out: &mut Vec<Command<W>>,
    ) {
        let ReplyToken { caller, server, request, lane } = token;
        if caller.node == self.node {
            self.answered(request, server, status, body, out);
            return;
        }
        let mut frame =
            self.frame(Kind::Reply, server.dc, server.number, caller.number, request, body);
        frame.header.status = status as u8;
        let (node, incarnation) = (caller.node, caller.incarnation);
        out.push(Command::Transmit { node, incarnation, lane, frame });
    }

    fn refuse(
        &mut self,
        message: &Waiting,
        server: Address,
        status: Status,
        out: &mut Vec<Command<W>>,
    ) {
        let caller = message.source;
        if message.kind == MessageKind::Post {
            if caller.node != self.node && status == Status::NoEndpoint {
                let frame = self.frame(Kind::Gone, server.dc, server.number, 0, 0, Vec::new());
                let (node, incarnation) = (caller.node, caller.incarnation);
                out.push(Command::Transmit { node, incarnation, lane: message.lane, frame });
            }
            return;
        }
        let token = ReplyToken { caller, server, request: message.request, lane: message.lane };
        self.answer(token, status, Vec::new(), out);
    }

    /// Time goes on: calls and receives past their deadline end.
    pub fn tick(&mut self, now: u64, out: &mut Vec<Command<W>>) {
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.remove(&(deadline, id));
            self.give_up(id, ReceiveError::TimedOut, out, |address| CallError::TimedOut {
                address,
            });
        }
    }

    /// When [`Exchange::tick`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Figures.
    #[must_use]
    pub fn statistics(&self) -> ExchangeStatistics {
        ExchangeStatistics {
            endpoints: self.endpoints.len(),
            calls: self.calls.len(),
            ..self.statistics
        }
    }

    /// Figures of an endpoint.
    #[must_use]
    pub fn endpoint_statistics(&self, key: Key) -> Option<EndpointStatistics> {
        self.endpoints.get(&key).map(|endpoint| EndpointStatistics {
            waiting: endpoint.inbox.len(),
            ..endpoint.statistics
        })
    }

    fn give_back(&mut self, endpoint: Address, bytes: usize) {
        let Some(window) = self.windows.get_mut(&endpoint) else { return };
        window.messages = window.messages.saturating_sub(1);
        window.bytes = window.bytes.saturating_sub(bytes);
        if window.messages == 0 {
            self.windows.remove(&endpoint);
        }
    }

    fn frame(
        &self,
        kind: Kind,
        dc: DcId,
        source: u64,
        destination: u64,
        request: u64,
        body: Vec<u8>,
    ) -> Frame {
        let header = Header { kind, status: 0, sequence: 0, dc, source, destination, request };
        Frame { header, body }
    }
}
