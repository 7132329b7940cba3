//! Received messages, and the right to answer them.

use crate::core::exchange::REGISTRY;
use crate::core::frame::Status;
use crate::core::inbox::{MessageKind, ReplyToken, Taken};
use crate::ids::Address;
use crate::port::Answers;
use std::sync::Arc;

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
    pub(crate) fn new(answers: Arc<dyn Answers>, taken: Taken) -> Self {
        let Taken { source, kind, body, bits, reply } = taken;
        let reply = reply.map(|token| ReplyTo { answers, token: Some(token) });
        Message { source, kind, body, bits, reply }
    }

    /// Whether this says that the endpoint, which stood by for a name, has it from now on (see
    /// [`crate::Dc::stand_by`]). Nobody but the container's registry can send it.
    #[must_use]
    pub fn is_promotion(&self) -> bool {
        self.kind == MessageKind::Notify && self.source.number == REGISTRY
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
    answers: Arc<dyn Answers>,
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
        Arc::clone(&self.answers).answer(token, answer);
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
