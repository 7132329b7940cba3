//! The client of the file-system server, on every node of a DC, and the FUSE mount on top of it.
//!
//! [`Client`] knows the protocol and nothing of FUSE: credentials, offsets and handles are explicit,
//! so that other guest systems can use it. It numbers requests, repeats them after a cut link,
//! caches names and attributes under leases, and obeys recalls. [`fuse`] turns the kernel's requests
//! into calls of the client.
//!
//! # Where coherence comes from
//! A recall must be obeyed without waiting for anything that itself waits for the server, or two
//! nodes that change the same thing wait for each other. The kernel's way to drop a *name* takes the
//! directory's lock, which every change in the directory holds until it is answered; so names are
//! cached here, and by the kernel only where the server says that there is no other node, or that
//! they can never change. Its way to drop *pages*
//! waits for locked pages, and a buffered write locks its last page until it is answered; so files
//! open for writing bypass the page cache. Attributes are dropped without waiting.

#![forbid(unsafe_code)]

pub mod attach;
pub mod cache;
pub mod client;
mod deferred;
pub mod fifo;
pub mod fuse;
pub mod hooks;
pub mod notices;
pub mod numbering;
mod settle;
pub mod transport;

pub use attach::{AttachToken, Attached, CallId, Moved, Position, RemoteDescription};
pub use client::{Client, ClientError, ClientOptions};
pub use fuse::{Mount, MountHandle, MountOptions};
pub use hooks::{Hooks, NoHooks, Opening};
pub use notices::Invalidator;
pub use transport::{FsTransport, TransportError};
