//! Descriptors: making, duplicating and sealing them, and passing them over unix sockets.
//!
//! Everything made here is close-on-exec. Messages with descriptors are bounded on both sides: what
//! does not fit is closed by the kernel and reported as truncated, never silently kept.

use crate::error::{Result, SysError, check};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors that one message can carry (`SCM_MAX_FD` of the kernel).
pub const MAX_DESCRIPTORS: usize = 253;
/// All seals of a memfd: no change of size, no write, no further seal.
pub const ALL_SEALS: i32 =
    libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

/// Takes a number that the kernel has just returned into ownership.
pub(crate) fn own(fd: i64) -> OwnedFd {
    // SAFETY: callers pass what a system call has just returned as a new descriptor; nobody else
    // knows the number, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// A pipe: its read end and its write end (`pipe2`).
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has room for the two numbers that the kernel writes.
    check("pipe2", i64::from(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }))?;
    Ok((own(i64::from(ends[0])), own(i64::from(ends[1]))))
}

/// Kind of a unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// Bytes in order.
    Stream,
    /// Messages in order, with an end of file.
    Sequenced,
    /// Messages.
    Datagram,
}

/// Two connected unix sockets.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn socket_pair(kind: SocketKind) -> Result<(OwnedFd, OwnedFd)> {
    let kind = match kind {
        SocketKind::Stream => libc::SOCK_STREAM,
        SocketKind::Sequenced => libc::SOCK_SEQPACKET,
        SocketKind::Datagram => libc::SOCK_DGRAM,
    };
    let mut ends = [-1; 2];
    // SAFETY: the array has room for the two numbers that the kernel writes.
    let done =
        unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) };
    check("socketpair", i64::from(done))?;
    Ok((own(i64::from(ends[0])), own(i64::from(ends[1]))))
}

/// An anonymous file that can be sealed (`memfd_create`).
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn memory_file(name: &CStr) -> Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated and lives through the call.
    let fd =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    Ok(own(check("memfd_create", i64::from(fd))?))
}

/// Adds seals (`F_SEAL_*`) to a memfd.
///
/// # Errors
/// `EBUSY` while it is mapped writable, `EPERM` when it is sealed against seals.
pub fn add_seals(fd: BorrowedFd<'_>, seals: i32) -> Result<()> {
    // SAFETY: fcntl with an integer argument touches no memory.
    check("fcntl(F_ADD_SEALS)", unsafe {
        i64::from(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals))
    })?;
    Ok(())
}

/// The seals of a memfd.
///
/// # Errors
/// `EINVAL` when the file is not a memfd.
pub fn seals(fd: BorrowedFd<'_>) -> Result<i32> {
    // SAFETY: fcntl without a pointer touches no memory.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    Ok(check("fcntl(F_GET_SEALS)", i64::from(seals))? as i32)
}

/// How often a copy is sealed while the kernel itself still holds pages of it, as it does for a moment
/// after they were written. It waits for them, but on a busy machine not long enough (150 ms).
const SEAL_TRIES: usize = 20;

/// A sealed copy of a file in memory: nobody, not even a program that runs it, can change it.
///
/// # Errors
/// What reading the file and writing the memory give (`ENOMEM`).
pub fn sealed_copy(name: &CStr, source: impl std::io::Read) -> Result<OwnedFd> {
    let mut source = source;
    let copy = memory_file(name)?;
    let mut file = std::fs::File::from(copy);
    std::io::copy(&mut source, &mut file)
        .map_err(|error| SysError::new("copy", error.raw_os_error().unwrap_or(libc::EIO)))?;
    let copy = OwnedFd::from(file);
    for _ in 1..SEAL_TRIES {
        match add_seals(copy.as_fd(), ALL_SEALS) {
            Err(SysError { errno: libc::EBUSY, .. }) => {}
            other => return other.map(|()| copy),
        }
    }
    add_seals(copy.as_fd(), ALL_SEALS)?;
    Ok(copy)
}

/// A duplicate with the lowest free number that is not below `least`; close-on-exec.
///
/// # Errors
/// `EMFILE`; `EINVAL` when `least` is over the limit.
pub fn duplicate(fd: BorrowedFd<'_>, least: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl with an integer argument touches no memory.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    Ok(own(check("fcntl(F_DUPFD_CLOEXEC)", i64::from(copy))?))
}

/// The file status flags (`O_*`) of the open file description.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor in some uses.
pub fn status_flags(fd: BorrowedFd<'_>) -> Result<i32> {
    // SAFETY: fcntl without a pointer touches no memory.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    Ok(check("fcntl(F_GETFL)", i64::from(flags))? as i32)
}

/// Makes reads and writes of the open file description fail with `EAGAIN` instead of waiting.
///
/// # Errors
/// What `F_SETFL` says.
pub fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> Result<()> {
    let old = status_flags(fd)?;
    let new = if nonblocking { old | libc::O_NONBLOCK } else { old & !libc::O_NONBLOCK };
    // SAFETY: fcntl with an integer argument touches no memory.
    check("fcntl(F_SETFL)", unsafe { i64::from(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, new)) })?;
    Ok(())
}

/// Sets or clears close-on-exec.
///
/// # Errors
/// What `F_SETFD` says.
pub fn set_close_on_exec(fd: BorrowedFd<'_>, close: bool) -> Result<()> {
    let flag = if close { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: fcntl with an integer argument touches no memory.
    check("fcntl(F_SETFD)", unsafe {
        i64::from(libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flag))
    })?;
    Ok(())
}

/// Marks every descriptor from `first` to `last` (inclusive) close-on-exec. Nothing is closed now.
///
/// # Errors
/// `ENOSYS`, `EINVAL` before Linux 5.11.
pub fn close_range_on_exec(first: u32, last: u32) -> Result<()> {
    // SAFETY: sets a flag of descriptors; no descriptor is closed and no memory touched.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    check("close_range", done)?;
    Ok(())
}

/// The numbers of all open descriptors of this process, from `/proc/self/fd`.
///
/// # Errors
/// What reading the folder says.
pub fn open_numbers() -> Result<Vec<RawFd>> {
    let failed = |error: std::io::Error| {
        SysError::new("readdir(/proc/self/fd)", error.raw_os_error().unwrap_or(libc::EIO))
    };
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// What [`receive`] got.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 at the end of a stream.
    pub length: usize,
    /// Descriptors that came with them, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Bytes or descriptors did not fit; what did not fit is lost (descriptors are closed).
    pub truncated: bool,
}

/// Room for the control message of [`MAX_DESCRIPTORS`], aligned as `cmsghdr` needs it.
#[repr(C, align(8))]
struct ControlBuffer([u8; 16 + 4 * MAX_DESCRIPTORS + 12]);

/// Sends bytes and descriptors as one message (`sendmsg`, without `SIGPIPE`). On a stream fewer
/// bytes than given may go; the descriptors go with the first.
///
/// # Errors
/// `EINVAL` for more than [`MAX_DESCRIPTORS`] or descriptors without bytes; `EAGAIN`, `EPIPE`,
/// `EMSGSIZE` and what else `sendmsg` says. `EINTR` is retried.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: i32,
) -> Result<usize> {
    if descriptors.len() > MAX_DESCRIPTORS || (bytes.is_empty() && !descriptors.is_empty()) {
        return Err(SysError::new("sendmsg", libc::EINVAL));
    }
    let mut control = ControlBuffer([0; 16 + 4 * MAX_DESCRIPTORS + 12]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is a valid one without parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let size = (descriptors.len() * size_of::<RawFd>()) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as usize;
        // SAFETY: the control buffer is aligned, zeroed and larger than one header plus
        // MAX_DESCRIPTORS numbers (16 + 1012, rounded up to 8), so header and data lie inside it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (index, fd) in descriptors.iter().enumerate() {
                data.add(index).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: message points to the parts above, which live through the call; the kernel only
        // reads them.
        let sent = unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, flags | libc::MSG_NOSIGNAL)
        };
        match check("sendmsg", sent as i64) {
            Ok(sent) => return Ok(sent as usize),
            Err(error) if error.errno == libc::EINTR => {}
            Err(error) => return Err(error),
        }
    }
}

/// Receives one message (or the next bytes of a stream) and at most `limit` descriptors; more
/// descriptors than that are closed and reported as truncated.
///
/// # Errors
/// `EAGAIN` and what else `recvmsg` says. `EINTR` is retried.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    limit: usize,
    flags: i32,
) -> Result<Received> {
    let mut control = ControlBuffer([0; 16 + 4 * MAX_DESCRIPTORS + 12]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero msghdr is a valid one without parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let length = loop {
        // SAFETY: the parts point to live, exclusively borrowed memory of the lengths given.
        let got = unsafe {
            libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags | libc::MSG_CMSG_CLOEXEC)
        };
        match check("recvmsg", got as i64) {
            Ok(got) => break got as usize,
            Err(error) if error.errno == libc::EINTR => {}
            Err(error) => return Err(error),
        }
    };
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has filled msg_control up to msg_controllen with well-formed headers;
    // CMSG_* stay inside that; each number is a new descriptor that only this message names.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let size = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..size / size_of::<RawFd>() {
                    descriptors.push(own(i64::from(data.add(index).read_unaligned())));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    let over = descriptors.len() > limit;
    descriptors.truncate(limit);
    let truncated = over || message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Received { length, descriptors, truncated })
}

/// Who is at the other end of a connected unix socket (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id, 0 where the peer's is not visible here.
    pub pid: i32,
    /// Effective user id at the time of the connection.
    pub uid: u32,
    /// Effective group id at the time of the connection.
    pub gid: u32,
}

/// Credentials of the peer of a connected unix socket.
///
/// # Errors
/// `ENOTSOCK`, `ENOPROTOOPT`.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> Result<PeerCredentials> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the buffer has the size that is given.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut size,
        )
    };
    check("getsockopt(SO_PEERCRED)", i64::from(done))?;
    Ok(PeerCredentials { pid: peer.pid, uid: peer.uid, gid: peer.gid })
}

/// One descriptor to wait for, and what happened to it.
#[derive(Debug, Clone, Copy)]
pub struct Poll<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// `POLLIN`, `POLLOUT`, ... wanted.
    pub wanted: i16,
    /// What is there, also `POLLHUP`, `POLLERR`, `POLLNVAL`.
    pub ready: i16,
}

impl<'a> Poll<'a> {
    /// Waits for something to read.
    #[must_use]
    pub fn readable(fd: BorrowedFd<'a>) -> Self {
        Poll { fd, wanted: libc::POLLIN, ready: 0 }
    }
}

/// Waits until one is ready or `timeout` (milliseconds; `None`: no limit) is over; returns how many
/// are ready. An interruption by a signal counts as zero ready ones.
///
/// # Errors
/// `EINVAL` for more descriptors than the limit, `ENOMEM`.
pub fn poll(entries: &mut [Poll<'_>], timeout: Option<u32>) -> Result<usize> {
    let mut raw: Vec<libc::pollfd> = entries
        .iter()
        .map(|entry| libc::pollfd { fd: entry.fd.as_raw_fd(), events: entry.wanted, revents: 0 })
        .collect();
    let timeout = timeout.map_or(-1, |limit| i32::try_from(limit).unwrap_or(i32::MAX));
    // SAFETY: the array is exclusively borrowed and has the length given.
    let ready = unsafe { libc::poll(raw.as_mut_ptr(), raw.len() as libc::nfds_t, timeout) };
    let ready = match check("poll", i64::from(ready)) {
        Ok(ready) => ready as usize,
        Err(error) if error.errno == libc::EINTR => 0,
        Err(error) => return Err(error),
    };
    for (entry, raw) in entries.iter_mut().zip(&raw) {
        entry.ready = if ready == 0 { 0 } else { raw.revents };
    }
    Ok(ready)
}

/// Waits until something can be read (or the other end is gone); `false` when the time is over.
///
/// # Errors
/// As [`poll`].
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<u32>) -> Result<bool> {
    let mut entry = [Poll::readable(fd)];
    poll(&mut entry, timeout)?;
    Ok(entry[0].ready != 0)
}

/// Writes to a socket wait at most this long (`SO_SNDTIMEO`), then fail with `EAGAIN`.
///
/// # Errors
/// `ENOTSOCK`.
pub fn set_send_timeout(socket: BorrowedFd<'_>, limit: std::time::Duration) -> Result<()> {
    let time = libc::timeval {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_usec: libc::suseconds_t::from(limit.subsec_micros()),
    };
    // SAFETY: the kernel reads one timeval.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDTIMEO,
            (&raw const time).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    check("setsockopt(SO_SNDTIMEO)", i64::from(done))?;
    Ok(())
}

/// Ends a connection in both directions; whoever waits on either end wakes up.
pub fn shut_down(socket: BorrowedFd<'_>) {
    // SAFETY: integers only. The only error is that it is no connected socket.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Makes standard input, output or error (0 to 2) refer to another file.
///
/// # Errors
/// `EINVAL` for another number, and what `dup2` says.
pub fn replace_standard(number: RawFd, fd: BorrowedFd<'_>) -> Result<()> {
    if !(0..=2).contains(&number) {
        return Err(SysError::new("dup2", libc::EINVAL));
    }
    // SAFETY: Rust's standard streams own no state that depends on which file the number means.
    check("dup2", i64::from(unsafe { libc::dup2(fd.as_raw_fd(), number) }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn descriptors_travel_with_their_bytes_and_are_bounded() {
        for kind in [SocketKind::Sequenced, SocketKind::Stream] {
            let (left, right) = socket_pair(kind).unwrap();
            let (read, write) = pipe().unwrap();
            let fds = [write.as_fd(), write.as_fd(), write.as_fd()];
            assert_eq!(send(left.as_fd(), b"three", &fds, 0).unwrap(), 5);
            let mut buffer = [0; 16];
            let got = receive(right.as_fd(), &mut buffer, 3, 0).unwrap();
            assert_eq!((&buffer[..got.length], got.truncated), (&b"three"[..], false));
            assert_eq!(got.descriptors.len(), 3);
            std::fs::File::from(got.descriptors.into_iter().next().unwrap())
                .write_all(b"x")
                .unwrap();
            let mut one = [0];
            std::fs::File::from(read).read_exact(&mut one).unwrap();
            // More than the receiver wants: closed, and said.
            send(left.as_fd(), b"three", &fds, 0).unwrap();
            let got = receive(right.as_fd(), &mut buffer, 1, 0).unwrap();
            assert!(got.truncated && got.descriptors.len() == 1);
            let many = vec![write.as_fd(); MAX_DESCRIPTORS + 1];
            assert_eq!(send(left.as_fd(), b"x", &many, 0).unwrap_err().errno, libc::EINVAL);
            send(left.as_fd(), b"x", &many[..MAX_DESCRIPTORS], 0).unwrap();
            let got = receive(right.as_fd(), &mut buffer, MAX_DESCRIPTORS, 0).unwrap();
            assert_eq!((got.descriptors.len(), got.truncated), (MAX_DESCRIPTORS, false));
            drop(left);
            assert_eq!(receive(right.as_fd(), &mut buffer, 0, 0).unwrap().length, 0);
        }
    }

    #[test]
    fn a_sealed_copy_cannot_be_written() {
        let copy = sealed_copy(c"test", &b"contents"[..]).unwrap();
        assert_eq!(seals(copy.as_fd()).unwrap(), ALL_SEALS);
        let mut file = std::fs::File::from(copy);
        assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn waiting_is_bounded() {
        let (read, write) = pipe().unwrap();
        assert!(!wait_readable(read.as_fd(), Some(1)).unwrap());
        drop(write);
        assert!(wait_readable(read.as_fd(), Some(60_000)).unwrap());
    }
}
