//! The processes that descend from this one, found as a subreaper finds them: whatever a command
//! leaves behind becomes our child, however it was orphaned.

use std::fs;

/// A process below this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descendant {
    /// Its pid.
    pub pid: u32,
    /// Its name (`comm`).
    pub name: String,
    /// Its command line.
    pub line: String,
}

/// Most descendants that are listed.
const MAX_DESCENDANTS: usize = 10_000;

/// From now on orphans below this process become its children.
pub fn adopt_orphans() -> anyhow::Result<()> {
    Ok(dvs_sys::process::set_child_subreaper()?)
}

/// All processes below this one, parents before children. Ended orphans are reaped on the way, the
/// children in `own` (which their owner waits for) are not.
#[must_use]
pub fn list(own: &[u32]) -> Vec<Descendant> {
    let mut found = Vec::new();
    let mut queue = vec![std::process::id()];
    let this = std::process::id();
    while let Some(parent) = queue.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for pid in text.split_whitespace().filter_map(|word| word.parse::<u32>().ok()) {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                if stat.contains(") Z ") {
                    if parent == this && !own.contains(&pid) {
                        let target = i32::try_from(pid).unwrap_or(0);
                        let _ = dvs_sys::process::wait(target, libc::WNOHANG, 0);
                    }
                    continue;
                }
                if found.len() >= MAX_DESCENDANTS {
                    return found;
                }
                let read = |name: &str| {
                    fs::read(format!("/proc/{pid}/{name}"))
                        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
                        .unwrap_or_default()
                        .trim()
                        .to_owned()
                };
                found.push(Descendant { pid, name: read("comm"), line: read("cmdline") });
                queue.push(pid);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn an_orphan_is_found() {
        adopt_orphans().expect("subreaper");
        let mut child = Command::new("sh")
            .args(["-c", "sleep 61.25 & exit 0"])
            .stdout(Stdio::null())
            .spawn()
            .expect("sh");
        let own = [child.id()];
        child.wait().expect("wait");
        let start = Instant::now();
        let orphan = loop {
            if let Some(found) = list(&own).into_iter().find(|d| d.line == "sleep 61.25") {
                break found;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "not found");
        };
        let pid = i32::try_from(orphan.pid).expect("pid");
        dvs_sys::process::kill(pid, libc::SIGKILL).expect("kill");
        dvs_sys::process::wait(pid, 0, 0).expect("wait");
    }
}
