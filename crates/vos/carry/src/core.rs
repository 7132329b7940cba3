//! The pure halves of streams: what to do next, given what happened. No descriptor, clock or thread.
//!
//! An output stream is an [`OutputSender`] away (it empties the body's pipe) and an
//! [`OutputReceiver`] at home (it fills the real one). An input stream is an [`InputSender`] at home
//! (it looks into the real pipe) and an [`InputFeeder`] away (it fills the body's pipe).

mod input;
mod output;
#[cfg(test)]
mod simulation;

pub use input::{INPUT_WINDOW, InputFeeder, InputSender, layout};
pub use output::{MAX_SLOTS, MAX_WINDOW, OutputReceiver, OutputSender};

/// A peer did what the protocol forbids (more than its credit, a total that cannot be): its stream
/// is ended, nothing it says about it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("peer broke the protocol of a stream: {0}")]
pub struct Violation(pub &'static str);
