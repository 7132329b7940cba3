//! The protocol between a file-system client and the server of its DC.
//!
//! Versioned as a whole by [`PROTOCOL`]; a client whose version differs is refused at `Hello`.
//! Every request names its client's incarnation and a sequence number, so that a repeated request is
//! answered from the reply cache and never executed twice. Every reply that a client may cache
//! carries a [`Lease`]; the server takes it back by an [`Notice::Recall`].
//!
//! Numbers are those of Linux on x86-64: errno values, `S_IF*` modes, `O_*` flags, `F_*LCK` types.

use serde::{Deserialize, Serialize};

/// Version of this protocol.
pub const PROTOCOL: u32 = 2;
/// Most bytes of one read or write.
pub const MAX_IO: usize = 1 << 20;
/// Most bytes of one name.
pub const MAX_NAME: usize = 255;
/// Most bytes of one extended attribute's value or of a list of names.
pub const MAX_XATTR: usize = 65536;
/// Most entries of one directory reply.
pub const MAX_DIRECTORY_ENTRIES: usize = 4096;

/// The tree's root.
pub const ROOT: InodeId = InodeId { number: 1, generation: 0 };

/// A file, directory or other object of the tree; the generation tells reuses of a number apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InodeId {
    /// Stable while the object exists; what `st_ino` shows.
    pub number: u64,
    /// Raised when a number is given to another object.
    pub generation: u32,
}

/// One life of one client; a restarted client is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClientId {
    /// The node that the client runs on.
    pub node: u16,
    /// Which life of it.
    pub incarnation: u64,
}

/// An open file at the server: an open file description, number within its client's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handle(pub u64);

/// Who asks, in the DC's own ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Effective (file-system) user id inside the DC.
    pub uid: u32,
    /// Effective group id inside the DC.
    pub gid: u32,
    /// Process id inside the DC, 0 when not known.
    pub pid: u32,
    /// File creation mask; 0 where the kernel has applied it.
    pub umask: u32,
}

/// Owner of record locks: the DC process for POSIX locks, the open file for OFD and flock locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockOwner(pub u64);

/// A point in time: nanoseconds since the epoch, as the server's clock has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970, may be negative.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// What `stat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The object.
    pub inode: InodeId,
    /// Type and permission bits (`S_IF* | 07777`).
    pub mode: u32,
    /// Number of names.
    pub links: u32,
    /// Owner, in the DC's ids.
    pub uid: u32,
    /// Group, in the DC's ids.
    pub gid: u32,
    /// Device number of a device node, as `st_rdev`.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// Last access.
    pub accessed: Time,
    /// Last change of the content.
    pub modified: Time,
    /// Last change of the attributes.
    pub changed: Time,
}

/// Permission to cache: until it is recalled, and never longer than its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Milliseconds from the *sending* of the request (the server's clock starts later, so a client
    /// that counts from there never outlasts it); 0: do not cache.
    pub milliseconds: u32,
    /// Raised by the server with every recall of the object, so that late replies are told apart.
    pub epoch: u64,
}

impl Lease {
    /// No permission to cache.
    pub const NONE: Lease = Lease { milliseconds: 0, epoch: 0 };
    /// For objects that cannot change while the DC lives (read-only image layers).
    pub const FOREVER: Lease = Lease { milliseconds: u32::MAX, epoch: 0 };
    /// As the content lease of an opened file: another client has the file open for writing, so this
    /// open file should bypass the page cache (FUSE `FOPEN_DIRECT_IO`). Two kernels that both write
    /// through their page caches would hold the very pages that the other wants dropped.
    pub const DIRECT: Lease = Lease { milliseconds: 0, epoch: u64::MAX };
}

/// A name's answer: the object and how long name and attributes may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The object and its attributes; `None`: the name does not exist (cacheable by `name_lease`).
    pub attributes: Option<Attributes>,
    /// For the pair (directory, name).
    pub name_lease: Lease,
    /// Whether the client's kernel may keep the name too, as long as the lease. A kernel can give a
    /// name up only with the directory's lock, which it holds while a change in the directory is
    /// under way, so that two could wait for each other: a name that can change is kept by a kernel
    /// only where there is but one client.
    pub in_kernel: bool,
    /// For the attributes.
    pub attributes_lease: Lease,
}

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// The name's bytes, without `/` and NUL.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Position to continue after this entry.
    pub cookie: u64,
    /// The object's number (`d_ino`).
    pub inode: u64,
    /// `S_IFMT` bits of the mode.
    pub kind: u32,
    /// Where asked for: what a lookup of the name would have answered.
    pub entry: Option<Entry>,
}

/// A changed time: none, the server's now, or a given one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeChange {
    /// The server's clock.
    Now,
    /// As given.
    To(Time),
}

/// What `SetAttributes` changes; absent fields stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttributeChanges {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length (truncate).
    pub size: Option<u64>,
    /// Access time.
    pub accessed: Option<TimeChange>,
    /// Modification time.
    pub modified: Option<TimeChange>,
    /// Clear set-uid and set-gid as a write by an ordinary user does.
    pub kill_privileges: bool,
}

/// Kind of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// None: releases.
    Unlock,
}

/// Which of Linux's lock families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockFamily {
    /// POSIX and OFD record locks (`fcntl`).
    Record,
    /// Whole-file locks (`flock`).
    Flock,
}

/// A lock on a range of bytes, both ends included; a whole file is 0 to `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Kind.
    pub kind: LockKind,
    /// Process to report to `F_GETLK`.
    pub pid: u32,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// First message of a client's life. Answer: [`Outcome::Welcome`].
    Hello {
        /// [`PROTOCOL`] of the client.
        protocol: u32,
    },
    /// Last message of a client's life: handles, locks and leases end.
    Goodbye,
    /// Answer: [`Outcome::Entry`].
    Lookup {
        /// Directory.
        parent: InodeId,
        /// Name in it; `.` and `..` are the kernel's business and refused.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// The client's kernel dropped references. No answer is waited for.
    Forget {
        /// Objects and how many references each loses.
        inodes: Vec<(InodeId, u64)>,
    },
    /// Answer: [`Outcome::Attributes`].
    GetAttributes {
        /// Object.
        inode: InodeId,
    },
    /// Answer: [`Outcome::Attributes`].
    SetAttributes {
        /// Object.
        inode: InodeId,
        /// Open file it is done through (ftruncate of an unlinked file).
        handle: Option<Handle>,
        /// The changes.
        changes: AttributeChanges,
    },
    /// Answer: [`Outcome::Data`].
    ReadLink {
        /// Symbolic link.
        inode: InodeId,
    },
    /// Makes a regular file, FIFO, socket or device node. Answer: [`Outcome::Entry`].
    MakeNode {
        /// Directory.
        parent: InodeId,
        /// Name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// Type and permissions.
        mode: u32,
        /// Device number.
        rdev: u32,
    },
    /// Answer: [`Outcome::Entry`].
    MakeDirectory {
        /// Directory.
        parent: InodeId,
        /// Name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// Permissions.
        mode: u32,
    },
    /// Answer: [`Outcome::Entry`].
    MakeSymbolicLink {
        /// Directory.
        parent: InodeId,
        /// Name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// What it points to.
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
    },
    /// A second name. Answer: [`Outcome::Entry`].
    Link {
        /// Object.
        inode: InodeId,
        /// Directory of the new name.
        parent: InodeId,
        /// New name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// Answer: [`Outcome::Done`].
    Unlink {
        /// Directory.
        parent: InodeId,
        /// Name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// Answer: [`Outcome::Done`].
    RemoveDirectory {
        /// Directory.
        parent: InodeId,
        /// Name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// Answer: [`Outcome::Done`].
    Rename {
        /// Old directory.
        parent: InodeId,
        /// Old name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// New directory.
        new_parent: InodeId,
        /// New name.
        #[serde(with = "serde_bytes")]
        new_name: Vec<u8>,
        /// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`.
        flags: u32,
    },
    /// Answer: [`Outcome::Opened`]. Directories are opened too.
    Open {
        /// Object.
        inode: InodeId,
        /// `O_*` flags.
        flags: u32,
    },
    /// Make and open. Answer: [`Outcome::Created`].
    Create {
        /// Directory.
        parent: InodeId,
        /// Name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// Permissions.
        mode: u32,
        /// `O_*` flags.
        flags: u32,
    },
    /// `O_TMPFILE`. Answer: [`Outcome::Created`].
    CreateUnnamed {
        /// Directory that says where.
        parent: InodeId,
        /// Permissions.
        mode: u32,
        /// `O_*` flags.
        flags: u32,
    },
    /// Answer: [`Outcome::Data`], short at the end of the file.
    Read {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// First byte.
        offset: u64,
        /// At most [`MAX_IO`].
        length: u32,
    },
    /// Answer: [`Outcome::Written`].
    Write {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// First byte; ignored when `append`.
        offset: u64,
        /// At the end of the file, decided here.
        append: bool,
        /// Clear set-uid and set-gid first.
        kill_privileges: bool,
        /// At most [`MAX_IO`] bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// One descriptor of the open file was closed. Releases the owner's record locks. [`Outcome::Done`].
    Flush {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// Whose record locks end.
        owner: LockOwner,
    },
    /// The last descriptor was closed. [`Outcome::Done`].
    Release {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// Whose `flock` ends.
        owner: Option<LockOwner>,
    },
    /// Answer: [`Outcome::Done`] once it is on stable storage.
    Fsync {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// `fdatasync`.
        data_only: bool,
    },
    /// Answer: [`Outcome::Directory`]; `.` and `..` included.
    ReadDirectory {
        /// Directory.
        inode: InodeId,
        /// Open directory.
        handle: Handle,
        /// 0, or the cookie of the last entry taken.
        cookie: u64,
        /// About how many bytes of names the client can take.
        bytes: u32,
        /// With attributes and references, as if each were looked up.
        plus: bool,
    },
    /// Answer: [`Outcome::FileSystem`].
    StatFileSystem {
        /// Any object.
        inode: InodeId,
    },
    /// Answer: [`Outcome::Data`].
    GetXattr {
        /// Object.
        inode: InodeId,
        /// Attribute's name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// Answer: [`Outcome::Data`]: names, each ended by NUL.
    ListXattr {
        /// Object.
        inode: InodeId,
    },
    /// Answer: [`Outcome::Done`].
    SetXattr {
        /// Object.
        inode: InodeId,
        /// Attribute's name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// Its value.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
        /// `XATTR_CREATE`, `XATTR_REPLACE`.
        flags: u32,
    },
    /// Answer: [`Outcome::Done`].
    RemoveXattr {
        /// Object.
        inode: InodeId,
        /// Attribute's name.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// `fallocate`. Answer: [`Outcome::Done`].
    Allocate {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// `FALLOC_FL_*`.
        mode: u32,
    },
    /// `SEEK_DATA` or `SEEK_HOLE`. Answer: [`Outcome::Offset`].
    Seek {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// From where.
        offset: u64,
        /// `SEEK_DATA` or `SEEK_HOLE`.
        whence: u32,
    },
    /// `copy_file_range`. Answer: [`Outcome::Written`].
    CopyRange {
        /// Source.
        from: (InodeId, Handle, u64),
        /// Destination.
        to: (InodeId, Handle, u64),
        /// Bytes.
        length: u64,
    },
    /// `F_GETLK`. Answer: [`Outcome::Lock`].
    TestLock {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// Who asks.
        owner: LockOwner,
        /// The wish.
        lock: LockRange,
    },
    /// `F_SETLK`, `F_SETLKW`, `flock`. Answer: [`Outcome::Done`], `EAGAIN`, `EDEADLK`, `EINTR`.
    SetLock {
        /// Object.
        inode: InodeId,
        /// Open file.
        handle: Handle,
        /// Who asks.
        owner: LockOwner,
        /// Which family.
        family: LockFamily,
        /// The wish.
        lock: LockRange,
        /// Answer only when it is granted.
        wait: bool,
    },
    /// The waiting request with this sequence number was interrupted: answer it with `EINTR` now.
    Cancel {
        /// Sequence number of the waiting request.
        sequence: u64,
    },
    /// All that the notice asked for has been done. No answer is waited for.
    RecallDone {
        /// Number of the notice.
        notice: u64,
    },
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Whose.
    pub client: ClientId,
    /// Rises by one with each request of a client's life; repeated when repeated.
    pub sequence: u64,
    /// Every request of the client up to this number has been answered: the cache may drop them.
    pub answered: u64,
    /// On whose behalf.
    pub credentials: Credentials,
    /// What.
    pub operation: Operation,
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing more to say.
    Done,
    /// To `Hello`.
    Welcome {
        /// The root's entry.
        root: Entry,
        /// This life of the server.
        server_incarnation: u64,
    },
    /// A name's answer. Counts as one reference of the client to the object.
    Entry(Entry),
    /// Attributes and how long they may be kept.
    Attributes(Attributes, Lease),
    /// An open file.
    Opened {
        /// Its number.
        handle: Handle,
        /// Permission to keep cached content from earlier opens.
        content: Lease,
    },
    /// A new and open file.
    Created {
        /// The name's answer.
        entry: Entry,
        /// Open file's number.
        handle: Handle,
        /// Permission to cache its content.
        content: Lease,
    },
    /// Bytes.
    Data(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes taken; the file's size afterwards.
    Written {
        /// How many.
        length: u32,
        /// Size of the file now.
        size: u64,
    },
    /// Names of a directory; empty at its end.
    Directory(Vec<DirectoryEntry>),
    /// A position.
    Offset(u64),
    /// A conflicting lock, or none.
    Lock(Option<LockRange>),
    /// What `statfs` shows.
    FileSystem {
        /// Block size in bytes.
        block_size: u32,
        /// Blocks in all.
        blocks: u64,
        /// Blocks free.
        free: u64,
        /// Blocks free for ordinary users.
        available: u64,
        /// Files in all.
        files: u64,
        /// Files free.
        files_free: u64,
    },
}

/// A reply: the outcome, or an errno.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's.
    pub sequence: u64,
    /// Outcome or errno (positive).
    pub result: Result<Outcome, i32>,
}

/// Something that a client must stop keeping.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stale {
    /// The attributes of an object.
    Attributes(InodeId),
    /// Content (and attributes) of a file, or the listing of a directory.
    Content(InodeId),
    /// A name in a directory, positive or negative.
    Name(InodeId, #[serde(with = "serde_bytes")] Vec<u8>),
}

/// What the server tells a client unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// Stop keeping these, then send `RecallDone`. The change that causes it waits for that, at most
    /// until the leases' time is over.
    Recall {
        /// Number, for `RecallDone`.
        number: u64,
        /// What.
        stale: Vec<Stale>,
    },
}
