//! One sandbox on one node: namespaces, cgroups, filter, root, keeper, launcher.
//!
//! [`Container::start`] runs a keeper (see [`keeper`]), which builds the container; [`Prepared`] has one
//! ready before it is wanted. [`Launcher`] starts programs in it; [`Container::end`] leaves nothing
//! behind. What confines a guest is the kernel's:
//! namespaces, capabilities, cgroups and the filter's denials ([`filter`]); traps are for semantics.

#![forbid(unsafe_code)]

pub mod cgroup;
mod container;
pub mod filter;
pub mod frame;
mod handle;
pub mod keeper;
pub mod launch;
pub mod launcher;
pub mod messages;
pub mod network;
pub mod pids;
mod prepared;
pub mod spec;

pub use container::{Container, EndError, KeeperProgram, StartError};
pub use handle::{
    ContainerEvent, EventSink, LAUNCH_TIMEOUT, LaunchError, Launched, Launcher, REQUEST_TIMEOUT,
};
pub use network::{DcNetwork, Handles as NetworkHandles};
pub use prepared::Prepared;
pub use spec::{ClockOffsets, ContainerSpec, IdMapping, Limits, Network, RootSpec};
