//! A launch request, checked and made ready for a child that only makes system calls. No I/O.

use crate::launch::{
    Bytes, DescriptorSource, LaunchCredentials, LaunchSpec, MAX_PASSED, MAX_STRINGS, SessionSpec,
};
use std::collections::HashSet;
use std::ffi::CString;

/// Most arguments and environment variables together.
pub const MAX_WORDS: usize = 1 << 18;
/// Most descriptors of a program.
pub const MAX_DESCRIPTORS: usize = 1024;
/// Most resource limits (Linux has 16).
pub const MAX_LIMITS: usize = 16;
/// Most supplementary groups.
pub const MAX_GROUPS: usize = 65_536;
/// Where programs are looked for without a PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MAX_SIGNAL: u32 = 64;

/// Everything a child needs, as it needs it.
#[derive(Debug)]
pub struct Plan {
    /// Pid inside.
    pub pid: Option<u32>,
    /// Files to try to execute, in order.
    pub candidates: Vec<CString>,
    /// Arguments.
    pub arguments: Vec<CString>,
    /// Environment.
    pub environment: Vec<CString>,
    /// Working directory.
    pub directory: CString,
    /// Descriptors in the order in which they are to be made.
    pub descriptors: Vec<Placed>,
    /// Session.
    pub session: SessionSpec,
    /// Credentials.
    pub credentials: LaunchCredentials,
    /// Resource limits: (resource, soft, hard).
    pub limits: Vec<(u32, u64, u64)>,
    /// File creation mask.
    pub umask: u32,
    /// Nice value.
    pub nice: i32,
    /// CPUs.
    pub affinity: Option<u64>,
    /// Blocked signals.
    pub blocked_signals: u64,
    /// Ignored signals.
    pub ignored_signals: u64,
    /// To be held at its exec stop.
    pub hold: bool,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Out-of-memory adjustment.
    pub oom_score: Option<i32>,
}

/// A descriptor of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its number.
    pub number: i32,
    /// Where it comes from.
    pub source: Source,
}

/// Where a descriptor comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The n-th that came with the request.
    Passed(usize),
    /// Opened by the child.
    Open(CString, i32, Option<u64>),
    /// Another number of the program that has been made before.
    DuplicateOf(i32),
}

impl Plan {
    /// Checks a request that came with `passed` descriptors.
    ///
    /// # Errors
    /// errno: `EINVAL` for what makes no sense, `E2BIG` for what is over a bound, `EBADF` for
    /// descriptors that are not there.
    pub fn new(spec: LaunchSpec, passed: usize) -> Result<Plan, i32> {
        let words = spec.arguments.len() + spec.environment.len();
        let length = |list: &[Bytes]| list.iter().map(|word| word.0.len() + 1).sum::<usize>();
        if words > MAX_WORDS
            || length(&spec.arguments) + length(&spec.environment) > MAX_STRINGS
            || spec.limits.len() > MAX_LIMITS
            || spec.descriptors.len() > MAX_DESCRIPTORS
            || spec.credentials.groups.as_ref().is_some_and(|groups| groups.len() > MAX_GROUPS)
            || passed > MAX_PASSED
        {
            return Err(libc::E2BIG);
        }
        // Linux itself makes an empty argument list one empty argument; say so instead.
        if spec.arguments.is_empty() || spec.pid.is_some_and(|pid| pid < 2 || pid > i32::MAX as u32)
        {
            return Err(libc::EINVAL);
        }
        let candidates = candidates(&spec)?;
        let descriptors = order(&spec, passed)?;
        if let SessionSpec::New { terminal: Some(number) } = spec.session
            && !descriptors.iter().any(|placed| placed.number == number)
        {
            return Err(libc::EBADF);
        }
        Ok(Plan {
            pid: spec.pid,
            candidates,
            arguments: words_of(spec.arguments)?,
            environment: words_of(spec.environment)?,
            directory: word(spec.directory)?,
            descriptors,
            session: spec.session,
            credentials: spec.credentials,
            limits: spec.limits,
            umask: spec.umask & 0o777,
            nice: spec.nice,
            affinity: spec.affinity,
            blocked_signals: spec.blocked_signals,
            ignored_signals: spec.ignored_signals,
            hold: spec.hold,
            no_new_privileges: spec.no_new_privileges,
            oom_score: spec.oom_score_adjust,
        })
    }

    /// Whether the child must be traced: to be held, or to set after its exec what its parent must.
    #[must_use]
    pub fn traced(&self) -> bool {
        self.hold || self.oom_score.is_some()
    }

    /// The numbers of the program's descriptors, ascending.
    #[must_use]
    pub fn targets(&self) -> Vec<i32> {
        let mut targets: Vec<i32> = self.descriptors.iter().map(|placed| placed.number).collect();
        targets.sort_unstable();
        targets
    }

    /// Signals to ignore, by number.
    pub fn ignored(&self) -> impl Iterator<Item = i32> + '_ {
        (1..=MAX_SIGNAL)
            .filter(|signal| self.ignored_signals >> (signal - 1) & 1 == 1)
            .map(|signal| signal as i32)
            .filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
    }
}

fn word(bytes: Bytes) -> Result<CString, i32> {
    CString::new(bytes.0).map_err(|_| libc::EINVAL)
}

fn words_of(list: Vec<Bytes>) -> Result<Vec<CString>, i32> {
    list.into_iter().map(word).collect()
}

/// The files that `execvp` would try.
fn candidates(spec: &LaunchSpec) -> Result<Vec<CString>, i32> {
    let name = &spec.path.0;
    if !spec.search_path || name.contains(&b'/') || name.is_empty() {
        return Ok(vec![word(spec.path.clone())?]);
    }
    let path = spec.environment.iter().find_map(|word| word.0.strip_prefix(b"PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(|byte| *byte == b':')
        .map(|folder| {
            let mut file = folder.to_vec();
            if !file.is_empty() {
                file.push(b'/');
            }
            file.extend_from_slice(name);
            CString::new(file).map_err(|_| libc::EINVAL)
        })
        .collect()
}

/// Descriptors in an order in which every duplicate follows what it duplicates.
fn order(spec: &LaunchSpec, passed: usize) -> Result<Vec<Placed>, i32> {
    let mut numbers = HashSet::new();
    for descriptor in &spec.descriptors {
        if descriptor.number < 0 || !numbers.insert(descriptor.number) {
            return Err(libc::EBADF);
        }
    }
    let mut ordered = Vec::new();
    let mut done = HashSet::new();
    let mut duplicates = Vec::new();
    for descriptor in &spec.descriptors {
        let number = descriptor.number;
        let source = match &descriptor.source {
            DescriptorSource::Passed(index) if usize::from(*index) < passed => {
                Source::Passed(usize::from(*index))
            }
            DescriptorSource::Passed(_) => return Err(libc::EBADF),
            DescriptorSource::Open { path, flags, offset } => {
                // Opened again, not made: what creates or empties a file has happened already.
                let flags = *flags as i32
                    & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_CLOEXEC);
                Source::Open(word(path.clone())?, flags, *offset)
            }
            DescriptorSource::DuplicateOf(of) => {
                duplicates.push((number, *of));
                continue;
            }
        };
        done.insert(number);
        ordered.push(Placed { number, source });
    }
    // Each round places at least one, or the rest is a circle or points nowhere.
    while !duplicates.is_empty() {
        let before = duplicates.len();
        duplicates.retain(|(number, of)| {
            let ready = done.contains(of);
            if ready {
                done.insert(*number);
                ordered.push(Placed { number: *number, source: Source::DuplicateOf(*of) });
            }
            !ready
        });
        if duplicates.len() == before {
            return Err(libc::EBADF);
        }
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::DescriptorSpec;

    fn spec() -> LaunchSpec {
        let mut spec = LaunchSpec::new("true", &["true"]);
        spec.environment = vec!["A=b".into()];
        spec
    }

    fn with(numbers: &[(i32, DescriptorSource)]) -> LaunchSpec {
        let descriptors = numbers
            .iter()
            .map(|(number, source)| DescriptorSpec { number: *number, source: source.clone() })
            .collect();
        LaunchSpec { descriptors, ..spec() }
    }

    #[test]
    fn programs_are_searched_as_execvp_does() {
        let files = |spec: LaunchSpec| {
            let plan = Plan::new(spec, 0).unwrap();
            plan.candidates.iter().map(|c| c.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let mut search = spec();
        search.search_path = true;
        assert!(files(search.clone()).contains(&"/usr/bin/true".to_owned()));
        search.environment = vec!["PATH=/a::/b".into()];
        assert_eq!(files(search.clone()), ["/a/true", "true", "/b/true"]);
        search.path = "./true".into();
        assert_eq!(files(search), ["./true"]);
        let mut plain = spec();
        plain.search_path = false;
        assert_eq!(files(plain), ["true"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refuse = |change: &dyn Fn(&mut LaunchSpec)| {
            let mut spec = spec();
            change(&mut spec);
            Plan::new(spec, 0).unwrap_err()
        };
        assert_eq!(refuse(&|s| s.arguments.clear()), libc::EINVAL);
        assert_eq!(refuse(&|s| s.arguments[0] = "a\0b".into()), libc::EINVAL);
        assert_eq!(refuse(&|s| s.directory = "\0".into()), libc::EINVAL);
        assert_eq!(refuse(&|s| s.pid = Some(1)), libc::EINVAL);
        assert_eq!(refuse(&|s| s.pid = Some(u32::MAX)), libc::EINVAL);
        assert_eq!(refuse(&|s| s.environment = vec![vec![b'x'; MAX_STRINGS].into()]), libc::E2BIG);
        assert_eq!(refuse(&|s| s.limits = vec![(0, 0, 0); MAX_LIMITS + 1]), libc::E2BIG);
        let terminal = SessionSpec::New { terminal: Some(3) };
        assert_eq!(refuse(&|s| s.session = terminal), libc::EBADF);
        assert_eq!(Plan::new(spec(), MAX_PASSED + 1).unwrap_err(), libc::E2BIG);
    }

    #[test]
    fn duplicates_follow_what_they_duplicate() {
        use DescriptorSource::{DuplicateOf, Passed};
        let plan = Plan::new(
            with(&[(5, DuplicateOf(4)), (4, DuplicateOf(0)), (0, Passed(0)), (1, Passed(0))]),
            1,
        )
        .unwrap();
        let numbers: Vec<_> = plan.descriptors.iter().map(|placed| placed.number).collect();
        assert_eq!(numbers, [0, 1, 4, 5]);
        let refused =
            |list: &[(i32, DescriptorSource)], passed| Plan::new(with(list), passed).unwrap_err();
        assert_eq!(refused(&[(0, Passed(1))], 1), libc::EBADF);
        assert_eq!(refused(&[(0, Passed(0)), (0, Passed(0))], 1), libc::EBADF);
        assert_eq!(refused(&[(-1, Passed(0))], 1), libc::EBADF);
        assert_eq!(refused(&[(1, DuplicateOf(2)), (2, DuplicateOf(1))], 0), libc::EBADF);
        assert_eq!(refused(&[(1, DuplicateOf(1))], 0), libc::EBADF);
    }

    #[test]
    fn reopening_never_creates_or_empties() {
        let open = DescriptorSource::Open {
            path: "f".into(),
            flags: (libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY | libc::O_APPEND) as u32,
            offset: None,
        };
        let plan = Plan::new(with(&[(1, open)]), 0).unwrap();
        let flags = libc::O_WRONLY | libc::O_APPEND;
        assert_eq!(plan.descriptors[0].source, Source::Open(c"f".into(), flags, None));
    }

    #[test]
    fn signals_that_cannot_be_ignored_are_left_out() {
        let mut spec = spec();
        spec.ignored_signals = u64::MAX;
        let plan = Plan::new(spec, 0).unwrap();
        assert_eq!(plan.ignored().count(), 62);
    }
}
