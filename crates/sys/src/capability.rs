//! Capability sets of a thread (capabilities(7)).

use crate::error::{Result, check};

/// `CAP_CHOWN`.
pub const CHOWN: u32 = 0;
/// `CAP_DAC_OVERRIDE`.
pub const DAC_OVERRIDE: u32 = 1;
/// `CAP_FOWNER`.
pub const FOWNER: u32 = 3;
/// `CAP_FSETID`.
pub const FSETID: u32 = 4;
/// `CAP_KILL`.
pub const KILL: u32 = 5;
/// `CAP_SETGID`.
pub const SETGID: u32 = 6;
/// `CAP_SETUID`.
pub const SETUID: u32 = 7;
/// `CAP_SETPCAP`.
pub const SETPCAP: u32 = 8;
/// `CAP_NET_BIND_SERVICE`.
pub const NET_BIND_SERVICE: u32 = 10;
/// `CAP_SYS_CHROOT`.
pub const SYS_CHROOT: u32 = 18;
/// `CAP_SYS_PTRACE`.
pub const SYS_PTRACE: u32 = 19;
/// `CAP_SYS_ADMIN`.
pub const SYS_ADMIN: u32 = 21;
/// `CAP_MKNOD`.
pub const MKNOD: u32 = 27;
/// `CAP_AUDIT_WRITE`.
pub const AUDIT_WRITE: u32 = 29;
/// `CAP_SETFCAP`.
pub const SETFCAP: u32 = 31;
/// The highest capability that a mask of 64 bits can hold.
pub const LAST: u32 = 63;

/// Effective, permitted and inheritable capabilities, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sets {
    /// Used in permission checks.
    pub effective: u64,
    /// Those that may be made effective.
    pub permitted: u64,
    /// Kept over exec where the file agrees.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

pub(crate) const VERSION_3: u32 = 0x2008_0522;

/// The sets of the calling thread (`capget`).
///
/// # Errors
/// None in practice.
pub fn get() -> Result<Sets> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [0_u32; 6];
    // SAFETY: version 3 writes two times three words.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    check("capget", done)?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: join(data[0], data[3]),
        permitted: join(data[1], data[4]),
        inheritable: join(data[2], data[5]),
    })
}

/// Sets the sets of the calling thread (`capset`); the cookie travels in the unused sixth argument
/// (see [`crate::untrapped`]).
///
/// # Errors
/// `EPERM` for capabilities that are not permitted.
pub fn set(sets: Sets, cookie: u64) -> Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let low = |set: u64| set as u32;
    let high = |set: u64| (set >> 32) as u32;
    let data = [
        low(sets.effective),
        low(sets.permitted),
        low(sets.inheritable),
        high(sets.effective),
        high(sets.permitted),
        high(sets.inheritable),
    ];
    // SAFETY: version 3 reads two times three words.
    let done = unsafe {
        libc::syscall(
            libc::SYS_capset,
            &raw const header,
            data.as_ptr(),
            0_u64,
            0_u64,
            0_u64,
            cookie,
        )
    };
    check("capset", done)?;
    Ok(())
}

/// Whether the bounding set of the calling thread has a capability; `false` also for numbers that the
/// kernel does not know.
#[must_use]
pub fn in_bounding_set(capability: u32) -> bool {
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0, 0, 0) == 1 }
}

/// Whether the kernel knows a capability.
fn is_known(capability: u32) -> bool {
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0, 0, 0) >= 0 }
}

/// Removes every capability that is not in `keep` from the bounding set of the calling thread.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn limit_bounding_set(keep: u64) -> Result<()> {
    for capability in (0..=LAST).take_while(|capability| is_known(*capability)) {
        if keep >> capability & 1 == 0 && in_bounding_set(capability) {
            // SAFETY: integers only.
            let done =
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0, 0, 0) };
            check("prctl(PR_CAPBSET_DROP)", i64::from(done))?;
        }
    }
    Ok(())
}

/// A mask with these capabilities.
#[must_use]
pub const fn mask(capabilities: &[u32]) -> u64 {
    let mut mask = 0;
    let mut index = 0;
    while index < capabilities.len() {
        mask |= 1 << capabilities[index];
        index += 1;
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_can_be_read_and_set_to_themselves() {
        let sets = get().unwrap();
        assert_eq!(sets.effective & !sets.permitted, 0);
        set(sets, 0).unwrap();
        assert_eq!(mask(&[CHOWN, SETFCAP]), 1 | 1 << 31);
        assert!(!in_bounding_set(LAST));
    }
}
