//! The linux personality.

#![forbid(unsafe_code)]

pub mod core;
