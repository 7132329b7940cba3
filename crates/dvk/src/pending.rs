//! Futures of calls, sends and receives. They need no executor of a certain kind: whoever completes
//! one wakes its task.

use crate::core::inbox::Taken;
use crate::deliver::Slot;
use crate::endpoint::Endpoint;
use crate::error::{CallError, ReceiveError};
use crate::message::Message;
use crate::port::Completion;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

type Result<T, E> = std::result::Result<T, E>;

/// Something that an endpoint waits for; given up when dropped.
struct Wait<T: Send> {
    endpoint: Endpoint,
    slot: Arc<Slot<T>>,
    id: Option<u64>,
}

impl<T: Send> Wait<T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<T> {
        // The waker first: what is filled after it was looked at must wake it.
        if !self.slot.is_complete() {
            self.slot.tell(context.waker());
        }
        match self.slot.try_take() {
            Some(value) => {
                self.id = None;
                Poll::Ready(value)
            }
            None => Poll::Pending,
        }
    }
}

impl<T: Send> Drop for Wait<T> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.endpoint.cancel(id);
        }
    }
}

/// A call or send of async code.
#[must_use = "a future that is dropped takes its request back"]
pub struct Pending<T: Send>(Wait<Result<T, CallError>>);

impl<T: Send> Pending<T> {
    pub(crate) fn new(
        endpoint: Endpoint,
        slot: Arc<Slot<Result<T, CallError>>>,
        id: Option<u64>,
    ) -> Self {
        Pending(Wait { endpoint, slot, id })
    }
}

impl<T: Send> Future for Pending<T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(context)
    }
}

impl<T: Send> std::fmt::Debug for Pending<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Pending({:?})", self.0.endpoint)
    }
}

/// A receive of async code.
#[must_use = "nothing is received when the future is dropped"]
pub struct PendingMessage(Wait<Result<Taken, ReceiveError>>);

impl PendingMessage {
    pub(crate) fn new(
        endpoint: Endpoint,
        slot: Arc<Slot<Result<Taken, ReceiveError>>>,
        id: Option<u64>,
    ) -> Self {
        PendingMessage(Wait { endpoint, slot, id })
    }
}

impl Future for PendingMessage {
    type Output = Result<Message, ReceiveError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let taken = self.0.poll(context);
        taken.map(|taken| taken.map(|taken| self.0.endpoint.message(taken)))
    }
}

impl Drop for PendingMessage {
    fn drop(&mut self) {
        if let Some(id) = self.0.id.take() {
            self.0.endpoint.cancel(id);
        }
        // What came meanwhile is answered as dropped.
        if let Some(Ok(taken)) = self.0.slot.try_take() {
            drop(self.0.endpoint.message(taken));
        }
    }
}

impl std::fmt::Debug for PendingMessage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "PendingMessage({:?})", self.0.endpoint)
    }
}
