//! Which cgroup folders a container gets, and what is written into them. No I/O.

use crate::spec::Limits;
use dvs_sys::mount::MountEntry;
use std::path::{Path, PathBuf};

/// Folder of all containers below the maker's own cgroup.
pub const PARENT: &str = "dvs";
/// Length of a period in which CPU time is measured, microseconds.
const PERIOD: u64 = 100_000;
/// Least CPU time in a period that the kernel accepts.
const LEAST_QUOTA: u64 = 1_000;

/// What a folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// Number of processes.
    Pids,
    /// Stopping everything.
    Freezer,
    /// All of them (v2).
    Unified,
}

impl Purpose {
    /// What a user loses without it.
    #[must_use]
    pub fn loss(self) -> &'static str {
        match self {
            Purpose::Cpu => "the limit of CPU time has no effect",
            Purpose::Memory => "the limit of memory has no effect",
            Purpose::Pids => "the limit of processes has no effect",
            Purpose::Freezer => "programs are stopped by signals",
            Purpose::Unified => "limits of CPU time, memory and processes have no effect",
        }
    }
}

/// One folder of a container and what is written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// What for.
    pub purpose: Purpose,
    /// Where.
    pub path: PathBuf,
    /// Where controllers must be switched on first (v2): (file, text), from the top down.
    pub enable: Vec<(PathBuf, String)>,
    /// Limits: (file in the folder, text).
    pub values: Vec<(&'static str, String)>,
}

impl Folder {
    /// File and text that stop or let go on everything in the folder, if it can.
    #[must_use]
    pub fn freeze(&self, frozen: bool) -> Option<(PathBuf, &'static str)> {
        match self.purpose {
            Purpose::Freezer => {
                Some((self.path.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" }))
            }
            Purpose::Unified => {
                Some((self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" }))
            }
            _ => None,
        }
    }
}

/// The folders for a container called `name`. `own`: the text of `/proc/self/cgroup`.
#[must_use]
pub fn plan(mounts: &[MountEntry], own: &str, name: &str, limits: &Limits) -> Vec<Folder> {
    let v1: Vec<Folder> = [
        ("cpu", Purpose::Cpu),
        ("memory", Purpose::Memory),
        ("pids", Purpose::Pids),
        ("freezer", Purpose::Freezer),
    ]
    .into_iter()
    .filter_map(|(controller, purpose)| {
        let path = v1_folder(mounts, own, controller)?.join(PARENT).join(name);
        Some(Folder { purpose, path, enable: Vec::new(), values: v1_values(purpose, limits) })
    })
    .collect();
    if v1.is_empty() { v2_folder(mounts, own, name, limits).into_iter().collect() } else { v1 }
}

fn v1_values(purpose: Purpose, limits: &Limits) -> Vec<(&'static str, String)> {
    match purpose {
        Purpose::Cpu => limits.milli_cpus.map_or_else(Vec::new, |milli| {
            vec![
                ("cpu.cfs_period_us", PERIOD.to_string()),
                ("cpu.cfs_quota_us", quota(milli).to_string()),
            ]
        }),
        Purpose::Memory => limits
            .memory
            .map_or_else(Vec::new, |bytes| vec![("memory.limit_in_bytes", bytes.to_string())]),
        Purpose::Pids => {
            limits.pids.map_or_else(Vec::new, |count| vec![("pids.max", count.to_string())])
        }
        Purpose::Freezer | Purpose::Unified => Vec::new(),
    }
}

fn quota(milli_cpus: u32) -> u64 {
    (u64::from(milli_cpus) * PERIOD / 1000).max(LEAST_QUOTA)
}

/// The own folder in the hierarchy of a v1 controller.
fn v1_folder(mounts: &[MountEntry], own: &str, controller: &str) -> Option<PathBuf> {
    let has = |options: &str| options.split(',').any(|option| option == controller);
    let mount = mounts.iter().find(|entry| entry.kind == "cgroup" && has(&entry.super_options))?;
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        has(fields.nth(1)?).then(|| fields.next()).flatten()
    })?;
    below_mount(mount, path)
}

fn v2_folder(mounts: &[MountEntry], own: &str, name: &str, limits: &Limits) -> Option<Folder> {
    let mount = mounts.iter().find(|entry| entry.kind == "cgroup2")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let base = below_mount(mount, path)?;
    let mut values = Vec::new();
    let mut controllers = Vec::new();
    if let Some(milli) = limits.milli_cpus {
        controllers.push("+cpu");
        values.push(("cpu.max", format!("{} {PERIOD}", quota(milli))));
    }
    if let Some(bytes) = limits.memory {
        controllers.push("+memory");
        values.push(("memory.max", bytes.to_string()));
    }
    if let Some(count) = limits.pids {
        controllers.push("+pids");
        values.push(("pids.max", count.to_string()));
    }
    // A folder with processes cannot hand controllers to its children (except the root): that shows
    // as EBUSY when they are switched on, and becomes a warning.
    let enable = if controllers.is_empty() {
        Vec::new()
    } else {
        [base.clone(), base.join(PARENT)]
            .map(|folder| (folder.join("cgroup.subtree_control"), controllers.join(" ")))
            .to_vec()
    };
    Some(Folder { purpose: Purpose::Unified, path: base.join(PARENT).join(name), enable, values })
}

/// The path of a cgroup in the file tree, where `mount` shows (a part of) its hierarchy.
fn below_mount(mount: &MountEntry, cgroup: &str) -> Option<PathBuf> {
    let rest = Path::new(cgroup).strip_prefix(&mount.root).ok()?;
    // A cgroup outside the own cgroup namespace shows as "/..".
    let plain = rest.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    plain.then(|| mount.target.join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvs_sys::mount::parse_mountinfo;

    const V1: &str = "\
30 20 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
31 20 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 20 0:32 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 20 0:33 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
34 20 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
    const OWN_V1: &str =
        "9:name=systemd:/\n8:pids:/\n6:freezer:/\n4:memory:/box/1\n1:cpu,cpuacct:/\n0::/\n";
    const ALL: Limits = Limits { milli_cpus: Some(500), memory: Some(1 << 30), pids: Some(100) };

    #[test]
    fn v1_controllers_get_a_folder_each() {
        let folders = plan(&parse_mountinfo(V1), OWN_V1, "dc.1", &ALL);
        let paths: Vec<_> = folders.iter().map(|f| f.path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "/sys/fs/cgroup/cpu/dvs/dc.1",
                "/sys/fs/cgroup/memory/box/1/dvs/dc.1",
                "/sys/fs/cgroup/pids/dvs/dc.1",
                "/sys/fs/cgroup/freezer/dvs/dc.1"
            ]
        );
        assert_eq!(folders[0].values[1], ("cpu.cfs_quota_us", "50000".to_owned()));
        assert_eq!(folders[1].values[0], ("memory.limit_in_bytes", "1073741824".to_owned()));
        assert_eq!(folders[2].values[0], ("pids.max", "100".to_owned()));
        let (file, text) = folders[3].freeze(true).unwrap();
        assert!(file.ends_with("freezer.state") && text == "FROZEN");
        assert_eq!(folders[0].freeze(true), None);
    }

    #[test]
    fn v2_has_one_folder_and_switches_controllers_on() {
        let v2 = "30 20 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let folders = plan(&parse_mountinfo(v2), "0::/user.slice\n", "dc", &ALL);
        assert_eq!(folders.len(), 1);
        let folder = &folders[0];
        assert_eq!(folder.path, Path::new("/sys/fs/cgroup/user.slice/dvs/dc"));
        assert_eq!(folder.enable.len(), 2);
        assert!(folder.enable[0].0.ends_with("user.slice/cgroup.subtree_control"));
        assert_eq!(folder.enable[0].1, "+cpu +memory +pids");
        assert_eq!(folder.values[0], ("cpu.max", "50000 100000".to_owned()));
        assert_eq!(folder.freeze(false).unwrap().1, "0");
        let plain = plan(&parse_mountinfo(v2), "0::/\n", "dc", &Limits::default());
        assert!(plain[0].enable.is_empty() && plain[0].values.is_empty());
    }

    #[test]
    fn a_mount_of_a_part_and_paths_outside_are_understood() {
        let part = "30 20 0:30 /box /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let folders = plan(&parse_mountinfo(part), "8:pids:/box/me\n", "dc", &ALL);
        assert_eq!(folders[0].path, Path::new("/sys/fs/cgroup/pids/me/dvs/dc"));
        assert!(plan(&parse_mountinfo(part), "8:pids:/other\n", "dc", &ALL).is_empty());
        assert!(plan(&parse_mountinfo(part), "8:pids:/box/../..\n", "dc", &ALL).is_empty());
        assert!(plan(&[], OWN_V1, "dc", &ALL).is_empty());
    }

    #[test]
    fn tiny_quotas_are_lifted_to_what_the_kernel_takes() {
        assert_eq!(quota(1), LEAST_QUOTA);
        assert_eq!(quota(2500), 250_000);
    }
}
