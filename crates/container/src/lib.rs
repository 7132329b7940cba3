//! One sandbox on one node.

pub mod launch;
