//! What a launched child does between its making and its exec, as a list of system calls in the order
//! in which exec would find it: session, limits, ids, directory, descriptors, terminal, signals.
//!
//! The list carries the launcher's cookie, so that no trap stops it, and touches the guest's files
//! with the guest's ids only.

use super::core::Told;
use super::plan::{Plan, Source};
use crate::launch::{LaunchCredentials, LaunchStep, SessionSpec};
use dvs_sys::birth::{Birth, Script};
use dvs_sys::capability::{self, Sets};
use dvs_sys::descriptor;
use dvs_sys::error::SysError;
use dvs_sys::untrapped::Untrapped;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What children need of the launcher.
#[derive(Debug, Clone)]
pub struct Base {
    /// Makes calls past the traps.
    pub calls: Untrapped,
    /// Capabilities of the container's root.
    pub capabilities: u64,
    /// Limit of open files that programs get unless they bring their own: soft, hard.
    pub open_files: (u64, u64),
    /// Supplementary groups of the launcher, ascending.
    pub groups: Vec<u32>,
}

const STEPS: [LaunchStep; 6] = [
    LaunchStep::Request,
    LaunchStep::Clone,
    LaunchStep::Setup,
    LaunchStep::Directory,
    LaunchStep::Descriptor,
    LaunchStep::Exec,
];

fn stage(step: LaunchStep) -> u8 {
    STEPS.iter().position(|known| *known == step).unwrap_or(0) as u8
}

/// What is known of a child before its exec.
#[must_use]
pub fn told(birth: &Birth) -> Told {
    let failure = birth.failure().map(|(stage, errno)| {
        (STEPS.get(usize::from(stage)).copied().unwrap_or(LaunchStep::Setup), errno)
    });
    Told { pid: birth.pid(), failure }
}

/// A descriptor whose number is none of the program's; a duplicate, if it has to be.
#[derive(Debug)]
pub enum Outside<'a> {
    /// The one that was given.
    Own(BorrowedFd<'a>),
    /// A duplicate.
    Copy(OwnedFd),
}

impl<'a> Outside<'a> {
    /// Looks at the number of `fd`; `targets` are ascending.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn new(fd: BorrowedFd<'a>, targets: &[RawFd]) -> Result<Self, SysError> {
        if targets.binary_search(&fd.as_raw_fd()).is_err() {
            return Ok(Outside::Own(fd));
        }
        let mut least = 3;
        // Each turn passes one target.
        for _ in 0..=targets.len() {
            let copy = descriptor::duplicate(fd, least)?;
            if targets.binary_search(&copy.as_raw_fd()).is_err() {
                return Ok(Outside::Copy(copy));
            }
            least = copy.as_raw_fd() + 1;
        }
        Err(SysError::new("fcntl(F_DUPFD_CLOEXEC)", libc::EMFILE))
    }

    fn number(&self) -> RawFd {
        match self {
            Outside::Own(fd) => fd.as_raw_fd(),
            Outside::Copy(fd) => fd.as_raw_fd(),
        }
    }
}

impl AsFd for Outside<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Outside::Own(fd) => *fd,
            Outside::Copy(fd) => fd.as_fd(),
        }
    }
}

/// The list for a plan. `sources` are the passed descriptors, with numbers outside the program's.
///
/// # Errors
/// Step and errno of what cannot be done.
pub fn script(
    base: &Base,
    plan: Plan,
    sources: &[Outside<'_>],
) -> Result<Script, (LaunchStep, i32)> {
    let traced = plan.traced();
    let mut script = Script::new(base.calls.cookie);
    script.stage(stage(LaunchStep::Setup));
    match plan.session {
        SessionSpec::New { .. } => script.new_session(),
        SessionSpec::OwnGroup => script.set_group(0),
        SessionSpec::GroupOf { leader: 0 } => return Err((LaunchStep::Setup, libc::EINVAL)),
        SessionSpec::GroupOf { leader } => script.set_group(leader),
    }
    attributes(&mut script, &plan);
    credentials(&mut script, base, &plan.credentials)
        .map_err(|errno| (LaunchStep::Setup, errno))?;
    script.set_umask(plan.umask);
    script.stage(stage(LaunchStep::Directory));
    script.change_directory(plan.directory.clone());
    script.stage(stage(LaunchStep::Descriptor));
    descriptors(&mut script, &plan, sources).map_err(|errno| (LaunchStep::Descriptor, errno))?;
    script.stage(stage(LaunchStep::Setup));
    if let SessionSpec::New { terminal: Some(number) } = plan.session {
        script.control_terminal(number);
    }
    for signal in plan.ignored() {
        script.ignore_signal(signal);
    }
    if plan.no_new_privileges {
        script.no_new_privileges();
    }
    // Last of all: the program's limit of open files may be below the numbers used until here.
    let (soft, hard) = plan
        .limits
        .iter()
        .find(|(resource, _, _)| *resource == libc::RLIMIT_NOFILE)
        .map_or(base.open_files, |(_, soft, hard)| (*soft, *hard));
    script.set_limit(libc::RLIMIT_NOFILE, soft, hard);
    if traced {
        // Stop once, so that the launcher can bind this process to its own life before it execs.
        script.trace_me();
        script.stop_self();
    } else {
        script.set_signal_mask(plan.blocked_signals);
    }
    script.stage(stage(LaunchStep::Exec));
    script.execute(plan.candidates, plan.arguments, plan.environment);
    Ok(script)
}

fn attributes(script: &mut Script, plan: &Plan) {
    for (resource, soft, hard) in &plan.limits {
        if *resource != libc::RLIMIT_NOFILE {
            script.set_limit(*resource, *soft, *hard);
        }
    }
    if plan.nice != 0 {
        script.set_nice(plan.nice);
    }
    if let Some(mask) = plan.affinity {
        script.set_affinity(mask);
    }
}

/// Takes on the program's ids. The child starts as root with every capability of the container's user
/// namespace and must end with what the program shall have.
fn credentials(script: &mut Script, base: &Base, wanted: &LaunchCredentials) -> Result<(), i32> {
    if let Some(groups) = &wanted.groups {
        let mut sorted = groups.clone();
        sorted.sort_unstable();
        // Where the user namespace denies setgroups, the groups that are there can still be meant.
        if sorted != base.groups {
            script.set_groups(groups);
        }
    }
    script.set_group_ids(wanted.gids);
    let Some([effective, permitted, inheritable, ambient, bounding]) = wanted.capabilities else {
        script.set_user_ids(wanted.uids);
        // Without any id 0 the kernel has cleared all of them.
        if wanted.uids.contains(&0) {
            let [_, effective_uid, _] = wanted.uids;
            let kept = base.capabilities;
            let effective = if effective_uid == 0 { kept } else { 0 };
            script.set_capabilities(Sets { effective, permitted: kept, inheritable: 0 });
        }
        return Ok(());
    };
    if (permitted | inheritable) & !base.capabilities != 0 {
        return Err(libc::EPERM);
    }
    let all = 0..=capability::LAST;
    for number in all.clone() {
        if (base.capabilities & !bounding) >> number & 1 == 1 {
            script.drop_bounding(number);
        }
    }
    script.keep_capabilities(true);
    script.set_user_ids(wanted.uids);
    script.set_capabilities(Sets { effective: permitted, permitted, inheritable });
    for number in all.filter(|number| ambient >> number & 1 == 1) {
        script.raise_ambient(number);
    }
    script.set_capabilities(Sets { effective, permitted, inheritable });
    script.keep_capabilities(false);
    Ok(())
}

fn descriptors(script: &mut Script, plan: &Plan, sources: &[Outside<'_>]) -> Result<(), i32> {
    for placed in &plan.descriptors {
        match &placed.source {
            Source::Passed(index) => {
                let source = sources.get(*index).ok_or(libc::EBADF)?;
                script.place(source.number(), placed.number);
            }
            Source::Open(path, flags, offset) => {
                script.open(path.clone(), *flags, placed.number, *offset);
            }
            Source::DuplicateOf(number) => script.place(*number, placed.number),
        }
    }
    // Exec closes all others.
    let mut next = 0_u32;
    for target in plan.targets() {
        let target = target as u32;
        if target > next {
            script.close_range_on_exec(next, target - 1);
        }
        next = target + 1;
    }
    script.close_range_on_exec(next, u32::MAX);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_steps() {
        for (index, step) in STEPS.iter().enumerate() {
            assert_eq!(usize::from(stage(*step)), index);
        }
    }

    #[test]
    fn duplicates_avoid_the_targets() {
        let (read, write) = descriptor::pipe().unwrap();
        let free = Outside::new(read.as_fd(), &[]).unwrap();
        assert_eq!(free.number(), read.as_raw_fd());
        let last = write.as_raw_fd() + 50;
        let targets: Vec<RawFd> = (0..=last).collect();
        assert!(Outside::new(read.as_fd(), &targets).unwrap().number() > last);
    }
}
