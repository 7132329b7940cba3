//! The decisions of placement at exec, without any input or output: what the home of a program
//! ([`home`]) and the node that runs it ([`away`]) do on each event, and what keeps programs together that share something ([`sharing`]).
//!
//! The two sides speak a prepare-and-commit protocol: a program is prepared (held before its first
//! instruction), its caller becomes a ghost, the ghost's first report is the commit, only then the
//! program is released. Whatever is lost in between, at most one copy ever runs. The side that holds
//! something asks again or reports again until it is answered; so neither needs a timer for messages
//! that it only waits for.

pub mod away;
pub mod holds;
pub mod home;
pub mod sharing;
pub mod usage;

#[cfg(test)]
mod simulation;

use serde::{Deserialize, Serialize};

/// One attempt to place one program; unique among all lives of its home node and rising within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement(pub u64);

/// Wait status of a program that a `SIGKILL` ended.
pub const KILLED: i32 = 9;
