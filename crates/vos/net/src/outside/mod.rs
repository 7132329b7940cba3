//! The way outside: packets for addresses that are not the DC's leave through this node's daemon, as
//! connections and datagrams of its own, so that no right over the host's network is needed.
//!
//! A program's connection is first made outside. Only when that has worked its SYN is given back to
//! the container's kernel, where a transparent socket of ours takes it in the name of the real
//! address; when it has not, the program gets the answer that the outside gave. So programs see true
//! addresses and true errors. Datagrams go through one socket per flow; answers are put back into
//! frames ([`packet`]).
//!
//! Nothing of the host's loopback can be reached: packets for it never come here, and both sides check.

pub mod packet;
pub mod tcp;
pub mod udp;
