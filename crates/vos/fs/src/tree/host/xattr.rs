//! Which extended attributes a DC sees.
//!
//! `user.*` and `security.capability` (file capabilities, which work in the DC's user namespace only).
//! Everything else is not supported, as on a file system without it: `trusted.*` belongs to the host's
//! root, `system.posix_acl_*` would need checks that the client's kernel does not make, `user.dvs.*` is the
//! server's own.

use crate::tree::Result;

/// File capabilities.
pub const CAPABILITY: &[u8] = b"security.capability";
/// Longest name (`XATTR_NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Checks a name.
///
/// # Errors
/// `EOPNOTSUPP`, `ERANGE`, `EINVAL`.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(libc::ERANGE);
    }
    if name.contains(&0) || name == b"user." {
        return Err(libc::EINVAL);
    }
    if is_shown(name) { Ok(()) } else { Err(libc::EOPNOTSUPP) }
}

/// Whether a name is in a list.
#[must_use]
pub fn is_shown(name: &[u8]) -> bool {
    name == CAPABILITY
        || name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty())
            && !name.starts_with(super::marks::PREFIX)
}
