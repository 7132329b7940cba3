//! The file-system server: the one authority for the tree of a DC.
//!
//! - [`messages`]: the protocol between clients and the server; [`decode`]: reading it from bytes.
//! - [`core`]: who may cache what, open files, locks, repeated requests. Pure.
//! - [`tree`]: the tree itself, in memory or as a union of host folders.
//! - [`server`]: threads and time around the two.
#![forbid(unsafe_code)]

pub mod config;
pub mod core;
pub mod decode;
pub mod messages;
pub mod server;
pub mod tree;

#[cfg(test)]
mod test_random;

pub use config::{ConfigError, IdMap, Image, Share, ShareMode, TreeConfig};
pub use server::{Clock, FileServer, Notifier, ReplySink, SystemClock};
