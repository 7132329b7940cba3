//! Process manager of a DC: which nodes take part, whose pids are whose, where a program runs.
//!
//! Pure: events in, commands out; time comes with the events. One authority per DC ([`core::Manager`],
//! on the home node); every node keeps a [`placement::Placement`] of its own, so that a decision at
//! exec costs no message.

#![forbid(unsafe_code)]

pub mod blocks;
pub mod core;
pub mod messages;
pub mod placement;
