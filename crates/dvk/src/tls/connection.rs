//! One TLS connection: read by one thread, written by another.
//!
//! The library's state is behind a lock that nobody holds while waiting for the network. Plaintext
//! that was taken over is encrypted at once, so what is left to be written is ciphertext of a bounded
//! amount.

use super::{Fingerprint, Tls, fingerprint, server_name};
use crate::ids::NodeId;
use crate::listen::HANDSHAKE;
use dvs_sys::error::SysError;
use dvs_sys::socket;
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls::{ClientConnection, Connection, ServerConnection};
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Ciphertext that may wait for the socket.
const PENDING: usize = 512 << 10;
/// errno of a connection that takes nothing any more (`EPIPE`).
const BROKEN: i32 = 32;
/// Ciphertext read at a time.
const READ: usize = 64 << 10;

pub(crate) struct TlsStream {
    socket: TcpStream,
    connection: Mutex<Connection>,
    input: Mutex<Input>,
    peer: Option<Fingerprint>,
}

/// Ciphertext that was read and not yet decrypted.
struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl TlsStream {
    /// Makes the connection's client side: waits for the handshake, as long as the socket's timeouts
    /// allow.
    pub(crate) fn connect(tls: &Tls, peer: NodeId, socket: TcpStream) -> io::Result<Self> {
        let name = server_name(&tls.cluster, peer).map_err(io::Error::other)?;
        let client =
            ClientConnection::new(Arc::clone(&tls.client), name).map_err(io::Error::other)?;
        TlsStream::handshake(client.into(), socket)
    }

    /// Makes its server side.
    pub(crate) fn accept(tls: &Tls, socket: TcpStream) -> io::Result<Self> {
        let server = ServerConnection::new(Arc::clone(&tls.server)).map_err(io::Error::other)?;
        TlsStream::handshake(server.into(), socket)
    }

    pub(crate) fn handshake(mut connection: Connection, socket: TcpStream) -> io::Result<Self> {
        let until = Instant::now() + HANDSHAKE;
        while connection.is_handshaking() || connection.wants_write() {
            // Also a peer that sends one byte now and then comes to an end.
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if connection.wants_write() {
                connection.write_tls(&mut &socket)?;
                continue;
            }
            if connection.read_tls(&mut &socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Err(error) = connection.process_new_packets() {
                // The alert says why.
                let _ = connection.write_tls(&mut &socket);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        connection.set_buffer_limit(Some(PENDING));
        let peer =
            connection.peer_certificates().and_then(|chain| chain.first()).map(|c| fingerprint(c));
        let input = Input { buffer: vec![0; READ], start: 0, end: 0 };
        Ok(TlsStream { socket, connection: Mutex::new(connection), input: Mutex::new(input), peer })
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Fingerprint of the other side's certificate, if it showed one.
    pub(crate) fn peer(&self) -> Option<Fingerprint> {
        self.peer
    }

    /// Whether the other side's certificate speaks for a node.
    pub(crate) fn speaks_for(&self, cluster: &[u8; 16], node: NodeId) -> bool {
        let connection = self.lock();
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        let (Some(certificate), Ok(name)) = (certificate, server_name(cluster, node)) else {
            return false;
        };
        ParsedCertificate::try_from(certificate)
            .is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    }

    /// The protocol that both agreed on.
    pub(crate) fn protocol(&self) -> Vec<u8> {
        self.lock().alpn_protocol().unwrap_or_default().to_vec()
    }

    /// Certificates that the other side showed, its own first.
    pub(crate) fn certificates(&self) -> Vec<Vec<u8>> {
        let connection = self.lock();
        connection.peer_certificates().unwrap_or_default().iter().map(|der| der.to_vec()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for plaintext; 0 at the end of the connection, however it came: what the link has not
    /// acknowledged it sends again, so a cut is as good as an end.
    pub(crate) fn read(&self, out: &mut [u8]) -> io::Result<usize> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let got = self.decrypt(&mut input, out)?;
            if got > 0 {
                return Ok(got);
            }
            let read = (&self.socket).read(&mut input.buffer)?;
            if read == 0 {
                return Ok(0);
            }
            (input.start, input.end) = (0, read);
        }
    }

    /// Plaintext from what was read already; 0 if that holds no whole record.
    fn decrypt(&self, input: &mut Input, out: &mut [u8]) -> io::Result<usize> {
        let mut connection = self.lock();
        let mut got = 0;
        loop {
            let room = out.get_mut(got..).unwrap_or_default();
            if room.is_empty() {
                return Ok(got);
            }
            match connection.reader().read(room) {
                Ok(0) => return Ok(got),
                Ok(more) => {
                    got += more;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let mut rest = input.buffer.get(input.start..input.end).unwrap_or_default();
            if rest.is_empty() {
                return Ok(got);
            }
            let taken = connection.read_tls(&mut rest)?;
            input.start += taken;
            let processed = connection.process_new_packets();
            // Alerts and key updates; what does not go now goes with the next frame.
            let _ = self.write_pending(&mut connection);
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if taken == 0 {
                return Ok(got);
            }
        }
    }

    /// See `Stream::send_now`.
    pub(crate) fn send_now(&self, pieces: &[IoSlice<'_>]) -> Result<usize, SysError> {
        let mut connection = self.lock();
        self.write_pending(&mut connection)?;
        let taken = connection.writer().write_vectored(pieces).unwrap_or(0);
        if taken == 0 {
            // Nothing is pending, so there was room: the connection takes no more at all.
            return Err(SysError::new("TLS", BROKEN));
        }
        match self.write_pending(&mut connection) {
            // What was taken is on its way; the next call sees that the socket is full.
            Err(error) if error.errno != crate::stream::WOULD_BLOCK => Err(error),
            _ => Ok(taken),
        }
    }

    /// See `Stream::flush_now`.
    pub(crate) fn flush_now(&self) -> Result<(), SysError> {
        self.write_pending(&mut self.lock())
    }

    fn write_pending(&self, connection: &mut Connection) -> Result<(), SysError> {
        let mut sink = Now { socket: &self.socket, error: None };
        while connection.wants_write() {
            if connection.write_tls(&mut sink).is_err() {
                let full = SysError::new("sendmsg", crate::stream::WOULD_BLOCK);
                return Err(sink.error.take().unwrap_or(full));
            }
        }
        Ok(())
    }
}

/// A socket that is written without waiting.
struct Now<'a> {
    socket: &'a TcpStream,
    error: Option<SysError>,
}

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        socket::send_now(self.socket, pieces).map_err(|error| {
            let code = error.errno;
            self.error = Some(error);
            io::Error::from_raw_os_error(code)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
