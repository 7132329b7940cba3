//! Random numbers of the tests: seeded, the seed is printed, `DVS_SEED` replays it.

/// The xorshift64* generator.
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by `DVS_SEED`, or anew; the seed is printed for a failing test to show.
    pub(crate) fn from_environment(name: &str) -> Self {
        let seed = std::env::var("DVS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| dvs_sys::clock::real() as u64);
        println!("{name}: DVS_SEED={seed}");
        Random::new(seed)
    }

    /// With this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 8
    }

    /// A number below the limit.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True in this many of a hundred cases.
    pub(crate) fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }
}
