//! The byte stream of a connection: a unix socket inside one machine, TLS over TCP between hosts.

use crate::tls::TlsStream;
use dvs_sys::error::SysError;
use dvs_sys::socket;
use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// errno of a socket that takes nothing at the moment (`EAGAIN`).
pub(crate) const WOULD_BLOCK: i32 = 11;

/// One connection. Reading, by one thread, does not hold up writing, by another.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Waits for bytes; 0 at the end.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => {
                let mut reader = stream;
                reader.read(buffer)
            }
            Stream::Tls(stream) => stream.read(buffer),
        }
    }

    /// Takes over as much as possible without waiting, and says how many bytes. What was taken over
    /// may still have to be written by [`Stream::flush_now`].
    pub(crate) fn send_now(&self, pieces: &[IoSlice<'_>]) -> Result<usize, SysError> {
        match self {
            Stream::Unix(stream) => socket::send_now(stream, pieces),
            Stream::Tls(stream) => stream.send_now(pieces),
        }
    }

    /// Writes what was taken over before; `EAGAIN` when the socket is full.
    pub(crate) fn flush_now(&self) -> Result<(), SysError> {
        match self {
            Stream::Unix(_) => Ok(()),
            Stream::Tls(stream) => stream.flush_now(),
        }
    }

    /// Writes a last word if there is room; nobody waits for it.
    pub(crate) fn last_word(&self, bytes: &[u8]) {
        // The other side learns the same from the end of the connection, only not why.
        let _ = self.send_now(&[IoSlice::new(bytes)]).and_then(|_| self.flush_now());
    }

    /// Ends both directions; a thread that reads is woken.
    pub(crate) fn shutdown(&self) {
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tls(stream) => stream.socket().shutdown(Shutdown::Both),
        };
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
            Stream::Tls(stream) => stream.socket().set_read_timeout(timeout),
        }
    }

    /// What the other end has proved to be, where the transport proves it.
    pub(crate) fn tls(&self) -> Option<&TlsStream> {
        match self {
            Stream::Unix(_) => None,
            Stream::Tls(stream) => Some(stream),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tls(stream) => stream.socket().as_fd(),
        }
    }
}
