//! What a kept upper layer says beside names and contents, on the files themselves, so that the next
//! server finds the union as the last one left it.
//!
//! - A name that the lower layer has and the DC has removed is a *whiteout*: a character device 0:0 by
//!   that name, as overlayfs has it (kernel documentation, `filesystems/overlayfs.rst`). No guest can
//!   make one, since no device of a guest is ever made.
//! - What an object is stands in its attribute `user.dvs.layer`, which no guest sees: the lower
//!   directory that it is merged with, its number, and the owner and mode that the daemon's user cannot
//!   give it.
//!
//! Why not a store beside the tree: a name and its mark must become durable in one order. On the files
//! themselves the host's file system sees to that, with one journal; a store beside would have to be
//! synced before each rename.

use crate::tree::Result;
use dvs_sys::hostfile::{self, Status};
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::os::fd::BorrowedFd;

/// The attribute. Names that begin with [`PREFIX`] are not for guests.
pub(super) const NAME: &CStr = c"user.dvs.layer";
/// What attributes of ours begin with.
pub(super) const PREFIX: &[u8] = b"user.dvs.";
/// Version of the encoding.
const VERSION: u8 = 1;
/// Most bytes of a mark: a path and a few numbers.
const MAX_MARK: usize = libc::PATH_MAX as usize + 64;

/// What a mark says; nothing of it must be there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Path, in the lower layer, of the directory that this one is merged with.
    pub(super) lower: Option<Vec<u8>>,
    /// The object's number, where it is not the file's own.
    pub(super) number: Option<u64>,
    /// User, group and permission bits in the DC.
    pub(super) owner: Option<(u32, u32, u32)>,
}

impl Mark {
    fn encode(&self) -> Result<Vec<u8>> {
        let body = postcard::to_stdvec(self).map_err(|_| libc::EIO)?;
        let mut bytes = vec![VERSION];
        bytes.extend(sum(&body).to_le_bytes());
        bytes.extend(body);
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Mark> {
        let (version, rest) = bytes.split_first()?;
        let (expected, body) = rest.split_first_chunk::<4>()?;
        if *version != VERSION || u32::from_le_bytes(*expected) != sum(body) {
            return None;
        }
        let (mark, rest) = postcard::take_from_bytes::<Mark>(body).ok()?;
        rest.is_empty().then_some(mark)
    }

    /// The mark of an object of a kept upper layer.
    ///
    /// # Errors
    /// `EIO`: there is one, and it makes no sense.
    pub(super) fn read(fd: BorrowedFd<'_>) -> Result<Mark> {
        match hostfile::get_xattr(fd, NAME, MAX_MARK) {
            Ok(bytes) => Mark::decode(&bytes).ok_or(libc::EIO),
            Err(error) if matches!(error.errno, libc::ENODATA | libc::EOPNOTSUPP | libc::EPERM) => {
                Ok(Mark::default())
            }
            Err(error) if error.errno == libc::ERANGE => Err(libc::EIO),
            Err(error) => Err(error.errno),
        }
    }

    /// Makes it the mark of an object; links and special files cannot have one (`EPERM`).
    pub(super) fn write(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if *self == Mark::default() {
            return match hostfile::remove_xattr(fd, NAME) {
                Err(error) if error.errno != libc::ENODATA => Err(error.errno),
                _ => Ok(()),
            };
        }
        hostfile::set_xattr(fd, NAME, &self.encode()?, 0).map_err(|error| error.errno)
    }
}

/// Whether an upper file is a whiteout.
pub(super) fn is_whiteout(status: &Status) -> bool {
    status.mode & libc::S_IFMT == libc::S_IFCHR && status.rdev == (0, 0)
}

/// FNV-1a, 32 bits: against torn and flipped bytes, not against an enemy.
fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_whole_or_not_at_all() {
        let mark = Mark {
            lower: Some(b"usr/share".to_vec()),
            number: Some(77),
            owner: Some((33, 33, 0o4755)),
        };
        let bytes = mark.encode().expect("encoded");
        assert_eq!(Mark::decode(&bytes), Some(mark));
        for length in 0..bytes.len() {
            assert_eq!(Mark::decode(&bytes[..length]), None);
        }
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            assert_eq!(Mark::decode(&wrong), None, "byte {at}");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert_eq!(Mark::decode(&longer), None);
    }
}
