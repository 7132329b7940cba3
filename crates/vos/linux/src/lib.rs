//! The linux personality: unmodified programs of a DC, placed on its nodes when they execute.
//!
//! One [`Personality`] serves one (node, DC). It answers the trapped calls of its container, decides
//! at every exec where the program runs, has it prepared there under its pid, makes the caller its
//! ghost, and lets it go; the ghost then stands for it at home: its parent waits for the ghost,
//! signals reach it through the ghost, and it ends as the program ends. The decisions are pure state
//! machines in [`core`]; everything else is edge.
//!
//! | part | what it does |
//! |---|---|
//! | [`core`] | prepare and commit between home and the node that runs a program |
//! | [`image`] | what a program is, read from its caller; what makes it stay ([`Reason`]) |
//! | `supervisor` | trapped calls, conversion, ghosts, placed programs, signals, identities |
//! | [`messages`] | what the personalities of a DC say to each other |
//! | [`ports`], [`adapters`] | launcher, carrier, other nodes |
//!
//! Known gaps: resource usage of a placed program reaches `getrusage` and `times` of its ancestors, not
//! their `wait4`, `waitid` and `/proc`; nor does the core-dump flag; a carried signal shows `SI_QUEUE` where it was `SI_USER` if its sender has
//! changed its user id since it was placed; a `SIGSTOP` by `tgkill`, `pidfd_send_signal` or from the host stops the ghost alone; an
//! interval timer set before exec still fires, but the program reads it as unset; `kill(-1)` reaches
//! the programs of the node where it is called and the placed ones of these; what the programs of a
//! group do to each other through files, while its signal is on its way to all of them, is not held
//! back; `/proc` shows the processes of its own node.

#![forbid(unsafe_code)]

pub mod adapters;
pub mod core;
pub mod files;
pub mod ids;
pub mod image;
pub mod messages;
mod pool;
pub mod ports;
pub mod reason;
pub mod statistics;
mod supervisor;
pub mod traps;
pub mod tree_files;

pub use reason::Reason;
pub use statistics::Statistics;
pub use supervisor::openings::OpenCall;
pub use supervisor::peers::Reply;
pub use supervisor::programs::{Ended, Place, ProcessInfo, ProgramRef};
pub use supervisor::{Config, Parts, Personality};
