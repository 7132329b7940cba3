//! Files of the host, addressed by descriptors: what a file-system server needs and no more.
//!
//! Nothing here follows a symbolic link in a name that came from elsewhere: names are single
//! components relative to an `O_PATH` directory (`O_NOFOLLOW`), longer paths go through
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)`. An `O_PATH` descriptor
//! names an object without opening it, so that a FIFO or a device never acts; it is opened for
//! reading or writing by its `/proc/self/fd` link, which leads to that very object.

use crate::descriptor::own;
use crate::error::{Result, SysError, check};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// What `statx` says of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Device of the file system.
    pub device: u64,
    /// Number within it.
    pub inode: u64,
    /// Birth time, seconds and nanoseconds; zero where the file system keeps none.
    pub born: (i64, u32),
    /// Type and permissions.
    pub mode: u32,
    /// Number of names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node: major, minor.
    pub rdev: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Last access.
    pub accessed: (i64, u32),
    /// Last change of content.
    pub modified: (i64, u32),
    /// Last change of attributes.
    pub changed: (i64, u32),
}

/// One entry of a directory, as `getdents64` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// Name.
    pub name: Vec<u8>,
    /// `d_ino`.
    pub inode: u64,
    /// `DT_*`, 0 when the file system does not say.
    pub kind: u8,
}

/// What `fstatfs` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Type, `*_SUPER_MAGIC`.
    pub magic: u64,
    /// Block size in bytes.
    pub block_size: u64,
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

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// Leave as it is.
    Keep,
    /// The kernel's now.
    Now,
    /// Seconds and nanoseconds.
    To(i64, u32),
}

/// Path of the magic link of a descriptor: `/proc/self/fd/N` with its NUL.
struct Link([u8; 32]);

impl Link {
    fn of(fd: BorrowedFd<'_>) -> Self {
        use std::io::Write;
        let mut path = [0_u8; 32];
        // 14 bytes and at most 10 digits: never too long.
        let _ = write!(&mut path[..31], "/proc/self/fd/{}", fd.as_raw_fd());
        Link(path)
    }

    fn as_ptr(&self) -> *const libc::c_char {
        self.0.as_ptr().cast()
    }
}

/// Opens a folder by the path that the configuration names (links are followed), as `O_PATH`.
///
/// # Errors
/// As `open(2)`; `ENOTDIR`.
pub fn open_folder(path: &CStr) -> Result<OwnedFd> {
    // SAFETY: the path is NUL-terminated and lives through the call.
    let fd =
        unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    Ok(own(check("open", i64::from(fd))?))
}

/// Names an object of a directory without opening it (`O_PATH | O_NOFOLLOW`).
///
/// # Errors
/// As `openat(2)`.
pub fn path_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the name is NUL-terminated and lives through the call.
    let fd = unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags) };
    Ok(own(check("openat", i64::from(fd))?))
}

/// Names an object below a directory by a relative path of several components, none of them a link.
///
/// # Errors
/// As `openat2(2)`: `ELOOP` for a link in the middle, `EXDEV` for a way out.
pub fn path_beneath(directory: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    // SAFETY: an all-zero open_how is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
    // O_PATH | O_NOFOLLOW names a link at the end in spite of RESOLVE_NO_SYMLINKS (openat2(2)).
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: path and struct live through the call, and the size is the struct's own.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            directory.as_raw_fd(),
            path.as_ptr(),
            &raw mut how,
            size_of::<libc::open_how>(),
        )
    };
    Ok(own(check("openat2", fd)?))
}

/// Opens the object of an `O_PATH` descriptor (through its magic link). The caller has made sure that it
/// is a regular file or a directory.
///
/// # Errors
/// As `open(2)`.
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    // SAFETY: the link's path is NUL-terminated and lives through the call.
    let fd = unsafe { libc::open(Link::of(fd).as_ptr(), flags) };
    Ok(own(check("open", i64::from(fd))?))
}

/// Makes and opens a regular file that must not exist.
///
/// # Errors
/// As `openat(2)`; `EEXIST`.
pub fn create_at(directory: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the name is NUL-terminated and lives through the call.
    let fd = unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags, mode) };
    Ok(own(check("openat", i64::from(fd))?))
}

/// Makes and opens a file without a name (`O_TMPFILE`).
///
/// # Errors
/// As `open(2)`; `EOPNOTSUPP`.
pub fn create_unnamed(directory: BorrowedFd<'_>, flags: i32, mode: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_TMPFILE | libc::O_CLOEXEC;
    // SAFETY: the name is NUL-terminated and lives through the call.
    let fd = unsafe { libc::openat(directory.as_raw_fd(), c".".as_ptr(), flags, mode) };
    Ok(own(check("openat", i64::from(fd))?))
}

/// Gives the object of a descriptor another name.
///
/// # Errors
/// As `linkat(2)`.
pub fn link_descriptor(fd: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let link = Link::of(fd);
    // SAFETY: both paths are NUL-terminated and live through the call.
    let done = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            link.as_ptr(),
            directory.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    check("linkat", i64::from(done)).map(drop)
}

/// A second name for an object that is known by its directory and name; a link itself, not its target.
///
/// # Errors
/// As `linkat(2)`.
pub fn link_at(
    directory: BorrowedFd<'_>,
    name: &CStr,
    new_directory: BorrowedFd<'_>,
    new_name: &CStr,
) -> Result<()> {
    // SAFETY: both names are NUL-terminated and live through the call.
    let done = unsafe {
        libc::linkat(
            directory.as_raw_fd(),
            name.as_ptr(),
            new_directory.as_raw_fd(),
            new_name.as_ptr(),
            0,
        )
    };
    check("linkat", i64::from(done)).map(drop)
}

/// Makes a directory.
///
/// # Errors
/// As `mkdirat(2)`.
pub fn make_directory_at(directory: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the name is NUL-terminated and lives through the call.
    let done = unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), mode) };
    check("mkdirat", i64::from(done)).map(drop)
}

/// Makes a FIFO, a socket or an empty regular file. Device nodes are refused: none is ever made here.
///
/// # Errors
/// As `mknodat(2)`; `EPERM` for devices.
pub fn make_node_at(directory: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    if !matches!(mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFREG) {
        return Err(SysError::new("mknodat", libc::EPERM));
    }
    // SAFETY: the name is NUL-terminated and lives through the call.
    let done = unsafe { libc::mknodat(directory.as_raw_fd(), name.as_ptr(), mode, 0) };
    check("mknodat", i64::from(done)).map(drop)
}

/// Puts everything of the descriptor's file system on stable storage (`syncfs(2)`).
///
/// # Errors
/// As `syncfs(2)`.
pub fn sync_file_system(fd: BorrowedFd<'_>) -> Result<()> {
    let open = reopen(fd, libc::O_RDONLY)?;
    // SAFETY: touches no memory.
    check("syncfs", i64::from(unsafe { libc::syncfs(open.as_raw_fd()) })).map(drop)
}

/// Makes a whiteout: a character device 0:0, which opens nothing and which every user may make.
///
/// # Errors
/// As `mknodat(2)`; `EPERM` on kernels before 5.8 for ordinary users, and on overlayfs.
pub fn make_whiteout_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: the name is NUL-terminated and lives through the call.
    let done = unsafe { libc::mknodat(directory.as_raw_fd(), name.as_ptr(), libc::S_IFCHR, 0) };
    check("mknodat", i64::from(done)).map(drop)
}

/// Makes a symbolic link.
///
/// # Errors
/// As `symlinkat(2)`.
pub fn make_link_at(target: &CStr, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: both strings are NUL-terminated and live through the call.
    let done = unsafe { libc::symlinkat(target.as_ptr(), directory.as_raw_fd(), name.as_ptr()) };
    check("symlinkat", i64::from(done)).map(drop)
}

/// Removes a name; of an empty directory when `directory_wanted`.
///
/// # Errors
/// As `unlinkat(2)`.
pub fn unlink_at(directory: BorrowedFd<'_>, name: &CStr, directory_wanted: bool) -> Result<()> {
    let flags = if directory_wanted { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: the name is NUL-terminated and lives through the call.
    let done = unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), flags) };
    check("unlinkat", i64::from(done)).map(drop)
}

/// Renames (`renameat2`, flags `RENAME_NOREPLACE`, `RENAME_EXCHANGE`).
///
/// # Errors
/// As `renameat2(2)`.
pub fn rename_at(
    directory: BorrowedFd<'_>,
    name: &CStr,
    new_directory: BorrowedFd<'_>,
    new_name: &CStr,
    flags: u32,
) -> Result<()> {
    // SAFETY: both names are NUL-terminated and live through the call.
    let done = unsafe {
        libc::renameat2(
            directory.as_raw_fd(),
            name.as_ptr(),
            new_directory.as_raw_fd(),
            new_name.as_ptr(),
            flags,
        )
    };
    check("renameat2", i64::from(done)).map(drop)
}

/// Target of a symbolic link that an `O_PATH` descriptor names.
///
/// # Errors
/// As `readlinkat(2)`; `EINVAL` for what is no link.
pub fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut target = vec![0_u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is writable for the length given.
    let length = unsafe {
        libc::readlinkat(fd.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len())
    };
    // readlinkat answers ENOENT for an empty path on something that is no link.
    match check("readlinkat", length as i64) {
        Ok(length) => {
            target.truncate(length as usize);
            Ok(target)
        }
        Err(error) if error.errno == libc::ENOENT => Err(SysError::new("readlinkat", libc::EINVAL)),
        Err(error) => Err(error),
    }
}

fn statx(fd: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<Status> {
    // SAFETY: an all-zero statx is valid.
    let mut raw: libc::statx = unsafe { std::mem::zeroed() };
    let flags = flags | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    // SAFETY: the name is NUL-terminated, the struct is writable, both live through the call.
    let done = unsafe { libc::statx(fd.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut raw) };
    check("statx", i64::from(done))?;
    let time = |t: libc::statx_timestamp| (t.tv_sec, t.tv_nsec);
    let born = if raw.stx_mask & libc::STATX_BTIME != 0 { time(raw.stx_btime) } else { (0, 0) };
    Ok(Status {
        device: libc::makedev(raw.stx_dev_major, raw.stx_dev_minor),
        inode: raw.stx_ino,
        born,
        mode: u32::from(raw.stx_mode),
        links: raw.stx_nlink,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        rdev: (raw.stx_rdev_major, raw.stx_rdev_minor),
        size: raw.stx_size,
        blocks: raw.stx_blocks,
        accessed: time(raw.stx_atime),
        modified: time(raw.stx_mtime),
        changed: time(raw.stx_ctime),
    })
}

/// Attributes of the object of a descriptor, also an `O_PATH` one.
///
/// # Errors
/// As `statx(2)`.
pub fn status(fd: BorrowedFd<'_>) -> Result<Status> {
    statx(fd, c"", libc::AT_EMPTY_PATH)
}

/// Attributes of the object that a name means, a link itself.
///
/// # Errors
/// As `statx(2)`.
pub fn status_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<Status> {
    statx(directory, name, 0)
}

/// Reads at an offset; fewer bytes at the end of the file.
///
/// # Errors
/// As `pread(2)`.
pub fn read_at(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let offset = signed(offset)?;
    // SAFETY: the buffer is writable for its length.
    let length =
        unsafe { libc::pread(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), offset) };
    check("pread", length as i64).map(|length| length as usize)
}

/// Writes at an offset.
///
/// # Errors
/// As `pwrite(2)`.
pub fn write_at(fd: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<usize> {
    let offset = signed(offset)?;
    // SAFETY: the data are readable for their length.
    let length = unsafe { libc::pwrite(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), offset) };
    check("pwrite", length as i64).map(|length| length as usize)
}

/// Writes at the end, wherever that is at the moment of writing (`RWF_APPEND`).
///
/// # Errors
/// As `pwritev2(2)`.
pub fn append(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: one part whose memory is readable; the kernel does not write through it.
    let length = unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const part, 1, 0, libc::RWF_APPEND) };
    check("pwritev2", length as i64).map(|length| length as usize)
}

fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| SysError::new("offset", libc::EINVAL))
}

/// Sets the length of a file open for writing.
///
/// # Errors
/// As `ftruncate(2)`.
pub fn set_length(fd: BorrowedFd<'_>, length: u64) -> Result<()> {
    // SAFETY: touches no memory.
    check("ftruncate", i64::from(unsafe { libc::ftruncate(fd.as_raw_fd(), signed(length)?) }))
        .map(drop)
}

/// Sets permission bits of the object of a descriptor, also an `O_PATH` one.
///
/// # Errors
/// As `chmod(2)`; `EOPNOTSUPP` for symbolic links.
pub fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    // SAFETY: the link's path is NUL-terminated and lives through the call.
    check("chmod", i64::from(unsafe { libc::chmod(Link::of(fd).as_ptr(), mode & 0o7777) }))
        .map(drop)
}

/// Sets owner and group (`None` keeps) of the object of a descriptor, also an `O_PATH` one.
///
/// # Errors
/// As `fchownat(2)`.
pub fn set_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    // SAFETY: the empty name is NUL-terminated.
    let done =
        unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) };
    check("fchownat", i64::from(done)).map(drop)
}

/// Sets access and modification time of the object of a descriptor, also an `O_PATH` one.
///
/// # Errors
/// As `utimensat(2)`.
pub fn set_times(fd: BorrowedFd<'_>, accessed: SetTime, modified: SetTime) -> Result<()> {
    let raw = |time: SetTime| match time {
        SetTime::Keep => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        SetTime::Now => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        SetTime::To(seconds, nanoseconds) => {
            libc::timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds.min(999_999_999)) }
        }
    };
    let times = [raw(accessed), raw(modified)];
    // SAFETY: two times and an empty NUL-terminated name, all living through the call.
    let done = unsafe {
        libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH)
    };
    check("utimensat", i64::from(done)).map(drop)
}

/// `fsync` or `fdatasync`.
///
/// # Errors
/// As `fsync(2)`.
pub fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    // SAFETY: touches no memory.
    let done = unsafe {
        if data_only { libc::fdatasync(fd.as_raw_fd()) } else { libc::fsync(fd.as_raw_fd()) }
    };
    check("fsync", i64::from(done)).map(drop)
}

/// `fallocate`.
///
/// # Errors
/// As `fallocate(2)`.
pub fn allocate(fd: BorrowedFd<'_>, mode: u32, offset: u64, length: u64) -> Result<()> {
    let (offset, length) = (signed(offset)?, signed(length)?);
    // SAFETY: touches no memory.
    let done = unsafe { libc::fallocate(fd.as_raw_fd(), mode as i32, offset, length) };
    check("fallocate", i64::from(done)).map(drop)
}

/// `lseek` with `SEEK_DATA` or `SEEK_HOLE`; moves the descriptor's own offset, which nobody uses.
///
/// # Errors
/// As `lseek(2)`; `ENXIO` beyond the end.
pub fn seek(fd: BorrowedFd<'_>, offset: u64, whence: u32) -> Result<u64> {
    // SAFETY: touches no memory.
    let found = unsafe { libc::lseek(fd.as_raw_fd(), signed(offset)?, whence as i32) };
    check("lseek", found).map(|found| found as u64)
}

/// `copy_file_range`; fewer bytes at the source's end.
///
/// # Errors
/// As `copy_file_range(2)`.
pub fn copy_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    length: usize,
) -> Result<usize> {
    let (mut from_offset, mut to_offset) = (signed(from_offset)?, signed(to_offset)?);
    // SAFETY: both offsets are writable and live through the call.
    let copied = unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            &raw mut from_offset,
            to.as_raw_fd(),
            &raw mut to_offset,
            length,
            0,
        )
    };
    check("copy_file_range", copied as i64).map(|copied| copied as usize)
}

/// All entries of a directory opened for reading, from its start, without `.` and `..`; at most `limit`.
///
/// # Errors
/// As `getdents64(2)`; `EOVERFLOW` for more than `limit`.
pub fn entries(fd: BorrowedFd<'_>, limit: usize) -> Result<Vec<RawEntry>> {
    // SAFETY: touches no memory.
    check("lseek", unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_SET) })?;
    let mut buffer = vec![0_u8; 64 * 1024];
    let mut found = Vec::new();
    loop {
        // SAFETY: the buffer is writable for its length.
        let length = unsafe {
            libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        };
        let length = check("getdents64", length)? as usize;
        if length == 0 {
            return Ok(found);
        }
        let mut rest = buffer.get(..length).unwrap_or_default();
        // d_ino (8), d_off (8), d_reclen (2), d_type (1), d_name with NUL.
        while let Some((head, _)) = rest.split_first_chunk::<19>() {
            let inode = u64::from_le_bytes(head[0..8].try_into().unwrap_or_default());
            let size = usize::from(u16::from_le_bytes([head[16], head[17]]));
            let Some(record) = rest.get(..size).filter(|_| size >= 19) else { break };
            let name = record[19..].split(|byte| *byte == 0).next().unwrap_or_default();
            if name != b"." && name != b".." {
                if found.len() >= limit {
                    return Err(SysError::new("getdents64", libc::EOVERFLOW));
                }
                found.push(RawEntry { name: name.to_vec(), inode, kind: head[18] });
            }
            rest = &rest[size..];
        }
    }
}

/// Value of an extended attribute of the object of a descriptor, also an `O_PATH` one.
///
/// # Errors
/// As `getxattr(2)`; `ENODATA`.
pub fn get_xattr(fd: BorrowedFd<'_>, name: &CStr, limit: usize) -> Result<Vec<u8>> {
    let mut value = vec![0_u8; limit];
    // SAFETY: path and name are NUL-terminated, the buffer is writable for its length.
    let length = unsafe {
        libc::getxattr(Link::of(fd).as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    value.truncate(check("getxattr", length as i64)? as usize);
    Ok(value)
}

/// Names of the extended attributes, each ended by NUL.
///
/// # Errors
/// As `listxattr(2)`.
pub fn list_xattrs(fd: BorrowedFd<'_>, limit: usize) -> Result<Vec<u8>> {
    let mut names = vec![0_u8; limit];
    // SAFETY: the path is NUL-terminated, the buffer is writable for its length.
    let length =
        unsafe { libc::listxattr(Link::of(fd).as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(check("listxattr", length as i64)? as usize);
    Ok(names)
}

/// Sets an extended attribute.
///
/// # Errors
/// As `setxattr(2)`.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
    // SAFETY: path and name are NUL-terminated, the value is readable for its length.
    let done = unsafe {
        libc::setxattr(
            Link::of(fd).as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags as i32,
        )
    };
    check("setxattr", i64::from(done)).map(drop)
}

/// Removes an extended attribute.
///
/// # Errors
/// As `removexattr(2)`.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: path and name are NUL-terminated and live through the call.
    let done = unsafe { libc::removexattr(Link::of(fd).as_ptr(), name.as_ptr()) };
    check("removexattr", i64::from(done)).map(drop)
}

/// The file system that an object lies on.
///
/// # Errors
/// As `fstatfs(2)`.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<FileSystem> {
    // SAFETY: an all-zero statfs is valid.
    let mut raw: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is writable and lives through the call.
    check("fstatfs", i64::from(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut raw) }))?;
    Ok(FileSystem {
        magic: raw.f_type as u64,
        block_size: raw.f_bsize as u64,
        blocks: raw.f_blocks,
        free: raw.f_bfree,
        available: raw.f_bavail,
        files: raw.f_files,
        files_free: raw.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;

    /// A folder that is removed with its content.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("dvs-hostfile-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).expect("a new folder");
            Folder(path)
        }

        fn open(&self) -> OwnedFd {
            let path = CString::new(self.0.as_os_str().as_bytes()).expect("no NUL");
            open_folder(&path).expect("opened")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn links_are_named_and_never_followed() {
        let folder = Folder::new("links");
        std::os::unix::fs::symlink("/etc", folder.0.join("out")).expect("linked");
        let fd = folder.open();
        let link = path_at(fd.as_fd(), c"out").expect("named");
        assert_eq!(status(link.as_fd()).expect("stat").mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(read_link(link.as_fd()).expect("read"), b"/etc");
        assert_eq!(path_beneath(fd.as_fd(), c"out/passwd").unwrap_err().errno, libc::ELOOP);
        assert_eq!(path_beneath(fd.as_fd(), c"..").unwrap_err().errno, libc::EXDEV);
    }

    #[test]
    fn files_are_made_written_and_listed() {
        let folder = Folder::new("files");
        let fd = folder.open();
        let file = create_at(fd.as_fd(), c"a", libc::O_RDWR, 0o600).expect("made");
        assert_eq!(write_at(file.as_fd(), b"hello", 0), Ok(5));
        assert_eq!(append(file.as_fd(), b" world"), Ok(6));
        let mut text = [0; 32];
        assert_eq!(read_at(file.as_fd(), &mut text, 6), Ok(5));
        assert_eq!(&text[..5], b"world");
        make_node_at(fd.as_fd(), c"fifo", libc::S_IFIFO | 0o600).expect("a FIFO");
        assert_eq!(
            make_node_at(fd.as_fd(), c"null", libc::S_IFCHR | 0o600).unwrap_err().errno,
            libc::EPERM
        );
        let named = path_at(fd.as_fd(), c"a").expect("named");
        set_mode(named.as_fd(), 0o640).expect("chmod of O_PATH");
        set_times(named.as_fd(), SetTime::To(5, 6), SetTime::To(7, 8)).expect("times of O_PATH");
        let seen = status_at(fd.as_fd(), c"a").expect("stat");
        assert_eq!((seen.mode & 0o7777, seen.modified, seen.size), (0o640, (7, 8), 11));
        let open = reopen(fd.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY).expect("reopened");
        let mut names: Vec<_> =
            entries(open.as_fd(), 10).expect("list").into_iter().map(|e| e.name).collect();
        names.sort();
        assert_eq!(names, [b"a".to_vec(), b"fifo".to_vec()]);
        assert_eq!(entries(open.as_fd(), 1).unwrap_err().errno, libc::EOVERFLOW);
    }
}
