//! What is kept of a detached container on disk: what it was made with and how its last run ended.
//!
//! One file `record` in the container's folder, replaced as a whole by a rename, so that a crash leaves
//! the old one or the new one.

use crate::folders::reason;
use crate::managing::DetachedOptions;
use crate::protocol::{ContainerOptions, Failure, ProgramOptions};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

/// Version of the record's form.
const VERSION: u16 = 1;
/// Most bytes of a record: arguments and environment (2 MiB) and room to spare.
const MAX_RECORD: u64 = 4 << 20;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// Exit code as a shell's.
    pub(crate) code: u8,
    /// Why, where it did not end by itself.
    pub(crate) error: Option<String>,
    /// When, seconds since 1970.
    pub(crate) at: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its name.
    pub(crate) name: String,
    /// When it was made, seconds since 1970.
    pub(crate) created: u64,
    /// What it was made with.
    pub(crate) options: ContainerOptions,
    /// Its first program.
    pub(crate) program: ProgramOptions,
    /// How it is kept.
    pub(crate) detached: DetachedOptions,
    /// When the last run began, seconds since 1970.
    pub(crate) started: Option<u64>,
    /// How it ended; none: it runs, or its daemon died.
    pub(crate) exit: Option<Exit>,
    /// Number of the container in its last run.
    pub(crate) number: String,
    /// Names of the nodes of the last run.
    pub(crate) nodes: Vec<String>,
    /// Restarts by itself.
    pub(crate) restarts: u32,
    /// It was stopped by hand.
    pub(crate) stopped: bool,
}

impl Record {
    /// Writes it into its folder.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn save(&self, folder: &Path) -> Result<(), Failure> {
        let failed = |error: &std::io::Error| {
            Failure::new(format!(
                "the record of container {} cannot be kept in {}: {}",
                self.name,
                folder.display(),
                reason(error)
            ))
        };
        let bytes = postcard::to_extend(self, VERSION.to_le_bytes().to_vec())
            .map_err(|error| Failure::new(format!("the record of {}: {error}", self.name)))?;
        let fresh = folder.join("record.new");
        std::fs::write(&fresh, &bytes)
            .and_then(|()| std::fs::rename(&fresh, folder.join("record")))
            .map_err(|error| failed(&error))
    }

    /// Reads it.
    ///
    /// # Errors
    /// A sentence: it is not there, not whole, or of another version.
    pub(crate) fn load(folder: &Path) -> Result<Record, String> {
        let mut bytes = Vec::new();
        std::fs::File::open(folder.join("record"))
            .and_then(|file| file.take(MAX_RECORD).read_to_end(&mut bytes))
            .map_err(|error| reason(&error))?;
        let (version, body) = bytes.split_first_chunk().ok_or("it is empty")?;
        if u16::from_le_bytes(*version) != VERSION {
            return Err(format!(
                "it is of version {}, and this dvs knows {VERSION}",
                u16::from_le_bytes(*version)
            ));
        }
        match postcard::take_from_bytes(body) {
            Ok((record, [])) => Ok(record),
            _ => Err("it is damaged".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record {
            name: "web".into(),
            created: 1,
            options: ContainerOptions { millicpus: Some(500), ..ContainerOptions::default() },
            program: ProgramOptions { umask: 0o22, ..ProgramOptions::default() },
            detached: DetachedOptions::default(),
            started: Some(2),
            exit: Some(Exit { code: 3, error: None, at: 4 }),
            number: "ab".into(),
            nodes: vec!["n1".into()],
            restarts: 1,
            stopped: true,
        };
        assert!(Record::load(folder.path()).unwrap_err().contains("No such file"));
        record.save(folder.path()).unwrap();
        record.save(folder.path()).unwrap();
        assert_eq!(Record::load(folder.path()), Ok(record.clone()));
        let path = folder.path().join("record");
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 1, 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Record::load(folder.path()).is_err(), "{length}");
        }
        let mut other = whole;
        other[0] = 9;
        std::fs::write(&path, other).unwrap();
        assert!(Record::load(folder.path()).unwrap_err().contains("version 9"));
        assert!(record.save(Path::new("/no/such")).unwrap_err().message.contains("web"));
    }
}
