//! One address, one localhost and one port space over all nodes of a DC.
//!
//! Programs' connections and datagrams are the kernel's own. What is ours: the *server* at the DC's
//! home knows which socket has which port on which node; a *member* on every node asks it when a
//! program binds, listens or connects, and moves the packets whose other end is on another node
//! between the container's device and the links (the *switch*). How packets find the device is said
//! in [`dvs_container::network`].
//!
//! | part | what it does |
//! |---|---|
//! | [`core`] | the server and the members' routes, as pure state machines |
//! | [`switch`] | frames: checked, batched, queued within bounds |
//! | [`messages`] | what members and the server say to each other |
//! | [`outside`] | the way out of the DC |
//! | [`member`] | one node's part: device, sockets that go, requests for the personality |
//!
//! Known limits: IPv4, and IPv6's `::1` for sockets that take IPv4, too; a socket that was closed no
//! longer keeps its port on other nodes, also while the kernel would (`TIME_WAIT`); a fixed port in
//! the ephemeral range may be one that another node has just given to a client; connections to a
//! port that several nodes listen on (`SO_REUSEPORT`) go to a listener of the own node if there is
//! one; no broadcast or multicast between nodes.

#![forbid(unsafe_code)]

pub mod core;
pub mod member;
pub mod messages;
pub mod outside;
pub mod switch;

pub use member::{Member, MemberConfig, SendError, Sockets, Transport, Unreachable, Way};
