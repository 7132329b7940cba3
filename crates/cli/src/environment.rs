//! The environment of a program: the caller's, so that a build finds CC, CFLAGS and the like, less
//! what belongs to the login session (it names sockets and places that are not inside) and what
//! looks like a secret; then files and `-e`, which may name those.

use crate::failure::Failure;
use dvs_node::protocol::Text;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Names (a `*` at the end: beginnings) of variables that belong to the caller's session.
const SESSION: [&str; 28] = [
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_*",
    "XDG_SEAT*",
    "XDG_VTNR",
    "DBUS_*",
    "SSH_*",
    "GPG_AGENT_INFO",
    "GPG_TTY",
    "NOTIFY_SOCKET",
    "LISTEN_*",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MANAGERPID",
    "SYSTEMD_*",
    "WINDOWID",
    "TMUX*",
    "STY",
    "DESKTOP_SESSION",
    "SESSION_MANAGER",
    "OLDPWD",
    "PWD",
    "HOSTNAME",
    "MAIL",
    "TMPDIR",
    "DVS_*",
];

/// Words by which a variable's name gives itself away as a secret.
const SECRET: [&str; 9] = [
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "API_KEY",
    "APIKEY",
    "PRIVATE_KEY",
];

type Variables = BTreeMap<OsString, OsString>;

/// Whether a variable of the caller is passed unasked.
fn passes(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return true };
    let upper = name.to_ascii_uppercase();
    let session = SESSION.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => upper.starts_with(beginning),
        None => upper == *pattern,
    });
    let secret = upper.ends_with("_KEY") || SECRET.iter().any(|word| upper.contains(word));
    !session && !secret
}

/// What the environment is made from.
pub(crate) struct Sources<'a> {
    /// The caller's variables.
    pub(crate) caller: Variables,
    /// Texts of `--env-file`, with their paths for messages.
    pub(crate) files: Vec<(&'a Path, Vec<u8>)>,
    /// `-e`.
    pub(crate) options: &'a [OsString],
    /// Working directory inside, for `PWD`.
    pub(crate) directory: Option<&'a Path>,
    /// Whether a path of the caller is seen inside, for `HOME`.
    pub(crate) shows: &'a dyn Fn(&Path) -> bool,
    /// The caller's variables are passed (`run`), or only those that are named (`exec`, which adds
    /// them to the container's own).
    pub(crate) inherit: bool,
}

/// Builds the environment. Where `HOME` is missing the node puts the user's in.
///
/// # Errors
/// A malformed `-e` or line of a file.
pub(crate) fn build(sources: &Sources<'_>) -> Result<Vec<Text>, Failure> {
    let mut variables = Variables::new();
    for (name, value) in &sources.caller {
        if (sources.inherit || name == "TERM") && passes(name) {
            variables.insert(name.clone(), value.clone());
        }
    }
    if !variables.get(OsStr::new("HOME")).is_some_and(|home| (sources.shows)(Path::new(home))) {
        variables.remove(OsStr::new("HOME"));
    }
    if sources.inherit {
        variables.entry("PATH".into()).or_insert_with(|| {
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()
        });
    }
    if let Some(directory) = sources.directory {
        variables.insert("PWD".into(), directory.into());
    }
    for (path, text) in &sources.files {
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            apply(&mut variables, &sources.caller, OsStr::from_bytes(line)).map_err(|what| {
                Failure::new(format!("{}, line {}: {what}", path.display(), index + 1))
            })?;
        }
    }
    for option in sources.options {
        apply(&mut variables, &sources.caller, option)
            .map_err(|what| Failure::new(format!("-e: {what}")))?;
    }
    Ok(variables.into_iter().map(|(name, value)| text(name, &value)).collect())
}

fn text(name: OsString, value: &OsStr) -> Text {
    let mut bytes = name.into_vec();
    bytes.push(b'=');
    bytes.extend_from_slice(value.as_bytes());
    Text(bytes)
}

/// One `NAME=VALUE` or `NAME` (the caller's, if set).
fn apply(variables: &mut Variables, caller: &Variables, word: &OsStr) -> Result<(), String> {
    let bytes = word.as_bytes();
    let mut parts = bytes.splitn(2, |byte| *byte == b'=');
    let name = OsStr::from_bytes(parts.next().unwrap_or_default());
    if name.is_empty() || bytes.contains(&0) {
        return Err(format!("'{}' is not NAME=VALUE or NAME", word.to_string_lossy()));
    }
    match parts.next() {
        Some(value) => {
            variables.insert(name.to_owned(), OsStr::from_bytes(value).to_owned());
        }
        None => {
            if let Some(value) = caller.get(name) {
                variables.insert(name.to_owned(), value.clone());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Variables {
        [
            ("CC", "clang"),
            ("PATH", "/opt/bin:/bin"),
            ("HOME", "/home/u"),
            ("SSH_AUTH_SOCK", "/run/x"),
            ("GITHUB_TOKEN", "s3cret"),
            ("SIGNING_KEY", "k"),
            ("PWD", "/home/u/p"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into()
    }

    fn sources<'a>(options: &'a [OsString], shows: &'a dyn Fn(&Path) -> bool) -> Sources<'a> {
        Sources {
            caller: caller(),
            files: Vec::new(),
            options,
            directory: Some(Path::new("/w")),
            shows,
            inherit: true,
        }
    }

    fn lines(environment: &[Text]) -> Vec<String> {
        environment.iter().map(|text| String::from_utf8(text.0.clone()).unwrap()).collect()
    }

    #[test]
    fn a_build_finds_its_variables_and_secrets_stay() {
        let built = lines(&build(&sources(&[], &|_| false)).unwrap());
        assert_eq!(built, ["CC=clang", "PATH=/opt/bin:/bin", "PWD=/w"]);
    }

    #[test]
    fn options_name_what_is_held_back() {
        let options = ["GITHUB_TOKEN", "X=1=2", "E=", "MISSING"].map(OsString::from);
        let built = lines(&build(&sources(&options, &|_| true)).unwrap());
        assert!(built.contains(&"GITHUB_TOKEN=s3cret".to_owned()));
        assert!(built.contains(&"X=1=2".to_owned()) && built.contains(&"E=".to_owned()));
        assert!(built.contains(&"HOME=/home/u".to_owned()), "shown inside");
        assert!(!built.iter().any(|line| line.starts_with("MISSING")));
        let wrong = [OsString::from("=x")];
        assert!(build(&sources(&wrong, &|_| true)).unwrap_err().message.contains("NAME=VALUE"));
    }

    #[test]
    fn files_come_before_options() {
        let options = [OsString::from("A=option")];
        let mut both = sources(&options, &|_| false);
        both.files = vec![(Path::new("f"), b"# note\nA=file\r\nB=2\n\nCC\n".to_vec())];
        let built = lines(&build(&both).unwrap());
        assert!(built.contains(&"A=option".to_owned()) && built.contains(&"B=2".to_owned()));
        both.files = vec![(Path::new("f"), b"B=2\n=oops\n".to_vec())];
        assert!(build(&both).unwrap_err().message.starts_with("f, line 2:"));
    }

    #[test]
    fn exec_passes_only_what_is_named() {
        let mut exec = sources(&[], &|_| false);
        exec.inherit = false;
        assert_eq!(lines(&build(&exec).unwrap()), ["PWD=/w"]);
    }
}
