//! What `dvs doctor` looks at beside the kernel's features: limits and rights of this user and machine.
//!
//! Each judgement is pure; what was read comes in.

use crate::doctor::{Line, Verdict};
use std::path::{Path, PathBuf};

/// Everything here.
pub(crate) fn look(uid: u32) -> Vec<Line> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let present = |name: &str| {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(name).is_file())
    };
    let own = read("/proc/self/cgroup");
    let number = |path: &str| read(path).trim().parse().unwrap_or(0);
    vec![
        id_helpers(uid, present("newuidmap") && present("newgidmap")),
        delegation(uid, &own, writable),
        inotify(
            number("/proc/sys/fs/inotify/max_user_instances"),
            number("/proc/sys/fs/inotify/max_user_watches"),
        ),
        processes(
            limit_of_group(&own, read),
            dvs_sys::process::prlimit(0, libc::RLIMIT_NPROC, None)
                .map_or(u64::MAX, |(soft, _)| soft),
        ),
        ssh(present("ssh")),
    ]
}

fn line(name: &str, good: bool, yes: String, no: String) -> Line {
    Line {
        name: name.to_owned(),
        verdict: if good { Verdict::Good } else { Verdict::Limited },
        sentence: if good { yes } else { no },
    }
}

/// Subordinate ids are given out by two set-user-id helpers.
fn id_helpers(uid: u32, there: bool) -> Line {
    line(
        "id helpers",
        uid == 0 || there,
        if uid == 0 {
            "Root needs no newuidmap.".to_owned()
        } else {
            "newuidmap and newgidmap are there.".to_owned()
        },
        "newuidmap or newgidmap is missing, which containers with more than one user will need: apt-get install uidmap.".to_owned(),
    )
}

fn writable(folder: &Path) -> bool {
    std::fs::OpenOptions::new().write(true).open(folder.join("cgroup.procs")).is_ok()
}

/// Limits need a cgroup that this user may write. `own`: `/proc/self/cgroup`.
fn delegation(uid: u32, own: &str, writable: impl Fn(&Path) -> bool) -> Line {
    let group = own.lines().find_map(|line| line.strip_prefix("0::"));
    let folder = group.map(|path| Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')));
    let good = uid == 0 || folder.as_deref().is_some_and(writable);
    line(
        "cgroup delegation",
        good,
        "This user may set limits (--cpus, --memory, --pids).".to_owned(),
        format!(
            "This user may not make cgroups, so --cpus, --memory and --pids have no effect: run dvs as systemd-run --user --scope -p Delegate=yes dvs ... (user {uid})."
        ),
    )
}

/// Builds and editors inside use the machine's common allowance.
fn inotify(instances: u64, watches: u64) -> Line {
    line(
        "inotify",
        instances >= 128 && watches >= 65_536,
        format!("Programs may watch files: {instances} instances, {watches} watches a user."),
        format!(
            "Programs that watch many files (editors, build watchers) will fail: {instances} instances, {watches} watches; sysctl fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=524288."
        ),
    )
}

/// `pids.max` of the own cgroup; none: no limit.
fn limit_of_group(own: &str, read: impl Fn(&str) -> String) -> Option<u64> {
    let v1 = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        (fields.next()?.split(',').any(|name| name == "pids")).then(|| fields.next())?
    });
    let base = match v1 {
        Some(path) => PathBuf::from("/sys/fs/cgroup/pids").join(path.trim_start_matches('/')),
        None => {
            let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
            Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'))
        }
    };
    read(&base.join("pids.max").display().to_string()).trim().parse().ok()
}

/// A node and all that runs on it count against both.
fn processes(group: Option<u64>, user: u64) -> Line {
    const WANTED: u64 = 4096;
    let least = group.unwrap_or(u64::MAX).min(user);
    let shown =
        |limit: u64| if limit == u64::MAX { "no limit".to_owned() } else { limit.to_string() };
    line(
        "process limit",
        least >= WANTED,
        format!("Processes of this user and its cgroup: {}.", shown(least)),
        format!(
            "Only {least} processes may run here (cgroup: {}, ulimit -u: {}), which large builds exceed: raise TasksMax= of the service or slice, or nproc in limits.conf.",
            shown(group.unwrap_or(u64::MAX)),
            shown(user)
        ),
    )
}

fn ssh(there: bool) -> Line {
    line(
        "ssh",
        there,
        "Other machines can be reached: dvs --host ssh://USER@HOST.".to_owned(),
        "ssh is missing, so --host does not work: apt-get install openssh-client.".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_comes_with_a_fix() {
        assert!(id_helpers(1000, false).sentence.contains("apt-get install uidmap"));
        assert_eq!(id_helpers(0, false).verdict, Verdict::Good);
        let user = "0::/user.slice/x\n";
        let asked = std::cell::RefCell::new(PathBuf::new());
        let refused = delegation(1000, user, |folder| {
            *asked.borrow_mut() = folder.to_owned();
            false
        });
        assert!(refused.sentence.contains("Delegate=yes"));
        assert_eq!(*asked.borrow(), Path::new("/sys/fs/cgroup/user.slice/x"));
        assert_eq!(delegation(1000, user, |_| true).verdict, Verdict::Good);
        assert_eq!(delegation(0, "", |_| false).verdict, Verdict::Good);
        assert!(inotify(10, 8192).sentence.contains("sysctl fs.inotify"));
        assert_eq!(inotify(128, 192_536).verdict, Verdict::Good);
        assert!(processes(Some(100), u64::MAX).sentence.contains("TasksMax"));
        assert_eq!(processes(None, u64::MAX).verdict, Verdict::Good);
        assert_eq!(processes(None, 100).verdict, Verdict::Limited);
        assert!(ssh(false).sentence.contains("openssh-client"));
    }

    #[test]
    fn the_groups_limit_is_found() {
        let read = |path: &str| match path {
            "/sys/fs/cgroup/pids/a/pids.max" => "77\n".to_owned(),
            "/sys/fs/cgroup/b/pids.max" => "max\n".to_owned(),
            _ => String::new(),
        };
        assert_eq!(limit_of_group("8:pids:/a\n0::/\n", read), Some(77));
        assert_eq!(limit_of_group("0::/b\n", read), None);
        assert_eq!(limit_of_group("", read), None);
    }
}
