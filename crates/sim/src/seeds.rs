//! Runs a scenario for many seeds and says which one failed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `scenario` with the seed in `DVS_SEED`, or with as many as `DVS_SEEDS` says (`default`
/// without it), from 0 on.
///
/// # Panics
/// When the scenario does, after printing how to repeat it.
pub fn run(name: &str, default: u64, scenario: impl Fn(u64)) {
    let number = |variable: &str| {
        let value = std::env::var(variable).ok()?;
        Some(value.parse::<u64>().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
    };
    let seeds = match number("DVS_SEED") {
        Some(seed) => seed..seed.saturating_add(1),
        None => 0..number("DVS_SEEDS").unwrap_or(default),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("{name} failed; repeat with DVS_SEED={seed} cargo test -p dvs-sim {name}");
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_failing_seed_ends_the_run() {
        if std::env::var_os("DVS_SEED").is_some() || std::env::var_os("DVS_SEEDS").is_some() {
            return; // The numbers below are those of the default.
        }
        let last = Cell::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            super::run("example", 10, |seed| {
                last.set(seed);
                assert!(seed < 3, "seed 3 fails (this panic is part of the test)");
            });
        }));
        assert!(result.is_err());
        assert_eq!(last.get(), 3);
    }
}
