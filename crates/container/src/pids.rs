//! Which processes are in a container, and what they are called inside.
//!
//! Every process of a container descends from its pid 1 (also after its parent has died) or from the
//! launcher, so the parents in `/proc` tell; links to namespaces, which ordinary users may not read
//! of non-dumpable processes, are not needed.

use std::collections::HashMap;
use std::io;
use std::path::Path;

/// Most generations between a process and the root of its container.
const MAX_DEPTH: usize = 4096;

/// What `/proc/PID/status` says about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    parent: u32,
    /// Its pid in every namespace that contains it, the outermost first.
    pids: Vec<u32>,
}

/// The processes of the container of this pid 1 and launcher: (pid outside, pid inside), sorted.
/// Processes of nested namespaces are included with their pid in this one.
///
/// # Errors
/// What reading `/proc` says.
pub fn of_container(init: u32, launcher: u32) -> io::Result<Vec<(u32, u32)>> {
    let mut table = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Gone between listing and reading: not there.
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        if let Some(entry) = parse(&status) {
            table.insert(pid, entry);
        }
    }
    Ok(select(&table, init, launcher))
}

fn select(table: &HashMap<u32, Entry>, init: u32, launcher: u32) -> Vec<(u32, u32)> {
    let Some(depth) = table.get(&init).map(|entry| entry.pids.len()) else { return Vec::new() };
    let belongs = |pid: u32| {
        let mut pid = pid;
        for _ in 0..MAX_DEPTH {
            if pid == init {
                return true;
            }
            match table.get(&pid) {
                Some(entry) if entry.parent == launcher => return true,
                Some(entry) if entry.parent != 0 => pid = entry.parent,
                _ => return false,
            }
        }
        false
    };
    let mut found: Vec<(u32, u32)> = table
        .iter()
        .filter_map(|(pid, entry)| Some((*pid, *entry.pids.get(depth - 1)?)))
        .filter(|(pid, _)| belongs(*pid))
        .collect();
    found.sort_unstable();
    found
}

/// A process's pid in every namespace that contains it, the outermost (seen from here) first.
///
/// # Errors
/// What reading its status says; `InvalidData` for an odd one.
pub fn pids_of(pid: u32) -> io::Result<Vec<u32>> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let entry = parse(&status).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(entry.pids)
}

fn parse(status: &str) -> Option<Entry> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let pids: Vec<u32> =
        field("NSpid:")?.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let parent = field("PPid:")?.trim().parse().ok()?;
    (!pids.is_empty()).then_some(Entry { parent, pids })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read() {
        let entry = parse("Name:\tx\nPPid:\t7\nNSpid:\t4000\t12\n").unwrap();
        assert_eq!(entry, Entry { parent: 7, pids: vec![4000, 12] });
        assert_eq!(parse("Name:\tx\nPPid:\t7\n"), None);
        assert_eq!(parse("PPid:\t7\nNSpid:\t\n"), None);
        assert_eq!(parse("PPid:\t7\nNSpid:\t4 x\n"), None);
        assert_eq!(pids_of(std::process::id()).unwrap().first(), Some(&std::process::id()));
    }

    #[test]
    fn two_containers_are_told_apart() {
        let entry = |parent, pids: &[u32]| Entry { parent, pids: pids.to_vec() };
        let table = HashMap::from([
            (10, entry(1, &[10])),         // launcher
            (11, entry(10, &[11, 1])),     // pid 1
            (12, entry(10, &[12, 50])),    // launched
            (13, entry(12, &[13, 51])),    // its child
            (14, entry(13, &[14, 52, 1])), // nested namespace
            (15, entry(11, &[15, 53])),    // orphan
            (20, entry(1, &[20])),         // another launcher
            (21, entry(20, &[21, 1])),
            (22, entry(20, &[22, 50])),
        ]);
        let expected = vec![(11, 1), (12, 50), (13, 51), (14, 52), (15, 53)];
        assert_eq!(select(&table, 11, 10), expected);
        assert_eq!(select(&table, 21, 20), vec![(21, 1), (22, 50)]);
        assert_eq!(select(&table, 99, 98), vec![]);
    }
}
