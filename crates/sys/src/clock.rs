//! Raw readings of the kernel's clocks, as the own time namespace shows them.

use std::mem::MaybeUninit;

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn monotonic() -> i64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[must_use]
pub fn boot() -> i64 {
    read(libc::CLOCK_BOOTTIME)
}

/// Nanoseconds of `CLOCK_REALTIME` since 1970.
#[must_use]
pub fn real() -> i64 {
    read(libc::CLOCK_REALTIME)
}

fn read(clock: libc::clockid_t) -> i64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the buffer is valid; the three clocks exist on every Linux, and zeroes are a valid
    // timespec should the call fail nevertheless.
    let time = unsafe {
        libc::clock_gettime(clock, time.as_mut_ptr());
        time.assume_init()
    };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[cfg(test)]
mod tests {
    #[test]
    fn clocks_do_not_go_back() {
        let before = (super::monotonic(), super::boot(), super::real());
        assert!(super::monotonic() >= before.0 && super::boot() >= before.1 && before.2 > 0);
    }
}
