//! Replies to the kernel, encoded field by field as `fuse.h` lays them out.

use super::abi::REPLY_HEADER;
use super::request::FileLock;
use std::time::Duration;

/// A point in time: seconds since the epoch, nanoseconds.
pub type Time = (i64, u32);

/// `struct fuse_attr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the fields of stat(2)")]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub block_size: u32,
}

/// `struct fuse_entry_out`. Node 0: the name does not exist (and may be kept for `name_valid`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// Node id.
    pub node: u64,
    /// Generation.
    pub generation: u64,
    /// How long the name may be kept.
    pub name_valid: Duration,
    /// How long the attributes may be kept.
    pub attr_valid: Duration,
    /// Attributes.
    pub attr: Attr,
}

/// What INIT is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Init {
    /// Minor version agreed on.
    pub minor: u32,
    /// Most bytes of read-ahead.
    pub max_readahead: u32,
    /// Flags agreed on (`abi::init`).
    pub flags: u64,
    /// Most requests in the background.
    pub max_background: u16,
    /// From how many the device counts as congested.
    pub congestion_threshold: u16,
    /// Most bytes of one write.
    pub max_write: u32,
    /// Most pages of one request.
    pub max_pages: u16,
}

/// `struct fuse_kstatfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the fields of statfs(2)")]
pub struct StatFs {
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub name_length: u32,
}

/// Bytes of a reply's body, reused from one request to the next.
#[derive(Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    /// An empty one.
    #[must_use]
    pub fn new() -> Body {
        Body::default()
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Cuts it down to `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a number.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_ne_bytes())
    }

    /// Appends a number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_ne_bytes())
    }

    /// Appends a number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_ne_bytes())
    }

    /// `struct fuse_attr`, 88 bytes.
    pub fn attr(&mut self, a: &Attr) -> &mut Self {
        self.u64(a.ino).u64(a.size).u64(a.blocks);
        for (seconds, _) in [a.accessed, a.modified, a.changed] {
            self.u64(seconds.cast_unsigned());
        }
        for (_, nanoseconds) in [a.accessed, a.modified, a.changed] {
            self.u32(nanoseconds);
        }
        self.u32(a.mode).u32(a.links).u32(a.uid).u32(a.gid).u32(a.rdev);
        self.u32(a.block_size).u32(0)
    }

    /// `struct fuse_attr_out`, 104 bytes.
    pub fn attr_out(&mut self, valid: Duration, attr: &Attr) -> &mut Self {
        self.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0).attr(attr)
    }

    /// `struct fuse_entry_out`, 128 bytes.
    pub fn entry(&mut self, e: &Entry) -> &mut Self {
        self.u64(e.node).u64(e.generation);
        self.u64(e.name_valid.as_secs()).u64(e.attr_valid.as_secs());
        self.u32(e.name_valid.subsec_nanos()).u32(e.attr_valid.subsec_nanos());
        self.attr(&e.attr)
    }

    /// `struct fuse_open_out`, 16 bytes.
    pub fn open(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    /// `struct fuse_write_out`, `fuse_getxattr_out`: a number and padding.
    pub fn size(&mut self, value: u32) -> &mut Self {
        self.u32(value).u32(0)
    }

    /// `struct fuse_lk_out`.
    pub fn lock(&mut self, lock: &FileLock) -> &mut Self {
        self.u64(lock.start).u64(lock.end).u32(lock.kind).u32(lock.pid)
    }

    /// `struct fuse_statfs_out`, 80 bytes.
    pub fn statfs(&mut self, s: &StatFs) -> &mut Self {
        self.u64(s.blocks).u64(s.free).u64(s.available).u64(s.files).u64(s.files_free);
        self.u32(s.block_size).u32(s.name_length).u32(s.block_size).u32(0);
        self.raw(&[0; 24])
    }

    /// `struct fuse_init_out`, 64 bytes.
    pub fn init(&mut self, i: &Init) -> &mut Self {
        // The second word has the upper half of the flags; granularity of times is 1 ns.
        let low = (i.flags & u64::from(u32::MAX)) as u32;
        let high = (i.flags >> 32) as u32;
        self.u32(super::abi::MAJOR).u32(i.minor).u32(i.max_readahead).u32(low);
        self.u16(i.max_background).u16(i.congestion_threshold).u32(i.max_write).u32(1);
        self.u16(i.max_pages).u16(0).u32(high);
        self.raw(&[0; 28])
    }

    /// `struct fuse_dirent`, with the entry of READDIRPLUS before it where there is one. False: the
    /// record does not fit into `limit` bytes, and nothing was appended.
    #[must_use]
    pub fn dirent(
        &mut self,
        limit: usize,
        entry: Option<&Entry>,
        (ino, cookie, kind): (u64, u64, u32),
        name: &[u8],
    ) -> bool {
        let record = (24 + name.len()).next_multiple_of(8);
        let whole = record + if entry.is_some() { 128 } else { 0 };
        if self.0.len() + whole > limit {
            return false;
        }
        if let Some(entry) = entry {
            self.entry(entry);
        }
        let end = self.0.len() + record;
        self.u64(ino).u64(cookie);
        self.u32(u32::try_from(name.len()).unwrap_or(u32::MAX)).u32((kind & 0o170_000) >> 12);
        self.raw(name);
        self.0.resize(end, 0);
        true
    }
}

/// `struct fuse_out_header` for a body of `length` bytes; `errno` is positive, 0 for success.
#[must_use]
pub fn header(unique: u64, errno: i32, length: usize) -> [u8; REPLY_HEADER] {
    let mut bytes = [0; REPLY_HEADER];
    let whole = u32::try_from(REPLY_HEADER + length).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&whole.to_ne_bytes());
    bytes[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_header_file() {
        let attr = Attr::default();
        assert_eq!(Body::new().attr(&attr).len(), 88);
        assert_eq!(Body::new().attr_out(Duration::ZERO, &attr).len(), 104);
        assert_eq!(Body::new().entry(&Entry::default()).len(), 128);
        assert_eq!(Body::new().init(&Init::default()).len(), 64);
        assert_eq!(Body::new().statfs(&StatFs::default()).len(), 80);
        assert_eq!(Body::new().open(1, 2).len(), 16);
    }

    #[test]
    fn a_directory_record_is_padded_and_bounded() {
        let mut body = Body::new();
        assert!(body.dirent(32, None, (1, 1, 0o040_000), b"abc"));
        assert_eq!(body.len(), 32);
        assert_eq!(&body.bytes()[16..24], &[3, 0, 0, 0, 4, 0, 0, 0]);
        assert!(!body.dirent(63, None, (1, 1, 0), b"abc"));
        assert_eq!(body.len(), 32);
        assert!(body.dirent(32 + 160, Some(&Entry::default()), (1, 1, 0), b"abcdefgh"));
        assert_eq!(body.len(), 192);
    }

    #[test]
    fn an_errno_is_sent_negative() {
        assert_eq!(header(9, 2, 0)[..8], [16, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
    }
}
