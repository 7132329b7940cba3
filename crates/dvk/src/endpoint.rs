//! Endpoints: the primitives.

use crate::core::exchange::{EndpointStatistics, Key, Rejected, Submission};
use crate::core::frame::Status;
use crate::core::inbox::{From, MessageKind, ReplyToken, Taken};
use crate::dc::DcShared;
use crate::deliver::{Slot, Waiter, in_handler};
use crate::error::{CallError, ReceiveError};
use crate::ids::{Address, Lane};
use crate::node::{NodeConfig, Shared};
use std::sync::Arc;
use std::time::Duration;

/// An endpoint of this node. Cheap to clone; it ends with its last clone, or by
/// [`Endpoint::close`], and its name with it.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    dc: Arc<DcShared>,
    key: Key,
    address: Address,
    name: Option<String>,
    /// Whether the endpoint ends with this.
    owned: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owned {
            self.end();
        }
    }
}

impl Inner {
    fn end(&self) {
        let mut commands = Vec::new();
        self.shared.exchange.lock().unwrap().unbind(self.key, &mut commands);
        let handler = self.shared.handlers.write().unwrap().remove(&self.key);
        drop(handler);
        self.shared.run(commands);
        if let Some(name) = &self.name {
            self.dc.unbind_later(&self.shared, name, self.address);
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Endpoint({}, {:?})", self.inner.address, self.inner.name)
    }
}

impl Endpoint {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        dc: &Arc<DcShared>,
        key: Key,
        name: Option<String>,
    ) -> Self {
        Endpoint::make(shared, dc, key, name, true)
    }

    /// A handle whose end does not end the endpoint, for the container's own ones.
    pub(crate) fn borrowed(shared: &Arc<Shared>, dc: &Arc<DcShared>, key: Key) -> Self {
        Endpoint::make(shared, dc, key, None, false)
    }

    fn make(
        shared: &Arc<Shared>,
        dc: &Arc<DcShared>,
        key: Key,
        name: Option<String>,
        owned: bool,
    ) -> Self {
        let (dc, shared) = (Arc::clone(dc), Arc::clone(shared));
        let NodeConfig { id: node, incarnation, .. } = shared.config;
        let address = Address { dc: key.dc, node, incarnation, number: key.number };
        Endpoint { inner: Arc::new(Inner { shared, dc, key, address, name, owned }) }
    }

    /// Where it is, for others to send to.
    #[must_use]
    pub fn address(&self) -> Address {
        self.inner.address
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.inner.name.as_deref()
    }

    /// Sends a message that nobody waits for, on the small lane. If the destination is in this
    /// process and has a handler, that usually runs before this returns: hold no lock that it takes.
    ///
    /// # Errors
    /// Nothing was sent: [`CallError::Busy`] when too many wait, others as they say.
    pub fn post(&self, to: &Address, body: Vec<u8>) -> Result<(), CallError> {
        self.post_on(Lane::Small, to, body)
    }

    /// [`Endpoint::post`] on a lane.
    ///
    /// # Errors
    /// As [`Endpoint::post`].
    pub fn post_on(&self, lane: Lane, to: &Address, body: Vec<u8>) -> Result<(), CallError> {
        let submission = self.submission(lane, to, MessageKind::Post, body, 0);
        self.submit(submission, None).map_err(|rejected| rejected.error).map(|_| ())
    }

    /// [`Endpoint::post_on`] that gives the message back when it was not sent.
    ///
    /// # Errors
    /// As [`Endpoint::post`], with the message.
    pub fn try_post_on(
        &self,
        lane: Lane,
        to: &Address,
        body: Vec<u8>,
    ) -> Result<(), (CallError, Vec<u8>)> {
        let submission = self.submission(lane, to, MessageKind::Post, body, 0);
        match self.submit(submission, None) {
            Ok(_) => Ok(()),
            Err(rejected) => Err((rejected.error, rejected.submission.body)),
        }
    }

    /// [`Endpoint::post_on`] that waits while too many messages wait.
    ///
    /// # Errors
    /// As [`Endpoint::post`]; `Busy` only after the time; [`CallError::InHandler`] in a handler.
    pub fn post_within(
        &self,
        lane: Lane,
        to: &Address,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let deadline = self.inner.shared.deadline(timeout);
        self.submit_waiting(self.submission(lane, to, MessageKind::Post, body, deadline), None)
    }

    /// Rendezvous: sends a message on the small lane and waits until it was received.
    ///
    /// # Errors
    /// Not received, or (node gone, time over) not known to be.
    pub fn send(&self, to: &Address, body: Vec<u8>, timeout: Duration) -> Result<(), CallError> {
        self.wait(Lane::Small, to, MessageKind::Send, body, timeout).map(|_| ())
    }

    /// Sends a request on the small lane and waits for the answer.
    ///
    /// # Errors
    /// No answer. [`CallError::InHandler`] in a handler or callback.
    pub fn call(
        &self,
        to: &Address,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        self.wait(Lane::Small, to, MessageKind::Call, body, timeout)
    }

    /// [`Endpoint::call`] on a lane; the answer takes the same one.
    ///
    /// # Errors
    /// As [`Endpoint::call`].
    pub fn call_on(
        &self,
        lane: Lane,
        to: &Address,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        self.wait(lane, to, MessageKind::Call, body, timeout)
    }

    /// Sends a request and calls back with the answer. The callback runs once, on the thread that
    /// delivers the answer, and must not block. It also runs (possibly before this returns, on this
    /// thread) when nothing could be sent; it never waits for room.
    pub fn call_with(
        &self,
        lane: Lane,
        to: &Address,
        body: Vec<u8>,
        timeout: Duration,
        callback: impl FnOnce(Result<Vec<u8>, CallError>) + Send + 'static,
    ) {
        let shared = &self.inner.shared;
        let deadline = shared.deadline(timeout);
        let submission = self.submission(lane, to, MessageKind::Call, body, deadline);
        let waiter = Waiter::Callback(Box::new(callback));
        if let Err(rejected) = self.submit(submission, Some(waiter))
            && let Some(waiter) = rejected.waiter
        {
            waiter.finish(shared, Err(rejected.error));
        }
    }

    /// Sets bits at the destination, which receives them together with all that were set before it
    /// looked. Never blocks.
    ///
    /// # Errors
    /// When the destination cannot be reached; whether it exists on another node is not asked.
    pub fn notify(&self, to: &Address, bits: u64) -> Result<(), CallError> {
        let shared = &self.inner.shared;
        let mut commands = Vec::new();
        let result =
            shared.exchange.lock().unwrap().notify(self.inner.key, to, bits, &mut commands);
        shared.run(commands);
        result
    }

    /// Waits for the next message or notification from anybody.
    ///
    /// # Errors
    /// None came.
    pub fn receive(&self, timeout: Duration) -> Result<Message, ReceiveError> {
        self.receive_matching(From::Any, timeout)
    }

    /// Waits for the next message or notification of one endpoint; others' stay where they are.
    ///
    /// # Errors
    /// None came, or none can come any more.
    pub fn receive_from(
        &self,
        source: &Address,
        timeout: Duration,
    ) -> Result<Message, ReceiveError> {
        self.receive_matching(From::One(*source), timeout)
    }

    /// From now on a handler takes what comes, what waits already included. It runs on the thread
    /// that delivers, one message at a time, and **must not block**: while it runs, its link reads
    /// nothing. Answers may be given later, by any thread. A handler that owns a clone of its own
    /// endpoint keeps it alive until it is closed.
    pub fn set_handler(&self, handler: impl Fn(Message) + Send + Sync + 'static) {
        let shared = &self.inner.shared;
        shared.handlers.write().unwrap().insert(self.inner.key, Arc::new(handler));
        let mut commands = Vec::new();
        shared.exchange.lock().unwrap().set_handler(self.inner.key, &mut commands);
        shared.run(commands);
    }

    /// Ends the endpoint now, for all clones: whoever waits at it or for it hears so.
    pub fn close(&self) {
        self.inner.end();
    }

    /// Figures; `None` after its end.
    #[must_use]
    pub fn statistics(&self) -> Option<EndpointStatistics> {
        self.inner.shared.exchange.lock().unwrap().endpoint_statistics(self.inner.key)
    }

    fn receive_matching(&self, from: From, timeout: Duration) -> Result<Message, ReceiveError> {
        if in_handler() {
            return Err(ReceiveError::InHandler);
        }
        let shared = &self.inner.shared;
        let deadline = shared.deadline(timeout);
        let slot = Slot::new();
        let waiter = Waiter::Receiver(Arc::clone(&slot));
        let mut commands = Vec::new();
        let waits = shared.exchange.lock().unwrap().receive(
            self.inner.key,
            from,
            deadline,
            waiter,
            &mut commands,
        );
        shared.run(commands);
        if waits.is_some() {
            shared.timer.due(deadline);
        }
        slot.wait().map(|taken| Message::new(shared, taken))
    }

    fn submission(
        &self,
        lane: Lane,
        to: &Address,
        kind: MessageKind,
        body: Vec<u8>,
        deadline: u64,
    ) -> Submission {
        Submission { source: self.inner.key, to: *to, kind, lane, body, deadline }
    }

    fn wait(
        &self,
        lane: Lane,
        to: &Address,
        kind: MessageKind,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let slot = Slot::new();
        let deadline = self.inner.shared.deadline(timeout);
        let submission = self.submission(lane, to, kind, body, deadline);
        self.submit_waiting(submission, Some(Waiter::Caller(Arc::clone(&slot))))?;
        slot.wait()
    }

    fn submit_waiting(
        &self,
        mut submission: Submission,
        mut waiter: Option<Waiter>,
    ) -> Result<(), CallError> {
        if in_handler() {
            return Err(CallError::InHandler);
        }
        let deadline = submission.deadline;
        loop {
            let Err(rejected) = self.submit(submission, waiter) else { return Ok(()) };
            let shared = &self.inner.shared;
            if !matches!(rejected.error, CallError::Busy { .. }) || shared.now() >= deadline {
                return Err(rejected.error);
            }
            (submission, waiter) = (rejected.submission, rejected.waiter);
            shared.wait_for_room(deadline);
        }
    }

    #[allow(clippy::result_large_err)] // the message goes back to be tried again
    fn submit(
        &self,
        submission: Submission,
        waiter: Option<Waiter>,
    ) -> Result<u64, Rejected<Waiter>> {
        let shared = &self.inner.shared;
        let deadline = waiter.is_some().then_some(submission.deadline);
        let room = submission.to.node == shared.config.id
            || shared.has_room(submission.to.node, submission.lane);
        let mut commands = Vec::new();
        let result =
            shared.exchange.lock().unwrap().submit(submission, waiter, room, &mut commands);
        shared.run(commands);
        if let Some(deadline) = deadline {
            shared.timer.due(deadline);
        }
        result
    }
}

/// A message that was received.
#[derive(Debug)]
pub struct Message {
    /// Who sent it; vouched for by the DVK.
    pub source: Address,
    /// How it was sent.
    pub kind: MessageKind,
    /// Its content.
    pub body: Vec<u8>,
    /// The bits of a notification; 0 otherwise.
    pub bits: u64,
    reply: Option<ReplyTo>,
}

impl Message {
    pub(crate) fn new(shared: &Arc<Shared>, taken: Taken) -> Self {
        let Taken { source, kind, body, bits, reply } = taken;
        let reply = reply.map(|token| ReplyTo { shared: Arc::clone(shared), token: Some(token) });
        Message { source, kind, body, bits, reply }
    }

    /// Answers a call. Does nothing for other kinds, or when it was answered already.
    pub fn reply(mut self, body: Vec<u8>) {
        if let Some(reply) = self.reply.take() {
            reply.reply(body);
        }
    }

    /// Takes the right to answer out, for another thread or a later time.
    pub fn take_reply(&mut self) -> Option<ReplyTo> {
        self.reply.take()
    }
}

/// The right to answer one call. Dropped without an answer, the caller hears
/// [`CallError::Dropped`].
pub struct ReplyTo {
    shared: Arc<Shared>,
    token: Option<ReplyToken>,
}

impl ReplyTo {
    /// Answers. Never blocks; a caller that is gone, or waits no longer, is no error. An answer
    /// that is too long reaches the caller as [`CallError::TooLarge`].
    pub fn reply(mut self, body: Vec<u8>) {
        self.answer(Ok(body));
    }

    /// Who waits for it.
    #[must_use]
    pub fn caller(&self) -> Option<Address> {
        self.token.map(|token| token.caller)
    }

    fn answer(&mut self, answer: Result<Vec<u8>, Status>) {
        let Some(token) = self.token.take() else { return };
        let mut commands = Vec::new();
        self.shared.exchange.lock().unwrap().reply(token, answer, &mut commands);
        self.shared.run(commands);
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.answer(Err(Status::Dropped));
    }
}

impl std::fmt::Debug for ReplyTo {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("ReplyTo").field(&self.token).finish()
    }
}
