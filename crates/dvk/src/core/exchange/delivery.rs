//! Giving messages to those who wait for them, and ending calls and receives.

use super::{Command, Exchange, Key};
use crate::core::frame::{Kind, MAX_MESSAGE, Status};
use crate::core::inbox::{From, MessageKind, ReplyToken, Taken, Waiting};
use crate::error::{CallError, ReceiveError};
use crate::ids::{Address, Lane};

impl<W> Exchange<W> {
    pub(super) fn deliver(&mut self, key: Key, message: Waiting, out: &mut Vec<Command<W>>) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        let source = message.source;
        endpoint.inbox.push(message);
        self.wake(key, source, out);
    }

    pub(super) fn deliver_bits(
        &mut self,
        key: Key,
        source: Address,
        bits: u64,
        out: &mut Vec<Command<W>>,
    ) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else {
            self.statistics.undeliverable += 1;
            return;
        };
        if !endpoint.inbox.notify(source, bits) {
            endpoint.statistics.refused += 1;
            return;
        }
        self.wake(key, source, out);
    }

    /// Something came: the first receiver that wants it gets it, or the handler runs.
    pub(super) fn wake(&mut self, key: Key, source: Address, out: &mut Vec<Command<W>>) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else { return };
        if endpoint.handler {
            if !endpoint.draining {
                endpoint.draining = true;
                out.push(Command::Drain(key));
            }
            return;
        }
        let wants = |from: &From| matches!(from, From::Any) || *from == From::One(source);
        let Some(at) = endpoint.inbox.receivers.iter().position(|(_, from)| wants(from)) else {
            return;
        };
        let Some((id, from)) = endpoint.inbox.receivers.remove(at) else { return };
        let Some(receiver) = self.receivers.remove(&id) else { return };
        self.deadlines.remove(&(receiver.deadline, id));
        if let Some(taken) = self.take(key, from, out) {
            out.push(Command::Received { waiter: receiver.waiter, result: Ok(taken) });
        }
    }

    pub(super) fn take(
        &mut self,
        key: Key,
        from: From,
        out: &mut Vec<Command<W>>,
    ) -> Option<Taken> {
        let server = self.address(key);
        let endpoint = self.endpoints.get_mut(&key)?;
        let (message, bits) = endpoint.inbox.take(from)?;
        endpoint.statistics.received += 1;
        let Waiting { source, kind, body, request, lane } = message;
        let token = ReplyToken { caller: source, server, request, lane };
        match kind {
            MessageKind::Post if source.node == self.node => {
                self.give_back(server, body.len());
            }
            MessageKind::Post => {
                if let Some(credit) = endpoint.inbox.consumed(source, body.len()) {
                    let (posts, bytes) = (credit.posts as u64, credit.bytes as u64);
                    let frame =
                        self.frame(Kind::Credit, key.dc, key.number, posts, bytes, Vec::new());
                    let (node, incarnation) = (credit.node, credit.incarnation);
                    out.push(Command::Transmit { node, incarnation, lane: Lane::Small, frame });
                }
            }
            MessageKind::Send => self.answer(token, Status::Done, Vec::new(), out),
            MessageKind::Call | MessageKind::Notify => {}
        }
        let reply = (kind == MessageKind::Call).then_some(token);
        Some(Taken { source, kind, body, bits, reply })
    }

    pub(super) fn answered(
        &mut self,
        request: u64,
        server: Address,
        status: Status,
        body: Vec<u8>,
        out: &mut Vec<Command<W>>,
    ) {
        // Only the endpoint that was asked may answer.
        if self.calls.get(&request).is_none_or(|call| call.to != server) {
            self.statistics.stray_replies += 1;
            return;
        }
        if matches!(status, Status::NoEndpoint | Status::NoDc) {
            out.push(Command::Stale(server));
        }
        self.end_call(request, false, out, |address| match status {
            Status::Done => Ok(body),
            Status::NoEndpoint => Err(CallError::NoEndpoint { address }),
            Status::NoDc => Err(CallError::NoDc { dc: address.dc, node: address.node }),
            Status::Busy => Err(CallError::Busy { address }),
            Status::Denied => Err(CallError::Denied { address }),
            Status::Dropped => Err(CallError::Dropped { address }),
            Status::TooLarge => Err(CallError::TooLarge { size: MAX_MESSAGE + 1 }),
        });
    }

    /// Ends a call. `tell`: the destination shall drop it if it still waits there.
    pub(super) fn end_call(
        &mut self,
        id: u64,
        tell: bool,
        out: &mut Vec<Command<W>>,
        result: impl FnOnce(Address) -> Result<Vec<u8>, CallError>,
    ) {
        let Some(call) = self.calls.remove(&id) else { return };
        self.deadlines.remove(&(call.deadline, id));
        self.give_back(call.to, call.bytes);
        if tell {
            let to = call.to;
            if to.node == self.node {
                let source = self.address(call.source);
                if let Some(endpoint) =
                    self.endpoints.get_mut(&Key { dc: to.dc, number: to.number })
                {
                    endpoint.inbox.cancel(source, id);
                }
            } else {
                let frame =
                    self.frame(Kind::Cancel, to.dc, call.source.number, to.number, id, Vec::new());
                let (node, incarnation) = (to.node, to.incarnation);
                out.push(Command::Transmit { node, incarnation, lane: Lane::Small, frame });
            }
        }
        out.push(Command::Finish { waiter: call.waiter, result: result(call.to) });
    }

    /// An endpoint ended: those who wait for its messages alone wait in vain.
    pub(super) fn source_gone(&mut self, source: Address, out: &mut Vec<Command<W>>) {
        let mut waiting: Vec<u64> = self
            .receivers
            .iter()
            .filter(|(_, receiver)| receiver.from == From::One(source))
            .map(|(id, _)| *id)
            .collect();
        waiting.sort_unstable();
        for id in waiting {
            self.end_receive(id, ReceiveError::Gone { address: source }, out);
        }
    }

    pub(super) fn end_receive(
        &mut self,
        id: u64,
        error: ReceiveError,
        out: &mut Vec<Command<W>>,
    ) -> bool {
        let Some(receiver) = self.receivers.remove(&id) else { return false };
        self.deadlines.remove(&(receiver.deadline, id));
        if let Some(endpoint) = self.endpoints.get_mut(&receiver.key) {
            endpoint.inbox.receivers.retain(|(waiting, _)| *waiting != id);
        }
        out.push(Command::Received { waiter: receiver.waiter, result: Err(error) });
        true
    }
}
