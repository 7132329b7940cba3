//! What the host machine is: kernel, CPUs, memory, as far as this daemon may use them.

use std::path::Path;

/// The machine as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Kernel release.
    pub(crate) kernel: String,
    /// CPUs in thousandths: those allowed, and no more than a cgroup's quota.
    pub(crate) millicpus: u32,
    /// Memory in bytes.
    pub(crate) memory: u64,
}

impl Machine {
    /// Looks.
    pub(crate) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        // available_parallelism knows the affinity mask and cgroup quotas, but rounds these to whole
        // CPUs; a half CPU makes a difference to placement.
        let whole = u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(1000);
        let quota = cgroup_v1_quota(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup/cpu"));
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            millicpus: quota.map_or(whole, |quota| quota.min(whole)).max(1),
            memory: total_memory(&read("/proc/meminfo")),
        }
    }
}

fn total_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes: Option<u64> = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// The quota of the process's cgroup (v1), in thousandths of a CPU.
fn cgroup_v1_quota(own: &str, mount: &Path) -> Option<u32> {
    let group = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        controllers.split(',').any(|name| name == "cpu").then_some(path)
    })?;
    let folder = mount.join(group.trim_start_matches('/'));
    let read = |name: &str| -> Option<i64> {
        std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
    };
    thousandths(read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
}

fn thousandths(quota: i64, period: i64) -> Option<u32> {
    if quota <= 0 || period <= 0 {
        return None;
    }
    u32::try_from(quota.saturating_mul(1000) / period).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        assert_eq!(total_memory("MemTotal:       24000 kB\nMemFree: 1 kB\n"), 24000 * 1024);
        assert_eq!(total_memory(""), 0);
        assert_eq!(thousandths(50_000, 100_000), Some(500));
        assert_eq!(thousandths(-1, 100_000), None);
        assert_eq!(cgroup_v1_quota("4:cpu,cpuacct:/no/such\n", Path::new("/no")), None);
        let machine = Machine::look();
        assert!(machine.millicpus > 0 && machine.memory > 0 && !machine.kernel.is_empty());
    }
}
