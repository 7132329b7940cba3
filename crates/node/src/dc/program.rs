//! A program as the launcher is told of it, from what the user asked for; and why it did not start.

use super::users::Identity;
use crate::protocol::{
    EXIT_CANNOT_EXECUTE, EXIT_DVS, EXIT_NOT_FOUND, Failure, ProgramOptions, Text,
};
use dvs_container::launch::{
    Bytes, DescriptorSource, DescriptorSpec, LaunchCredentials, LaunchSpec, LaunchStep,
    MAX_STRINGS, SessionSpec,
};
use dvs_linux::ports::LaunchFailure;
use dvs_sys::process;
use std::path::Path;

/// Standard input, output and error.
pub(crate) const STANDARD: usize = 3;

/// The launch of a program. `groups`: whether supplementary groups can be set (not with one id).
///
/// # Errors
/// When it has no name, or its strings are too long.
pub(crate) fn launch_spec(
    options: &ProgramOptions,
    base: &[Text],
    identity: &Identity,
    groups: bool,
) -> Result<LaunchSpec, Failure> {
    let path = options.arguments.first().filter(|path| !path.0.is_empty());
    let path = path.ok_or_else(|| Failure::new("no program was given"))?;
    let environment = environment(options, base, identity);
    let strings: usize =
        options.arguments.iter().chain(&environment).map(|text| text.0.len() + 1).sum();
    if strings > MAX_STRINGS {
        let message = format!(
            "{}: Argument list too long ({strings} bytes with the environment, {MAX_STRINGS} at most)",
            shown(path)
        );
        return Err(Failure { exit: EXIT_CANNOT_EXECUTE, message });
    }
    let bytes = |texts: &[Text]| texts.iter().map(|text| Bytes::from(text.0.clone())).collect();
    let passed = |number: usize| DescriptorSpec {
        number: i32::try_from(number).unwrap_or(0),
        source: DescriptorSource::Passed(u16::try_from(number).unwrap_or(0)),
    };
    let directory = options.directory.as_deref().unwrap_or(Path::new("/"));
    Ok(LaunchSpec {
        pid: None,
        path: path.0.clone().into(),
        search_path: !path.0.contains(&b'/'),
        arguments: bytes(&options.arguments),
        environment: bytes(&environment),
        directory: directory.as_os_str().as_encoded_bytes().to_vec().into(),
        umask: options.umask & 0o777,
        limits: limits(&options.limits),
        credentials: LaunchCredentials {
            uids: [identity.uid; 3],
            gids: [identity.gid; 3],
            groups: groups.then(|| identity.groups.clone()),
            capabilities: None,
        },
        blocked_signals: 0,
        ignored_signals: options.ignored_signals,
        nice: 0,
        affinity: None,
        session: SessionSpec::New { terminal: options.terminal.map(|_| 0) },
        descriptors: (0..STANDARD).map(passed).collect(),
        hold: false,
        no_new_privileges: false,
        oom_score_adjust: None,
    })
}

/// The base with the program's own over it, and `HOME`.
fn environment(options: &ProgramOptions, base: &[Text], identity: &Identity) -> Vec<Text> {
    let name = |text: &Text| text.0.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    let mut environment: Vec<Text> = base
        .iter()
        .filter(|text| !options.environment.iter().any(|other| name(other) == name(text)))
        .cloned()
        .collect();
    environment.extend(options.environment.iter().cloned());
    if !environment.iter().any(|text| text.0.starts_with(b"HOME=")) {
        let home = identity.home.as_os_str().as_encoded_bytes();
        environment.push(Text([b"HOME=", home].concat()));
    }
    environment
}

/// The caller's limits, as far as this daemon may give them: it cannot raise its own.
fn limits(wanted: &[(u32, u64, u64)]) -> Vec<(u32, u64, u64)> {
    let own = |resource: u32| process::prlimit(0, resource, None).map_or(u64::MAX, |own| own.1);
    wanted
        .iter()
        .take(16)
        .map(|(resource, soft, hard)| {
            let hard = (*hard).min(own(*resource));
            (*resource, (*soft).min(hard), hard)
        })
        .collect()
}

/// Why a program did not start, in a shell's words and with its exit code.
pub(crate) fn not_started(options: &ProgramOptions, failure: LaunchFailure) -> Failure {
    let program = options.arguments.first().map(shown).unwrap_or_default();
    let reason = crate::folders::reason(&std::io::Error::from_raw_os_error(failure.errno));
    let (exit, message) = match (failure.step, failure.errno) {
        (LaunchStep::Exec, libc::ENOENT | libc::ENOTDIR) if !program.contains('/') => {
            (EXIT_NOT_FOUND, format!("{program}: command not found"))
        }
        (LaunchStep::Exec, libc::ENOENT | libc::ENOTDIR) => {
            (EXIT_NOT_FOUND, format!("{program}: {reason}"))
        }
        (LaunchStep::Exec, libc::ENOEXEC) => (
            EXIT_CANNOT_EXECUTE,
            format!("{program}: {reason}; is it a script without a first line such as #!/bin/sh?"),
        ),
        (LaunchStep::Exec, _) => (EXIT_CANNOT_EXECUTE, format!("{program}: {reason}")),
        (LaunchStep::Directory, _) => {
            let directory = options.directory.as_deref().unwrap_or(Path::new("/"));
            let message = format!(
                "the working directory {} inside the container: {reason}; give another with -w",
                directory.display()
            );
            (EXIT_DVS, message)
        }
        (_, libc::ESHUTDOWN) => {
            (EXIT_DVS, format!("{program} was not started: the container has ended"))
        }
        (step, _) => (EXIT_DVS, format!("{program} could not be started ({step:?}): {reason}")),
    };
    Failure { exit, message }
}

fn shown(text: &Text) -> String {
    String::from_utf8_lossy(&text.0).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> ProgramOptions {
        ProgramOptions {
            arguments: words.iter().map(|word| Text::from(*word)).collect(),
            environment: vec![Text::from("A=2")],
            umask: 0o22,
            ..ProgramOptions::default()
        }
    }

    fn root() -> Identity {
        Identity { uid: 0, gid: 0, groups: vec![], home: "/root".into() }
    }

    #[test]
    fn specs_have_what_was_asked_for() {
        let base = [Text::from("A=1"), Text::from("B=1")];
        let spec = launch_spec(&options(&["make", "-j"]), &base, &root(), true).unwrap();
        let environment: Vec<&[u8]> = spec.environment.iter().map(|text| &text.0[..]).collect();
        assert_eq!(environment, [&b"B=1"[..], b"A=2", b"HOME=/root"]);
        assert!(spec.search_path && spec.descriptors.len() == STANDARD);
        assert!(!launch_spec(&options(&["./x"]), &[], &root(), true).unwrap().search_path);
        assert!(launch_spec(&options(&[]), &[], &root(), true).is_err());
        assert!(launch_spec(&options(&[""]), &[], &root(), true).is_err());
        let long = "x".repeat(MAX_STRINGS);
        let failure = launch_spec(&options(&["a", &long]), &[], &root(), true).unwrap_err();
        assert_eq!(failure.exit, 126);
    }

    #[test]
    fn failures_speak_as_a_shell_does() {
        let failed = |word: &str, step, errno| {
            let failure = not_started(&options(&[word]), LaunchFailure { errno, step });
            (failure.exit, failure.message)
        };
        assert_eq!(
            failed("foo", LaunchStep::Exec, libc::ENOENT),
            (127, "foo: command not found".into())
        );
        assert_eq!(
            failed("/foo", LaunchStep::Exec, libc::ENOENT),
            (127, "/foo: No such file or directory".into())
        );
        assert_eq!(
            failed("/etc", LaunchStep::Exec, libc::EACCES),
            (126, "/etc: Permission denied".into())
        );
        let (exit, message) = failed("ls", LaunchStep::Directory, libc::ENOENT);
        assert!(exit == 125 && message.contains("-w"), "{message}");
        assert_eq!(failed("ls", LaunchStep::Clone, libc::EAGAIN).0, 125);
    }
}
