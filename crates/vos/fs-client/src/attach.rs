//! Attached descriptions: open file descriptions that live on another node.
//!
//! A placed program inherits descriptors whose offset it shares with programs at home. For each, the
//! client gives a name that cannot be guessed; the launcher's child opens it, once, at the tree's
//! root, before it becomes the program. Its reads and writes are then done at home, on the
//! description itself, so that offset and `O_APPEND` are shared exactly.
//!
//! The kernel here has an offset of its own and sends it with each request. Where it is the one that
//! sequential use must have led to, the request means "at the shared offset"; anything else means
//! that the program has sought, and moves the shared offset too. (`pread` cannot be told from a seek
//! and a read: the data are right, but the shared offset moves.)

use dvs_fs::messages::{Attributes, InodeId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the names of attached descriptions begin with.
pub const NAME_PREFIX: &str = ".dvs-attached-";
/// Most descriptions that wait to be opened.
pub const MAX_WAITING: usize = 4096;
/// How long a name waits to be opened.
pub const NAME_LIFE: Duration = Duration::from_secs(60);

/// Names one call on a description, for [`RemoteDescription::interrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Where to read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// At the shared offset (at the end, for `O_APPEND`).
    Sequential,
    /// There; the shared offset is afterwards behind it.
    At(u64),
}

/// What a read or write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved<T> {
    /// The bytes, or their number.
    pub what: T,
    /// The shared offset afterwards.
    pub position: u64,
}

/// An open file description on another node. Errors are errno values, positive.
pub trait RemoteDescription: Send + Sync {
    /// Reads at most `length` bytes. May block until [`Self::interrupt`] names `call`; then `EINTR`.
    ///
    /// # Errors
    /// errno.
    fn read(&self, call: CallId, position: Position, length: u32) -> Result<Moved<Vec<u8>>, i32>;

    /// Writes. May block until [`Self::interrupt`] names `call`; then `EINTR`.
    ///
    /// # Errors
    /// errno.
    fn write(&self, call: CallId, position: Position, data: &[u8]) -> Result<Moved<u32>, i32>;

    /// The local file's own offset after a read or write that the kernel will be told of next; unless
    /// the program seeks, it stays there until the next one.
    fn local_offset(&self, offset: u64) {
        let _ = offset;
    }

    /// Its attributes, asked for where it is outside the tree.
    ///
    /// # Errors
    /// errno.
    fn attributes(&self) -> Result<Attributes, i32>;

    /// `ftruncate`, where it is outside the tree.
    ///
    /// # Errors
    /// errno; `EINVAL` unless implemented.
    fn set_size(&self, size: u64) -> Result<(), i32> {
        let _ = size;
        Err(libc::EINVAL)
    }

    /// `fsync`.
    ///
    /// # Errors
    /// errno.
    fn synchronize(&self, data_only: bool) -> Result<(), i32> {
        let _ = data_only;
        Ok(())
    }

    /// `flock`: belongs to the description, wherever it is. `operation` is one of `LOCK_SH`,
    /// `LOCK_EX`, `LOCK_UN`, with `LOCK_NB`.
    ///
    /// # Errors
    /// errno; `ENOLCK` unless implemented.
    fn flock(&self, call: CallId, operation: i32) -> Result<(), i32> {
        let _ = (call, operation);
        Err(libc::ENOLCK)
    }

    /// The call is no longer wanted. May come before the call itself, or after it.
    fn interrupt(&self, call: CallId);

    /// The last descriptor here was closed, or the name was never opened.
    fn closed(&self);
}

/// What an attached description looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Its file, where that is in the tree.
    pub inode: Option<InodeId>,
    /// Its flags at home (`O_ACCMODE`, `O_APPEND`, ...).
    pub flags: u32,
    /// The offset that its opener will seek to before the first read or write: the shared offset.
    pub position: u64,
}

/// Permission to open an attached description once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachToken {
    name: String,
}

impl AttachToken {
    fn new(number: u128) -> AttachToken {
        AttachToken { name: format!("{NAME_PREFIX}{number:032x}") }
    }

    /// The name in the tree's root directory.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path to open.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }
}

/// A description that waits to be opened.
#[derive(Clone)]
pub(crate) struct Waiting {
    pub(crate) description: Arc<dyn RemoteDescription>,
    pub(crate) like: Attached,
    since: Instant,
}

impl Waiting {
    /// How long ago its name was given.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }
}

/// Those that wait, by name.
#[derive(Default)]
pub(crate) struct WaitingTable(HashMap<Vec<u8>, Waiting>);

impl WaitingTable {
    /// Gives a name; the second part are descriptions whose time is over, to be closed.
    pub(crate) fn add(
        &mut self,
        description: Arc<dyn RemoteDescription>,
        like: Attached,
        now: Instant,
        random: u128,
    ) -> (Result<AttachToken, i32>, Vec<Waiting>) {
        let over: Vec<Vec<u8>> = self
            .0
            .iter()
            .filter(|(_, waiting)| waiting.age(now) >= NAME_LIFE)
            .map(|(name, _)| name.clone())
            .collect();
        let over = over.iter().filter_map(|name| self.0.remove(name)).collect();
        if self.0.len() >= MAX_WAITING {
            return (Err(libc::ENFILE), over);
        }
        let token = AttachToken::new(random);
        let waiting = Waiting { description, like, since: now };
        self.0.insert(token.name.clone().into_bytes(), waiting);
        (Ok(token), over)
    }

    /// Takes the description of a name, if its time is not over.
    pub(crate) fn take(&mut self, name: &[u8], now: Instant) -> Option<Waiting> {
        if self.0.get(name)?.age(now) >= NAME_LIFE {
            return None;
        }
        self.0.remove(name)
    }

    /// Takes the description of a name, whether or not its time is over.
    pub(crate) fn remove(&mut self, token: &AttachToken) -> Option<Waiting> {
        self.0.remove(token.name.as_bytes())
    }
}

/// Where the local file's offset must be if the program did not seek. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalOffset(u64);

impl LocalOffset {
    pub(crate) fn new(position: u64) -> LocalOffset {
        LocalOffset(position)
    }

    /// What a request at the kernel's `offset` means.
    pub(crate) fn position(self, offset: u64) -> Position {
        if offset == self.0 { Position::Sequential } else { Position::At(offset) }
    }

    /// The kernel has advanced its offset by `count` bytes from `offset`; where it is now.
    pub(crate) fn advance(&mut self, offset: u64, count: u64) -> u64 {
        self.0 = offset.saturating_add(count);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl RemoteDescription for Nothing {
        fn read(&self, _: CallId, _: Position, _: u32) -> Result<Moved<Vec<u8>>, i32> {
            Err(libc::EIO)
        }
        fn write(&self, _: CallId, _: Position, _: &[u8]) -> Result<Moved<u32>, i32> {
            Err(libc::EIO)
        }
        fn attributes(&self) -> Result<Attributes, i32> {
            Err(libc::EIO)
        }
        fn interrupt(&self, _: CallId) {}
        fn closed(&self) {}
    }

    const LIKE: Attached = Attached { inode: None, flags: 0, position: 0 };

    #[test]
    fn a_name_is_good_once_and_for_a_time() {
        let mut table = WaitingTable::default();
        let start = Instant::now();
        let token = table.add(Arc::new(Nothing), LIKE, start, 0xabc).0.unwrap();
        assert_eq!(token.path(), "/.dvs-attached-00000000000000000000000000000abc");
        assert!(table.take(b".dvs-attached-", start).is_none());
        assert!(table.take(token.name().as_bytes(), start).is_some());
        assert!(table.take(token.name().as_bytes(), start).is_none());
        let late = table.add(Arc::new(Nothing), LIKE, start, 1).0.unwrap();
        let end = start + NAME_LIFE;
        assert!(table.take(late.name().as_bytes(), end).is_none());
        let (_, over) = table.add(Arc::new(Nothing), LIKE, end, 2);
        assert_eq!(over.len(), 1);
    }

    #[test]
    fn waiting_names_are_bounded() {
        let mut table = WaitingTable::default();
        let now = Instant::now();
        for number in 0..MAX_WAITING as u128 {
            table.add(Arc::new(Nothing), LIKE, now, number).0.unwrap();
        }
        assert_eq!(table.add(Arc::new(Nothing), LIKE, now, 1 << 100).0, Err(libc::ENFILE));
    }

    #[test]
    fn sequential_use_is_told_from_seeking() {
        let mut offset = LocalOffset::new(100);
        assert_eq!(offset.position(100), Position::Sequential);
        offset.advance(100, 20);
        assert_eq!(offset.position(120), Position::Sequential);
        assert_eq!(offset.position(0), Position::At(0));
        offset.advance(0, 5);
        assert_eq!(offset.position(5), Position::Sequential);
    }
}
