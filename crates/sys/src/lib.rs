//! Raw Linux for DVS: the only crate with `unsafe` code.
//!
//! Each module wraps one part of the kernel's interface in safe types; every `unsafe` block says the
//! invariant that makes it sound. Nothing here knows what a DC is.

pub mod birth;
pub mod capability;
pub mod clock;
pub mod descriptor;
pub mod error;
pub mod features;
pub mod filelock;
pub mod flock;
pub mod fork;
pub mod fsids;
pub mod fuse;
pub mod ghost;
pub mod hostfile;
pub mod inet;
pub mod mount;
pub mod namespace;
pub mod netdevice;
pub mod netlink;
pub mod pipe;
pub mod poll;
pub mod process;
pub mod procevents;
pub mod ptrace;
pub mod seccomp;
pub mod signals;
pub mod socket;
pub mod stat;
pub mod task;
pub mod terminal;
pub mod untrapped;
