//! Numbers of the protocol, as `include/uapi/linux/fuse.h` gives them.

/// Major version; never changed since 2005.
pub const MAJOR: u32 = 7;
/// Lowest minor version served: Linux 5.4; setattr, write and init have today's sizes.
pub const MIN_MINOR: u32 = 31;
/// Highest minor version known here.
pub const MAX_MINOR: u32 = 45;
/// The root directory's node id.
pub const ROOT_ID: u64 = 1;
/// Bytes of a request's header.
pub const HEADER: usize = 40;
/// Bytes of a reply's header.
pub const REPLY_HEADER: usize = 16;
/// Least bytes of a read buffer.
pub const MIN_READ_BUFFER: usize = 8192;

/// Flags of INIT.
pub mod init {
    /// Several reads of one file at a time.
    pub const ASYNC_READ: u64 = 1;
    /// `fcntl` locks are decided by the server.
    pub const POSIX_LOCKS: u64 = 1 << 1;
    /// OPEN truncates where it says `O_TRUNC`.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// Writes of more than a page.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// `flock` is decided by the server.
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    /// Cached pages are dropped when size or modification time changed.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// READDIRPLUS only where it helps.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct reads and writes in parallel pieces.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// Parallel lookups and listings in one directory.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// Reads of the device give `ECONNABORTED` after an abort.
    pub const ABORT_ERROR: u64 = 1 << 21;
    /// `max_pages` is given.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// Targets of symbolic links are cached.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// The server clears set-uid, set-gid and capabilities.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR has 16 bytes of arguments.
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// INIT has a second word of flags.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Files opened for direct I/O may be mapped shared (Linux 6.6).
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// Flags of the reply to OPEN.
pub mod open {
    /// Past the page cache.
    pub const DIRECT_IO: u32 = 1;
    /// Pages from earlier opens stay.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// Listings are cached.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// In the request: clear set-uid and set-gid.
    pub const KILL_SUIDGID: u32 = 1;
}

/// `valid` bits of SETATTR.
pub mod setattr {
    /// Permissions.
    pub const MODE: u32 = 1;
    /// Owner.
    pub const UID: u32 = 1 << 1;
    /// Group.
    pub const GID: u32 = 1 << 2;
    /// Length.
    pub const SIZE: u32 = 1 << 3;
    /// Access time.
    pub const ATIME: u32 = 1 << 4;
    /// Modification time.
    pub const MTIME: u32 = 1 << 5;
    /// `fh` is given.
    pub const FH: u32 = 1 << 6;
    /// Access time: now.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// Modification time: now.
    pub const MTIME_NOW: u32 = 1 << 8;
    /// Clear set-uid and set-gid.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Other flags.
pub mod flag {
    /// GETATTR has a handle.
    pub const GETATTR_FH: u32 = 1;
    /// A lock of the `flock` family.
    pub const LK_FLOCK: u32 = 1;
    /// RELEASE ends the owner's `flock`.
    pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
    /// A WRITE from the page cache; its handle is guessed.
    pub const WRITE_CACHE: u32 = 1;
    /// A WRITE that clears set-uid and set-gid.
    pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    /// FSYNC of data only.
    pub const FSYNC_FDATASYNC: u32 = 1;
}

/// Operation numbers.
pub mod opcode {
    #![allow(missing_docs, reason = "the names are those of fuse.h")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// Codes of unasked messages to the kernel.
pub mod notify {
    /// Attributes and pages of an inode are stale.
    pub const INVAL_INODE: i32 = 2;
    /// A name is stale.
    pub const INVAL_ENTRY: i32 = 3;
}
