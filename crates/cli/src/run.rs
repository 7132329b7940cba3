//! `dvs run` and `dvs exec`.

use crate::arguments::{
    ExecArguments, NetworkArgument, ProgramArguments, RunArguments, StatsArgument,
};
use crate::attach::{self, Signals, Streams};
use crate::containers::home_of;
use crate::detached;
use crate::environment::{self, Sources};
use crate::failure::{Failure, print_error};
use crate::nodes::{self, Reached};
use crate::{named_signals, quantities, shares, ssh};
use dvs_node::cluster::Ephemeral;
use dvs_node::folders::{Folders, reason};
use dvs_node::names;
use dvs_node::protocol::{
    ContainerOptions, EXIT_DVS, Ended, EndedHow, ImageOption, NetworkOption, ProgramOptions,
    Request, ShareOption, Statistics, Text,
};
use dvs_sys::process;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// `dvs run`.
///
/// # Errors
/// When the program did not come to run.
pub(crate) fn run(arguments: RunArguments) -> Result<u8, Failure> {
    if arguments.life.detach {
        return detached::run(&arguments);
    }
    let stats = arguments.stats;
    let place = arguments.place;
    let signals = Signals::take()?;
    let (mut options, mut program) = options(&arguments)?;
    program.ignored_signals = signals.ignored();
    let streams = Streams::arrange(arguments.program.interactive, arguments.program.tty)?;
    program.terminal = streams.terminal();

    let folders = Folders::of_process();
    folders.clean_stale();
    let remote: Vec<ssh::Target> =
        arguments.hosts.iter().map(|word| ssh::Target::parse(word)).collect::<Result<_, _>>()?;
    // The hosts of one command are nodes of a session of its own.
    let running = if remote.is_empty() {
        nodes::staying(&folders)?
    } else {
        Reached { nodes: Vec::new(), failures: Vec::new() }
    };
    let mut connections = None;
    let (session, client, available) = match running {
        Reached { nodes, .. } if !nodes.is_empty() => {
            let (client, info) = nodes.into_iter().next().ok_or_else(|| Failure::new("no node"))?;
            // Itself and those that it is linked to, on this host and on others.
            let count = u16::try_from(info.linked.len() + 1).unwrap_or(u16::MAX);
            (None, client, count)
        }
        _ => {
            nodes::check_machine()?;
            let count = arguments.nodes.unwrap_or(1);
            let (session, client) = Ephemeral::start(&folders, count, &arguments.clock_offset)?;
            match ssh::connect(&remote, &client, session.cluster()) {
                Ok(made) => connections = Some(made),
                Err(failure) => {
                    drop(client);
                    session.end();
                    folders.tidy();
                    return Err(failure);
                }
            }
            (Some(session), client, count + u16::try_from(remote.len()).unwrap_or(u16::MAX))
        }
    };
    if let Some(wanted) = options.nodes.filter(|wanted| *wanted > available) {
        return Err(Failure::new(format!(
            "{wanted} nodes are asked for and {available} run; start more: dvs node start --count {}",
            wanted - available
        )));
    }
    let count = options.nodes.unwrap_or(available);
    options.nodes = Some(count);
    options.placement = place.map(Into::into).unwrap_or_default();
    let request = Request::Run(Box::new(options), Box::new(program));
    let result = attach::follow(&client, &request, streams, &signals);
    // The end of the connection ends the container, however the program's following ended.
    drop(client);
    if let Some(session) = session {
        session.end();
        // The streams have ended with the home: what runs at their far ends ends now.
        drop(connections);
        // Of a daemon that was killed meanwhile.
        folders.clean_stale();
        folders.tidy();
    } else if result.is_err() {
        folders.clean_stale();
    }
    let ended = result?;
    if let (Some(form), Some(statistics)) = (stats, &ended.statistics) {
        print_statistics(form, statistics);
    }
    Ok(exit_code(&ended))
}

/// `dvs exec`.
///
/// # Errors
/// When the program did not come to run.
pub(crate) fn exec(arguments: ExecArguments) -> Result<u8, Failure> {
    let signals = Signals::take()?;
    let mut program = program(&arguments.program, arguments.command, &|_| false, false)?;
    program.directory = arguments.program.workdir.clone();
    program.ignored_signals = signals.ignored();
    let streams = Streams::arrange(arguments.program.interactive, arguments.program.tty)?;
    program.terminal = streams.terminal();
    let client = home_of(&arguments.container)?;
    let request = Request::Exec(arguments.container, Box::new(program));
    attach::follow(&client, &request, streams, &signals).map(|ended| exit_code(&ended))
}

fn exit_code(ended: &Ended) -> u8 {
    if let EndedHow::Lost(why) = &ended.how {
        print_error(why);
        return EXIT_DVS;
    }
    ended.how.exit_code()
}

/// What a command line asks for.
///
/// # Errors
/// For options that make no sense.
pub(crate) fn options(
    arguments: &RunArguments,
) -> Result<(ContainerOptions, ProgramOptions), Failure> {
    let current = std::env::current_dir().map_err(|error| {
        Failure::new(format!("the current folder: {}; change to one that exists", reason(&error)))
    })?;
    if let Some(name) = &arguments.name {
        names::check("container", name)?;
    }
    if let Some(name) = &arguments.hostname {
        names::check("host", name)?;
    }
    let mut shared: Vec<ShareOption> = Vec::new();
    let directory = match &arguments.program.workdir {
        Some(directory) => inside(directory, &current)?,
        None => current.clone(),
    };
    match shares::working_directory(&current, arguments.isolated) {
        Ok(share) => shared.push(share),
        // With another working directory nothing of the current one was asked for.
        Err(_) if arguments.program.workdir.is_some() => {}
        Err(failure) => return Err(failure),
    }
    for word in &arguments.volume {
        shared.push(shares::volume(word, &current)?);
    }
    let shared = shares::ordered(shared)?;
    let shows = |path: &Path| shares::shows(&shared, path);
    let mut command = arguments.command.clone();
    if let Some(entrypoint) = &arguments.life.entrypoint {
        command.insert(0, entrypoint.clone());
    }
    let mut program = program(&arguments.program, command, &shows, true)?;
    for word in &arguments.life.ulimit {
        let limit = named_signals::ulimit(word)?;
        program.limits.retain(|(resource, ..)| *resource != limit.0);
        program.limits.push(limit);
    }
    program.directory = Some(directory.clone());
    program.environment.retain(|text| !text.0.starts_with(b"PWD="));
    program.environment.push(Text([b"PWD=", directory.as_os_str().as_encoded_bytes()].concat()));
    let options = ContainerOptions {
        name: arguments.name.clone(),
        nodes: arguments.nodes,
        image: image(&arguments.image, &current)?,
        hostname: arguments.hostname.clone(),
        network: match arguments.network {
            NetworkArgument::None => NetworkOption::None,
            NetworkArgument::Host => NetworkOption::Host,
            NetworkArgument::Dc => NetworkOption::Dc,
        },
        millicpus: arguments.cpus.as_deref().map(quantities::millicpus).transpose()?,
        memory: arguments.memory.as_deref().map(quantities::memory).transpose()?,
        pids: arguments.pids,
        shares: shared,
        labels: detached::labels(&arguments.life)?,
        stop_signal: arguments
            .life
            .stop_signal
            .as_deref()
            .map(named_signals::signal)
            .transpose()?,
        stop_seconds: arguments.life.stop_timeout,
        ..ContainerOptions::default()
    };
    Ok((options, program))
}

/// A path inside the container; relative to the current folder, which is at the same path inside.
fn inside(path: &Path, current: &Path) -> Result<PathBuf, Failure> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Failure::new(format!("-w {}: write the path without '..'", path.display())));
    }
    Ok(current.join(path))
}

fn image(word: &Path, current: &Path) -> Result<ImageOption, Failure> {
    if word == Path::new("host") {
        return Ok(ImageOption::Host);
    }
    let wrong = |what: &str| {
        Failure::new(format!(
            "--image {}: {what}; give 'host' or a folder with a root file system",
            word.display()
        ))
    };
    let real = current.join(word).canonicalize().map_err(|error| wrong(&reason(&error)))?;
    if !real.is_dir() {
        return Err(wrong("not a folder"));
    }
    std::fs::read_dir(&real).map_err(|error| wrong(&reason(&error)))?;
    if real == Path::new("/") {
        return Ok(ImageOption::Host);
    }
    Ok(ImageOption::Directory(real))
}

fn program(
    arguments: &ProgramArguments,
    command: Vec<std::ffi::OsString>,
    shows: &dyn Fn(&Path) -> bool,
    inherit: bool,
) -> Result<ProgramOptions, Failure> {
    let mut files = Vec::new();
    for path in &arguments.env_file {
        let text = std::fs::read(path).map_err(|error| {
            Failure::new(format!("--env-file {}: {}", path.display(), reason(&error)))
        })?;
        files.push((path.as_path(), text));
    }
    let environment = environment::build(&Sources {
        caller: std::env::vars_os().collect(),
        files,
        options: &arguments.env,
        directory: None,
        shows,
        inherit,
    })?;
    Ok(ProgramOptions {
        arguments: command.into_iter().map(|word| Text(word.into_vec())).collect(),
        environment,
        user: arguments.user.clone(),
        umask: umask(),
        limits: limits(),
        ..ProgramOptions::default()
    })
}

fn umask() -> u32 {
    let old = process::set_umask(0o077);
    process::set_umask(old);
    old
}

/// Resource limits of the caller that a program inherits natively. Not the number of processes: it
/// counts all of a user, here and inside, and has an option of its own.
fn limits() -> Vec<(u32, u64, u64)> {
    const RESOURCES: [u32; 7] = [
        libc::RLIMIT_NOFILE,
        libc::RLIMIT_STACK,
        libc::RLIMIT_CORE,
        libc::RLIMIT_FSIZE,
        libc::RLIMIT_CPU,
        libc::RLIMIT_AS,
        libc::RLIMIT_DATA,
    ];
    let own = |resource: u32| {
        let (soft, hard) = process::prlimit(0, resource, None).ok()?;
        Some((resource, soft, hard))
    };
    RESOURCES.into_iter().filter_map(own).collect()
}

fn print_statistics(form: StatsArgument, statistics: &Statistics) {
    let text = match form {
        StatsArgument::Json => json(statistics).to_string(),
        StatsArgument::Text => readable(statistics),
    };
    eprintln!("{text}");
}

fn json(statistics: &Statistics) -> serde_json::Value {
    let nodes: Vec<serde_json::Value> = statistics
        .nodes
        .iter()
        .map(|node| {
            serde_json::json!({
                "id": node.id, "node": node.name, "placed": node.placed, "stayed": node.stayed,
            })
        })
        .collect();
    let stayed: serde_json::Map<String, serde_json::Value> =
        statistics.stayed.iter().map(|(reason, count)| (reason.clone(), (*count).into())).collect();
    serde_json::json!({
        "wall_seconds": seconds(statistics.wall_microseconds),
        "placed": statistics.nodes.iter().map(|node| node.placed).sum::<u64>(),
        "nodes": nodes,
        "stayed": stayed,
    })
}

fn readable(statistics: &Statistics) -> String {
    let mut lines = vec![format!("dvs: {:.3} s", seconds(statistics.wall_microseconds))];
    for node in &statistics.nodes {
        lines.push(format!(
            "dvs: {}: {} programs placed from other nodes, {} started there",
            node.name, node.placed, node.stayed
        ));
    }
    for (reason, count) in &statistics.stayed {
        lines.push(format!("dvs: {count} stayed where they were: {reason}"));
    }
    lines.join("\n")
}

fn seconds(microseconds: u64) -> f64 {
    // Exact up to 285 years.
    microseconds as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvs_node::protocol::NodeStatistics;

    #[test]
    fn statistics_are_told_in_both_forms() {
        let node =
            |id: u16, placed| NodeStatistics { id, name: format!("n{id}"), placed, stayed: 2 };
        let statistics = Statistics {
            nodes: vec![node(1, 0), node(2, 7)],
            stayed: vec![("has children".into(), 3)],
            wall_microseconds: 1_500_000,
        };
        let value = json(&statistics);
        assert_eq!(value["placed"], 7);
        assert_eq!(value["wall_seconds"], 1.5);
        assert_eq!(value["nodes"][1]["placed"], 7);
        assert_eq!(value["stayed"]["has children"], 3);
        let text = readable(&statistics);
        assert!(text.starts_with("dvs: 1.500 s\n") && text.contains("n2: 7 programs"), "{text}");
        assert!(text.contains("3 stayed where they were: has children"));
    }

    #[test]
    fn images_are_looked_at() {
        let current = Path::new("/");
        assert_eq!(image(Path::new("host"), current).unwrap(), ImageOption::Host);
        assert_eq!(image(Path::new("/"), current).unwrap(), ImageOption::Host);
        let folder = image(Path::new("usr"), current).unwrap();
        assert_eq!(folder, ImageOption::Directory("/usr".into()));
        for wrong in ["/no/such", "/etc/passwd"] {
            let message = image(Path::new(wrong), current).unwrap_err().message;
            assert!(message.starts_with(&format!("--image {wrong}: ")), "{message}");
        }
    }
}
