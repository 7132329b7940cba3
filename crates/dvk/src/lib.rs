//! The distributed virtualization kernel: endpoints and messages that do not care where they are.
//!
//! An endpoint lives in one distributed container (DC) and is found there by name. Whoever has its
//! [`Address`] can send to it, from the same process or from another node; nothing crosses from one
//! container to another. The vocabulary and the primitives are those of M3-IPC (Pessolani, *An
//! Architecture Model for a Distributed Virtualization System*).
//!
//! | primitive | |
//! |---|---|
//! | [`Endpoint::post`] | nobody waits; bounded, says `Busy` instead of blocking |
//! | [`Endpoint::send`] | rendezvous: returns when the message was received |
//! | [`Endpoint::call`] | send and wait for the answer (sendrec); [`Endpoint::call_with`] calls back |
//! | [`Endpoint::notify`] | sets bits at the destination; idempotent, never blocks |
//! | [`Endpoint::receive`] | from anybody or one; pending notifications first |
//! | [`Endpoint::set_handler`] | instead of `receive`: runs on the thread that delivers |
//! | [`Message::reply`] | answers a call; never blocks on a dead or slow client |
//! | [`Dc::bind`], [`Dc::bind_as`], [`Dc::resolve`] | names; endpoints that stand by for one |
//! | [`Endpoint::grant`], [`Endpoint::manage`] | who may call, copy, manage |
//!
//! Whatever waits has a deadline, can be cancelled ([`Cancellation`]) and has an async form
//! ([`Endpoint::call_async`], [`Endpoint::receive_async`], ...).
//!
//! # Promises
//! - Messages of one pair of endpoints on one [`Lane`] arrive in order, each once, as long as both
//!   nodes live; a cut and restored link loses, doubles and reorders nothing.
//! - When a node dies, calls to it fail with [`CallError::NodeGone`]. A life of a node that was
//!   given up cannot come back.
//! - Every wait has a deadline, every queue a bound.
//! - The source of a message is vouched for by the DVK.
//!
//! The protocols are pure state machines in [`core`]; the rest drives them with threads and sockets.

#![forbid(unsafe_code)]

mod batch;
mod cancel;
pub mod core;
mod dc;
mod deliver;
mod dial;
mod endpoint;
mod error;
mod here;
mod ids;
mod listen;
mod message;
pub mod mux;
mod node;
mod peer;
mod pending;
mod port;
mod service;
mod stream;
mod timer;
pub mod tls;
pub mod typed;

pub use crate::core::exchange::{EndpointStatistics, ExchangeStatistics, Manage};
pub use crate::core::frame::MAX_MESSAGE;
pub use crate::core::inbox::MessageKind;
pub use crate::core::link::{DownReason, LaneStatistics};
pub use crate::core::registry::Role;
pub use crate::core::rights::{Permit, Rights};
pub use batch::batched;
pub use cancel::Cancellation;
pub use dc::Dc;
pub use dial::{Connector, LinkAddress};
pub use endpoint::Endpoint;
pub use error::{CallError, ConnectError, NameError, ReceiveError};
pub use ids::{Address, DcId, Lane, NodeId};
pub use message::{Message, ReplyTo};
pub use node::{HostTimes, MAX_PEERS, Node, NodeConfig, NodeEvent};
pub use pending::{Pending, PendingMessage};
