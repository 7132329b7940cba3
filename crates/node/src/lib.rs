//! The daemon of one node, and the way the command line speaks to it.
//!
//! A node hosts parts of distributed containers (DCs). The node on which a DC was made is its home:
//! its file-system server and process manager run there; every node of the DC has a sandbox, a
//! file-system client, a personality and the carriers of descriptors. All of them speak over the
//! DVK's endpoints.

#![forbid(unsafe_code)]

pub mod client;
pub mod cluster;
mod control;
pub mod daemon;
mod dc;
mod detached;
mod events;
pub mod folders;
mod host;
mod hosts;
pub mod journal;
mod machine;
mod managed;
pub mod managing;
pub mod membership;
pub mod names;
pub mod protocol;
mod streams;
pub mod uplink;
mod warm;
pub mod wire;
