//! The kernel's side of FUSE: `/dev/fuse`, the requests it gives and the replies it takes.
//!
//! Protocol 7.31 to 7.45 (`include/uapi/linux/fuse.h`). Requests are decoded with every length
//! checked, although the kernel sends them; no structure is overlaid on bytes. [`device`] is the
//! only part that makes system calls.

pub mod abi;
pub mod device;
pub mod reply;
pub mod request;

pub use device::Device;
pub use request::{Header, Operation, Request};
