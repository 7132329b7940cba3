//! Limits by cgroups, v1 or v2, whichever is mounted.
//!
//! [`plan`] is pure: from the mount table and the own cgroups it says which folders to make and which
//! texts to write where. [`Cgroups`] does it. A container's folders lie below the maker's own cgroup
//! (`dvs/NAME.PID`), so that whatever limits the maker limits the container, too.

mod live;
pub mod plan;

pub use live::{Cgroups, remove, sweep};
