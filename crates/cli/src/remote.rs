//! `dvs --host ssh://[USER@]HOST[:PORT][/PATH/TO/dvs] ...`: the command runs on another machine, by that
//! machine's own dvs. Keys, agents and jump hosts are the business of the system's ssh.

use crate::failure::{EXIT_DVS, Failure};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

/// Environment variable that names the host where `--host` does not.
pub(crate) const VARIABLE: &str = "DVS_HOST";
/// What ssh itself ends with when it fails (ssh(1)).
const SSH_FAILED: i32 = 255;

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// `USER@HOST` or `HOST`.
    destination: String,
    port: Option<u16>,
    /// The dvs there.
    program: String,
}

impl Target {
    /// Reads an address.
    ///
    /// # Errors
    /// A sentence that quotes it.
    pub(crate) fn parse(address: &str) -> Result<Target, Failure> {
        let wrong = |what: &str| Failure::new(format!("--host {address}: {what}"));
        let rest = address
            .strip_prefix("ssh://")
            .ok_or_else(|| wrong("write ssh://[USER@]HOST[:PORT]"))?;
        let (authority, program) = match rest.split_once('/') {
            Some((authority, path)) if !path.is_empty() => (authority, format!("/{path}")),
            Some((authority, _)) => (authority, "dvs".to_owned()),
            None => (rest, "dvs".to_owned()),
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        // [IPv6]:PORT
        let (host, port) = match (host.strip_prefix('['), host.rsplit_once(':')) {
            (Some(inner), _) => {
                let (host, behind) =
                    inner.split_once(']').ok_or_else(|| wrong("the ] is missing"))?;
                (host, behind.strip_prefix(':'))
            }
            (None, Some((host, port))) => (host, Some(port)),
            (None, None) => (host, None),
        };
        let port = port
            .map(|port| port.parse().map_err(|_| wrong(&format!("'{port}' is no port"))))
            .transpose()?;
        // A word that begins with - would be an option of ssh.
        let plain = |word: &str| {
            !word.is_empty()
                && !word.starts_with('-')
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-:%".contains(c))
        };
        if !plain(host) {
            return Err(wrong("that is no host name"));
        }
        if !user.is_none_or(plain) {
            return Err(wrong("that is no user name"));
        }
        let destination = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
        Ok(Target { destination, port, program })
    }
}

/// The words of a command line behind the program's name, without `--host` and its value. Only what
/// stands before the sub-command is looked at.
fn without_host(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "--host" {
            words.next();
        } else if word.as_bytes().starts_with(b"--host=") {
            continue;
        } else {
            let option = word.as_bytes().starts_with(b"-");
            kept.push(word);
            if !option {
                break;
            }
        }
    }
    kept.extend(words);
    kept
}

/// A word as a POSIX shell reads it back.
fn quoted(word: &OsStr) -> Vec<u8> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(byte);
    if !word.is_empty() && word.as_bytes().iter().all(plain) {
        return word.as_bytes().to_vec();
    }
    let mut text = vec![b'\''];
    for byte in word.as_bytes() {
        if *byte == b'\'' {
            text.extend_from_slice(b"'\\''");
        } else {
            text.push(*byte);
        }
    }
    text.push(b'\'');
    text
}

/// The arguments of ssh.
fn ssh_arguments(target: &Target, words: &[OsString], terminal: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    arguments.push(if terminal { "-t" } else { "-T" }.into());
    if let Some(port) = target.port {
        arguments.push("-p".into());
        arguments.push(port.to_string().into());
    }
    arguments.push("--".into());
    arguments.push(target.destination.clone().into());
    let mut line = quoted(OsStr::new(&target.program));
    for word in words {
        line.push(b' ');
        line.extend_from_slice(&quoted(word));
    }
    arguments.push(OsString::from_vec(line));
    arguments
}

/// Runs this command there; its exit code.
///
/// # Errors
/// When ssh is not there or fails.
pub(crate) fn run(address: &str, terminal: bool) -> Result<u8, Failure> {
    let target = Target::parse(address)?;
    let words = without_host(std::env::args_os().skip(1));
    let status = Command::new("ssh")
        .args(ssh_arguments(&target, &words, terminal))
        .env_remove(VARIABLE)
        .status()
        .map_err(|error| {
            Failure::new(format!(
                "ssh cannot be run: {}; install it (apt-get install openssh-client)",
                dvs_node::folders::reason(&error)
            ))
        })?;
    match (status.code(), status.signal()) {
        (Some(SSH_FAILED), _) => Err(Failure::new(format!(
            "ssh to {} failed; does this work: ssh {} true",
            target.destination, target.destination
        ))),
        (Some(127), _) if target.program == "dvs" => Err(Failure {
            exit: EXIT_DVS,
            message: format!(
                "exit code 127 from {0}: if dvs was not found there, name it: --host ssh://{0}/PATH/TO/dvs",
                target.destination
            ),
        }),
        (Some(code), _) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => Ok(128_u8.saturating_add(u8::try_from(signal.unwrap_or(0)).unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        let parse = |text: &str| Target::parse(text).unwrap();
        let plain = parse("ssh://box");
        assert_eq!(
            (plain.destination.as_str(), plain.port, plain.program.as_str()),
            ("box", None, "dvs")
        );
        let full = parse("ssh://me@box.example:2222/opt/dvs");
        assert_eq!(full.destination, "me@box.example");
        assert_eq!((full.port, full.program.as_str()), (Some(2222), "/opt/dvs"));
        assert_eq!(parse("ssh://[::1]:22").destination, "::1");
        for wrong in [
            "box",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://a@-b",
            "ssh://-a@b",
            "ssh://a:x",
            "ssh://a b",
            "tcp://a",
            "ssh://[::1",
        ] {
            let message = Target::parse(wrong).unwrap_err().message;
            assert!(message.starts_with(&format!("--host {wrong}: ")), "{message}");
        }
    }

    #[test]
    fn the_words_go_there_as_they_are() {
        let words = ["--debug", "--host", "ssh://x", "run", "--host", "--", "echo", "it's $HOME"];
        let kept = without_host(words.iter().map(OsString::from));
        assert_eq!(kept, ["--debug", "run", "--host", "--", "echo", "it's $HOME"]);
        let kept = without_host(["--host=ssh://x", "ps"].iter().map(OsString::from));
        let target = Target::parse("ssh://me@box:7").unwrap();
        assert_eq!(
            ssh_arguments(&target, &kept, false),
            ["-T", "-p", "7", "--", "me@box", "dvs ps"]
        );
        assert_eq!(quoted(OsStr::new("it's $HOME")), b"'it'\\''s $HOME'");
        assert_eq!(quoted(OsStr::new("")), b"''");
    }
}
