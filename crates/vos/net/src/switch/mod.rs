//! The switch: frames between the devices of a DC's nodes.
//!
//! The destination of a frame is decided by the sender's kernel, whose routes chose the hardware
//! address; the switch checks and carries. [`frame`] checks what a guest's kernel or a peer hands
//! over, [`batch`] packs frames into messages, [`queue`] bounds what waits for a slow peer.

pub mod batch;
pub mod frame;
pub mod queue;
