//! Links between hosts: TLS 1.3 (RFC 8446) in both directions of proof, under one authority for the
//! cluster.
//!
//! Every node has a certificate whose only name is `n<number>.<cluster>.dvs.internal`, signed by the
//! cluster's authority. The one who connects checks that name while the connection is made, the one
//! who is connected to when the link's handshake says which node it is; so a certificate speaks for
//! its own node and for no other. A revoked certificate is refused by its fingerprint.
//!
//! There are no session tickets and no early data: what a connection has to prove, it proves anew.

mod authority;
mod connection;
mod stranger;
#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, CERTIFICATE_LIFE, Issued, NodeKey};
pub(crate) use connection::TlsStream;
pub(crate) use stranger::answer;
pub use stranger::{AskError, Invitation, MAX_QUESTION, ask};

use crate::ids::NodeId;
use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Protocol (ALPN, RFC 7301) of links: both sides show certificates.
pub(crate) const LINK: &[u8] = b"dvs-link/1";
/// Protocol of those who have no certificate yet.
pub(crate) const JOIN: &[u8] = b"dvs-join/1";

/// SHA-256 of a certificate.
pub type Fingerprint = [u8; 32];

/// SHA-256 of some bytes.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut found = Fingerprint::default();
    found.copy_from_slice(digest.as_ref());
    found
}

/// Bytes that nobody can guess.
///
/// # Panics
/// When the kernel gives no random bytes, which it always does once it has booted.
#[must_use]
pub fn secret<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut bytes).expect("the kernel's random bytes");
    bytes
}

/// Name of a node in its certificate.
#[must_use]
pub fn node_name(cluster: &[u8; 16], node: NodeId) -> String {
    let hex: String = cluster.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("n{node}.{hex}.dvs.internal")
}

/// What a node needs to speak with other hosts.
#[derive(Clone)]
pub struct Credentials {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The node.
    pub node: NodeId,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Its private key, PKCS#8 DER.
    pub key: Vec<u8>,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    /// Without the key.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Credentials").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Why credentials are of no use.
#[derive(Debug, thiserror::Error)]
#[error("the node's certificate or key cannot be used: {0}")]
pub struct CredentialsError(#[from] rustls::Error);

/// Answers the question of somebody who has no certificate yet; `None`: not worth an answer.
pub type Visitor = Arc<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync>;

/// Everything that connections between hosts are made with. Made anew when the certificate is
/// replaced; connections that are there go on.
pub(crate) struct Tls {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) cluster: [u8; 16],
    pub(crate) visitor: Option<Visitor>,
}

impl Tls {
    pub(crate) fn new(
        credentials: &Credentials,
        visitor: Option<Visitor>,
    ) -> Result<Self, CredentialsError> {
        let provider = Arc::new(provider());
        let roots = Arc::new(roots(&credentials.authority)?);
        let wrong = |error: &dyn std::fmt::Display| rustls::Error::General(error.to_string());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(
                    Arc::clone(&roots),
                    Arc::clone(&provider),
                )
                // Those who want to join have none; links without one are refused afterwards.
                .allow_unauthenticated()
                .build()
                .map_err(|error| wrong(&error))?,
            )
            .with_single_cert(chain(credentials), private_key(credentials))?;
        server.alpn_protocols = vec![LINK.to_vec(), JOIN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| wrong(&error))?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain(credentials), private_key(credentials))?;
        client.alpn_protocols = vec![LINK.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Tls {
            client: Arc::new(client),
            server: Arc::new(server),
            cluster: credentials.cluster,
            visitor,
        })
    }
}

/// The certificates that are not valid any more, whatever they say themselves.
#[derive(Debug, Default)]
pub(crate) struct Revoked(Mutex<BTreeSet<Fingerprint>>);

impl Revoked {
    pub(crate) fn set(&self, revoked: BTreeSet<Fingerprint>) {
        *self.0.lock().unwrap() = revoked;
    }

    pub(crate) fn has(&self, certificate: &Fingerprint) -> bool {
        self.0.lock().unwrap().contains(certificate)
    }
}

/// TLS 1.3 alone; AES-128 first, which costs the least and is secure.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    }
}

fn roots(authority: &[u8]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.to_vec()))?;
    Ok(roots)
}

/// The authority's certificate is sent along: those who join know only its fingerprint.
fn chain(credentials: &Credentials) -> Vec<CertificateDer<'static>> {
    vec![
        CertificateDer::from(credentials.certificate.clone()),
        CertificateDer::from(credentials.authority.clone()),
    ]
}

fn private_key(credentials: &Credentials) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credentials.key.clone()))
}

fn server_name(cluster: &[u8; 16], node: NodeId) -> Result<ServerName<'static>, rustls::Error> {
    ServerName::try_from(node_name(cluster, node))
        .map_err(|error| rustls::Error::General(error.to_string()))
}
