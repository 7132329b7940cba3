//! What a part uses: summed over its processes from `/proc`, so that it needs no cgroup and costs
//! nothing while nobody asks.

use crate::managing::Usage;
use dvs_container::Container;
use std::path::Path;

/// Most processes looked at.
const MAX_PROCESSES: usize = 16_384;
/// Microseconds of one tick of `/proc/PID/stat` (`USER_HZ` is 100 on every architecture of ours).
const TICK: u64 = 10_000;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// What one process has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    /// With that of the children it has waited for: so what is used does not vanish with a process.
    cpu_ticks: u64,
    resident: u64,
    read: u64,
    written: u64,
}

/// Sums up a container.
pub(crate) fn of(container: &Container, memory_limit: Option<u64>) -> Usage {
    let mut usage = Usage { memory_limit, ..Usage::default() };
    let processes = processes(container);
    usage.processes = u32::try_from(processes.len()).unwrap_or(u32::MAX);
    // The launcher has waited for the programs that were started from outside.
    for process in processes.into_iter().chain([container.launcher_pid]).take(MAX_PROCESSES) {
        let share = share(process);
        usage.cpu_microseconds += share.cpu_ticks * TICK;
        if process != container.launcher_pid {
            usage.memory += share.resident;
        }
        usage.read += share.read;
        usage.written += share.written;
    }
    usage
}

/// Pids outside, pid 1 not counted: it is ours.
fn processes(container: &Container) -> Vec<u32> {
    for folder in &container.cgroups {
        if let Ok(text) = std::fs::read_to_string(Path::new(folder).join("cgroup.procs")) {
            let ours = [container.init, container.launcher_pid];
            let pids = text.lines().filter_map(|line| line.trim().parse().ok());
            return pids.filter(|pid| !ours.contains(pid)).collect();
        }
    }
    let all = container.processes().unwrap_or_default();
    all.into_iter().map(|(outside, _)| outside).filter(|pid| *pid != container.init).collect()
}

fn share(process: u32) -> Share {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}"));
    let stat = std::fs::read(format!("/proc/{process}/stat")).unwrap_or_default();
    let statm = read("statm").unwrap_or_default();
    // Another user's may not be read; root's daemon may.
    let io = read("io").unwrap_or_default();
    let resident = statm.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Share {
        cpu_ticks: cpu_ticks(&stat),
        resident: resident.unwrap_or(0_u64) * PAGE,
        read: field(&io, "read_bytes:"),
        written: field(&io, "write_bytes:"),
    }
}

/// utime, stime, cutime and cstime of `/proc/PID/stat` (proc(5)): behind the name, which may hold
/// anything.
fn cpu_ticks(stat: &[u8]) -> u64 {
    let Some(end) = stat.iter().rposition(|byte| *byte == b')') else { return 0 };
    let rest = String::from_utf8_lossy(stat.get(end + 1..).unwrap_or_default());
    rest.split_whitespace().skip(11).take(4).filter_map(|word| word.parse::<u64>().ok()).sum()
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        let stat = b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 22 33 44 20 0 1 0 99";
        assert_eq!(cpu_ticks(stat), 11 + 22 + 33 + 44);
        assert_eq!(cpu_ticks(b""), 0);
        assert_eq!(field("rchar: 1\nread_bytes: 77\n", "read_bytes:"), 77);
        assert_eq!(field("", "read_bytes:"), 0);
        let own = share(std::process::id());
        assert!(own.resident > 0);
        assert_eq!(share(u32::MAX), Share::default());
    }
}
