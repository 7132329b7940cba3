//! Building a tree from its configuration: layers, hidden places, generated files, shared folders.

use super::kept;
use super::nodes::{Key, Lower, New, Side, Table};
use super::recover::Recovered;
use super::{HostTree, Layer, Region, Upper, write};
use crate::config::{ConfigError, Image, Share, ShareMode, TreeConfig};
use crate::messages::{Credentials, InodeId, ROOT, Time};
use crate::tree::{Caller, Life, Make, Tree};
use dvs_sys::hostfile;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

/// Places of the host's root that begin empty, with their modes; where the host has none, one is made.
const PRIVATE_PLACES: [(&str, u32); 12] = [
    ("/home", 0o755),
    ("/root", 0o700),
    ("/tmp", 0o1777),
    ("/var/tmp", 0o1777),
    ("/run", 0o755),
    ("/run/lock", 0o1777),
    ("/mnt", 0o755),
    ("/media", 0o755),
    ("/srv", 0o755),
    ("/boot", 0o755),
    ("/proc", 0o555),
    ("/sys", 0o555),
];

/// Places that every tree has, whatever its image.
const NEEDED_PLACES: [(&str, u32); 6] = [
    ("/proc", 0o555),
    ("/sys", 0o555),
    ("/dev", 0o755),
    ("/dev/shm", 0o1777),
    ("/etc", 0o755),
    ("/tmp", 0o1777),
];

/// Names of the host's root that do not exist in a DC.
const ABSENT: [&str; 1] = ["/lost+found"];

/// The layout acts as the DC's root.
const ROOT_CALLER: Caller = Caller {
    credentials: Credentials { uid: 0, gid: 0, pid: 0, umask: 0 },
    now: Time { seconds: 0, nanoseconds: 0 },
};

fn folder(what: &'static str, path: &Path) -> Result<OwnedFd, ConfigError> {
    let failed = |error| ConfigError::Folder { what, path: path.to_owned(), error };
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| failed(std::io::Error::from_raw_os_error(libc::EINVAL)))?;
    hostfile::open_folder(&name).map_err(|error| failed(error.into()))
}

/// Makes a folder; `again`: it may be there.
fn make_folder(parent: BorrowedFd<'_>, name: &CStr, again: bool) -> Result<(), std::io::Error> {
    match hostfile::make_directory_at(parent, name, 0o700) {
        Err(error) if !again || error.errno != libc::EEXIST => Err(error.into()),
        _ => Ok(()),
    }
}

/// The names of an absolute path.
fn components(path: &Path) -> Result<Vec<&[u8]>, ConfigError> {
    let wrong = || ConfigError::Path { path: path.to_owned() };
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return Err(wrong());
    }
    parts
        .map(|part| match part {
            Component::Normal(name) => Ok(name.as_bytes()),
            _ => Err(wrong()),
        })
        .collect()
}

fn identity(what: &'static str, path: &Path) -> Result<(u64, u64), ConfigError> {
    let fd = folder(what, path)?;
    let status = hostfile::status(fd.as_fd()).map_err(|error| ConfigError::Folder {
        what,
        path: path.to_owned(),
        error: error.into(),
    })?;
    Ok((status.device, status.inode))
}

impl HostTree {
    /// Builds a tree.
    ///
    /// # Errors
    /// A folder that cannot be used, or a share that has no place.
    pub fn open(config: &TreeConfig) -> Result<Self, ConfigError> {
        Self::build(config, false)
    }

    /// Looks at a kept upper layer, which a server may be using, without changing it.
    ///
    /// # Errors
    /// A folder that cannot be used, or that no server has left.
    pub fn check(config: &TreeConfig) -> Result<Recovered, ConfigError> {
        Ok(Self::build(&TreeConfig { kept: true, ..config.clone() }, true)?.recovered)
    }

    fn build(config: &TreeConfig, only_look: bool) -> Result<Self, ConfigError> {
        let state = |error: std::io::Error| ConfigError::Folder {
            what: "state folder",
            path: config.upper.clone(),
            error,
        };
        let upper_folder = folder("state folder", &config.upper)?;
        let again = config.kept && kept::begin(config, upper_folder.as_fd(), only_look)?;
        for name in [c"root", c"work"] {
            make_folder(upper_folder.as_fd(), name, again).map_err(&state)?;
        }
        let image_path = match &config.image {
            Image::Host => PathBuf::from("/"),
            Image::Directory(path) => path.clone(),
        };
        let mut hidden = HashSet::from([identity("state folder", &config.upper)?]);
        for path in &config.hidden {
            hidden.insert(identity("hidden folder", path)?);
        }
        let image = Arc::new(folder("image", &image_path)?);
        let mut tree = HostTree {
            regions: Vec::new(),
            ids: config.ids,
            hidden,
            work: hostfile::path_at(upper_folder.as_fd(), c"work")
                .map_err(|error| state(error.into()))?,
            next_work: AtomicU64::new(0),
            kept: config.kept,
            damaged: RwLock::default(),
            damage_met: AtomicU64::new(0),
            recovered: super::recover::Recovered::default(),
            table: Mutex::new(Table::default()),
            masks: RwLock::default(),
            partners: RwLock::default(),
            overrides: RwLock::default(),
            mounts: RwLock::default(),
            files: RwLock::new(HashMap::new()),
            next_file: AtomicU64::new(0),
            directory_locks: super::Stripes::default(),
            object_locks: super::Stripes::default(),
        };
        let root = hostfile::path_at(upper_folder.as_fd(), c"root")
            .map_err(|error| state(error.into()))?;
        let host_root = config.image == Image::Host;
        let lower = Some(Layer { fd: image, host_root });
        let region = Region {
            lower,
            writable: true,
            upper: Upper::Private,
            root: ROOT,
            lower_life: Life::Image,
            upper_life: Life::Private,
        };
        let failed = |errno| state(std::io::Error::from_raw_os_error(errno));
        if config.kept && !only_look {
            kept::check_support(config, tree.work.as_fd())?;
        }
        tree.add_region(region, Some(Arc::new(root)), Some(ROOT.number), None, again)
            .map_err(failed)?;
        if again {
            if !only_look {
                super::recover::empty(tree.work.as_fd()).map_err(failed)?;
            }
            let mut found = Recovered::default();
            tree.recover(0, &mut found).map_err(failed)?;
            tree.recovered = found;
        } else {
            tree.furnish(config).map_err(failed)?;
        }
        let mut shares: Vec<&Share> = config.shares.iter().collect();
        // Outer ones first: an inner one's place is made in the outer one.
        shares.sort_by_key(|share| share.path.components().count());
        for (number, share) in shares.into_iter().enumerate() {
            tree.add_share(share, number, &upper_folder, again)?;
        }
        if config.kept && !again {
            kept::finish(config, upper_folder.as_fd())?;
        }
        Ok(tree)
    }

    /// Adds a region whose root covers a place, or is the tree's.
    fn add_region(
        &mut self,
        region: Region,
        upper: Option<Arc<OwnedFd>>,
        number: Option<u64>,
        place: Option<(u64, Vec<u8>)>,
        again: bool,
    ) -> Result<(), i32> {
        let index = self.regions.len();
        let status = |fd: &OwnedFd| hostfile::status(fd.as_fd()).map_err(|error| error.errno);
        let upper = match upper {
            Some(fd) => Some((Key::from(&status(&fd)?), fd)),
            None => None,
        };
        let mut lower_status = None;
        let lower = match &region.lower {
            Some(layer) => {
                let found = status(&layer.fd)?;
                lower_status = Some(found);
                let path = Arc::new(c".".to_owned());
                let lower = Lower { path, key: Key::from(&found), empty: false };
                Some((lower, Some(Arc::clone(&layer.fd))))
            }
            None => None,
        };
        let upper_key = upper.as_ref().map(|(key, fd)| (*key, Arc::clone(fd)));
        let new = New { region: index, kind: libc::S_IFDIR, place, upper, lower };
        self.regions.push(region);
        let root = self.table().add_root(number, new)?;
        self.regions[index].root = InodeId { number: root, generation: 0 };
        // The upper root looks like the folder that it stands for.
        if let (Some((key, fd)), Some(status)) = (upper_key, lower_status.filter(|_| !again)) {
            self.set_copied_attributes(fd.as_fd(), key, &status)?;
        }
        Ok(())
    }

    /// Private places, and the files that tell a DC its name.
    fn furnish(&self, config: &TreeConfig) -> Result<(), i32> {
        let host = config.image == Image::Host;
        if host {
            for (path, mode) in PRIVATE_PLACES {
                self.make_empty(path, mode)?;
            }
            for path in ABSENT {
                self.hide(path)?;
            }
        }
        self.make_empty("/dev", 0o755)?;
        for (path, mode) in NEEDED_PLACES {
            let (directory, name) = self.parent_of(path)?;
            if self.lookup(directory, name)?.found.is_none() {
                self.make_directory(&ROOT_CALLER, directory, name, mode)?;
            }
        }
        let name = &config.hostname;
        self.make_file_with("/etc/hostname", format!("{name}\n").as_bytes())?;
        let hosts = format!(
            "127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        );
        self.make_file_with("/etc/hosts", hosts.as_bytes())?;
        // Often a link into /run, which is private here: its content is what counts.
        if let Ok(resolver) = std::fs::read("/etc/resolv.conf") {
            self.make_file_with("/etc/resolv.conf", &resolver)?;
        }
        Ok(())
    }

    /// The directory that a path of the layout lies in; missing ones are made.
    fn parent_of<'a>(&self, path: &'a str) -> Result<(InodeId, &'a [u8]), i32> {
        let mut names: Vec<&[u8]> =
            path.split('/').filter(|name| !name.is_empty()).map(str::as_bytes).collect();
        let last = names.pop().ok_or(libc::EINVAL)?;
        Ok((self.walk(&names)?, last))
    }

    /// Goes down a path, and makes the directories that are missing.
    fn walk(&self, names: &[&[u8]]) -> Result<InodeId, i32> {
        let mut directory = ROOT;
        for name in names {
            directory = match self.lookup(directory, name)?.found {
                Some(found) if found.attributes.mode & libc::S_IFMT == libc::S_IFDIR => {
                    found.attributes.inode
                }
                Some(_) => return Err(libc::ENOTDIR),
                None => self.make_directory(&ROOT_CALLER, directory, name, 0o755)?,
            };
        }
        Ok(directory)
    }

    /// Hides what the image has at a path; answers the path's directory and name.
    fn hide<'a>(&self, path: &'a str) -> Result<(InodeId, &'a [u8]), i32> {
        let (directory, name) = self.parent_of(path)?;
        let mut record = self.record(directory)?;
        if self.keeps_marks(record.region)
            && record.lower.as_ref().is_some_and(|lower| !lower.empty)
        {
            record = self.copy_up(directory, None)?;
            let fd = self.descriptor_of(record.number, Side::Upper)?;
            let name = CString::new(name).map_err(|_| libc::EINVAL)?;
            match hostfile::make_whiteout_at(fd.as_fd(), &name) {
                Err(error) if error.errno != libc::EEXIST => return Err(error.errno),
                _ => {}
            }
        }
        self.mask(&record, name);
        Ok((directory, name))
    }

    /// Puts an empty directory where the image has something else.
    fn make_empty(&self, path: &str, mode: u32) -> Result<(), i32> {
        let (directory, name) = self.hide(path)?;
        match self.make_directory(&ROOT_CALLER, directory, name, mode) {
            Ok(_) | Err(libc::EEXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Puts a file where the image has something else.
    fn make_file_with(&self, path: &str, content: &[u8]) -> Result<(), i32> {
        let (directory, name) = self.hide(path)?;
        let what = Make::Node(libc::S_IFREG | 0o644, 0);
        let found = self.make(&ROOT_CALLER, directory, name, what)?;
        let inode = found.attributes.inode;
        let opened = self.open(&ROOT_CALLER, inode, libc::O_WRONLY as u32)?;
        let wrote = self.write(&ROOT_CALLER, opened.file, Some(0), false, content);
        self.close(opened.file);
        wrote.map(|_| ())
    }

    fn add_share(
        &mut self,
        share: &Share,
        number: usize,
        upper_folder: &OwnedFd,
        again: bool,
    ) -> Result<(), ConfigError> {
        let place = |errno: i32| ConfigError::Place {
            host: share.host.clone(),
            path: share.path.clone(),
            error: std::io::Error::from_raw_os_error(errno),
        };
        components(&share.host)?;
        let names = components(&share.path)?;
        let Some((last, above)) = names.split_last() else { return Err(place(libc::EBUSY)) };
        let host = Arc::new(folder("shared folder", &share.host)?);
        let directory = self.walk(above).map_err(place)?;
        // The place itself must be there, for its directory's listing.
        let at = self.walk(&names).map_err(place)?;
        let writable = share.mode != ShareMode::ReadOnly;
        let (lower, upper, kind) = match share.mode {
            ShareMode::ReadWrite => (None, Some(host), Upper::Host),
            ShareMode::ReadOnly => (Some(host), None, Upper::Host),
            ShareMode::CopyOnWrite => {
                let name = CString::new(format!("share-{number}")).unwrap_or_default();
                make_folder(upper_folder.as_fd(), &name, again)
                    .map_err(|error| place(error.raw_os_error().unwrap_or(libc::EIO)))?;
                let upper = hostfile::path_at(upper_folder.as_fd(), &name)
                    .map_err(|error| place(error.errno))?;
                (Some(host), Some(Arc::new(upper)), Upper::Private)
            }
        };
        let region = Region {
            lower: lower.map(|fd| Layer { fd, host_root: false }),
            writable,
            upper: kind,
            root: at,
            lower_life: Life::Shared,
            upper_life: if kind == Upper::Private { Life::Private } else { Life::Shared },
        };
        let covered = (directory.number, last.to_vec());
        self.add_region(region, upper, None, Some(covered.clone()), again).map_err(place)?;
        let index = self.regions.len() - 1;
        write(&self.mounts).insert(covered, index);
        if again && share.mode == ShareMode::CopyOnWrite {
            let mut found = std::mem::take(&mut self.recovered);
            self.recover(index, &mut found).map_err(place)?;
            self.recovered = found;
        }
        Ok(())
    }
}
