//! One question and one answer with somebody who has no certificate yet.
//!
//! Who asks knows the fingerprint of the cluster's authority from an invitation, so it is sure whom
//! it speaks to before it says anything; who answers knows nothing of the other side but what the
//! question proves.

use super::{Fingerprint, JOIN, Tls, TlsStream, fingerprint, provider, roots, server_name};
use crate::ids::NodeId;
use crate::listen::HANDSHAKE;
use crate::stream::WOULD_BLOCK;
use dvs_sys::socket;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
};
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most bytes of a question or an answer.
pub const MAX_QUESTION: usize = 64 << 10;
/// Longest single wait for the socket, ms.
const WRITE_WAIT: u32 = 200;

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The node that answers.
    pub node: NodeId,
    /// Fingerprint of the cluster's authority.
    pub authority: Fingerprint,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection.
    #[error("{address}: {error}")]
    Socket {
        /// Where to.
        address: SocketAddr,
        /// What the system or TLS said.
        error: io::Error,
    },
    /// It closed the connection instead.
    #[error("{address} gave no answer")]
    NoAnswer {
        /// Where to.
        address: SocketAddr,
    },
    /// Over the bound.
    #[error("a question of {0} bytes is longer than {MAX_QUESTION}")]
    TooLong(usize),
}

/// Asks. Returns the answer and the authority's certificate, DER.
///
/// # Errors
/// When there is no answer within about ten seconds, or the other side is not who was invited by.
pub fn ask(
    address: SocketAddr,
    invitation: &Invitation,
    question: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), AskError> {
    if question.len() > MAX_QUESTION {
        return Err(AskError::TooLong(question.len()));
    }
    let failed = |error| AskError::Socket { address, error };
    let stream = connect(address, invitation).map_err(failed)?;
    send(&stream, question).map_err(failed)?;
    let answer = receive(&stream).map_err(failed)?.ok_or(AskError::NoAnswer { address })?;
    let authority =
        stream.certificates().into_iter().find(|der| fingerprint(der) == invitation.authority);
    Ok((answer, authority.ok_or(AskError::NoAnswer { address })?))
}

fn connect(address: SocketAddr, invitation: &Invitation) -> io::Result<TlsStream> {
    let provider = Arc::new(provider());
    let verifier = Pinned { authority: invitation.authority, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN.to_vec()];
    config.resumption = Resumption::disabled();
    let name = server_name(&invitation.cluster, invitation.node).map_err(io::Error::other)?;
    let client = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let socket = TcpStream::connect_timeout(&address, HANDSHAKE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(HANDSHAKE))?;
    socket.set_write_timeout(Some(HANDSHAKE))?;
    TlsStream::handshake(client.into(), socket)
}

/// Answers one question, and ends the connection.
pub(crate) fn answer(tls: &Tls, stream: &TlsStream) -> Result<(), String> {
    let failed = |error: io::Error| format!("a question of a stranger: {error}");
    let visitor = tls.visitor.as_ref().ok_or("nobody can join here")?;
    let question = receive(stream).map_err(failed)?.ok_or("a stranger without a question")?;
    let answer = visitor(&question).ok_or("a stranger's question is not understood")?;
    send(stream, &answer).map_err(failed)
}

fn send(stream: &TlsStream, bytes: &[u8]) -> io::Result<()> {
    let until = Instant::now() + HANDSHAKE;
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let whole = [&length[..], bytes].concat();
    let mut sent = 0;
    loop {
        let rest = whole.get(sent..).unwrap_or_default();
        let step = if rest.is_empty() {
            stream.flush_now().map(|()| 0)
        } else {
            stream.send_now(&[IoSlice::new(rest)])
        };
        match step {
            Ok(_) if rest.is_empty() => return Ok(()),
            Ok(more) => sent += more,
            Err(error) if error.errno == WOULD_BLOCK && Instant::now() < until => {
                socket::wait_writable(stream.socket(), WRITE_WAIT)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// One message; `None` at the end of the connection.
fn receive(stream: &TlsStream) -> io::Result<Option<Vec<u8>>> {
    let until = Instant::now() + HANDSHAKE + Duration::from_secs(5);
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some((length, body)) = bytes.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            if length > MAX_QUESTION {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message too long"));
            }
            if let Some(body) = body.get(..length) {
                return Ok(Some(body.to_vec()));
            }
        }
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            length => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// Takes any certificate under the one authority whose fingerprint is known.
#[derive(Debug)]
struct Pinned {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|der| fingerprint(der) == self.authority)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let roots = Arc::new(roots(authority)?);
        WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // TLS 1.3 alone is offered.
        Err(rustls::Error::General("TLS 1.2 was not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
