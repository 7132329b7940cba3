//! What exists on the machine, seen from outside, and what is new since an earlier look.
//!
//! "Nothing is left behind" is checked here: processes, mounts, cgroups, sockets, shared memory,
//! files, FUSE connections, and namespaces that outlive their processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Deepest cgroup folder looked at.
const MAX_CGROUP_DEPTH: usize = 12;

/// How a look is taken.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Count only processes that have this in their environment (`NAME=VALUE`), and nothing else
    /// that all users of the machine share: for tests that run beside others.
    pub mark: Option<String>,
    /// Folders of which every entry counts, beside those that always do.
    pub folders: Vec<PathBuf>,
    /// Names of entries of `/tmp` that do not count if they begin so.
    pub ignore: Vec<String>,
}

/// A look at the machine: kinds of things, and what there is of each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot(pub BTreeMap<String, BTreeSet<String>>);

impl Snapshot {
    /// Looks at the machine.
    #[must_use]
    pub fn take(scope: &Scope) -> Snapshot {
        let mut kinds = BTreeMap::new();
        let mut add = |kind: &str, things: BTreeSet<String>| {
            kinds.insert(kind.to_owned(), things);
        };
        add("process", processes(scope));
        add("mount", mounts());
        add("mount namespace or pid namespace held by a descriptor or mount", held_namespaces());
        add("cgroup", cgroups());
        add("unix socket", unix_sockets(scope));
        add("FUSE connection", names(Path::new("/sys/fs/fuse/connections"), &[]));
        add("shared memory", names(Path::new("/dev/shm"), &[]));
        add("System V object", system_v());
        for folder in ["/tmp", "/var/tmp", "/run", "/run/dvs", "/run/dvs/sessions", "/var/lib/dvs"]
        {
            let ignore: Vec<&str> = scope.ignore.iter().map(String::as_str).collect();
            add(&format!("entry of {folder}"), names(Path::new(folder), &ignore));
        }
        for folder in &scope.folders {
            add(&format!("entry of {}", folder.display()), names(folder, &[]));
        }
        if scope.mark.is_some() {
            kinds.retain(|kind, _| {
                kind == "process"
                    || scope
                        .folders
                        .iter()
                        .any(|folder| *kind == format!("entry of {}", folder.display()))
            });
        }
        Snapshot(kinds)
    }

    /// What is here and was not in `before`, one line each.
    #[must_use]
    pub fn new_since(&self, before: &Snapshot) -> Vec<String> {
        let none = BTreeSet::new();
        let mut lines = Vec::new();
        for (kind, things) in &self.0 {
            let old = before.0.get(kind).unwrap_or(&none);
            lines.extend(things.difference(old).map(|thing| format!("{kind}: {thing}")));
        }
        lines
    }
}

/// Looks until nothing is new, at most `bound`: the kernel ends namespaces and mounts a moment after
/// their last process. What is still new then is returned.
#[must_use]
pub fn left_over(before: &Snapshot, scope: &Scope, bound: Duration) -> Vec<String> {
    let started = Instant::now();
    loop {
        let left = Snapshot::take(scope).new_since(before);
        if left.is_empty() || started.elapsed() > bound {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Names in a folder.
fn names(folder: &Path, ignore: &[&str]) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !ignore.iter().any(|start| name.starts_with(start)))
        .collect()
}

/// Numbers of all processes.
fn process_numbers() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Every user process but this one and its ancestors, as `pid start-time command line`.
fn processes(scope: &Scope) -> BTreeSet<String> {
    let own = std::process::id();
    process_numbers()
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (head, fields) = stat.rsplit_once(')')?;
            let fields: Vec<&str> = fields.split_whitespace().collect();
            let (state, parent, start) = (fields.first()?, fields.get(1)?, fields.get(19)?);
            if *parent == "2" || pid == 2 {
                return None; // a kernel thread
            }
            if let Some(mark) = &scope.mark {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                if !environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()) {
                    return None;
                }
            }
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.is_empty() {
                line = format!("[{}] state {state}", head.split_once('(')?.1);
            }
            line.truncate(line.char_indices().nth(120).map_or(line.len(), |(at, _)| at));
            Some(format!("{pid} (started {start}) {line}"))
        })
        .collect()
}

/// Mounts of every mount namespace that a process is in: container mounts live in others than ours.
fn mounts() -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    for pid in process_numbers() {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { continue };
        for line in text.lines() {
            // id, parent, device, root, mount point, options... - type, source, options
            let (left, right) = line.split_once(" - ").unwrap_or((line, ""));
            let place: Vec<&str> = left.split(' ').skip(3).take(2).collect();
            let kind: Vec<&str> = right.split(' ').take(2).collect();
            found.insert(format!("{} ({})", place.join(" on "), kind.join(" ")));
        }
    }
    found
}

/// Namespaces kept alive by a bind mount or an open descriptor though no process is in them.
fn held_namespaces() -> BTreeSet<String> {
    let kinds = ["mnt", "pid", "user", "net", "ipc", "uts", "time", "cgroup"];
    let mut lived_in = BTreeSet::new();
    let mut held = BTreeSet::new();
    for pid in process_numbers() {
        for kind in kinds {
            if let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/{kind}")) {
                lived_in.insert(link.to_string_lossy().into_owned());
            }
        }
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for link in entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()) {
            let link = link.to_string_lossy().into_owned();
            if link.ends_with(']') && kinds.iter().any(|k| link.starts_with(&format!("{k}:["))) {
                held.insert(link);
            }
        }
    }
    if let Ok(text) = fs::read_to_string("/proc/self/mountinfo") {
        for line in text.lines().filter(|line| line.contains(" - nsfs ")) {
            held.extend(line.split(' ').nth(3).map(str::to_owned));
        }
    }
    held.difference(&lived_in).cloned().collect()
}

/// Every cgroup folder.
fn cgroups() -> BTreeSet<String> {
    fn walk(folder: &Path, depth: usize, found: &mut BTreeSet<String>) {
        if depth > MAX_CGROUP_DEPTH {
            return;
        }
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.insert(entry.path().to_string_lossy().into_owned());
                walk(&entry.path(), depth + 1, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(Path::new("/sys/fs/cgroup"), 0, &mut found);
    found
}

/// Unix sockets that have a name (a path or an abstract one).
fn unix_sockets(scope: &Scope) -> BTreeSet<String> {
    let text = fs::read("/proc/net/unix").unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(7).map(str::to_owned))
        .filter(|name| !scope.ignore.iter().any(|start| name.contains(&format!("/tmp/{start}"))))
        .collect()
}

/// System V shared memory, semaphores and queues.
fn system_v() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for kind in ["shm", "sem", "msg"] {
        let text = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().take(2).collect();
            found.insert(format!("{kind} {}", words.join(" ")));
        }
    }
    found
}

/// Whether a path is a folder that the calling user owns; used before anything is removed.
#[must_use]
pub fn is_own_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| {
        metadata.is_dir() && metadata.uid() == dvs_sys::process::effective_ids().0
    }) && !path.as_os_str().as_bytes().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_process_is_seen_and_its_end_too() {
        let mark = format!("DVS_MARK={}", std::process::id());
        let scope = Scope { mark: Some(mark.clone()), ..Scope::default() };
        let before = Snapshot::take(&scope);
        let (name, value) = mark.split_once('=').expect("mark");
        let mut child =
            std::process::Command::new("sleep").arg("60").env(name, value).spawn().expect("sleep");
        let new = Snapshot::take(&scope).new_since(&before);
        assert!(new.len() == 1 && new[0].contains("sleep 60"), "{new:?}");
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(left_over(&before, &scope, Duration::from_secs(10)).is_empty());
    }

    #[test]
    fn a_new_file_in_a_watched_folder_is_seen() {
        let folder = tempfile::tempdir().expect("folder");
        let scope = Scope {
            mark: Some("DVS_MARK=none".into()),
            folders: vec![folder.path().into()],
            ..Scope::default()
        };
        let before = Snapshot::take(&scope);
        fs::write(folder.path().join("f"), "").expect("write");
        let new = Snapshot::take(&scope).new_since(&before);
        assert_eq!(new, [format!("entry of {}: f", folder.path().display())]);
    }

    #[test]
    fn a_snapshot_survives_its_file() {
        let snapshot = Snapshot::take(&Scope::default());
        let text = serde_json::to_string(&snapshot).expect("text");
        assert_eq!(serde_json::from_str::<Snapshot>(&text).expect("snapshot"), snapshot);
        assert!(!snapshot.0["process"].is_empty() && !snapshot.0["mount"].is_empty());
    }
}
