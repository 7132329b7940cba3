//! Frames over a control socket: a length, a message in postcard's form, and descriptors beside it.
//!
//! A frame is at most [`MAX_FRAME`] bytes and [`MAX_DESCRIPTORS`] descriptors; what is longer ends
//! the connection with an error, and nothing is kept of it.

use dvs_sys::descriptor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most bytes of a message: arguments and environment (2 MiB, Linux's own limit) with room to spare.
pub const MAX_FRAME: usize = 4 << 20;
/// Most descriptors beside a message.
pub const MAX_DESCRIPTORS: usize = 8;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side is gone.
    #[error("the connection was closed")]
    Closed,
    /// The system's error.
    #[error("{}", crate::folders::reason(.0))]
    Io(#[from] io::Error),
    /// Over a bound.
    #[error("a message of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// Over a bound.
    #[error("a message carries more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// Bytes that are no message.
    #[error("a message could not be understood ({0}); are both sides of the same version of dvs?")]
    Malformed(postcard::Error),
}

/// Sends one message with descriptors beside it.
///
/// # Errors
/// See [`WireError`].
pub fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    let mut frame = vec![0; 4];
    frame = postcard::to_extend(message, frame).map_err(WireError::Malformed)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(WireError::TooLong(length));
    }
    let header = u32::try_from(length).map_err(|_| WireError::TooLong(length))?.to_le_bytes();
    frame[..4].copy_from_slice(&header);
    // Descriptors travel with the first bytes; the rest may go in further writes.
    let sent = if descriptors.is_empty() {
        0
    } else {
        descriptor::send(stream.as_fd(), &frame, descriptors, 0)
            .map_err(|error| gone_is_closed(error.into()))?
    };
    let mut writer = stream;
    writer.write_all(frame.get(sent..).unwrap_or_default()).map_err(gone_is_closed)
}

/// Receives one message and its descriptors.
///
/// # Errors
/// See [`WireError`]; [`WireError::Closed`] at the end of the stream.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<(T, Vec<OwnedFd>), WireError> {
    let mut header = [0_u8; 4];
    let mut descriptors = Vec::new();
    let mut got = 0;
    while got < header.len() {
        let rest = header.get_mut(got..).unwrap_or_default();
        let received = descriptor::receive(stream.as_fd(), rest, MAX_DESCRIPTORS, 0)
            .map_err(|error| gone_is_closed(error.into()))?;
        if received.length == 0 {
            return Err(WireError::Closed);
        }
        if received.truncated {
            return Err(WireError::TooManyDescriptors);
        }
        got += received.length;
        descriptors.extend(received.descriptors);
    }
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(WireError::TooLong(length));
    }
    let mut body = vec![0; length];
    let mut reader = stream;
    reader.read_exact(&mut body).map_err(gone_is_closed)?;
    let message = postcard::from_bytes(&body).map_err(WireError::Malformed)?;
    Ok((message, descriptors))
}

fn gone_is_closed(error: io::Error) -> WireError {
    match error.kind() {
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => WireError::Closed,
        _ => WireError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Hello, Request};
    use std::os::fd::AsFd;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&left, &Request::Remove("x".into()), &[]).unwrap();
        send(&left, &Hello::ours(), &[writer.as_fd()]).unwrap();
        drop(writer);
        let (request, none) = receive::<Request>(&right).unwrap();
        assert_eq!((request, none.len()), (Request::Remove("x".into()), 0));
        let (hello, mut passed) = receive::<Hello>(&right).unwrap();
        assert_eq!((hello, passed.len()), (Hello::ours(), 1));
        let mut file = std::fs::File::from(passed.pop().unwrap());
        file.write_all(b"through").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(left);
        assert!(matches!(receive::<Hello>(&right), Err(WireError::Closed)));
    }

    #[test]
    fn long_messages_with_descriptors_arrive() {
        let (left, right) = UnixStream::pair().unwrap();
        let long = "y".repeat(MAX_FRAME - 64);
        let (_reader, writer) = io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send(&left, &Request::Remove(long.clone()), &[writer.as_fd()]).unwrap();
            });
            let (request, passed) = receive::<Request>(&right).unwrap();
            assert_eq!((request, passed.len()), (Request::Remove(long.clone()), 1));
        });
    }

    #[test]
    fn bounds_and_garbage_are_errors() {
        let (left, right) = UnixStream::pair().unwrap();
        let long = Request::Remove("y".repeat(MAX_FRAME + 1));
        assert!(matches!(send(&left, &long, &[]), Err(WireError::TooLong(_))));
        (&left).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(receive::<Request>(&right), Err(WireError::TooLong(_))));
        let (left, right) = UnixStream::pair().unwrap();
        (&left).write_all(&[2, 0, 0, 0, 0xff, 0xff]).unwrap();
        assert!(matches!(receive::<Request>(&right), Err(WireError::Malformed(_))));
        let (left, right) = UnixStream::pair().unwrap();
        (&left).write_all(&[9, 0, 0, 0, 1]).unwrap();
        drop(left);
        assert!(matches!(receive::<Request>(&right), Err(WireError::Closed)));
    }
}
