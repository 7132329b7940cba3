//! Messages with descriptors on a stream socket: a header of length and descriptor count, to which
//! the descriptors are attached, then a postcard-encoded body.
//!
//! A stream, because a launch may carry megabytes of arguments, more than one packet can.

use dvs_sys::descriptor::{self, MAX_DESCRIPTORS};
use serde::{Serialize, de::DeserializeOwned};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Longest body.
pub const MAX_BODY: usize = 4 << 20;
const HEADER: usize = 8;

/// A frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other end is gone.
    #[error("the other end has closed the connection")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] dvs_sys::error::SysError),
    /// The message is longer than a frame may be.
    #[error("a message of {0} bytes is over the limit of {MAX_BODY}")]
    TooLong(usize),
    /// More descriptors than a message can carry.
    #[error("{0} descriptors are over the limit of {MAX_DESCRIPTORS}")]
    TooMany(usize),
    /// A body that is no message. The stream itself is still in step.
    #[error("a message that cannot be decoded")]
    Malformed,
}

impl FrameError {
    /// Whether the next frame can still be read.
    #[must_use]
    pub fn recoverable(&self) -> bool {
        matches!(self, FrameError::Malformed | FrameError::TooLong(_) | FrameError::TooMany(_))
    }
}

/// Sends a message and descriptors; waits until the other end takes them.
///
/// # Errors
/// See [`FrameError`]; after `TooLong` and `TooMany` nothing was sent.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let mut bytes = vec![0; HEADER];
    bytes = postcard::to_extend(message, bytes).map_err(|_| FrameError::Malformed)?;
    send_body(socket, bytes, descriptors)
}

/// Sends a body that may be no message (for tests of the other end).
///
/// # Errors
/// As [`send`].
pub fn send_raw(
    socket: BorrowedFd<'_>,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(body);
    send_body(socket, bytes, descriptors)
}

fn send_body(
    socket: BorrowedFd<'_>,
    mut bytes: Vec<u8>,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let length = bytes.len() - HEADER;
    if length > MAX_BODY {
        return Err(FrameError::TooLong(length));
    }
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(FrameError::TooMany(descriptors.len()));
    }
    let (size, count) = (length as u32, descriptors.len() as u32);
    for (place, byte) in
        bytes.iter_mut().zip(size.to_le_bytes().into_iter().chain(count.to_le_bytes()))
    {
        *place = byte;
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let with = if sent == 0 { descriptors } else { &[] };
        let rest = bytes.get(sent..).unwrap_or_default();
        match descriptor::send(socket, rest, with, 0) {
            Ok(count) => sent += count,
            Err(error) if matches!(error.errno, libc::EPIPE | libc::ECONNRESET) => {
                return Err(FrameError::Closed);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives the next message; waits for it.
///
/// # Errors
/// See [`FrameError`]. After `Malformed`, `TooLong` and `TooMany` the frame was skipped and its
/// descriptors closed.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let (body, descriptors) = receive_raw(socket)?;
    let message = postcard::from_bytes(&body).map_err(|_| FrameError::Malformed)?;
    Ok((message, descriptors))
}

fn receive_raw(socket: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), FrameError> {
    let mut header = [0; HEADER];
    let descriptors = fill(socket, &mut header, MAX_DESCRIPTORS)?;
    let [a, b, c, d, e, f, g, h] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let count = u32::from_le_bytes([e, f, g, h]) as usize;
    if length > MAX_BODY {
        let mut waste = [0; 4096];
        let mut rest = length;
        while rest > 0 {
            let part = rest.min(waste.len());
            fill(socket, waste.get_mut(..part).unwrap_or_default(), 0)?;
            rest -= part;
        }
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0; length];
    fill(socket, &mut body, 0)?;
    if descriptors.len() != count {
        return Err(FrameError::TooMany(count));
    }
    Ok((body, descriptors))
}

/// Fills the buffer; the descriptors that came with its bytes.
fn fill(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    limit: usize,
) -> Result<Vec<OwnedFd>, FrameError> {
    let mut descriptors = Vec::new();
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        let left = limit.saturating_sub(descriptors.len());
        let got = match descriptor::receive(socket.as_fd(), rest, left, 0) {
            Ok(got) => got,
            Err(error) if error.errno == libc::ECONNRESET => return Err(FrameError::Closed),
            Err(error) => return Err(error.into()),
        };
        if got.length == 0 {
            return Err(FrameError::Closed);
        }
        filled += got.length;
        descriptors.extend(got.descriptors);
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvs_sys::descriptor::{SocketKind, pipe, socket_pair};

    #[test]
    fn frames_keep_step_after_bad_ones() {
        let (left, right) = socket_pair(SocketKind::Stream).unwrap();
        let (read, _write) = pipe().unwrap();
        let writer = std::thread::spawn(move || {
            send(left.as_fd(), &vec![7_u8; 3 << 20], &[read.as_fd(), read.as_fd()]).unwrap();
            send_raw(left.as_fd(), &[0xff; 20], &[read.as_fd()]).unwrap();
            // A header that promises more than allowed, followed by as much.
            let mut long = ((MAX_BODY + 1) as u32).to_le_bytes().to_vec();
            long.extend([0; 4]);
            long.extend(vec![0; MAX_BODY + 1]);
            let mut sent = 0;
            while sent < long.len() {
                sent += descriptor::send(left.as_fd(), &long[sent..], &[], 0).unwrap();
            }
            // A header that promises descriptors that do not come.
            let mut lie = 1_u32.to_le_bytes().to_vec();
            lie.extend(3_u32.to_le_bytes());
            lie.push(0);
            descriptor::send(left.as_fd(), &lie, &[], 0).unwrap();
            send(left.as_fd(), &"last", &[]).unwrap();
        });
        let (message, fds): (Vec<u8>, _) = receive(right.as_fd()).unwrap();
        assert_eq!((message.len(), fds.len()), (3 << 20, 2));
        let bad = receive::<Vec<u64>>(right.as_fd()).unwrap_err();
        assert!(matches!(bad, FrameError::Malformed) && bad.recoverable());
        assert!(matches!(receive::<String>(right.as_fd()), Err(FrameError::TooLong(_))));
        assert!(matches!(receive::<String>(right.as_fd()), Err(FrameError::TooMany(3))));
        assert_eq!(receive::<String>(right.as_fd()).unwrap().0, "last");
        assert!(matches!(receive::<String>(right.as_fd()), Err(FrameError::Closed)));
        writer.join().unwrap();
    }

    #[test]
    fn bounds_are_kept_by_the_sender() {
        let (left, _right) = socket_pair(SocketKind::Stream).unwrap();
        let long = vec![0_u8; MAX_BODY + 1];
        assert!(matches!(send(left.as_fd(), &long, &[]), Err(FrameError::TooLong(_))));
        let many = vec![left.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(matches!(send(left.as_fd(), &0, &many), Err(FrameError::TooMany(_))));
    }
}
