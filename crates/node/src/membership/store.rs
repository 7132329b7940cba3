//! What a host keeps of its cluster, in files that only its user reads.
//!
//! ```text
//! STATE/cluster/     0700
//!   identity         the node: number, name, certificate, key
//!   roster           the members that it knows
//!   registrar        on the first node only: the authority's key, the tokens, the roster
//! ```
//! Every file is replaced as a whole (written beside it, synced, renamed), so that a power cut leaves
//! the old one or the new one.

use super::core::{Registrar, Roster};
use crate::folders::{private_folder, reason};
use crate::protocol::Failure;
use dvs_dvk::NodeId;
use dvs_dvk::tls::Credentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Version of the files.
const VERSION: u16 = 1;
/// Longest file that is read.
const MAX_FILE: u64 = 4 << 20;

/// A host's place in a cluster.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The node's number.
    pub node: u16,
    /// Its name.
    pub name: String,
    /// The node that decides who belongs to the cluster.
    pub registrar: u16,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What others are told to connect to; `None`: where it listens.
    pub advertise: Option<SocketAddr>,
    /// Certificate, DER.
    pub(crate) certificate: Vec<u8>,
    /// Private key, PKCS#8 DER.
    pub(crate) key: Vec<u8>,
    /// When the certificate ends, seconds since 1970.
    pub ends: u64,
    /// The authority's certificate, DER.
    pub(crate) authority: Vec<u8>,
}

impl Identity {
    /// Whether others can find it.
    ///
    /// # Errors
    /// When the address names nothing that they can connect to.
    pub fn check(&self) -> Result<(), Failure> {
        super::join::reachable(self.listen, self.advertise).map(drop)
    }

    /// Stores it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, store: &Store) -> Result<(), Failure> {
        store.set_identity(self)
    }

    /// For the DVK.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials {
            cluster: self.cluster,
            node: NodeId(self.node),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authority: self.authority.clone(),
        }
    }
}

impl std::fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Identity")
            .field("node", &self.node)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What the registrar keeps.
#[derive(Serialize, Deserialize)]
pub(crate) struct Office {
    pub(crate) registrar: Registrar,
    /// The authority's certificate and private key.
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Below a state folder.
    #[must_use]
    pub fn below(state: &Path) -> Self {
        Store { folder: state.join("cluster") }
    }

    /// The host's place; `None`: it belongs to no cluster.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn identity(&self) -> Result<Option<Identity>, Failure> {
        self.read("identity")
    }

    pub(crate) fn set_identity(&self, identity: &Identity) -> Result<(), Failure> {
        self.write("identity", identity)
    }

    pub(crate) fn roster(&self) -> Result<Roster, Failure> {
        Ok(self.read("roster")?.unwrap_or_default())
    }

    pub(crate) fn set_roster(&self, roster: &Roster) -> Result<(), Failure> {
        self.write("roster", roster)
    }

    pub(crate) fn office(&self) -> Result<Option<Office>, Failure> {
        self.read("registrar")
    }

    pub(crate) fn set_office(&self, office: &Office) -> Result<(), Failure> {
        self.write("registrar", office)
    }

    /// Forgets the cluster.
    ///
    /// # Errors
    /// When the files cannot be removed.
    pub fn forget(&self) -> Result<(), Failure> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.failed("remove", &self.folder, &error))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, what: &str, path: &Path, error: &std::io::Error) -> Failure {
        Failure::new(format!("cannot {what} {}: {}", path.display(), reason(error)))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let path = self.folder.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("open", &path, &error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed("read", &path, &error))?;
        let parsed = match bytes.split_first_chunk::<2>() {
            Some((version, body)) if u16::from_le_bytes(*version) == VERSION => {
                postcard::from_bytes(body).ok()
            }
            _ => None,
        };
        parsed.map(Some).ok_or_else(|| {
            Failure::new(format!(
                "{} is damaged or of another version of dvs; forget the cluster (dvs node leave --force) and join it anew",
                path.display()
            ))
        })
    }

    fn write<T: Serialize>(&self, name: &str, what: &T) -> Result<(), Failure> {
        private_folder(&self.folder)?;
        let path = self.folder.join(name);
        let beside = self.folder.join(format!("{name}.new"));
        // Plain data into memory: it cannot fail.
        let bytes = postcard::to_extend(what, VERSION.to_le_bytes().to_vec()).unwrap_or_default();
        let written = || -> std::io::Result<()> {
            let mut file = File::options()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        written().map_err(|error| self.failed("write", &path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_whole_and_checked() {
        let state =
            std::env::temp_dir().join(format!("dvs-store-{:x}", crate::folders::fresh_number(17)));
        crate::folders::private_folder(&state).unwrap();
        let store = Store::below(&state);
        assert!(store.identity().unwrap().is_none());
        let roster = Roster { version: 7, ..Roster::default() };
        store.set_roster(&roster).unwrap();
        assert_eq!(store.roster().unwrap(), roster);
        let path = state.join("cluster/roster");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for damaged in [&b""[..], b"\x09\x00", b"\x01\x00\xff\xff"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(store.roster().unwrap_err().message.contains("damaged"));
        }
        store.forget().unwrap();
        store.forget().unwrap();
        assert_eq!(store.roster().unwrap(), Roster::default());
        std::fs::remove_dir(&state).unwrap();
    }
}
