//! The image of a program that is about to be executed: read from its caller, which waits in a
//! trapped execve, without writing to it or running anything in it.

use crate::files::{Files, Probe, Verdict};
use crate::ids::IdMap;
use crate::reason::Reason;
use dvs_carry::InheritedDescriptor;
use dvs_container::launch::{Bytes, LaunchCredentials, LaunchSpec, MAX_STRINGS, SessionSpec};
use dvs_sys::error::SysError;
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{self, TaskMemory, TaskStatus};
use std::os::fd::OwnedFd;

/// Longest path that execve takes.
const MAX_PATH: usize = 4096;
/// Namespaces that a placed program must share with the container. A program without
/// `CAP_SYS_ADMIN` can have others only in a user namespace of its own: then the first is enough.
const NAMESPACES: [&str; 10] = [
    "user",
    "mnt",
    "net",
    "ipc",
    "uts",
    "cgroup",
    "pid",
    "pid_for_children",
    "time",
    "time_for_children",
];

/// What every program of the container has unless it changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    namespaces: Vec<Vec<u8>>,
    /// User and group ids.
    users: IdMap,
    groups: IdMap,
    filters: u32,
    bounding: u64,
    cpus: u64,
    oom_score_adjust: Vec<u8>,
}

impl Baseline {
    /// Reads it from pid 1 of the container and a program that has changed nothing yet (the launcher
    /// or one that it holds), both by their pids outside.
    ///
    /// # Errors
    /// `ESRCH` when one is gone, `EACCES` or `EIO` where `/proc` does not answer as expected.
    pub fn read(init: u32, untouched: u32) -> Result<Baseline, SysError> {
        let status = TaskStatus::read(untouched)?;
        let map =
            |name| IdMap::parse(&task::text(init, name)?).ok_or(SysError::new("id map", libc::EIO));
        Ok(Baseline {
            // Pid 1 is not dumpable, so that an ordinary user's daemon may not look at it.
            namespaces: namespaces(untouched, status.capabilities[3])?,
            users: map("uid_map")?,
            groups: map("gid_map")?,
            filters: status.filters,
            bounding: status.capabilities[3],
            cpus: status.cpus,
            oom_score_adjust: task::text(untouched, "oom_score_adj")?,
        })
    }

    /// The container's number for a user id of the host.
    #[must_use]
    pub fn user(&self, outside: u32) -> u32 {
        self.users.inside(outside)
    }

    /// The container's number for a group id of the host.
    #[must_use]
    pub fn group(&self, outside: u32) -> u32 {
        self.groups.inside(outside)
    }
}

fn namespaces(process: u32, bounding: u64) -> Result<Vec<Vec<u8>>, SysError> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let needed = if bounding & CAP_SYS_ADMIN == 0 { 1 } else { NAMESPACES.len() };
    NAMESPACES[..needed].iter().map(|name| task::link(process, &format!("ns/{name}"))).collect()
}

/// The arguments of a trapped execve or execveat: addresses in the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecArguments {
    /// Path.
    pub path: u64,
    /// Argument vector.
    pub arguments: u64,
    /// Environment.
    pub environment: u64,
    /// Directory of a relative path; `AT_FDCWD` for execve.
    directory: i32,
    /// execveat's flags.
    flags: u64,
}

impl ExecArguments {
    /// From a notification; `None` if it is another call.
    #[must_use]
    pub fn of(call: &Notification) -> Option<ExecArguments> {
        let [a, b, c, d, e, _] = call.arguments;
        match i64::from(call.number) {
            libc::SYS_execve => Some(ExecArguments {
                path: a,
                arguments: b,
                environment: c,
                directory: libc::AT_FDCWD,
                flags: 0,
            }),
            libc::SYS_execveat => Some(ExecArguments {
                path: b,
                arguments: c,
                environment: d,
                directory: a as u32 as i32,
                flags: e & 0xffff_ffff,
            }),
            _ => None,
        }
    }
}

/// A program about to be executed.
#[derive(Debug)]
pub struct Image {
    /// What the launcher of another node needs, without descriptors.
    pub spec: LaunchSpec,
    /// Its descriptors.
    pub descriptors: Vec<InheritedDescriptor>,
    /// One above the caller's highest descriptor.
    pub descriptors_end: u32,
    /// The process, outside.
    pub process: u32,
    /// The process.
    pub handle: OwnedFd,
    /// Its pid in the DC.
    pub pid: u32,
    /// Address of an empty string in the caller: its path's own end.
    pub empty_string: u64,
}

/// Why there is no image: the reason to stay, and whether the program may be at fault.
pub type Stay = Reason;

fn unreadable(error: SysError) -> Stay {
    match error.errno {
        libc::E2BIG | libc::EMFILE => Reason::TooLarge,
        _ => Reason::Failed,
    }
}

/// Reads the image of a program whose caller waits in `call`.
///
/// # Errors
/// The reason why the program stays here.
pub fn read(
    call: &Notification,
    status: &TaskStatus,
    baseline: &Baseline,
    files: &dyn Files,
) -> Result<Image, Stay> {
    let thread = call.pid;
    let exec = ExecArguments::of(call).ok_or(Reason::Failed)?;
    let process = status.process;
    let (nice, policy) = task::scheduling(thread).map_err(unreadable)?;
    stays_by_state(status, policy, baseline)?;

    let mut memory = TaskMemory::new(thread);
    let path = memory.string(exec.path, MAX_PATH).map_err(unreadable)?;
    if path.is_empty() || exec.flags != 0 || (path[0] != b'/' && exec.directory != libc::AT_FDCWD) {
        return Err(Reason::OpenFile);
    }
    let directory = task::link(thread, "cwd").map_err(unreadable)?;
    if directory.first() != Some(&b'/') || directory.ends_with(b" (deleted)") {
        return Err(Reason::WorkingDirectory);
    }
    let owner = (baseline.users.inside(status.uids[1]), baseline.groups.inside(status.gids[1]));
    match files.probe(Probe { directory: &directory, path: &path, user: owner }) {
        Verdict::Absent => return Err(Reason::NotFound),
        Verdict::Privileged => return Err(Reason::Privileged),
        Verdict::Unknown | Verdict::Ordinary => {}
    }
    stays_by_surroundings(process, thread, status, baseline)?;

    let arguments = memory.strings(exec.arguments, MAX_STRINGS).map_err(unreadable)?;
    let used: usize = arguments.iter().map(|argument| argument.len() + 9).sum();
    let environment =
        memory.strings(exec.environment, MAX_STRINGS.saturating_sub(used)).map_err(unreadable)?;
    let handle = dvs_sys::process::pidfd_open(process).map_err(unreadable)?;
    let (open, descriptors_end) = task::descriptors(thread).map_err(unreadable)?;
    let mut descriptors = Vec::with_capacity(open.len());
    for descriptor in open {
        let fd = task::duplicate_descriptor(&handle, descriptor.number).map_err(unreadable)?;
        let path = task::target(&fd).map_err(unreadable)?;
        descriptors.push(InheritedDescriptor {
            number: descriptor.number,
            fd,
            flags: descriptor.flags,
            position: descriptor.position,
            path,
        });
    }
    let oom = task::text(process, "oom_score_adj").map_err(unreadable)?;
    let oom_score_adjust = (oom != baseline.oom_score_adjust)
        .then(|| std::str::from_utf8(&oom).ok()?.trim().parse().ok())
        .flatten();
    let empty_string = exec.path + path.len() as u64;
    let spec = LaunchSpec {
        pid: Some(status.inner_process()),
        path: Bytes::from(path),
        search_path: false,
        arguments: arguments.into_iter().map(Bytes::from).collect(),
        environment: environment.into_iter().map(Bytes::from).collect(),
        directory: Bytes::from(directory),
        umask: status.umask,
        limits: task::limits(process).map_err(unreadable)?,
        credentials: credentials(status, baseline),
        blocked_signals: status.blocked,
        ignored_signals: status.ignored,
        nice,
        affinity: (status.cpus != baseline.cpus).then_some(status.cpus),
        session: SessionSpec::OwnGroup,
        descriptors: Vec::new(),
        hold: true,
        no_new_privileges: status.no_new_privileges,
        oom_score_adjust,
    };
    Ok(Image {
        spec,
        descriptors,
        descriptors_end,
        process,
        handle,
        pid: status.inner_process(),
        empty_string,
    })
}

/// What the caller's own state forbids.
fn stays_by_state(status: &TaskStatus, policy: i32, baseline: &Baseline) -> Result<(), Stay> {
    if status.tracer != 0 {
        return Err(Reason::Traced);
    }
    if status.filters != baseline.filters {
        return Err(Reason::Filter);
    }
    // A blocked signal that waits for the new program must be there from its first instruction on; a
    // ghost would hand it on a moment later.
    if policy != 0 || status.pending & status.blocked != 0 {
        return Err(Reason::Settings);
    }
    // A pid of two levels: this namespace's and ours. More: a nested container.
    if status.ns_process.len() != 2 {
        return Err(Reason::Namespaces);
    }
    Ok(())
}

fn stays_by_surroundings(
    process: u32,
    thread: u32,
    status: &TaskStatus,
    baseline: &Baseline,
) -> Result<(), Stay> {
    if namespaces(thread, baseline.bounding).map_err(unreadable)? != baseline.namespaces {
        return Err(Reason::Namespaces);
    }
    // The bounding set only ever shrinks: what it lacks here cannot be given back there.
    if status.capabilities[3] & !baseline.bounding != 0 {
        return Err(Reason::Settings);
    }
    if task::has_children(process, status.threads).map_err(unreadable)? {
        return Err(Reason::Children);
    }
    Ok(())
}

fn credentials(status: &TaskStatus, baseline: &Baseline) -> LaunchCredentials {
    let three = |ids: [u32; 4], map: &IdMap| [ids[0], ids[1], ids[2]].map(|id| map.inside(id));
    let [inheritable, permitted, effective, bounding, ambient] = status.capabilities;
    let uids = three(status.uids, &baseline.users);
    // What an ordinary root or an ordinary user has follows from the ids.
    let root = uids == [0; 3]
        && permitted == bounding
        && effective == bounding
        && inheritable == 0
        && ambient == 0;
    let user = !uids.contains(&0) && permitted | effective | inheritable | ambient == 0;
    let ordinary = bounding == baseline.bounding && (root || user);
    LaunchCredentials {
        uids,
        gids: three(status.gids, &baseline.groups),
        groups: Some(status.groups.iter().map(|id| baseline.groups.inside(*id)).collect()),
        capabilities: (!ordinary).then_some([effective, permitted, inheritable, ambient, bounding]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: i64, arguments: [u64; 6]) -> Notification {
        Notification { number: number as i32, arguments, ..Notification::default() }
    }

    #[test]
    fn arguments_of_both_calls() {
        let exec = ExecArguments::of(&call(libc::SYS_execve, [1, 2, 3, 0, 0, 0])).unwrap();
        assert_eq!((exec.path, exec.arguments, exec.environment), (1, 2, 3));
        assert_eq!((exec.directory, exec.flags), (libc::AT_FDCWD, 0));
        let at = libc::AT_FDCWD as u32;
        let exec = call(libc::SYS_execveat, [u64::from(at), 1, 2, 3, 0x1000 | 5 << 32, 0]);
        let exec = ExecArguments::of(&exec).unwrap();
        assert_eq!((exec.path, exec.arguments, exec.environment), (1, 2, 3));
        assert_eq!((exec.directory, exec.flags), (libc::AT_FDCWD, 0x1000));
        assert_eq!(ExecArguments::of(&call(libc::SYS_kill, [0; 6])), None);
    }

    #[test]
    fn ordinary_credentials_need_no_capabilities() {
        let map = IdMap::parse(b"0 100000 65536\n").unwrap();
        let baseline = Baseline {
            namespaces: Vec::new(),
            users: map.clone(),
            groups: map,
            filters: 1,
            bounding: 0xff,
            cpus: 3,
            oom_score_adjust: Vec::new(),
        };
        let mut status = TaskStatus {
            uids: [100_000; 4],
            gids: [100_000; 4],
            groups: vec![100_027],
            capabilities: [0, 0xff, 0xff, 0xff, 0],
            ..TaskStatus::default()
        };
        let root = credentials(&status, &baseline);
        assert_eq!((root.uids, root.capabilities), ([0; 3], None));
        assert_eq!(root.groups, Some(vec![27]));
        status.capabilities = [0, 0xf, 0xf, 0xf, 0];
        assert!(credentials(&status, &baseline).capabilities.is_some(), "a smaller bounding set");
        status.uids = [101_000; 4];
        status.capabilities = [0, 0, 0, 0xff, 0];
        assert_eq!(credentials(&status, &baseline).capabilities, None);
        status.capabilities = [0, 1, 1, 0xff, 0];
        assert!(credentials(&status, &baseline).capabilities.is_some());
    }
}
