//! The tree of a DC as the server sees it: a storage trait and its two implementations.
//!
//! A tree knows objects, names and open files; it knows no clients, leases or locks (those are the
//! [core](crate::core)'s). Every operation that changes something answers *what* it changed, as
//! [`Effect`]s: from them alone the core decides what must be recalled from whom.
//!
//! Operations are synchronous and may be called from many threads at once. Errors are errno values.

pub mod host;
pub mod memory;

use crate::messages::{
    AttributeChanges, Attributes, Credentials, DirectoryEntry, InodeId, MAX_NAME, Time,
};

/// Result of a tree operation; the error is an errno.
pub type Result<T> = std::result::Result<T, i32>;

/// An open file or directory of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileToken(pub u64);

/// How an object or a name can change, which decides how long it may be cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Life {
    /// Only through this server, and it is not expected to: a read-only image.
    Image,
    /// Only through this server.
    Private,
    /// Also behind the server's back: a folder that the host shares.
    Shared,
}

/// An object that was found or made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its attributes.
    pub attributes: Attributes,
    /// How it can change.
    pub life: Life,
}

/// Answer to a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looked {
    /// The object, or none by this name.
    pub found: Option<Found>,
    /// How the name can change.
    pub name_life: Life,
}

/// What an operation made stale for those that have cached it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Attributes of the object.
    Attributes(InodeId),
    /// Content and attributes of the file.
    Content(InodeId),
}

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make<'a> {
    /// Regular file, FIFO, socket or device: `S_IFMT` and permission bits, device number.
    Node(u32, u32),
    /// Directory.
    Directory(u32),
    /// Symbolic link to a target.
    Link(&'a [u8]),
}

/// Result of opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The open file.
    pub file: FileToken,
    /// State of the object after opening (and truncating).
    pub found: Found,
    /// What truncation or copying up changed.
    pub effects: Vec<Effect>,
}

/// Result of a change of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrote {
    /// Bytes taken.
    pub length: u32,
    /// Size of the file now.
    pub size: u64,
    /// Version of the content now.
    pub version: Version,
}

/// Tells two states of a file's content apart, as far as attributes can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Version {
    /// Bytes.
    pub size: u64,
    /// Last change of content.
    pub modified: Time,
    /// Last change of attributes.
    pub changed: Time,
}

impl From<&Attributes> for Version {
    fn from(a: &Attributes) -> Self {
        Version { size: a.size, modified: a.modified, changed: a.changed }
    }
}

/// What `statfs` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Block size in bytes.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub free: u64,
    /// Blocks free for ordinary users.
    pub available: u64,
    /// Files in all.
    pub files: u64,
    /// Files free.
    pub files_free: u64,
}

/// Result of a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renamed {
    /// The object that moved, if a client may know it.
    pub moved: Option<InodeId>,
    /// The object that lost the new name, or changed places (`RENAME_EXCHANGE`).
    pub other: Option<InodeId>,
}

/// Who acts, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Ids and mask in the DC.
    pub credentials: Credentials,
    /// The server's time.
    pub now: Time,
}

/// The tree of a DC.
///
/// The kernel of the client has checked permissions (`default_permissions`); a tree checks what must
/// hold whatever a client says: read-only parts, names, types.
pub trait Tree: Send + Sync {
    /// The root, always [`crate::messages::ROOT`].
    ///
    /// # Errors
    /// Errno.
    fn root(&self) -> Result<Found>;
    /// Looks a name up.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`, `ENAMETOOLONG`, `EINVAL`. An absent name is no error.
    fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Looked>;
    /// Attributes of an object.
    ///
    /// # Errors
    /// `ESTALE`.
    fn attributes(&self, inode: InodeId) -> Result<Found>;
    /// Changes attributes.
    ///
    /// # Errors
    /// Errno.
    fn set_attributes(
        &self,
        caller: &Caller,
        inode: InodeId,
        file: Option<FileToken>,
        changes: &AttributeChanges,
    ) -> Result<Found>;
    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL`.
    fn read_link(&self, inode: InodeId) -> Result<Vec<u8>>;
    /// Makes an object.
    ///
    /// # Errors
    /// `EEXIST`, `EPERM` for device nodes, errno.
    fn make(&self, caller: &Caller, parent: InodeId, name: &[u8], what: Make<'_>) -> Result<Found>;
    /// Gives an object a second name.
    ///
    /// # Errors
    /// `EXDEV`, `EPERM`, errno.
    fn link(&self, caller: &Caller, inode: InodeId, parent: InodeId, name: &[u8]) -> Result<Found>;
    /// Removes the name of what is no directory; answers the object if a client may know it.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, errno.
    fn unlink(&self, caller: &Caller, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>>;
    /// Removes an empty directory; answers the object if a client may know it.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EBUSY`, errno.
    fn remove_directory(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Option<InodeId>>;
    /// Renames.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `EXDEV`, `ENOTEMPTY`, errno.
    fn rename(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<Renamed>;
    /// Opens a regular file or a directory.
    ///
    /// # Errors
    /// `EISDIR`, `ENXIO` for special files, `EROFS`, errno.
    fn open(&self, caller: &Caller, inode: InodeId, flags: u32) -> Result<Opened>;
    /// Makes and opens a regular file; with `O_EXCL` off an existing one is opened.
    ///
    /// # Errors
    /// As [`Tree::make`] and [`Tree::open`].
    fn create(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
    ) -> Result<Opened>;
    /// Makes and opens a file without a name.
    ///
    /// # Errors
    /// Errno.
    fn create_unnamed(
        &self,
        caller: &Caller,
        parent: InodeId,
        mode: u32,
        flags: u32,
    ) -> Result<Opened>;
    /// Reads; short only at the end of the file.
    ///
    /// # Errors
    /// `EBADF`, errno.
    fn read(&self, file: FileToken, offset: u64, length: u32) -> Result<Vec<u8>>;
    /// Writes at the offset, or at the end (`None`).
    ///
    /// # Errors
    /// `EBADF`, `ENOSPC`, `EFBIG`, errno.
    fn write(
        &self,
        caller: &Caller,
        file: FileToken,
        offset: Option<u64>,
        kill_privileges: bool,
        data: &[u8],
    ) -> Result<Wrote>;
    /// Puts content (and attributes) on stable storage.
    ///
    /// # Errors
    /// Errno.
    fn sync(&self, file: FileToken, data_only: bool) -> Result<()>;
    /// `fallocate`.
    ///
    /// # Errors
    /// Errno.
    fn allocate(
        &self,
        caller: &Caller,
        file: FileToken,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()>;
    /// `SEEK_DATA`, `SEEK_HOLE`.
    ///
    /// # Errors
    /// `ENXIO`, `EINVAL`.
    fn seek(&self, file: FileToken, offset: u64, whence: u32) -> Result<u64>;
    /// `copy_file_range`.
    ///
    /// # Errors
    /// Errno.
    fn copy_range(
        &self,
        caller: &Caller,
        from: (FileToken, u64),
        to: (FileToken, u64),
        length: u64,
    ) -> Result<Wrote>;
    /// Entries of an open directory after a cookie, `.` and `..` first, of about `bytes` bytes of names;
    /// empty at the end. Entries of the answer carry no [`DirectoryEntry::entry`].
    ///
    /// # Errors
    /// `ENOTDIR`, errno.
    fn read_directory(
        &self,
        file: FileToken,
        cookie: u64,
        bytes: u32,
    ) -> Result<Vec<DirectoryEntry>>;
    /// Closes. Unknown tokens are ignored.
    fn close(&self, file: FileToken);
    /// What `statfs` shows.
    ///
    /// # Errors
    /// Errno.
    fn capacity(&self, inode: InodeId) -> Result<Capacity>;
    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`, `EOPNOTSUPP`.
    fn get_xattr(&self, inode: InodeId, name: &[u8]) -> Result<Vec<u8>>;
    /// Names of the extended attributes, each ended by NUL.
    ///
    /// # Errors
    /// Errno.
    fn list_xattrs(&self, inode: InodeId) -> Result<Vec<u8>>;
    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA`, `EOPNOTSUPP`, `EPERM`.
    fn set_xattr(&self, inode: InodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()>;
    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`, `EOPNOTSUPP`, `EPERM`.
    fn remove_xattr(&self, inode: InodeId, name: &[u8]) -> Result<()>;
    /// References to the object end: one for each time that [`Tree::lookup`], [`Tree::make`],
    /// [`Tree::link`], [`Tree::create`] or [`Tree::create_unnamed`] answered it. Without references an
    /// object's number need not be known until it is looked up again.
    fn forget(&self, inode: InodeId, references: u64);
    /// Whether opening for writing or changing the object can take long (a large copy), so that it
    /// belongs on a thread that may wait.
    fn is_slow_to_change(&self, _inode: InodeId) -> bool {
        false
    }
}

/// Checks a name that a client sent.
///
/// # Errors
/// `EINVAL` for an empty name and for one with `/` or NUL, `ENAMETOOLONG`; `EEXIST` for `.` and `..`,
/// which every directory has.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(libc::EINVAL);
    }
    if name == b"." || name == b".." {
        return Err(libc::EEXIST);
    }
    if name.len() > MAX_NAME {
        return Err(libc::ENAMETOOLONG);
    }
    Ok(())
}

/// Mode after set-uid and set-gid are cleared as a write of an ordinary user does: set-gid only with
/// the group's execute bit (otherwise it once meant mandatory locks), never for directories.
#[must_use]
pub fn without_privileges(mode: u32) -> u32 {
    if mode & libc::S_IFMT == libc::S_IFDIR {
        return mode;
    }
    let mut mode = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        mode &= !libc::S_ISGID;
    }
    mode
}
