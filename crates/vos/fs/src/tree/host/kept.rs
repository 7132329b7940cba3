//! The folder of a kept upper layer: whether it is new or left by an earlier server, and whether its file
//! system can keep one.

use super::marks::Mark;
use super::recover;
use crate::config::{ConfigError, Image, ShareMode, TreeConfig};
use dvs_sys::hostfile;
use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// The file that says that the layout is complete, and for which configuration.
const READY: &str = "ready";
/// First line of it.
const HEAD: &str = "dvs tree 1";

fn reason(config: &TreeConfig, reason: &'static str) -> ConfigError {
    ConfigError::Kept { path: config.upper.clone(), reason }
}

fn failed(path: &Path, error: std::io::Error) -> ConfigError {
    ConfigError::Folder { what: "state folder", path: path.to_owned(), error }
}

/// What must be the same for the marks to mean the same: the lower layers.
fn description(config: &TreeConfig) -> String {
    let mut text = format!("{HEAD}\n");
    let _ = match &config.image {
        Image::Host => writeln!(text, "image of the host"),
        Image::Directory(path) => writeln!(text, "image {path:?}"),
    };
    for share in config.shares.iter().filter(|share| share.mode == ShareMode::CopyOnWrite) {
        let _ = writeln!(text, "share {:?} {:?}", share.host, share.path);
    }
    text
}

/// Whether the folder is one that an earlier server has left. What one left that did not come to the end
/// of its layout is removed: nothing in it was ever acknowledged.
///
/// # Errors
/// A folder of another configuration or version.
pub(super) fn begin(
    config: &TreeConfig,
    folder: BorrowedFd<'_>,
    only_look: bool,
) -> Result<bool, ConfigError> {
    let path = config.upper.join(READY);
    match std::fs::read_to_string(&path) {
        Ok(text) if text == description(config) => Ok(true),
        Ok(text) if text.lines().next() == Some(HEAD) => Err(reason(
            config,
            "it was made for another image or other shared folders; give the same ones, or remove it",
        )),
        Ok(_) => Err(reason(
            config,
            "another version of dvs has made it; use that one, or remove the folder",
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !only_look => {
            recover::empty(folder)
                .map_err(|errno| failed(&config.upper, std::io::Error::from_raw_os_error(errno)))?;
            Ok(false)
        }
        Err(error) => Err(failed(&path, error)),
    }
}

/// Whether the file system has what marks need.
///
/// # Errors
/// It has not.
pub(super) fn check_support(config: &TreeConfig, work: BorrowedFd<'_>) -> Result<(), ConfigError> {
    let try_all = || -> Result<(), dvs_sys::error::SysError> {
        let (file, moved) = (c"try-file", c"try-moved");
        let made = hostfile::create_at(work, file, libc::O_RDWR, 0o600)?;
        let mark = Mark { number: Some(1), ..Mark::default() };
        mark.write(made.as_fd())
            .map_err(|errno| dvs_sys::error::SysError::new("setxattr", errno))?;
        hostfile::rename_at(work, file, work, moved, libc::RENAME_WHITEOUT)?;
        hostfile::unlink_at(work, file, false)?;
        hostfile::unlink_at(work, moved, false)
    };
    let tried = try_all();
    if tried.is_err() {
        let _ = recover::empty(work);
    }
    tried.map_err(|_| {
        reason(
            config,
            "its file system has no user attributes or whiteouts, which a kept container needs; \
             put the state folder on ext4, xfs, btrfs or a recent tmpfs",
        )
    })
}

/// The layout is complete and durable.
///
/// # Errors
/// As writing.
pub(super) fn finish(config: &TreeConfig, folder: BorrowedFd<'_>) -> Result<(), ConfigError> {
    let path = config.upper.join(READY);
    let sync = || -> std::io::Result<()> {
        hostfile::sync_file_system(folder)?;
        let temporary = config.upper.join("ready-new");
        std::fs::write(&temporary, description(config))?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(&config.upper)?.sync_all()
    };
    sync().map_err(|error| failed(&path, error))
}
