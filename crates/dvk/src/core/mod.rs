//! The pure part: no I/O, clock, thread or randomness. Time is nanoseconds of the runtime's
//! monotonic clock and comes with the events, so that the simulator can run all of it.

pub mod exchange;
pub mod frame;
pub mod hello;
pub mod inbox;
pub mod lane;
pub mod link;
#[cfg(test)]
mod link_tests;
pub mod mux;
pub mod registry;
pub mod rights;

/// A map whose order of iteration is the same in every run (simulations are replayed by seed).
pub(crate) type Map<K, V> = std::collections::HashMap<
    K,
    V,
    std::hash::BuildHasherDefault<std::collections::hash_map::DefaultHasher>,
>;
