//! What kind of thing a descriptor is, from what the kernel says about it.

use std::os::fd::{AsFd, OwnedFd};

use dvs_sys::error::SysError;
use dvs_sys::stat::fstat;
use dvs_sys::{descriptor, terminal};

use crate::descriptor::Kind;
use crate::messages::FileAttributes;

/// A descriptor's kind, as far as carrying it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Read end of a pipe or FIFO.
    PipeReader,
    /// Write end of a pipe or FIFO.
    PipeWriter,
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

/// Looks at a descriptor; `path` is the text of its `/proc` link.
pub(crate) fn examine(fd: &OwnedFd, path: &[u8]) -> Result<Examined, SysError> {
    let flags = descriptor::status_flags(fd.as_fd())?;
    let attributes = attributes(fd)?;
    let class = classify(fd, path, flags, &attributes);
    Ok(Examined { class, flags, attributes })
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

    use dvs_sys::pipe;

    use super::*;

    fn class(fd: impl Into<OwnedFd>) -> Class {
        use std::os::fd::AsRawFd;
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
}
