//! What kind of thing a descriptor is, from what the kernel says about it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use dvs_sys::error::SysError;
use dvs_sys::stat::fstat;
use dvs_sys::{descriptor, pipe, terminal};

use crate::descriptor::Kind;
use crate::messages::FileAttributes;

/// A descriptor's kind, as far as carrying it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Read end of a pipe or FIFO.
    PipeReader,
    /// Write end of a pipe or FIFO.
    PipeWriter,
    /// A FIFO of the DC's tree, open for reading.
    FifoReader,
    /// A FIFO of the DC's tree, open for writing.
    FifoWriter,
    /// The slave side of a terminal.
    Terminal,
    /// A regular file.
    File,
    /// A directory or `O_PATH`: opened anew by its own path.
    ByPath,
    /// A device without state, opened anew by this path.
    Device(&'static str),
    /// Not carried.
    Unsupported(Kind),
}

/// What was found out about a descriptor.
#[derive(Debug, Clone)]
pub(crate) struct Examined {
    pub(crate) class: Class,
    /// Access mode and status flags, from the kernel.
    pub(crate) flags: i32,
    pub(crate) attributes: FileAttributes,
    /// Its number in the DC's tree, if it is there.
    pub(crate) tree_inode: Option<u64>,
}

/// Access mode bits.
pub(crate) fn access(flags: i32) -> i32 {
    flags & libc::O_ACCMODE
}

pub(crate) fn attributes(fd: impl AsFd) -> Result<FileAttributes, SysError> {
    let found = fstat(fd)?;
    Ok(FileAttributes {
        device: found.device,
        inode: found.inode,
        mode: found.mode,
        links: found.links,
        uid: found.uid,
        gid: found.gid,
        rdev: found.rdev,
        size: found.size,
        blocks: found.blocks,
        times: found.times,
    })
}

/// Set in the inode number that a carried file from outside the tree shows where it is attached. Our
/// own `fstat` is refused there, so its number tells it from the tree's files.
pub const FOREIGN_INODE: u64 = 1 << 63;

/// Looks at a descriptor; `path` is the text of its `/proc` link.
///
/// A FUSE mount that belongs to the container's user namespace answers `fstat` only to processes in
/// there, which we are not. So a file that we may not look at is one of the DC's tree; what it is has
/// to be found out otherwise, and its attributes are the file system's business.
pub(crate) fn examine(fd: &OwnedFd, path: &[u8]) -> Result<Examined, SysError> {
    let flags = descriptor::status_flags(fd.as_fd())?;
    match attributes(fd) {
        Ok(attributes) => {
            let class = classify(fd, path, flags, &attributes);
            Ok(Examined { class, flags, attributes, tree_inode: None })
        }
        Err(error) if matches!(error.errno, libc::EACCES | libc::EPERM) => {
            let inode = inode_number(fd)?;
            if inode & FOREIGN_INODE != 0 {
                let class = Class::Unsupported(Kind::ForeignFile);
                let attributes = FileAttributes::default();
                return Ok(Examined { class, flags, attributes, tree_inode: None });
            }
            let directory =
                matches!(pipe::read(fd, &mut []), Err(SysError { errno: libc::EISDIR, .. }));
            let class = classify_unseen(path, flags, pipe::capacity(fd).is_ok(), directory);
            // No real device has this number: it stands for the tree.
            let attributes =
                FileAttributes { device: u64::MAX, inode, ..FileAttributes::default() };
            Ok(Examined { class, flags, attributes, tree_inode: Some(inode) })
        }
        Err(error) => Err(error),
    }
}

/// The inode number as the kernel tells it without asking the file system.
fn inode_number(fd: &OwnedFd) -> Result<u64, SysError> {
    let failed = |errno| SysError::new("fdinfo", errno);
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .map_err(|error| failed(error.raw_os_error().unwrap_or(libc::EIO)))?;
    text.lines()
        .find_map(|line| line.strip_prefix("ino:"))
        .and_then(|number| number.trim().parse().ok())
        .ok_or(failed(libc::ENODATA))
}

fn classify_unseen(path: &[u8], flags: i32, is_pipe: bool, is_directory: bool) -> Class {
    let named = path.starts_with(b"/") && !path.ends_with(b" (deleted)");
    if flags & libc::O_PATH != 0 {
        return if named { Class::ByPath } else { Class::Unsupported(Kind::Unknown) };
    }
    if is_pipe {
        return match access(flags) {
            libc::O_RDONLY => Class::FifoReader,
            libc::O_WRONLY => Class::FifoWriter,
            _ => Class::Unsupported(Kind::TreeFifo),
        };
    }
    match (is_directory, named) {
        (true, true) => Class::ByPath,
        (true, false) => Class::Unsupported(Kind::DeletedDirectory),
        (false, _) if flags & libc::O_DIRECT != 0 => Class::Unsupported(Kind::DirectFile),
        (false, _) => Class::File,
    }
}

fn classify(fd: &OwnedFd, path: &[u8], flags: i32, attributes: &FileAttributes) -> Class {
    let named = path.starts_with(b"/");
    if flags & libc::O_PATH != 0 {
        return if named && attributes.links > 0 {
            Class::ByPath
        } else {
            Class::Unsupported(Kind::Unknown)
        };
    }
    match attributes.mode & libc::S_IFMT {
        libc::S_IFIFO => match access(flags) {
            libc::O_RDONLY => Class::PipeReader,
            libc::O_WRONLY => Class::PipeWriter,
            _ => Class::Unsupported(Kind::ReadWritePipe),
        },
        libc::S_IFREG if path.starts_with(b"/memfd:") => Class::Unsupported(Kind::MemoryFile),
        // pidfd, namespaces and the like are regular files of file systems without names.
        libc::S_IFREG if !named => Class::Unsupported(Kind::Anonymous),
        // Such reads need aligned buffers at the very end of the way.
        libc::S_IFREG if flags & libc::O_DIRECT != 0 => Class::Unsupported(Kind::DirectFile),
        libc::S_IFREG => Class::File,
        libc::S_IFDIR if attributes.links == 0 || !named => {
            Class::Unsupported(Kind::DeletedDirectory)
        }
        libc::S_IFDIR => Class::ByPath,
        libc::S_IFCHR => character_device(fd, attributes.rdev),
        libc::S_IFBLK => Class::Unsupported(Kind::BlockDevice),
        libc::S_IFSOCK => Class::Unsupported(Kind::Socket),
        0 => Class::Unsupported(Kind::Anonymous),
        _ => Class::Unsupported(Kind::Unknown),
    }
}

fn character_device(fd: &OwnedFd, device: u64) -> Class {
    match (libc::major(device), libc::minor(device)) {
        (1, 3) => Class::Device("/dev/null"),
        (1, 5) => Class::Device("/dev/zero"),
        (1, 7) => Class::Device("/dev/full"),
        (1, 8) => Class::Device("/dev/random"),
        (1, 9) => Class::Device("/dev/urandom"),
        (5, 0) => Class::Unsupported(Kind::ControllingTerminal),
        (5, 2) => Class::Unsupported(Kind::TerminalMaster),
        _ if terminal::attributes(fd).is_ok() => Class::Terminal,
        _ => Class::Unsupported(Kind::CharacterDevice),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn class(fd: impl Into<OwnedFd>) -> Class {
        let fd = fd.into();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        examine(&fd, link.as_os_str().as_encoded_bytes()).unwrap().class
    }

    #[test]
    fn kinds_are_told_apart() {
        let (reader, writer) = pipe::pair(pipe::PipeFlags::default()).unwrap();
        let both = pipe::reopen(&reader, libc::O_RDWR).unwrap();
        assert_eq!(class(both), Class::Unsupported(Kind::ReadWritePipe));
        assert_eq!(class(reader), Class::PipeReader);
        assert_eq!(class(writer), Class::PipeWriter);
        for path in ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"] {
            assert_eq!(class(File::open(path).unwrap()), Class::Device(path));
        }
        assert_eq!(class(File::open("/").unwrap()), Class::ByPath);
        assert_eq!(class(tempfile::tempfile().unwrap()), Class::File);
        let (socket, _peer) = UnixStream::pair().unwrap();
        assert_eq!(class(socket), Class::Unsupported(Kind::Socket));
        let (master, slave) = terminal::open_pair(terminal::PTMX.as_ref()).unwrap();
        assert_eq!(class(slave), Class::Terminal);
        assert_eq!(class(master), Class::Unsupported(Kind::TerminalMaster));
        let folder = tempfile::tempdir().unwrap();
        let directory = File::open(folder.path()).unwrap();
        drop(folder);
        assert_eq!(class(directory), Class::Unsupported(Kind::DeletedDirectory));
        let path = std::fs::OpenOptions::new();
        let mut path = path;
        use std::os::unix::fs::OpenOptionsExt;
        let by_path = path.read(true).custom_flags(libc::O_PATH).open("/etc").unwrap();
        assert_eq!(class(by_path), Class::ByPath);
    }

    #[test]
    fn descriptors_without_a_file_are_refused() {
        use std::os::fd::AsFd;
        let epoll = dvs_sys::poll::Epoll::new().unwrap();
        let event = dvs_sys::poll::EventFd::new().unwrap();
        for fd in [epoll.as_fd(), event.as_fd()] {
            assert_eq!(
                class(fd.try_clone_to_owned().unwrap()),
                Class::Unsupported(Kind::Anonymous)
            );
        }
    }

    #[test]
    fn files_that_may_not_be_looked_at_are_told_apart() {
        let read = libc::O_RDONLY;
        let file = |path: &[u8], flags| classify_unseen(path, flags, false, false);
        assert_eq!(file(b"/a", read), Class::File);
        assert_eq!(file(b"/a (deleted)", libc::O_WRONLY | libc::O_APPEND), Class::File);
        assert_eq!(file(b"/a", libc::O_DIRECT), Class::Unsupported(Kind::DirectFile));
        assert_eq!(file(b"/a", libc::O_PATH), Class::ByPath);
        assert_eq!(classify_unseen(b"/d", read, false, true), Class::ByPath);
        let deleted = classify_unseen(b"/d (deleted)", read, false, true);
        assert_eq!(deleted, Class::Unsupported(Kind::DeletedDirectory));
        let fifo = |flags| classify_unseen(b"/f", flags, true, false);
        assert_eq!(fifo(read), Class::FifoReader);
        assert_eq!(fifo(libc::O_WRONLY | libc::O_NONBLOCK), Class::FifoWriter);
        assert_eq!(fifo(libc::O_RDWR), Class::Unsupported(Kind::TreeFifo));
    }

    #[test]
    fn the_inode_number_is_the_one_of_fstat() {
        let file: OwnedFd = File::open("/etc/passwd").unwrap().into();
        assert_eq!(inode_number(&file).unwrap(), fstat(&file).unwrap().inode);
    }
}
