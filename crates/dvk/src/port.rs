//! What an endpoint needs of its carrier: the exchange of this process ([`crate::here`]), or a ring
//! to the node's daemon ([`crate::process`]). Everything else of the primitives is built on it.

use crate::core::exchange::{EndpointStatistics, Manage};
use crate::core::frame::Status;
use crate::core::inbox::{From, MessageKind, ReplyToken};
use crate::deliver::{Handler, Waiter};
use crate::error::CallError;
use crate::ids::{Address, Lane};
use std::task::Waker;
use std::time::Duration;

/// A message that is to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) to: Address,
    pub(crate) kind: MessageKind,
    pub(crate) lane: Lane,
    pub(crate) body: Vec<u8>,
    /// When a call or send is given up, on the port's clock.
    pub(crate) deadline: u64,
}

/// A message that was not taken, to be tried again.
pub(crate) struct Refused {
    pub(crate) error: CallError,
    pub(crate) outgoing: Outgoing,
    pub(crate) waiter: Option<Waiter>,
}

/// Something that another thread completes.
pub(crate) trait Completion: Sync {
    fn is_complete(&self) -> bool;
    /// Blocks until it is complete.
    fn block(&self);
    /// Whom to wake when it is complete, instead of whom was named before.
    fn tell(&self, waker: &Waker);
}

/// One endpoint on its carrier.
pub(crate) trait Port: Send + Sync {
    fn address(&self) -> Address;

    /// Nanoseconds of the port's clock.
    fn now(&self) -> u64;

    /// Sends; never blocks. A number for [`Port::cancel`] if there is a waiter.
    #[allow(clippy::result_large_err)] // the message goes back to be tried again
    fn begin(&self, outgoing: Outgoing, waiter: Option<Waiter>) -> Result<u64, Refused>;

    /// Waits until a refused message may fit; returns early now and then.
    fn wait_for_room(&self, deadline: u64);

    fn notify(&self, to: &Address, bits: u64) -> Result<(), CallError>;

    /// Receives. The number of a wait that can be cancelled, if it waits.
    fn receive(&self, from: From, deadline: u64, waiter: Waiter) -> Option<u64>;

    /// Ends a wait, whose waiter hears so.
    fn cancel(&self, id: u64);

    /// Blocks until something that this port completes is there.
    fn block(&self, on: &dyn Completion);

    fn set_handler(&self, handler: Box<Handler>);

    /// Does something to an endpoint that this one may manage.
    fn manage(&self, of: &Address, what: Manage, timeout: Duration) -> Result<(), CallError>;

    fn statistics(&self) -> Option<EndpointStatistics>;

    /// The endpoint ends.
    fn end(&self);
}

/// Where answers to received calls go.
pub(crate) trait Answers: Send + Sync {
    fn answer(self: std::sync::Arc<Self>, token: ReplyToken, answer: Result<Vec<u8>, Status>);
}

/// A deadline on a clock.
pub(crate) fn deadline(now: u64, timeout: Duration) -> u64 {
    now.saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
}
