//! A seeded simulator of whole clusters of pure cores.
//!
//! Time is a number, the network and the failures are drawn from one seed, and nothing runs in
//! parallel: a run is the same whenever its seed is. [`world::World`] carries [`world::Actor`]s,
//! each a pure state machine of one node with what drives it; [`node::DvkNode`] is one with the
//! DVK's own cores. Checks that hold in every run are in [`invariants`], one per file.
//!
//! `DVS_SEED=n` replays one seed, `DVS_SEEDS=k` runs `k` of them; a failing seed is printed. The idea
//! is that of FoundationDB's and TigerBeetle's simulators.

#![forbid(unsafe_code)]

pub mod invariants;
pub mod node;
pub mod seeds;
pub mod world;
