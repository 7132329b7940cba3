//! Pages of a directory's listing.
//!
//! A listing is a snapshot that an open directory takes when it is read from its start; a cookie is the
//! place after an entry in it. So reading goes on rightly while entries are removed, as with
//! `telldir(3)`, and an entry is never seen twice.

use crate::messages::{DirectoryEntry, InodeId};

/// One entry of a snapshot: name, number, `S_IFMT` bits.
pub type Listed = (Vec<u8>, u64, u32);

/// Most entries of a snapshot; reading a larger directory fails with `EOVERFLOW`.
pub const MAX_LISTING: usize = 1 << 21;

/// Bytes that an entry takes in a FUSE reply besides its name (`struct fuse_dirent`, aligned).
const ENTRY_OVERHEAD: usize = 32;

/// Entries after a cookie, of about `bytes` bytes, at least one unless it is the end.
#[must_use]
pub fn page(listing: &[Listed], cookie: u64, bytes: u32, limit: usize) -> Vec<DirectoryEntry> {
    let start = usize::try_from(cookie).unwrap_or(usize::MAX).min(listing.len());
    let mut room = bytes as usize;
    let mut page = Vec::new();
    for (index, (name, inode, kind)) in listing.iter().enumerate().skip(start) {
        let size = name.len() + ENTRY_OVERHEAD;
        if page.len() >= limit || !page.is_empty() && size > room {
            break;
        }
        room = room.saturating_sub(size);
        page.push(DirectoryEntry {
            name: name.clone(),
            cookie: index as u64 + 1,
            inode: *inode,
            kind: *kind,
            entry: None,
        });
    }
    page
}

/// `S_IFMT` bits of a `DT_*` value.
#[must_use]
pub fn kind_of(raw: u8) -> u32 {
    u32::from(raw) << 12
}

/// The parent's number for `..`, where none is known.
#[must_use]
pub fn number_or_self(parent: Option<InodeId>, own: InodeId) -> u64 {
    parent.unwrap_or(own).number
}
