//! Pipes: making them, looking into them without reading (`tee`, `FIONREAD`), capacity, a second
//! open file description of one (`/proc/self/fd`), and plain `read` and `write` on any descriptor.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Result, SysError, check};

/// Size of one slot of a pipe, and the largest atomic write (`PIPE_BUF`).
pub const PAGE: usize = 4096;

/// How a new pipe behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PipeFlags {
    /// Both ends start with `O_NONBLOCK`.
    pub nonblocking: bool,
    /// `O_DIRECT`: every write of at most [`PAGE`] bytes is one packet and one read returns one.
    pub packet: bool,
}

/// Makes a close-on-exec pipe: (read end, write end).
pub fn pair(flags: PipeFlags) -> Result<(OwnedFd, OwnedFd)> {
    let mut ends: [RawFd; 2] = [-1; 2];
    let mut bits = libc::O_CLOEXEC;
    if flags.nonblocking {
        bits |= libc::O_NONBLOCK;
    }
    if flags.packet {
        bits |= libc::O_DIRECT;
    }
    // SAFETY: `ends` is a live array of two ints, which is what pipe2(2) writes.
    let result = unsafe { libc::pipe2(ends.as_mut_ptr(), bits) };
    check("pipe2", i64::from(result))?;
    // SAFETY: pipe2 succeeded, so both numbers are new descriptors that nothing else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// `read(2)`; 0 at the end.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: pointer and length describe the live, writable `buffer`.
    let result =
        unsafe { libc::read(fd.as_fd().as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    length("read", result)
}

/// `write(2)`.
pub fn write(fd: impl AsFd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: pointer and length describe the live `bytes`, which are only read.
    let result = unsafe { libc::write(fd.as_fd().as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    length("write", result)
}

/// Copies at most `most` bytes from the front of one pipe into another without taking them
/// (`tee(2)`, never waiting). 0: empty and without writers; `EAGAIN`: empty.
pub fn tee(from: impl AsFd, to: impl AsFd, most: usize) -> Result<usize> {
    // SAFETY: tee takes two descriptors and plain numbers; both descriptors are borrowed and live.
    let result = unsafe {
        libc::tee(from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd(), most, libc::SPLICE_F_NONBLOCK)
    };
    length("tee", result)
}

/// Moves at most `most` bytes from one pipe to another descriptor (`splice(2)`, never waiting for
/// the pipe).
pub fn splice(from: impl AsFd, to: impl AsFd, most: usize) -> Result<usize> {
    // SAFETY: null offsets are allowed (use the descriptors' own); the descriptors are live.
    let result = unsafe {
        libc::splice(
            from.as_fd().as_raw_fd(),
            std::ptr::null_mut(),
            to.as_fd().as_raw_fd(),
            std::ptr::null_mut(),
            most,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    length("splice", result)
}

/// Bytes that can be read now (`FIONREAD`); works on either end of a pipe.
pub fn available(fd: impl AsFd) -> Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int into `bytes`.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    check("FIONREAD", i64::from(result))?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Bytes that a pipe holds at most (`F_GETPIPE_SZ`).
pub fn capacity(fd: impl AsFd) -> Result<usize> {
    // SAFETY: F_GETPIPE_SZ takes no argument.
    let result = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETPIPE_SZ) };
    let bytes = check("F_GETPIPE_SZ", i64::from(result))?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Sets what a pipe holds at most, rounded up to a power of two of pages; returns what it is now.
/// `EBUSY`: it holds more than that now. `EPERM`: over the user's limit.
pub fn set_capacity(fd: impl AsFd, bytes: usize) -> Result<usize> {
    let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: F_SETPIPE_SZ takes one int.
    let result = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETPIPE_SZ, wanted) };
    let bytes = check("F_SETPIPE_SZ", i64::from(result))?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Opens the same file again through `/proc/self/fd`: a new open file description, with flags of its
/// own, of the same pipe, FIFO or device. `O_CLOEXEC | O_NOCTTY` are added.
/// `ENXIO`: the write end of a FIFO that nobody reads, with `O_NONBLOCK`.
pub fn reopen(fd: impl AsFd, flags: i32) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}\0", fd.as_fd().as_raw_fd());
    // SAFETY: `path` ends with NUL and lives across the call.
    let result =
        unsafe { libc::open(path.as_ptr().cast(), flags | libc::O_CLOEXEC | libc::O_NOCTTY) };
    check("open", i64::from(result))?;
    // SAFETY: open succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Whether two descriptors of this process share one open file description (`kcmp(KCMP_FILE)`).
pub fn same_description(left: impl AsFd, right: impl AsFd) -> Result<bool> {
    const KCMP_FILE: libc::c_long = 0;
    let own = libc::c_long::from(std::process::id().cast_signed());
    // SAFETY: kcmp takes plain numbers and changes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            own,
            own,
            KCMP_FILE,
            libc::c_long::from(left.as_fd().as_raw_fd()),
            libc::c_long::from(right.as_fd().as_raw_fd()),
        )
    };
    Ok(check("kcmp", result)? == 0)
}

/// `lseek(2)`: the resulting offset. `ENXIO`: no data (or hole) behind `offset`.
pub fn seek(fd: impl AsFd, offset: u64, whence: i32) -> Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| SysError::new("lseek", libc::EINVAL))?;
    // SAFETY: lseek takes a descriptor and plain numbers.
    let result = unsafe { libc::lseek64(fd.as_fd().as_raw_fd(), offset, whence) };
    Ok(u64::try_from(check("lseek", result)?).unwrap_or(0))
}

/// Gives an open file to another owner (`fchown(2)`), pipes included.
pub fn change_owner(fd: impl AsFd, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: fchown takes a descriptor and plain numbers.
    let result = unsafe { libc::fchown(fd.as_fd().as_raw_fd(), uid, gid) };
    check("fchown", i64::from(result))?;
    Ok(())
}

fn length(call: &'static str, result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| SysError::last(call))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::status_flags;

    const NONBLOCKING: PipeFlags = PipeFlags { nonblocking: true, packet: false };

    #[test]
    fn tee_leaves_the_bytes() {
        let (from_read, from_write) = pair(NONBLOCKING).unwrap();
        let (to_read, to_write) = pair(NONBLOCKING).unwrap();
        assert_eq!(tee(&from_read, &to_write, 100).unwrap_err().errno, libc::EAGAIN);
        write(&from_write, b"hello").unwrap();
        assert_eq!(tee(&from_read, &to_write, 100).unwrap(), 5);
        assert_eq!(available(&from_read).unwrap(), 5);
        assert_eq!(available(&to_write).unwrap(), 5, "FIONREAD works on the write end");
        let mut buffer = [0; 16];
        assert_eq!(read(&to_read, &mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"hello");
        drop(from_write);
        read(&from_read, &mut buffer).unwrap();
        assert_eq!(tee(&from_read, &to_write, 100).unwrap(), 0, "the end");
    }

    #[test]
    fn packets_keep_their_boundaries() {
        let (reader, writer) = pair(PipeFlags { nonblocking: true, packet: true }).unwrap();
        write(&writer, b"abc").unwrap();
        write(&writer, b"de").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(available(&reader).unwrap(), 5);
        assert_eq!(read(&reader, &mut buffer).unwrap(), 3);
        assert_eq!(read(&reader, &mut buffer).unwrap(), 2);
    }

    #[test]
    fn capacity_is_set_and_refused() {
        let (_reader, writer) = pair(NONBLOCKING).unwrap();
        assert_eq!(set_capacity(&writer, PAGE).unwrap(), PAGE);
        assert_eq!(capacity(&writer).unwrap(), PAGE);
        assert_eq!(write(&writer, &[1; 2 * PAGE]).unwrap(), PAGE);
        set_capacity(&writer, 4 * PAGE).unwrap();
        write(&writer, &[1; 2 * PAGE]).unwrap();
        assert_eq!(set_capacity(&writer, PAGE).unwrap_err().errno, libc::EBUSY);
    }

    #[test]
    fn a_reopened_end_has_flags_of_its_own() {
        let (_reader, writer) = pair(PipeFlags::default()).unwrap();
        let again = reopen(&writer, libc::O_WRONLY | libc::O_NONBLOCK).unwrap();
        assert_eq!(status_flags(writer.as_fd()).unwrap() & libc::O_NONBLOCK, 0);
        assert_ne!(status_flags(again.as_fd()).unwrap() & libc::O_NONBLOCK, 0);
        assert!(!same_description(&writer, &again).unwrap());
        assert!(same_description(&writer, writer.try_clone().unwrap()).unwrap());
    }
}
