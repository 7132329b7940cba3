//! What a launched child does between its making and its exec, in the order in which exec would find
//! it: session, limits, ids, directory, descriptors, terminal, signals.
//!
//! The child is a copy of the launcher: non-dumpable, all signals blocked. It makes system calls with
//! the launcher's cookie only, so that no trap stops it, and touches the guest's files with the
//! guest's ids.

use super::plan::{Plan, Source, strings};
use crate::launch::{LaunchCredentials, LaunchStep, SessionSpec};
use dvs_sys::capability;
use dvs_sys::descriptor;
use dvs_sys::error::SysError;
use dvs_sys::process::{self, Forked};
use dvs_sys::untrapped::{StringArray, Untrapped};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What children need of the launcher.
#[derive(Debug, Clone, Copy)]
pub struct Base {
    /// Makes calls past the traps.
    pub calls: Untrapped,
    /// Capabilities of the container's root.
    pub capabilities: u64,
    /// Limit of open files that programs get unless they bring their own: soft, hard.
    pub open_files: (u64, u64),
}

/// Length of one record of a child's report.
pub const RECORD: usize = 12;
const KIND_PID: u32 = 1;
const KIND_FAILURE: u32 = 2;

const STEPS: [LaunchStep; 6] = [
    LaunchStep::Request,
    LaunchStep::Clone,
    LaunchStep::Setup,
    LaunchStep::Directory,
    LaunchStep::Descriptor,
    LaunchStep::Exec,
];

fn record(kind: u32, first: u32, second: u32) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let words = [kind, first, second].into_iter().flat_map(u32::to_le_bytes);
    for (place, byte) in bytes.iter_mut().zip(words) {
        *place = byte;
    }
    bytes
}

/// Reads a child's report.
#[must_use]
pub fn parse_report(bytes: &[u8]) -> super::core::Told {
    let mut told = super::core::Told::default();
    for record in bytes.chunks_exact(RECORD) {
        let word = |index: usize| {
            let bytes = record.get(4 * index..4 * index + 4).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        match word(0) {
            KIND_PID => told.pid = Some(word(1)),
            KIND_FAILURE => {
                let step = STEPS.get(word(1) as usize).copied().unwrap_or(LaunchStep::Setup);
                told.failure = Some((step, word(2) as i32));
            }
            _ => {}
        }
    }
    told
}

type Outcome<T> = Result<T, (LaunchStep, SysError)>;

fn at<T>(step: LaunchStep, result: Result<T, SysError>) -> Outcome<T> {
    result.map_err(|error| (step, error))
}

/// Becomes the program; returns the exit code after a failure, which the report tells.
pub fn run(forked: &Forked, base: &Base, plan: &Plan, passed: &[OwnedFd], report: &OwnedFd) -> i32 {
    let mut targets: Vec<i32> = plan.descriptors.iter().map(|placed| placed.number).collect();
    targets.sort_unstable();
    // The report must outlive the placing of the program's descriptors.
    let Ok(mut report) = outside(report.as_fd(), &targets).map(File::from) else { return 127 };
    if plan.pid.is_none() {
        let _ = report.write_all(&record(KIND_PID, process::id(), 0));
    }
    let (step, error) = match become_program(forked, base, plan, passed, &targets) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let step = STEPS.iter().position(|known| *known == step).unwrap_or(0);
    let _ = report.write_all(&record(KIND_FAILURE, step as u32, error.errno as u32));
    127
}

fn become_program(
    forked: &Forked,
    base: &Base,
    plan: &Plan,
    passed: &[OwnedFd],
    targets: &[i32],
) -> Outcome<std::convert::Infallible> {
    let calls = base.calls;
    at(LaunchStep::Setup, session(calls, plan.session))?;
    at(LaunchStep::Setup, attributes(base, plan))?;
    at(LaunchStep::Setup, credentials(base, &plan.credentials))?;
    process::set_umask(plan.umask);
    at(LaunchStep::Directory, calls.change_directory(&plan.directory))?;
    at(LaunchStep::Descriptor, place_descriptors(forked, base, plan, passed, targets))?;
    if let SessionSpec::New { terminal: Some(number) } = plan.session {
        at(LaunchStep::Setup, calls.control_terminal(number))?;
    }
    for signal in plan.ignored() {
        at(LaunchStep::Setup, calls.set_ignored(signal, true))?;
    }
    if plan.no_new_privileges {
        at(LaunchStep::Setup, calls.no_new_privileges())?;
    }
    // Last of all: the program's limit of open files may be below the numbers used until here.
    let (soft, hard) = plan
        .limits
        .iter()
        .find(|(resource, _, _)| *resource == libc::RLIMIT_NOFILE)
        .map_or(base.open_files, |(_, soft, hard)| (*soft, *hard));
    at(LaunchStep::Setup, calls.set_limit(libc::RLIMIT_NOFILE, soft, hard))?;
    if plan.traced() {
        // Stop once, so that the launcher can bind this process to its own life before it execs.
        at(LaunchStep::Setup, calls.trace_me())?;
        at(LaunchStep::Setup, calls.kill(process::id() as i32, libc::SIGSTOP))?;
    } else {
        at(LaunchStep::Setup, calls.set_signal_mask(plan.blocked_signals))?;
    }
    at(LaunchStep::Exec, execute(calls, plan))
}

fn session(calls: Untrapped, session: SessionSpec) -> Result<(), SysError> {
    match session {
        SessionSpec::New { .. } => calls.new_session(),
        SessionSpec::OwnGroup => calls.set_group(0, 0),
        // Group 0 would be the launcher's own choice of words: the child's own.
        SessionSpec::GroupOf { leader: 0 } => Err(SysError::new("setpgid", libc::EINVAL)),
        SessionSpec::GroupOf { leader } => calls.set_group(0, leader),
    }
}

fn attributes(base: &Base, plan: &Plan) -> Result<(), SysError> {
    let calls = base.calls;
    for (resource, soft, hard) in &plan.limits {
        if *resource != libc::RLIMIT_NOFILE {
            calls.set_limit(*resource, *soft, *hard)?;
        }
    }
    if plan.nice != 0 {
        calls.set_nice(plan.nice)?;
    }
    match plan.affinity {
        Some(mask) => calls.set_affinity(mask),
        None => Ok(()),
    }
}

/// Takes on the program's ids. The child starts with every capability of the container's user
/// namespace and must end with what the program shall have.
fn credentials(base: &Base, wanted: &LaunchCredentials) -> Result<(), SysError> {
    let calls = base.calls;
    if let Some(groups) = &wanted.groups {
        let (mut old, mut new) = (process::groups()?, groups.clone());
        old.sort_unstable();
        new.sort_unstable();
        // Where the user namespace denies setgroups, the groups that are there can still be meant.
        if old != new {
            calls.set_groups(groups)?;
        }
    }
    calls.set_group_ids(wanted.gids)?;
    let Some([effective, permitted, inheritable, ambient, bounding]) = wanted.capabilities else {
        calls.set_user_ids(wanted.uids)?;
        let sets = capability::get()?;
        let kept = capability::Sets {
            effective: sets.effective & base.capabilities,
            permitted: sets.permitted & base.capabilities,
            inheritable: 0,
        };
        return capability::set(kept, calls.cookie);
    };
    if (permitted | inheritable) & !base.capabilities != 0 {
        return Err(SysError::new("capset", libc::EPERM));
    }
    for number in 0..=capability::LAST {
        if bounding >> number & 1 == 0 && capability::in_bounding_set(number) {
            calls.drop_bounding(number)?;
        }
    }
    calls.keep_capabilities(true)?;
    calls.set_user_ids(wanted.uids)?;
    capability::set(
        capability::Sets { effective: permitted, permitted, inheritable },
        calls.cookie,
    )?;
    for number in (0..=capability::LAST).filter(|number| ambient >> number & 1 == 1) {
        calls.raise_ambient(number)?;
    }
    capability::set(capability::Sets { effective, permitted, inheritable }, calls.cookie)?;
    calls.keep_capabilities(false)
}

/// A duplicate whose number is not one of the (sorted) targets.
fn outside(fd: BorrowedFd<'_>, targets: &[i32]) -> Result<OwnedFd, SysError> {
    let mut least = 3;
    // Each turn passes one target.
    for _ in 0..=targets.len() {
        let copy = descriptor::duplicate(fd, least)?;
        if targets.binary_search(&copy.as_raw_fd()).is_err() {
            return Ok(copy);
        }
        least = copy.as_raw_fd() + 1;
    }
    Err(SysError::new("fcntl(F_DUPFD_CLOEXEC)", libc::EMFILE))
}

fn place_descriptors(
    forked: &Forked,
    base: &Base,
    plan: &Plan,
    passed: &[OwnedFd],
    targets: &[i32],
) -> Result<(), SysError> {
    // First out of the way, then into place: any number may be both a source and a target.
    let sources = passed
        .iter()
        .map(|fd| outside(fd.as_fd(), targets))
        .collect::<Result<Vec<OwnedFd>, SysError>>()?;
    for placed in &plan.descriptors {
        match &placed.source {
            Source::Passed(index) => {
                let source = sources.get(*index).ok_or(SysError::new("dup2", libc::EBADF))?;
                forked.place(source.as_raw_fd(), placed.number)?;
            }
            Source::Open(path, flags, offset) => {
                let fd = base.calls.open(path, *flags, 0)?;
                if fd != placed.number {
                    forked.place(fd, placed.number)?;
                    forked.close(fd);
                }
                if let Some(offset) = offset {
                    base.calls.seek(placed.number, *offset)?;
                }
            }
            Source::DuplicateOf(number) => forked.place(*number, placed.number)?,
        }
    }
    // Exec closes all others; until then the report is needed.
    let mut next = 0_u32;
    for target in targets {
        let target = *target as u32;
        if target > next {
            descriptor::close_range_on_exec(next, target - 1)?;
        }
        next = target + 1;
    }
    descriptor::close_range_on_exec(next, u32::MAX)?;
    // Closing the copies one by one would be work for nothing.
    std::mem::forget(sources);
    Ok(())
}

/// Tries the candidates as `execvp` does.
fn execute(calls: Untrapped, plan: &Plan) -> Result<std::convert::Infallible, SysError> {
    let arguments = StringArray::new(strings(&plan.arguments));
    let environment = StringArray::new(strings(&plan.environment));
    let mut denied = None;
    let mut last = SysError::new("execve", libc::ENOENT);
    for candidate in &plan.candidates {
        last = calls.execute(candidate, &arguments, &environment);
        match last.errno {
            libc::EACCES => denied = Some(last),
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV => {}
            _ => return Err(last),
        }
    }
    Err(denied.unwrap_or(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_back() {
        let mut bytes = record(KIND_PID, 4711, 0).to_vec();
        assert_eq!(parse_report(&bytes).pid, Some(4711));
        bytes.extend(record(KIND_FAILURE, 5, libc::EACCES as u32));
        let told = parse_report(&bytes);
        assert_eq!(told.failure, Some((LaunchStep::Exec, libc::EACCES)));
        assert_eq!(parse_report(&bytes[..5]), super::super::core::Told::default());
    }

    #[test]
    fn duplicates_avoid_the_targets() {
        let (read, _write) = descriptor::pipe().unwrap();
        let targets: Vec<i32> = (3..200).filter(|number| number % 7 != 0).collect();
        let copy = outside(read.as_fd(), &targets).unwrap();
        assert!(targets.binary_search(&copy.as_raw_fd()).is_err());
    }
}
