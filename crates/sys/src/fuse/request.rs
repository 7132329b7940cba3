//! Requests of the kernel, decoded from the bytes of one read.

use super::abi::{HEADER, opcode};

/// What every request begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Operation number.
    pub opcode: u32,
    /// The request's own number, repeated in the reply.
    pub unique: u64,
    /// Object, 0 where there is none.
    pub node: u64,
    /// Caller's file-system user id, in the user namespace of the mount.
    pub uid: u32,
    /// Caller's file-system group id.
    pub gid: u32,
    /// Caller's thread id in the pid namespace of the mount; 0: outside it, or the kernel itself.
    pub pid: u32,
}

/// A byte-range lock as the kernel gives and takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLock {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK`, `F_UNLCK`.
    pub kind: u32,
    /// Process.
    pub pid: u32,
}

/// Arguments of SETATTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Which fields count (`abi::setattr`).
    pub valid: u32,
    /// Open file.
    pub handle: u64,
    /// Length.
    pub size: u64,
    /// Access time: seconds, nanoseconds.
    pub accessed: (i64, u32),
    /// Modification time.
    pub modified: (i64, u32),
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Arguments of READ, READDIR and READDIRPLUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadArguments {
    /// Open file.
    pub handle: u64,
    /// First byte, or cookie.
    pub offset: u64,
    /// Bytes wanted at most.
    pub size: u32,
}

/// Arguments of the lock operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockArguments {
    /// Open file.
    pub handle: u64,
    /// Owner: a number of the kernel's.
    pub owner: u64,
    /// The wish.
    pub lock: FileLock,
    /// `abi::flag::LK_FLOCK`.
    pub flags: u32,
}

/// The operation and its arguments. Names are without NUL and not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "names and fields are those of fuse.h")]
pub enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
    },
    Destroy,
    Lookup {
        name: &'a [u8],
    },
    Forget {
        lookups: u64,
    },
    BatchForget {
        nodes: Vec<(u64, u64)>,
    },
    GetAttr {
        handle: Option<u64>,
    },
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MkNod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
    },
    MkDir {
        name: &'a [u8],
        mode: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RmDir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a [u8],
    },
    Open {
        flags: u32,
        open_flags: u32,
    },
    OpenDir {
        flags: u32,
    },
    Create {
        name: &'a [u8],
        flags: u32,
        mode: u32,
        open_flags: u32,
    },
    TmpFile {
        flags: u32,
        mode: u32,
    },
    Read(ReadArguments),
    Write {
        handle: u64,
        offset: u64,
        write_flags: u32,
        flags: u32,
        data: &'a [u8],
    },
    Flush {
        handle: u64,
        owner: u64,
    },
    Release {
        handle: u64,
        release_flags: u32,
        owner: u64,
    },
    ReleaseDir {
        handle: u64,
    },
    Fsync {
        handle: u64,
        flags: u32,
    },
    FsyncDir {
        handle: u64,
        flags: u32,
    },
    ReadDir(ReadArguments),
    ReadDirPlus(ReadArguments),
    StatFs,
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    Access,
    Allocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyRange {
        from: (u64, u64),
        to_node: u64,
        to: (u64, u64),
        length: u64,
    },
    GetLock(LockArguments),
    SetLock(LockArguments),
    SetLockWait(LockArguments),
    Interrupt {
        unique: u64,
    },
    Ioctl,
    Poll,
    /// One that is not known here.
    Unknown,
}

/// A decoded request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its header.
    pub header: Header,
    /// Its operation; `None`: the bytes do not fit the operation (answer `EIO`).
    pub operation: Option<Operation<'a>>,
}

impl<'a> Request<'a> {
    /// Decodes the bytes of one read. `setxattr_extended`: whether `SETXATTR_EXT` was agreed on.
    /// `None`: not even a header, so that nothing can be answered.
    #[must_use]
    pub fn decode(bytes: &'a [u8], setxattr_extended: bool) -> Option<Request<'a>> {
        let mut cursor = Cursor(bytes);
        let length = cursor.u32()? as usize;
        let header = Header {
            opcode: cursor.u32()?,
            unique: cursor.u64()?,
            node: cursor.u64()?,
            uid: cursor.u32()?,
            gid: cursor.u32()?,
            pid: cursor.u32()?,
        };
        cursor.u32()?;
        if length < HEADER || length > bytes.len() {
            return Some(Request { header, operation: None });
        }
        let mut arguments = Cursor(bytes.get(HEADER..length)?);
        let operation = decode(header.opcode, &mut arguments, setxattr_extended);
        Some(Request { header, operation })
    }
}

fn decode<'a>(code: u32, c: &mut Cursor<'a>, setxattr_extended: bool) -> Option<Operation<'a>> {
    use Operation as O;
    Some(match code {
        opcode::INIT => {
            let (major, minor) = (c.u32()?, c.u32()?);
            // A kernel of another major version sends no more than these two.
            let max_readahead = c.u32().unwrap_or(0);
            let low = u64::from(c.u32().unwrap_or(0));
            let high = u64::from(c.u32().unwrap_or(0));
            O::Init { major, minor, max_readahead, flags: low | high << 32 }
        }
        opcode::DESTROY => O::Destroy,
        opcode::LOOKUP => O::Lookup { name: c.name()? },
        opcode::FORGET => O::Forget { lookups: c.u64()? },
        opcode::BATCH_FORGET => {
            let count = c.u32()? as usize;
            c.u32()?;
            if count > c.0.len() / 16 {
                return None;
            }
            let nodes = (0..count).map(|_| Some((c.u64()?, c.u64()?))).collect::<Option<_>>()?;
            O::BatchForget { nodes }
        }
        opcode::GETATTR => {
            let flags = c.u32()?;
            c.u32()?;
            let handle = c.u64()?;
            O::GetAttr { handle: (flags & super::abi::flag::GETATTR_FH != 0).then_some(handle) }
        }
        opcode::SETATTR => O::SetAttr(set_attr(c)?),
        opcode::READLINK => O::ReadLink,
        opcode::SYMLINK => O::Symlink { name: c.name()?, target: c.name()? },
        opcode::MKNOD => {
            let (mode, rdev) = (c.u32()?, c.u32()?);
            c.u64()?;
            O::MkNod { name: c.name()?, mode, rdev }
        }
        opcode::MKDIR => {
            let mode = c.u32()?;
            c.u32()?;
            O::MkDir { name: c.name()?, mode }
        }
        opcode::UNLINK => O::Unlink { name: c.name()? },
        opcode::RMDIR => O::RmDir { name: c.name()? },
        opcode::RENAME => {
            let new_parent = c.u64()?;
            O::Rename { new_parent, name: c.name()?, new_name: c.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let (new_parent, flags) = (c.u64()?, c.u32()?);
            c.u32()?;
            O::Rename { new_parent, name: c.name()?, new_name: c.name()?, flags }
        }
        opcode::LINK => O::Link { node: c.u64()?, name: c.name()? },
        opcode::OPEN => O::Open { flags: c.u32()?, open_flags: c.u32()? },
        opcode::OPENDIR => O::OpenDir { flags: c.u32()? },
        opcode::CREATE => {
            let (flags, mode, _umask, open_flags) = (c.u32()?, c.u32()?, c.u32()?, c.u32()?);
            O::Create { name: c.name()?, flags, mode, open_flags }
        }
        opcode::TMPFILE => O::TmpFile { flags: c.u32()?, mode: c.u32()? },
        opcode::READ => O::Read(read_arguments(c)?),
        opcode::READDIR => O::ReadDir(read_arguments(c)?),
        opcode::READDIRPLUS => O::ReadDirPlus(read_arguments(c)?),
        opcode::WRITE => {
            let (handle, offset) = (c.u64()?, c.u64()?);
            let (size, write_flags) = (c.u32()? as usize, c.u32()?);
            let (_owner, flags, _) = (c.u64()?, c.u32()?, c.u32()?);
            O::Write { handle, offset, write_flags, flags, data: c.0.get(..size)? }
        }
        opcode::STATFS => O::StatFs,
        opcode::FLUSH => {
            let handle = c.u64()?;
            c.u64()?;
            O::Flush { handle, owner: c.u64()? }
        }
        opcode::RELEASE | opcode::RELEASEDIR => {
            let (handle, _flags, release_flags, owner) = (c.u64()?, c.u32()?, c.u32()?, c.u64()?);
            if code == opcode::RELEASE {
                O::Release { handle, release_flags, owner }
            } else {
                O::ReleaseDir { handle }
            }
        }
        opcode::FSYNC => O::Fsync { handle: c.u64()?, flags: c.u32()? },
        opcode::FSYNCDIR => O::FsyncDir { handle: c.u64()?, flags: c.u32()? },
        opcode::SETXATTR => {
            let (size, flags) = (c.u32()? as usize, c.u32()?);
            if setxattr_extended {
                c.u64()?;
            }
            O::SetXattr { flags, name: c.name()?, value: c.0.get(..size)? }
        }
        opcode::GETXATTR => {
            let size = c.u32()?;
            c.u32()?;
            O::GetXattr { size, name: c.name()? }
        }
        opcode::LISTXATTR => O::ListXattr { size: c.u32()? },
        opcode::REMOVEXATTR => O::RemoveXattr { name: c.name()? },
        opcode::ACCESS => O::Access,
        opcode::FALLOCATE => {
            O::Allocate { handle: c.u64()?, offset: c.u64()?, length: c.u64()?, mode: c.u32()? }
        }
        opcode::LSEEK => O::Seek { handle: c.u64()?, offset: c.u64()?, whence: c.u32()? },
        opcode::COPY_FILE_RANGE => O::CopyRange {
            from: (c.u64()?, c.u64()?),
            to_node: c.u64()?,
            to: (c.u64()?, c.u64()?),
            length: c.u64()?,
        },
        opcode::GETLK => O::GetLock(lock_arguments(c)?),
        opcode::SETLK => O::SetLock(lock_arguments(c)?),
        opcode::SETLKW => O::SetLockWait(lock_arguments(c)?),
        opcode::INTERRUPT => O::Interrupt { unique: c.u64()? },
        opcode::IOCTL => O::Ioctl,
        opcode::POLL => O::Poll,
        _ => O::Unknown,
    })
}

fn set_attr(c: &mut Cursor<'_>) -> Option<SetAttr> {
    let (valid, _) = (c.u32()?, c.u32()?);
    let (handle, size, _owner) = (c.u64()?, c.u64()?, c.u64()?);
    let (atime, mtime, _ctime) = (c.u64()?, c.u64()?, c.u64()?);
    let (atime_ns, mtime_ns, _ctime_ns) = (c.u32()?, c.u32()?, c.u32()?);
    let (mode, _, uid, gid) = (c.u32()?, c.u32()?, c.u32()?, c.u32()?);
    Some(SetAttr {
        valid,
        handle,
        size,
        accessed: (atime.cast_signed(), atime_ns),
        modified: (mtime.cast_signed(), mtime_ns),
        mode,
        uid,
        gid,
    })
}

fn read_arguments(c: &mut Cursor<'_>) -> Option<ReadArguments> {
    Some(ReadArguments { handle: c.u64()?, offset: c.u64()?, size: c.u32()? })
}

fn lock_arguments(c: &mut Cursor<'_>) -> Option<LockArguments> {
    let (handle, owner) = (c.u64()?, c.u64()?);
    let lock = FileLock { start: c.u64()?, end: c.u64()?, kind: c.u32()?, pid: c.u32()? };
    Some(LockArguments { handle, owner, lock, flags: c.u32()? })
}

/// What is left of a request's bytes.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*head))
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*head))
    }

    /// Bytes up to a NUL, which is taken too; never empty.
    fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (name, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..)?;
        (!name.is_empty()).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, arguments: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(HEADER + arguments.len()).unwrap().to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(3u64.to_ne_bytes());
        for number in [1000u32, 1001, 42, 0] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(arguments);
        bytes
    }

    #[test]
    fn a_lookup_is_decoded() {
        let bytes = request(opcode::LOOKUP, b"file\0");
        let request = Request::decode(&bytes, true).unwrap();
        assert_eq!(
            request.header,
            Header { opcode: 1, unique: 7, node: 3, uid: 1000, gid: 1001, pid: 42 }
        );
        assert_eq!(request.operation, Some(Operation::Lookup { name: b"file" }));
    }

    #[test]
    fn two_names_are_told_apart() {
        let bytes = request(
            opcode::RENAME2,
            &[&9u64.to_ne_bytes()[..], &[2, 0, 0, 0, 0, 0, 0, 0], b"a\0bc\0"].concat(),
        );
        assert_eq!(
            Request::decode(&bytes, true).unwrap().operation,
            Some(Operation::Rename { name: b"a", new_parent: 9, new_name: b"bc", flags: 2 })
        );
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        let short = request(opcode::LOOKUP, b"no end");
        assert_eq!(Request::decode(&short, true).unwrap().operation, None);
        let empty = request(opcode::LOOKUP, b"\0");
        assert_eq!(Request::decode(&empty, true).unwrap().operation, None);
        let mut lying = request(opcode::LOOKUP, b"a\0");
        lying[0] = 200;
        assert_eq!(Request::decode(&lying, true).unwrap().operation, None);
        let many = request(opcode::BATCH_FORGET, &u64::from(u32::MAX).to_ne_bytes());
        assert_eq!(Request::decode(&many, true).unwrap().operation, None);
        assert_eq!(Request::decode(&lying[..12], true), None);
    }

    #[test]
    fn every_prefix_and_every_opcode_is_survived() {
        // Decoding must neither panic nor take memory, whatever the bytes.
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        for code in 0..60 {
            let noise: Vec<u8> = (0..160)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed.to_ne_bytes()[3]
                })
                .collect();
            for end in 0..noise.len() {
                let bytes = request(code, &noise[..end]);
                let _ = Request::decode(&bytes, end % 2 == 0);
            }
        }
    }

    #[test]
    fn a_write_has_exactly_the_bytes_it_names() {
        let mut arguments = Vec::new();
        arguments.extend(5u64.to_ne_bytes());
        arguments.extend(100u64.to_ne_bytes());
        arguments.extend(3u32.to_ne_bytes());
        arguments.extend([0; 12]);
        arguments.extend(0o2001u32.to_ne_bytes());
        arguments.extend([0; 4]);
        arguments.extend(b"abcd");
        let bytes = request(opcode::WRITE, &arguments);
        assert_eq!(
            Request::decode(&bytes, true).unwrap().operation,
            Some(Operation::Write {
                handle: 5,
                offset: 100,
                write_flags: 0,
                flags: 0o2001,
                data: b"abc"
            })
        );
        let short = request(opcode::WRITE, &arguments[..arguments.len() - 2]);
        assert_eq!(Request::decode(&short, true).unwrap().operation, None);
    }
}
