//! What comes from other nodes: their messages, their sessions' beginnings and ends.

use super::{Command, Exchange, Key, MAX_GONE};
use crate::core::frame::{Frame, Kind, Status};
use crate::core::inbox::{From, MessageKind, Waiting};
use crate::core::rights::Rights;
use crate::error::{CallError, ReceiveError};
use crate::ids::{Address, DcId, Lane, NodeId};

impl<W> Exchange<W> {
    /// A data frame from a life of another node.
    pub fn remote(
        &mut self,
        node: NodeId,
        incarnation: u64,
        lane: Lane,
        frame: Frame,
        out: &mut Vec<Command<W>>,
    ) {
        let Frame { header, body } = frame;
        // The session may have ended while the frame was on its way from the link to here.
        if self.peers.get(&node) != Some(&incarnation) {
            return;
        }
        let source = Address { dc: header.dc, node, incarnation, number: header.source };
        let key = Key { dc: header.dc, number: header.destination };
        let request = header.request;
        let kind = match header.kind {
            Kind::Post => MessageKind::Post,
            Kind::Call => MessageKind::Call,
            Kind::Send => MessageKind::Send,
            Kind::Reply => {
                self.answered(request, source, Status::parse(header.status), body, out);
                return;
            }
            Kind::Notify => {
                if self.admits(header.dc, node) && self.allows(&source, key, Rights::CALL).is_ok() {
                    self.deliver_bits(key, source, request, out);
                } else {
                    self.statistics.undeliverable += 1;
                }
                return;
            }
            Kind::Cancel => {
                if let Some(endpoint) = self.endpoints.get_mut(&key) {
                    endpoint.inbox.cancel(source, request);
                }
                return;
            }
            Kind::Credit => {
                self.credit(source, header.destination, request);
                return;
            }
            Kind::Gone => {
                self.windows.remove(&source);
                self.source_gone(source, out);
                if self.gone.len() >= MAX_GONE {
                    self.gone.pop_front();
                }
                self.gone.push_back(source);
                out.push(Command::Stale(source));
                return;
            }
            Kind::Hello | Kind::Ack | Kind::Heartbeat | Kind::Goodbye => {
                self.statistics.malformed += 1;
                return;
            }
        };
        let message = Waiting { source, kind, body, request, lane };
        let refusal = if self.admits(header.dc, node) {
            match self.endpoints.get_mut(&key) {
                None => Some(Status::NoEndpoint),
                Some(endpoint) if !endpoint.permissions.allow(&source, Rights::CALL) => {
                    endpoint.statistics.refused += 1;
                    Some(Status::Denied)
                }
                Some(endpoint) if !endpoint.inbox.fits(node, incarnation, 2) => {
                    endpoint.statistics.refused += 1;
                    Some(Status::Busy)
                }
                Some(_) => None,
            }
        } else {
            Some(Status::NoDc)
        };
        let Some(status) = refusal else {
            self.deliver(key, message, out);
            return;
        };
        self.statistics.undeliverable += 1;
        let address = self.address(key);
        self.refuse(&message, address, status, out);
    }

    /// Whether a node may reach a container here.
    fn admits(&self, dc: DcId, node: NodeId) -> bool {
        self.dcs
            .get(&dc)
            .is_some_and(|dc| dc.members.as_ref().is_none_or(|members| members.contains(&node)))
    }

    /// A session with a life of a node began.
    pub fn peer_up(&mut self, node: NodeId, incarnation: u64) {
        self.peers.insert(node, incarnation);
    }

    /// The session with a life of a node ended: calls to it fail, nothing of it is answered.
    pub fn peer_down(&mut self, node: NodeId, incarnation: u64, out: &mut Vec<Command<W>>) {
        if self.peers.get(&node) == Some(&incarnation) {
            self.peers.remove(&node);
        }
        let is_its = |address: &Address| address.node == node && address.incarnation == incarnation;
        let mut calls: Vec<u64> =
            self.calls.iter().filter(|(_, call)| is_its(&call.to)).map(|(id, _)| *id).collect();
        calls.sort_unstable();
        for id in calls {
            self.end_call(id, false, out, |_| Err(CallError::NodeGone { node }));
        }
        let mut receives: Vec<u64> = self
            .receivers
            .iter()
            .filter(|(_, receiver)| matches!(&receiver.from, From::One(from) if is_its(from)))
            .map(|(id, _)| *id)
            .collect();
        receives.sort_unstable();
        for id in receives {
            self.end_receive(id, ReceiveError::NodeGone { node }, out);
        }
        self.gone.retain(|address| !is_its(address));
        self.windows.retain(|address, _| !is_its(address));
        for endpoint in self.endpoints.values_mut() {
            endpoint.inbox.node_gone(node, incarnation);
            endpoint.permissions.node_gone(is_its);
        }
    }

    fn credit(&mut self, endpoint: Address, posts: u64, bytes: u64) {
        if let Some(window) = self.windows.get_mut(&endpoint) {
            let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
            window.messages = window.messages.saturating_sub(number(posts));
            window.bytes = window.bytes.saturating_sub(number(bytes));
        }
    }
}
