//! Tools of the tests that drive the `dvs` command from outside: cases compared with native, a
//! census of what ran on which node, and a check that nothing is left behind.
#![forbid(unsafe_code)]

pub mod case;
pub mod census;
pub mod command;
pub mod compare;
pub mod descend;
pub mod machine;
pub mod observe;
pub mod tree;
