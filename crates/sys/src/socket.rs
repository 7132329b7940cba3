//! Writes to stream sockets that never block.

use crate::descriptor::{Poll, poll};
use crate::error::{Result, check};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};

/// Most pieces that one call may write (`IOV_MAX`).
pub const MAX_PIECES: usize = 1024;

/// Writes as much as the socket takes at once, never blocks and raises no SIGPIPE. At most
/// [`MAX_PIECES`] pieces are looked at. See sendmsg(2).
///
/// # Errors
/// `EAGAIN` when it takes nothing; `EPIPE`, `ECONNRESET` when the other end is gone.
pub fn send_now(socket: impl AsFd, pieces: &[IoSlice<'_>]) -> Result<usize> {
    // SAFETY: an all-zero `msghdr` is a valid empty one (null pointers with zero lengths).
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // `IoSlice` is guaranteed to have the layout of `iovec`; the kernel only reads through it.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len().min(MAX_PIECES);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message describes `pieces`, which live until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags) };
    let sent = check("sendmsg", sent as i64)?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

/// Waits until a write would not block (there is room, or the other end is gone), at most
/// `milliseconds`; `false` when the time is over or a signal came.
///
/// # Errors
/// As [`poll`].
pub fn wait_writable(socket: impl AsFd, milliseconds: u32) -> Result<bool> {
    let mut entry = [Poll { fd: socket.as_fd(), wanted: libc::POLLOUT, ready: 0 }];
    poll(&mut entry, Some(milliseconds))?;
    Ok(entry[0].ready != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_full_socket_says_so_and_a_closed_one_raises_no_signal() {
        let (one, mut two) = UnixStream::pair().unwrap();
        let block = [7u8; 4096];
        let pieces = [IoSlice::new(&block), IoSlice::new(&block)];
        let mut sent = 0;
        let error = loop {
            match send_now(&one, &pieces) {
                Ok(bytes) => sent += bytes,
                Err(error) => break error,
            }
            assert!(sent < 1 << 30, "the socket takes everything");
        };
        assert_eq!(error.errno, libc::EAGAIN);
        assert!(!wait_writable(&one, 0).unwrap());
        let mut buffer = vec![0; sent];
        two.read_exact(&mut buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 7));
        assert!(wait_writable(&one, 5000).unwrap());
        drop(two);
        assert_eq!(send_now(&one, &pieces).unwrap_err().errno, libc::EPIPE);
    }
}
