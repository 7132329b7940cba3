//! `dvs run --hosts`: nodes on hosts that are reached by the user's own ssh, with its configuration,
//! agents and jump hosts.
//!
//! One ssh connection for each host. A line of shell says whether the right dvs is in the host's
//! cache, takes it from its standard input if not, and executes it; from then on standard input and
//! output carry the node's links (see [`dvs_node::uplink`]).

use crate::failure::Failure;
use dvs_dvk::tls::fingerprint;
use dvs_node::client::Client;
use dvs_node::folders::reason;
use dvs_node::protocol::Request;
use dvs_node::uplink::{Begin, Begun, hear, say};
use dvs_node::{names, wire};
use dvs_sys::signals;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most hosts of one command.
const MAX_HOSTS: usize = 63;
/// Most bytes that a login shell may say before our line (a banner in a start file).
const MAX_NOISE: usize = 64 << 10;
/// How long an ssh may take to end once its node is gone.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// What our line at the far end begins with.
const MARK: &str = "dvs-host ";

/// A host as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// As ssh takes it.
    destination: String,
    /// Name of its node.
    name: String,
}

impl Target {
    /// Checks a word.
    ///
    /// # Errors
    /// When it cannot be a host.
    pub(crate) fn parse(word: &str) -> Result<Target, Failure> {
        let host = word.rsplit_once('@').map_or(word, |(_, host)| host);
        // A word that begins with a dash would be an option of ssh.
        let odd = |text: &str| {
            text.is_empty()
                || text.starts_with('-')
                || text.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        if odd(word) || odd(host) {
            return Err(Failure::new(format!(
                "--hosts {:?}: give hosts as ssh knows them, such as b,me@c",
                word
            )));
        }
        let fit = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = host.trim_matches(['[', ']']).chars().map(fit).collect();
        let name = name.trim_start_matches(['-', '.', '_']).chars().take(60).collect::<String>();
        let name = if names::check("node", &name).is_ok() { name } else { "host".into() };
        Ok(Target { destination: word.to_owned(), name })
    }
}

/// The connections of one command. When they are dropped they are waited for; they end with their
/// nodes, and those with the home.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    ssh: Vec<Child>,
}

impl Drop for Connections {
    fn drop(&mut self) {
        let until = Instant::now() + END_PATIENCE;
        for child in &mut self.ssh {
            while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(5));
            }
            // Ended already, most likely; an ssh that hangs is of no use to anybody.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A host whose node is up.
struct Up {
    ssh: Child,
    stream: UnixStream,
}

/// Starts a node on every host, all at once, and has the home take them in.
///
/// # Errors
/// When one does not come up; then none is left.
pub(crate) fn connect(
    targets: &[Target],
    home: &Client,
    cluster: [u8; 16],
) -> Result<Connections, Failure> {
    let mut connections = Connections::default();
    if targets.is_empty() {
        return Ok(connections);
    }
    if targets.len() > MAX_HOSTS {
        return Err(Failure::new(format!("--hosts: at most {MAX_HOSTS}")));
    }
    let info = home.node()?;
    let begins = begins(targets, info.id, cluster);
    let program = std::fs::read("/proc/self/exe")
        .map_err(|error| Failure::new(format!("reading the own program: {}", reason(&error))))?;
    let hash: String = fingerprint(&program).iter().map(|byte| format!("{byte:02x}")).collect();
    // A key on the terminal is for the program inside; an ssh that asks for a password heeds it.
    let quiet = Quiet::new();
    let started: Vec<Result<Up, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = targets
            .iter()
            .zip(&begins)
            .map(|(target, begin)| scope.spawn(|| start(target, begin, &program, &hash)))
            .collect();
        let lost = || Failure::new("starting a node over ssh failed");
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(lost()))).collect()
    });
    drop(quiet);
    let mut streams = Vec::new();
    let mut failed = None;
    for started in started {
        match started {
            Ok(up) => {
                connections.ssh.push(up.ssh);
                streams.push(OwnedFd::from(up.stream));
            }
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    if let Some(failure) = failed {
        // Those that are up end with their streams.
        drop(streams);
        return Err(failure);
    }
    for (begins, streams) in
        begins.chunks(wire::MAX_DESCRIPTORS).zip(streams.chunks(wire::MAX_DESCRIPTORS))
    {
        let nodes = begins.iter().map(|begin| (begin.id, begin.name.clone())).collect();
        let fds: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
        home.send(&Request::TakeIn(nodes), &fds)?;
        home.receive()?;
    }
    Ok(connections)
}

/// Numbers and names of the nodes: a host may be named twice.
fn begins(targets: &[Target], home: u16, cluster: [u8; 16]) -> Vec<Begin> {
    let mut begins: Vec<Begin> = Vec::new();
    for (target, id) in targets.iter().zip(home + 1..) {
        let taken = |name: &str| begins.iter().any(|begin| begin.name == name);
        let name = if taken(&target.name) || target.name == format!("n{home}") {
            format!("{}-{id}", target.name)
        } else {
            target.name.clone()
        };
        begins.push(Begin { id, name, cluster, home });
    }
    begins
}

/// SIGINT, SIGQUIT and SIGTSTP are ignored by what is started meanwhile.
struct Quiet(Vec<i32>);

impl Quiet {
    fn new() -> Self {
        let mut changed = Vec::new();
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP] {
            if matches!(signals::is_ignored(signal), Ok(false)) && signals::ignore(signal).is_ok() {
                changed.push(signal);
            }
        }
        Quiet(changed)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for signal in &self.0 {
            // It was so before.
            let _ = signals::set_default(*signal);
        }
    }
}

fn start(target: &Target, begin: &Begin, program: &[u8], hash: &str) -> Result<Up, Failure> {
    let failed =
        |what: &dyn std::fmt::Display| Failure::new(format!("host {}: {what}", target.destination));
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(&reason(&error)))?;
    let input = theirs.try_clone().map_err(|error| failed(&reason(&error)))?;
    let mut ssh = Command::new("ssh")
        .args(["-T", "-e", "none", &target.destination])
        .arg(line(hash, program.len()))
        .stdin(Stdio::from(OwnedFd::from(input)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(|error| failed(&format!("ssh cannot be started: {}", reason(&error))))?;
    match talk(&ours, begin, program) {
        Ok(()) => Ok(Up { ssh, stream: ours }),
        Err(why) => {
            drop(ours);
            // It has said why on standard error, if it was ssh that failed.
            let status = ssh.wait();
            let own = matches!(status, Ok(status) if status.code() == Some(255));
            Err(failed(&if own { "ssh did not get there; try: ssh HOST true".into() } else { why }))
        }
    }
}

/// What the host's login shell is to run. It has no single quote in it, so that every shell takes it
/// as one word.
fn line(hash: &str, size: usize) -> String {
    let machine = std::env::consts::ARCH;
    let script = format!(
        r#"umask 077; m=$(uname -sm); if [ "$m" != "Linux {machine}" ]; then echo "{MARK}other $m"; exit 3; fi; d="${{XDG_CACHE_HOME:-$HOME/.cache}}/dvs"; b="$d/dvs-{hash}"; if [ -x "$b" ]; then echo "{MARK}have"; else t="$b.$$"; e=$(mkdir -p "$d" 2>&1) && (: >"$t") 2>/dev/null || {{ echo "{MARK}full cannot write to $d: $e"; exit 3; }}; echo "{MARK}need"; head -c {size} >"$t"; s=$(sha256sum "$t" 2>/dev/null | cut -c1-64); if [ "$(wc -c <"$t")" -ne {size} ] || [ "${{s:-{hash}}}" != {hash} ]; then rm -f "$t"; echo "{MARK}full the copy in $d is not whole; is the disk full?"; exit 3; fi; chmod 700 "$t" && mv -f "$t" "$b" || {{ echo "{MARK}full cannot write to $d"; exit 3; }}; echo "{MARK}have"; fi; exec "$b" internal host"#
    );
    format!("exec sh -c '{script}'")
}

fn talk(stream: &UnixStream, begin: &Begin, program: &[u8]) -> Result<(), String> {
    let lost = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::InvalidData => error.to_string(),
        _ => format!("the connection ended: {}", reason(&error)),
    };
    let (mut reader, mut writer) = (stream, stream);
    loop {
        let word = marked_line(&mut reader).map_err(lost)?;
        match word.split_once(' ').unwrap_or((&word, "")) {
            ("have", _) => break,
            ("need", _) => writer.write_all(program).map_err(lost)?,
            ("other", kind) => {
                return Err(format!(
                    "it is {kind}, and this dvs is for Linux {}",
                    std::env::consts::ARCH
                ));
            }
            (_, why) => return Err(why.to_owned()),
        }
    }
    say(&mut writer, begin).map_err(lost)?;
    match hear::<Begun>(&mut reader).map_err(lost)? {
        Begun::Ready(_) => Ok(()),
        Begun::Failed(failure) => Err(failure.message),
    }
}

/// The rest of the next line that is ours; others belong to the login shell's start files.
fn marked_line(reader: &mut impl Read) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut noise = 0;
    let mut byte = [0];
    loop {
        // One at a time: what follows our line is not to be taken.
        reader.read_exact(&mut byte)?;
        noise += 1;
        if noise > MAX_NOISE {
            let what =
                "it says too much before dvs is reached; is there a program in its start files?";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        }
        if byte != [b'\n'] {
            line.push(byte[0]);
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        if let Some(rest) = text.trim_end().strip_prefix(MARK) {
            return Ok(rest.to_owned());
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_words_for_ssh_and_never_options() {
        let parse =
            |word: &str| Target::parse(word).map(|target| (target.destination, target.name));
        assert_eq!(parse("b").unwrap(), ("b".into(), "b".into()));
        assert_eq!(parse("me@c.example").unwrap(), ("me@c.example".into(), "c.example".into()));
        assert_eq!(parse("me@[fe80::1]").unwrap().1, "fe80--1");
        for wrong in ["", "-oProxyCommand=x", "me@-x", "me@", "a b", "a\nb"] {
            assert!(parse(wrong).unwrap_err().message.contains("--hosts"), "{wrong:?}");
        }
    }

    #[test]
    fn nodes_of_one_host_have_different_names() {
        let target = |word: &str| Target::parse(word).unwrap();
        let begins = begins(&[target("b"), target("me@b"), target("n1")], 1, [0; 16]);
        let named: Vec<_> = begins.iter().map(|begin| (begin.id, begin.name.as_str())).collect();
        assert_eq!(named, [(2, "b"), (3, "b-3"), (4, "n1-4")]);
    }

    #[test]
    fn the_line_is_one_word_and_a_shell_takes_it() {
        let line = line(&"ab".repeat(32), 5);
        assert_eq!(line.matches('\'').count(), 2);
        assert!(!line.contains('\n'));
        let script = line.trim_start_matches("exec sh -c '").trim_end_matches('\'');
        let checked = Command::new("sh").args(["-n", "-c", script]).status().unwrap();
        assert!(checked.success());
    }

    #[test]
    fn noise_before_our_line_is_skipped_and_bounded() {
        let mut input = &b"Welcome!\n\ndvs-hostile\ndvs-host have\nrest"[..];
        assert_eq!(marked_line(&mut input).unwrap(), "have");
        assert_eq!(input, b"rest");
        let flood = vec![b'x'; MAX_NOISE + 2];
        assert!(
            marked_line(&mut flood.as_slice()).unwrap_err().to_string().contains("start files")
        );
        assert!(marked_line(&mut &b"no line"[..]).is_err());
    }
}
