//! Making, filling, freezing and removing the planned folders.

use super::plan::{Folder, PARENT, Purpose, plan};
use crate::spec::Limits;
use dvs_sys::mount::parse_mountinfo;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a folder that is still in use is tried again before it counts as left over: processes
/// leave their cgroup a moment after their parent has seen them die.
const REMOVE_TRIES: u32 = 200;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);
/// How often the common parent is made again.
const PARENT_TRIES: u32 = 16;
/// Most folders that [`sweep`] looks at.
const MAX_SWEPT: usize = 1024;

/// The cgroups of one container.
#[derive(Debug, Default)]
pub struct Cgroups {
    folders: Vec<Folder>,
    /// What could not be done, one sentence each.
    pub warnings: Vec<String>,
}

impl Cgroups {
    /// Makes the folders for `NAME.PID` of the calling process and sets the limits. What this user may
    /// not do becomes a warning. Without any limit there are no folders: entering a v1 cgroup waits
    /// for all processors (1 to 10 ms), and what a freezer does can be done by signals.
    #[must_use]
    pub fn create(name: &str, limits: &Limits) -> Cgroups {
        if *limits == Limits::default() {
            return Cgroups::default();
        }
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mounts = parse_mountinfo(&read("/proc/self/mountinfo"));
        let name = format!("{name}.{}", std::process::id());
        let mut cgroups = Cgroups::default();
        for folder in plan(&mounts, &read("/proc/self/cgroup"), &name, limits) {
            cgroups.create_folder(folder, limits);
        }
        let wanted = [
            (Purpose::Cpu, limits.milli_cpus.is_some()),
            (Purpose::Memory, limits.memory.is_some()),
            (Purpose::Pids, limits.pids.is_some()),
        ];
        let unified = cgroups.folders.iter().any(|folder| folder.purpose == Purpose::Unified);
        let warned = !cgroups.warnings.is_empty();
        for (purpose, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
            if !unified && !warned && !cgroups.folders.iter().any(|f| f.purpose == purpose) {
                cgroups
                    .warnings
                    .push(format!("{}: there is no cgroup controller for it", purpose.loss()));
            }
        }
        cgroups
    }

    fn create_folder(&mut self, folder: Folder, limits: &Limits) {
        let asked = match folder.purpose {
            Purpose::Cpu => limits.milli_cpus.is_some(),
            Purpose::Memory => limits.memory.is_some(),
            Purpose::Pids => limits.pids.is_some(),
            Purpose::Unified => {
                limits.milli_cpus.is_some() || limits.memory.is_some() || limits.pids.is_some()
            }
            // Nobody asks for it: without it programs are stopped by signals.
            Purpose::Freezer => false,
        };
        // Only what was asked for and what freezes is made: every folder costs time at the start.
        if !asked && folder.freeze(true).is_none() {
            return;
        }
        match fill(&folder) {
            Ok(()) => self.folders.push(folder),
            Err((step, error)) => {
                let _ = std::fs::remove_dir(&folder.path);
                let _ = folder.path.parent().map(std::fs::remove_dir);
                if asked {
                    self.warnings.push(format!("{}: {step}: {error}", folder.purpose.loss()));
                }
            }
        }
    }

    /// The folders, as text.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.folders.iter().map(|folder| folder.path.to_string_lossy().into_owned()).collect()
    }

    /// Moves a process into all of them.
    ///
    /// # Errors
    /// The folder that refused it.
    pub fn add(&self, pid: u32) -> Result<(), (PathBuf, io::Error)> {
        for folder in &self.folders {
            let file = folder.path.join("cgroup.procs");
            write(&file, &pid.to_string()).map_err(|error| (file, error))?;
        }
        Ok(())
    }

    /// Stops everything inside, or lets it go on. Does not wait until everything has stopped: a
    /// process that waits for its file system stops only when it is answered.
    ///
    /// # Errors
    /// errno; `EOPNOTSUPP` without a freezer.
    pub fn freeze(&self, frozen: bool) -> Result<(), i32> {
        let Some((file, text)) = self.folders.iter().find_map(|folder| folder.freeze(frozen))
        else {
            return Err(libc::EOPNOTSUPP);
        };
        write(&file, text).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }
}

fn fill(folder: &Folder) -> Result<(), (String, io::Error)> {
    let parent = folder.path.parent().unwrap_or(&folder.path);
    let mut tries = 0;
    loop {
        match std::fs::create_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err((format!("make {}", parent.display()), error));
            }
            _ => {}
        }
        match std::fs::create_dir(&folder.path) {
            Ok(()) => break,
            // Another container that ended at this moment has removed the common parent.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < PARENT_TRIES => {
                tries += 1;
            }
            Err(error) => return Err((format!("make {}", folder.path.display()), error)),
        }
    }
    for (file, text) in &folder.enable {
        write(file, text).map_err(|error| (format!("write {}", file.display()), error))?;
    }
    for (name, text) in &folder.values {
        let file = folder.path.join(name);
        write(&file, text).map_err(|error| (format!("write {}", file.display()), error))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// Removes folders of a container and, when they were the last ones, the common parent. What could
/// not be removed, one sentence each. Folders that are gone already are fine.
#[must_use]
pub fn remove(paths: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    for path in paths {
        let path = Path::new(path);
        let mut result = std::fs::remove_dir(path);
        for _ in 0..REMOVE_TRIES {
            match &result {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(REMOVE_PAUSE);
                    result = std::fs::remove_dir(path);
                }
                _ => break,
            }
        }
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                left.push(format!("cgroup {} cannot be removed: {error}", path.display()));
            }
            _ => {
                // Fails while other containers are there.
                let _ = path.parent().map(std::fs::remove_dir);
            }
        }
    }
    left
}

/// Removes the empty folders of keepers that no longer run (killed together with their daemon).
pub fn sweep() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mounts = parse_mountinfo(&read("/proc/self/mountinfo"));
    let all = Limits { milli_cpus: Some(1), memory: Some(1), pids: Some(1) };
    for folder in plan(&mounts, &read("/proc/self/cgroup"), "x", &all) {
        let Some(parent) = folder.path.parent().filter(|parent| parent.ends_with(PARENT)) else {
            continue;
        };
        let Ok(entries) = std::fs::read_dir(parent) else { continue };
        for entry in entries.take(MAX_SWEPT).flatten() {
            let name = entry.file_name();
            let keeper = name.to_str().and_then(|name| name.rsplit_once('.')).map(|(_, pid)| pid);
            let gone = keeper.is_some_and(|pid| {
                pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()
            });
            if gone {
                let _ = std::fs::remove_dir(entry.path());
            }
        }
        let _ = std::fs::remove_dir(parent);
    }
}
