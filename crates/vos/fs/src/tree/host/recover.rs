//! Finding a kept upper layer as the last server left it, and what is wrong with it.

use super::marks::{self, Mark};
use super::nodes::{Key, Lower, Side};
use super::resolve::{c_name, errno};
use super::{HostTree, Override, write};
use crate::tree::Result;
use dvs_sys::hostfile::{self, Status};
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Most findings that are remembered; more are only counted.
pub const MAX_FINDINGS: usize = 1000;
/// How deep a leftover of the work folder may be.
const MAX_DEPTH: usize = 256;

/// Something that is wrong with a kept upper layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path in the upper layer.
    pub path: Vec<u8>,
    /// What.
    pub what: Wrong,
}

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The mark's bytes make no sense.
    Mark,
    /// The image has no such directory any more.
    LowerGone,
    /// Not a kind of file that the server makes.
    Kind,
    /// It cannot be read.
    Unreadable(i32),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}: ", String::from_utf8_lossy(&self.path))?;
        match self.what {
            Wrong::Mark => f.write_str(
                "its mark is damaged: owner, number and, of a directory, what the image has below are lost; programs get EIO for it",
            ),
            Wrong::LowerGone => f.write_str(
                "the image has the directory no more that it is merged with: what was only there is not seen",
            ),
            Wrong::Kind => f.write_str("a device, which the server never makes: it is not shown"),
            Wrong::Unreadable(errno) => {
                write!(f, "cannot be read: {}", std::io::Error::from_raw_os_error(errno))
            }
        }
    }
}

/// What a recovery found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Objects looked at.
    pub objects: u64,
    /// Whiteouts.
    pub whiteouts: u64,
    /// What is wrong, the first [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How much is wrong.
    pub wrong: u64,
}

impl Recovered {
    fn add(&mut self, path: &[u8], what: Wrong) {
        self.wrong += 1;
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { path: path.to_vec(), what });
        }
    }
}

/// A directory that is still to be looked at. A parent stays open as long as one of its children waits.
struct Pending {
    parent: Arc<OwnedFd>,
    name: CString,
    path: Vec<u8>,
}

impl HostTree {
    /// Reads the marks of a region's upper layer.
    pub(super) fn recover(&self, region: usize, found: &mut Recovered) -> Result<()> {
        let root = self.regions.get(region).ok_or(libc::EINVAL)?.root;
        let record = self.record(root)?;
        let fd = self.descriptor_of(root.number, Side::Upper)?;
        let mut pending = Vec::new();
        self.recover_directory(region, &fd, record.lower.as_ref(), &[], &mut pending, found)?;
        while let Some(Pending { parent, name, path }) = pending.pop() {
            let fd = match hostfile::path_at(parent.as_fd(), &name) {
                Ok(fd) => Arc::new(fd),
                Err(error) => {
                    found.add(&path, Wrong::Unreadable(error.errno));
                    continue;
                }
            };
            drop(parent);
            let status = hostfile::status(fd.as_fd()).map_err(errno)?;
            let lower = super::read(&self.partners).get(&Key::from(&status)).cloned();
            let done =
                self.recover_directory(region, &fd, lower.as_ref(), &path, &mut pending, found);
            if let Err(errno) = done {
                found.add(&path, Wrong::Unreadable(errno));
            }
        }
        Ok(())
    }

    fn recover_directory(
        &self,
        region: usize,
        directory: &Arc<OwnedFd>,
        lower: Option<&Lower>,
        path: &[u8],
        pending: &mut Vec<Pending>,
        found: &mut Recovered,
    ) -> Result<()> {
        for entry in self.raw_entries(directory.as_fd())? {
            let name = c_name(&entry.name)?;
            let path = if path.is_empty() {
                entry.name.clone()
            } else {
                [path, b"/", &entry.name].concat()
            };
            let status = hostfile::status_at(directory.as_fd(), &name).map_err(errno)?;
            found.objects += 1;
            if marks::is_whiteout(&status) {
                found.whiteouts += 1;
                if let Some(lower) = lower {
                    write(&self.masks).entry(lower.key).or_default().insert(entry.name);
                }
                continue;
            }
            match status.mode & libc::S_IFMT {
                libc::S_IFDIR | libc::S_IFREG => {}
                libc::S_IFCHR | libc::S_IFBLK => {
                    found.add(&path, Wrong::Kind);
                    continue;
                }
                _ => continue,
            }
            let fd = hostfile::path_at(directory.as_fd(), &name).map_err(errno)?;
            self.recover_object(region, fd.as_fd(), &status, &path, found);
            if status.mode & libc::S_IFMT == libc::S_IFDIR {
                pending.push(Pending { parent: Arc::clone(directory), name, path });
            }
        }
        Ok(())
    }

    fn recover_object(
        &self,
        region: usize,
        fd: BorrowedFd<'_>,
        status: &Status,
        path: &[u8],
        found: &mut Recovered,
    ) {
        let key = Key::from(status);
        let mark = match Mark::read(fd) {
            Ok(mark) => mark,
            Err(libc::EIO) => {
                write(&self.damaged).insert(key);
                return found.add(path, Wrong::Mark);
            }
            Err(errno) => return found.add(path, Wrong::Unreadable(errno)),
        };
        if let Some(number) = mark.number {
            self.table().know_number(region, key, number);
        }
        if let Some((uid, gid, mode)) = mark.owner {
            write(&self.overrides).insert(key, Override { uid, gid, mode });
        }
        if let Some(lower) = mark.lower {
            match self.lower_at(region, &lower) {
                Some(lower) => {
                    write(&self.partners).insert(key, lower);
                }
                None => found.add(path, Wrong::LowerGone),
            }
        }
    }

    /// The directory of a region's lower layer at a path.
    fn lower_at(&self, region: usize, path: &[u8]) -> Option<Lower> {
        let layer = self.regions.get(region)?.lower.as_ref()?;
        let path = c_name(path).ok()?;
        let fd = hostfile::path_beneath(layer.fd.as_fd(), &path).ok()?;
        let status = hostfile::status(fd.as_fd()).ok()?;
        if status.mode & libc::S_IFMT != libc::S_IFDIR {
            return None;
        }
        // Whatever the parent's device is: the check of the file system's kind is to be made.
        let empty = self.shown(region, !status.device, &status, || {
            hostfile::file_system(fd.as_fd()).map_or(0, |file_system| file_system.magic)
        })?;
        Some(Lower { path: Arc::new(path), key: Key::from(&status), empty })
    }
}

/// Removes everything in a folder.
pub(super) fn empty(folder: BorrowedFd<'_>) -> Result<()> {
    empty_below(folder, MAX_DEPTH)
}

fn empty_below(folder: BorrowedFd<'_>, depth: usize) -> Result<()> {
    let open = hostfile::reopen(folder, libc::O_RDONLY | libc::O_DIRECTORY).map_err(errno)?;
    let entries = hostfile::entries(open.as_fd(), super::listing::MAX_LISTING).map_err(errno)?;
    for entry in entries {
        let name = c_name(&entry.name)?;
        let status = hostfile::status_at(folder, &name).map_err(errno)?;
        let directory = status.mode & libc::S_IFMT == libc::S_IFDIR;
        if directory {
            let depth = depth.checked_sub(1).ok_or(libc::ELOOP)?;
            let below = hostfile::path_at(folder, &name).map_err(errno)?;
            empty_below(below.as_fd(), depth)?;
        }
        hostfile::unlink_at(folder, &name, directory).map_err(errno)?;
    }
    Ok(())
}
