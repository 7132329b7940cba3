//! Other limits for a part that runs: written into the cgroups that it has.
//!
//! A cgroup is made at the start for what was asked for then (each costs time), so a limit can be
//! changed where there was one; a new kind of limit comes with the next start.

use crate::managing::NewLimits;
use std::path::Path;

/// Length of a period in which CPU time is measured, microseconds; as the container was started with.
const PERIOD: u64 = 100_000;
/// Least CPU time in a period that the kernel accepts.
const LEAST_QUOTA: u64 = 1_000;

/// One limit: its name for people, and the files (v1, v2) with what is written there.
struct Limit {
    option: &'static str,
    files: [(&'static str, String); 2],
}

fn wanted(limits: &NewLimits) -> Vec<Limit> {
    let mut all = Vec::new();
    if let Some(milli) = limits.millicpus {
        let quota = (u64::from(milli) * PERIOD / 1000).max(LEAST_QUOTA);
        all.push(Limit {
            option: "--cpus",
            files: [
                ("cpu.cfs_quota_us", quota.to_string()),
                ("cpu.max", format!("{quota} {PERIOD}")),
            ],
        });
    }
    if let Some(bytes) = limits.memory {
        all.push(Limit {
            option: "--memory",
            files: [
                ("memory.limit_in_bytes", bytes.to_string()),
                ("memory.max", bytes.to_string()),
            ],
        });
    }
    if let Some(count) = limits.pids {
        let text = count.to_string();
        // Both versions call it the same.
        all.push(Limit {
            option: "--pids",
            files: [("pids.max", text.clone()), ("pids.max", text)],
        });
    }
    all
}

/// Writes them into a container's cgroups; what could not be changed, a sentence each.
pub(crate) fn change(cgroups: &[String], limits: &NewLimits) -> Vec<String> {
    let mut warnings = Vec::new();
    for limit in wanted(limits) {
        let found = cgroups.iter().find_map(|folder| {
            limit.files.iter().find_map(|(name, text)| {
                let path = Path::new(folder).join(name);
                path.exists().then_some((path, text))
            })
        });
        let Some((path, text)) = found else {
            warnings.push(format!(
                "{0}: the container was started without {0}, so it takes effect at its next start",
                limit.option
            ));
            continue;
        };
        if let Err(error) = std::fs::write(&path, text) {
            warnings.push(format!(
                "{}: {}: {}",
                limit.option,
                path.display(),
                crate::folders::reason(&error)
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_written_and_the_rest_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap().to_owned();
        std::fs::write(folder.path().join("cpu.max"), "max").unwrap();
        let limits =
            NewLimits { millicpus: Some(1500), memory: Some(1 << 30), ..NewLimits::default() };
        let warnings = change(&[path], &limits);
        let written = std::fs::read_to_string(folder.path().join("cpu.max")).unwrap();
        assert_eq!(written, "150000 100000");
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("--memory") && warnings[0].contains("next start"));
        assert!(change(&[], &NewLimits::default()).is_empty());
    }
}
