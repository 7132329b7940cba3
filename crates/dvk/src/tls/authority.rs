//! The cluster's authority: its key signs the certificates of nodes (X.509, RFC 5280; Ed25519).
//!
//! Whoever has the key can make nodes of the cluster; it stays on the node that made the cluster.

use super::{Fingerprint, fingerprint, node_name, secret};
use crate::ids::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a node's certificate is valid; it is replaced long before.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * DAY);
/// How long the authority's own is valid.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * DAY);
/// Certificates are valid from this long ago: clocks of hosts differ.
const BACKDATED: Duration = Duration::from_secs(2 * DAY);
const DAY: u64 = 24 * 3600;
/// Bytes of an Ed25519 public key.
const PUBLIC_KEY: usize = 32;

/// Why a key or certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The library refuses.
    #[error("certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Not an Ed25519 key.
    #[error("a public key has {PUBLIC_KEY} bytes, not {0}")]
    PublicKey(usize),
}

/// A node's own key; its private part never leaves the node.
pub struct NodeKey {
    key: KeyPair,
}

impl NodeKey {
    /// A new one.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn generate() -> Result<Self, AuthorityError> {
        Ok(NodeKey { key: KeyPair::generate_for(&PKCS_ED25519)? })
    }

    /// What the authority signs.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.key.public_key_raw().to_vec()
    }

    /// To be stored where only the node's user reads: PKCS#8 DER.
    #[must_use]
    pub fn private(&self) -> Vec<u8> {
        self.key.serialize_der()
    }
}

/// A certificate that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// It, DER.
    pub certificate: Vec<u8>,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// When it ends, seconds since 1970.
    pub ends: u64,
}

/// See the module.
pub struct Authority {
    cluster: [u8; 16],
    certificate: Vec<u8>,
    key: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

struct Applicant<'a>(&'a [u8]);

impl PublicKeyData for Applicant<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl Authority {
    /// Of a new cluster.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn create(cluster: [u8; 16]) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = parameters(&cluster)?.self_signed(&key)?.der().to_vec();
        Authority::load(cluster, certificate, key.serialize_der())
    }

    /// From what was stored of it.
    ///
    /// # Errors
    /// When the key is none.
    pub fn load(
        cluster: [u8; 16],
        certificate: Vec<u8>,
        key: Vec<u8>,
    ) -> Result<Self, AuthorityError> {
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key.as_slice().into(), &PKCS_ED25519)?;
        Ok(Authority {
            cluster,
            certificate,
            key,
            issuer: Issuer::new(parameters(&cluster)?, pair),
        })
    }

    /// Its certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its private key, PKCS#8 DER: to be stored where only its user reads.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Certifies that a public key is a node's.
    ///
    /// # Errors
    /// When it is no key.
    pub fn issue(
        &self,
        node: NodeId,
        public: &[u8],
        life: Duration,
    ) -> Result<Issued, AuthorityError> {
        if public.len() != PUBLIC_KEY {
            return Err(AuthorityError::PublicKey(public.len()));
        }
        let mut parameters = CertificateParams::new(vec![node_name(&self.cluster, node)])?;
        let now = SystemTime::now();
        parameters.not_before = (now - BACKDATED).into();
        parameters.not_after = (now + life).into();
        parameters.serial_number = Some(SerialNumber::from_slice(&serial()));
        parameters.distinguished_name.remove(DnType::CommonName);
        parameters.distinguished_name.push(DnType::CommonName, format!("DVS node {node}"));
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&Applicant(public), &self.issuer)?.der().to_vec();
        let ends = (now + life).duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Ok(Issued { fingerprint: fingerprint(&certificate), certificate, ends })
    }
}

/// A positive number of 20 bytes at most (RFC 5280, 4.1.2.2).
fn serial() -> [u8; 16] {
    let mut serial = secret::<16>();
    serial[0] = (serial[0] & 0x7f) | 1;
    serial
}

fn parameters(cluster: &[u8; 16]) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::<String>::new())?;
    let now = SystemTime::now();
    parameters.not_before = (now - BACKDATED).into();
    parameters.not_after = (now + AUTHORITY_LIFE).into();
    let hex: String = cluster.iter().map(|byte| format!("{byte:02x}")).collect();
    parameters.distinguished_name.remove(DnType::CommonName);
    parameters.distinguished_name.push(DnType::CommonName, format!("DVS cluster {hex}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(parameters)
}
