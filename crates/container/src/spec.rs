//! What a container is to be: ids, root, network, limits, clocks, traps.

use crate::network::DcNetwork;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Most ranges of an id map (the kernel's own limit is 340).
pub const MAX_RANGES: usize = 16;
/// Most trapped calls.
pub const MAX_TRAPS: usize = 128;
/// Most sysctls set in a container.
pub const MAX_SYSCTLS: usize = 64;
/// Longest host name, as `sethostname` has it.
pub const MAX_HOST_NAME: usize = 64;
/// Longest container name.
pub const MAX_NAME: usize = 64;

/// One container on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Name for cgroups and messages: letters, digits, `-`, `_` and `.`, not first.
    pub name: String,
    /// Host name inside.
    pub hostname: String,
    /// User ids.
    pub users: Vec<IdMapping>,
    /// Group ids.
    pub groups: Vec<IdMapping>,
    /// The file tree.
    pub root: RootSpec,
    /// The network.
    pub network: Network,
    /// Limits; those that this user may not set become warnings.
    pub limits: Limits,
    /// What the container's clocks are ahead of the host's, nanoseconds.
    pub clocks: ClockOffsets,
    /// Pid of the first program (its block's first number); `None`: 2.
    pub first_pid: Option<u32>,
    /// `/proc/sys` values of the container's namespaces: (`net.ipv4.ip_local_port_range`, value).
    pub sysctls: Vec<(String, String)>,
    /// Numbers of the system calls that are reported to the listener.
    pub traps: Vec<u32>,
    /// An `execveat` with this in the upper half of its flags is not trapped.
    pub exec_cookie: u32,
    /// Whether the kernel is asked to cancel received notifications for fatal signals alone; switched
    /// off in tests of older kernels.
    pub wait_killable: bool,
}

impl ContainerSpec {
    /// A container with a user's own ids, an own loopback and no limits.
    #[must_use]
    pub fn new(name: &str, root: RootSpec) -> Self {
        ContainerSpec {
            name: name.to_owned(),
            hostname: name.to_owned(),
            users: Vec::new(),
            groups: Vec::new(),
            root,
            network: Network::Loopback,
            limits: Limits::default(),
            clocks: ClockOffsets::default(),
            first_pid: None,
            sysctls: Vec::new(),
            traps: Vec::new(),
            exec_cookie: 0,
            wait_killable: true,
        }
    }

    /// Maps ids 0 to 65535 of the container to those from `base` on (for root).
    #[must_use]
    pub fn with_id_range(mut self, base: u32) -> Self {
        self.users = vec![IdMapping { inside: 0, outside: base, count: 65_536 }];
        self.groups = self.users.clone();
        self
    }

    /// Maps one id of the container to the user's own (for ordinary users).
    #[must_use]
    pub fn with_single_id(mut self, inside: (u32, u32), outside: (u32, u32)) -> Self {
        self.users = vec![IdMapping { inside: inside.0, outside: outside.0, count: 1 }];
        self.groups = vec![IdMapping { inside: inside.1, outside: outside.1, count: 1 }];
        self
    }

    /// Checks what the kernel would refuse late or not at all.
    ///
    /// # Errors
    /// A sentence about the field that is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty()
            || self.name.len() > MAX_NAME
            || self.name.starts_with('.')
            || !self.name.chars().all(plain)
        {
            return Err(format!(
                "container name {:?}: use up to {MAX_NAME} letters, digits, '-', '_', '.'",
                self.name
            ));
        }
        if self.hostname.is_empty() || self.hostname.len() > MAX_HOST_NAME {
            return Err(format!("host name {:?}: 1 to {MAX_HOST_NAME} bytes", self.hostname));
        }
        validate_map("user", &self.users)?;
        validate_map("group", &self.groups)?;
        if self.traps.len() > MAX_TRAPS {
            return Err(format!("{} trapped calls, at most {MAX_TRAPS}", self.traps.len()));
        }
        if self.sysctls.len() > MAX_SYSCTLS {
            return Err(format!("{} sysctls, at most {MAX_SYSCTLS}", self.sysctls.len()));
        }
        let plain_key = |key: &str| {
            key.split('.')
                .all(|part| !part.is_empty() && part.chars().all(|c| plain(c) && c != '.'))
        };
        if let Some((key, _)) = self.sysctls.iter().find(|(key, _)| !plain_key(key)) {
            return Err(format!("sysctl name {key:?}"));
        }
        if let Network::Dc(network) = &self.network {
            network.validate()?;
        }
        if self.first_pid.is_some_and(|pid| !(2..4_194_304).contains(&pid)) {
            return Err("the first pid must be 2 to 4194303".to_owned());
        }
        Ok(())
    }
}

fn validate_map(kind: &str, map: &[IdMapping]) -> Result<(), String> {
    if map.is_empty() || map.len() > MAX_RANGES {
        return Err(format!("the {kind} map needs 1 to {MAX_RANGES} ranges"));
    }
    for range in map {
        if range.count == 0
            || range.inside.checked_add(range.count).is_none()
            || range.outside.checked_add(range.count).is_none()
        {
            return Err(format!("{kind} map: range {range:?} is empty or over the last id"));
        }
        // Id 0 of the host owns the files of /proc/sys and /sys: mapped into a container, its root
        // could change the whole host.
        if range.outside == 0 {
            return Err(format!("the {kind} map must not contain the host's id 0"));
        }
    }
    if !map.iter().any(|range| range.inside == 0) {
        // Root inside builds the container; a map without it cannot mount anything.
        return Err(format!("the {kind} map must contain the container's id 0"));
    }
    Ok(())
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id inside.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The root of a container's file tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootSpec {
    /// A FUSE file system whose device is handed out at the start.
    Fuse {
        /// Largest read in bytes that the kernel shall ask for; `None`: its default.
        max_read: Option<u32>,
    },
    /// A folder of the host, for tests and measurements.
    Bind {
        /// Which.
        path: PathBuf,
        /// Whether the container may write to it (with the rights of its mapped ids).
        writable: bool,
    },
}

/// What network a container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A namespace of its own, with a loopback device.
    Loopback,
    /// A namespace of its own that shares its address with those of the other nodes.
    Dc(DcNetwork),
    /// The host's.
    Host,
}

/// Limits of a container on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time, thousandths of a CPU.
    pub milli_cpus: Option<u32>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Clocks of a container against the host's, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClockOffsets {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boot: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec::new("dc-1", RootSpec::Fuse { max_read: None }).with_id_range(100_000)
    }

    #[test]
    fn a_plain_spec_is_valid() {
        spec().validate().unwrap();
        spec().with_single_id((0, 0), (1000, 1000)).validate().unwrap();
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |change: &dyn Fn(&mut ContainerSpec)| {
            let mut spec = spec();
            change(&mut spec);
            spec.validate().unwrap_err()
        };
        assert!(wrong(&|s| s.name = "../up".into()).contains("name"));
        assert!(wrong(&|s| s.name = ".hidden".into()).contains("name"));
        assert!(wrong(&|s| s.hostname = String::new()).contains("host name"));
        assert!(wrong(&|s| s.users[0].outside = 0).contains("id 0"));
        assert!(wrong(&|s| s.groups[0].inside = 5).contains("id 0"));
        assert!(wrong(&|s| s.users[0].count = u32::MAX).contains("last id"));
        assert!(wrong(&|s| s.users.clear()).contains("ranges"));
        assert!(wrong(&|s| s.traps = vec![1; MAX_TRAPS + 1]).contains("trapped"));
        assert!(wrong(&|s| s.sysctls = vec![("../x".into(), "1".into())]).contains("sysctl"));
        assert!(wrong(&|s| s.sysctls = vec![("net..x".into(), "1".into())]).contains("sysctl"));
        assert!(wrong(&|s| s.first_pid = Some(1)).contains("pid"));
    }
}
