//! Endpoints: the primitives.

use crate::cancel;
use crate::core::exchange::{EndpointStatistics, Manage};
use crate::core::inbox::{From, MessageKind, Taken};
use crate::core::rights::{Permit, Rights};
use crate::deliver::{Slot, Waiter, in_handler};
use crate::error::{CallError, ReceiveError};
use crate::ids::{Address, Lane};
use crate::message::Message;
use crate::pending::{Pending, PendingMessage};
use crate::port::{Answers, Outgoing, Port, deadline};
use std::sync::Arc;
use std::time::Duration;

/// Asking another node to manage an endpoint there takes at most so long.
const MANAGE: Duration = Duration::from_secs(10);

/// An endpoint of this process. Cheap to clone; it ends with its last clone, or by
/// [`Endpoint::close`], and its name with it.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    port: Box<dyn Port>,
    answers: Arc<dyn Answers>,
    name: Option<String>,
    /// Whether the endpoint ends with this.
    owned: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owned {
            self.port.end();
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Endpoint({}, {:?})", self.address(), self.inner.name)
    }
}

impl Endpoint {
    pub(crate) fn new(
        port: Box<dyn Port>,
        answers: Arc<dyn Answers>,
        name: Option<String>,
        owned: bool,
    ) -> Self {
        Endpoint { inner: Arc::new(Inner { port, answers, name, owned }) }
    }

    fn port(&self) -> &dyn Port {
        &*self.inner.port
    }

    /// Where it is, for others to send to.
    #[must_use]
    pub fn address(&self) -> Address {
        self.port().address()
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
    /// Nothing was sent: [`CallError::Busy`] when too many wait, others as they say. A process that
    /// is attached to its node ([`crate::attach`]) hears of the end of a destination with a later
    /// message to it.
    pub fn post(&self, to: &Address, body: Vec<u8>) -> Result<(), CallError> {
        self.post_on(Lane::Small, to, body)
    }

    /// [`Endpoint::post`] on a lane.
    ///
    /// # Errors
    /// As [`Endpoint::post`].
    pub fn post_on(&self, lane: Lane, to: &Address, body: Vec<u8>) -> Result<(), CallError> {
        let outgoing = Outgoing { to: *to, kind: MessageKind::Post, lane, body, deadline: 0 };
        self.port().begin(outgoing, None).map_err(|refused| refused.error).map(|_| ())
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
        let outgoing = Outgoing { to: *to, kind: MessageKind::Post, lane, body, deadline: 0 };
        let sent = self.port().begin(outgoing, None).map(|_| ());
        sent.map_err(|refused| (refused.error, refused.outgoing.body))
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
        let deadline = deadline(self.port().now(), timeout);
        let outgoing = Outgoing { to: *to, kind: MessageKind::Post, lane, body, deadline };
        begin_waiting(self.port(), outgoing, None).map(|_| ())
    }

    /// Rendezvous: sends a message on the small lane and waits until it was received.
    ///
    /// # Errors
    /// Not received, or (node gone, time over) not known to be.
    pub fn send(&self, to: &Address, body: Vec<u8>, timeout: Duration) -> Result<(), CallError> {
        call(self.port(), MessageKind::Send, Lane::Small, to, body, timeout).map(|_| ())
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
        self.call_on(Lane::Small, to, body, timeout)
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
        call(self.port(), MessageKind::Call, lane, to, body, timeout)
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
        let deadline = deadline(self.port().now(), timeout);
        let outgoing = Outgoing { to: *to, kind: MessageKind::Call, lane, body, deadline };
        let waiter = Waiter::Callback(Box::new(callback));
        if let Err(refused) = self.port().begin(outgoing, Some(waiter))
            && let Some(waiter) = refused.waiter
        {
            waiter.finish(Err(refused.error));
        }
    }

    /// [`Endpoint::call_on`] for async code, on any executor. The request is sent at once; a future
    /// that is dropped takes it back.
    pub fn call_async(
        &self,
        lane: Lane,
        to: &Address,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Pending<Vec<u8>> {
        self.pending(MessageKind::Call, lane, to, body, timeout)
    }

    /// [`Endpoint::send`] for async code. The answer is empty.
    pub fn send_async(&self, to: &Address, body: Vec<u8>, timeout: Duration) -> Pending<Vec<u8>> {
        self.pending(MessageKind::Send, Lane::Small, to, body, timeout)
    }

    /// [`Endpoint::receive`] for async code. A message that came before the future was dropped is
    /// lost with it; a call's sender hears that it was dropped.
    pub fn receive_async(&self, timeout: Duration) -> PendingMessage {
        self.pending_message(From::Any, timeout)
    }

    /// [`Endpoint::receive_from`] for async code, see [`Endpoint::receive_async`].
    pub fn receive_from_async(&self, source: &Address, timeout: Duration) -> PendingMessage {
        self.pending_message(From::One(*source), timeout)
    }

    fn pending(
        &self,
        kind: MessageKind,
        lane: Lane,
        to: &Address,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Pending<Vec<u8>> {
        let slot = Slot::new();
        let deadline = deadline(self.port().now(), timeout);
        let outgoing = Outgoing { to: *to, kind, lane, body, deadline };
        let waiter = Waiter::Caller(Arc::clone(&slot));
        let id = match self.port().begin(outgoing, Some(waiter)) {
            Ok(id) => Some(id),
            Err(refused) => {
                slot.fill(Err(refused.error));
                None
            }
        };
        Pending::new(self.clone(), slot, id)
    }

    fn pending_message(&self, from: From, timeout: Duration) -> PendingMessage {
        let slot = Slot::new();
        let deadline = deadline(self.port().now(), timeout);
        let waiter = Waiter::Receiver(Arc::clone(&slot));
        let id = self.port().receive(from, deadline, waiter);
        PendingMessage::new(self.clone(), slot, id)
    }

    pub(crate) fn cancel(&self, id: u64) {
        self.port().cancel(id);
    }

    pub(crate) fn message(&self, taken: Taken) -> Message {
        Message::new(Arc::clone(&self.inner.answers), taken)
    }

    /// Sets bits at the destination, which receives them together with all that were set before it
    /// looked. Never blocks.
    ///
    /// # Errors
    /// When the destination cannot be reached; whether it exists on another node is not asked.
    pub fn notify(&self, to: &Address, bits: u64) -> Result<(), CallError> {
        self.port().notify(to, bits)
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
        self.port().set_handler(Box::new(handler));
    }

    /// Says what endpoints may do with this one that are not named by [`Endpoint::grant`]. At first
    /// everybody in the container may call it, and nothing else.
    ///
    /// # Errors
    /// When the endpoint is closed.
    pub fn permit_everybody(&self, rights: Rights) -> Result<(), CallError> {
        self.manage(&self.address(), Manage::Permit(Permit::Everybody(rights)))
    }

    /// Says what one endpoint may do with this one, instead of what everybody may.
    ///
    /// # Errors
    /// [`CallError::Busy`] when too many are named; when the endpoint is closed.
    pub fn grant(&self, to: &Address, rights: Rights) -> Result<(), CallError> {
        self.manage(&self.address(), Manage::Permit(Permit::One(*to, rights)))
    }

    /// Changes the permissions of an endpoint that this one may manage, or ends it; wherever it is.
    ///
    /// # Errors
    /// [`CallError::Denied`] without [`Rights::MANAGE`]; when it cannot be reached.
    pub fn manage(&self, of: &Address, what: Manage) -> Result<(), CallError> {
        self.port().manage(of, what, MANAGE)
    }

    /// Ends the endpoint now, for all clones: whoever waits at it or for it hears so.
    pub fn close(&self) {
        self.port().end();
    }

    /// Figures; `None` after its end.
    #[must_use]
    pub fn statistics(&self) -> Option<EndpointStatistics> {
        self.port().statistics()
    }

    fn receive_matching(&self, from: From, timeout: Duration) -> Result<Message, ReceiveError> {
        if in_handler() {
            return Err(ReceiveError::InHandler);
        }
        let slot = Slot::new();
        let deadline = deadline(self.port().now(), timeout);
        let waiter = Waiter::Receiver(Arc::clone(&slot));
        let id = self.port().receive(from, deadline, waiter);
        cancel::wait(self.port(), &slot, id, || Err(ReceiveError::Cancelled))
            .map(|taken| self.message(taken))
    }
}

/// Sends a call or send, and waits for its end.
pub(crate) fn call(
    port: &dyn Port,
    kind: MessageKind,
    lane: Lane,
    to: &Address,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Vec<u8>, CallError> {
    let slot = Slot::new();
    let deadline = deadline(port.now(), timeout);
    let outgoing = Outgoing { to: *to, kind, lane, body, deadline };
    let id = begin_waiting(port, outgoing, Some(Waiter::Caller(Arc::clone(&slot))))?;
    cancel::wait(port, &slot, Some(id), || Err(CallError::Cancelled { address: *to }))
}

/// Sends, and waits for room to send if there is none.
fn begin_waiting(
    port: &dyn Port,
    mut outgoing: Outgoing,
    mut waiter: Option<Waiter>,
) -> Result<u64, CallError> {
    if in_handler() {
        return Err(CallError::InHandler);
    }
    let deadline = outgoing.deadline;
    loop {
        let refused = match port.begin(outgoing, waiter) {
            Ok(id) => return Ok(id),
            Err(refused) => refused,
        };
        if !matches!(refused.error, CallError::Busy { .. }) || port.now() >= deadline {
            return Err(refused.error);
        }
        if cancel::requested() {
            return Err(CallError::Cancelled { address: refused.outgoing.to });
        }
        (outgoing, waiter) = (refused.outgoing, refused.waiter);
        port.wait_for_room(deadline);
    }
}
