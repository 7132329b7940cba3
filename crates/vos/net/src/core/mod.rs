//! The server and the members' routes as pure state machines: no I/O, clock, thread or randomness.

pub mod claims;
pub mod routes;
pub mod server;
#[cfg(test)]
mod simulation;

pub use routes::{Change, Routes};
pub use server::{Command, Event, MAX_PENDING, MAX_ROUTES, MAX_SOCKETS, Server};
