//! `dvs run -d`: a container that its node keeps.

use crate::arguments::RunArguments;
use crate::container_arguments::LifeArguments;
use crate::failure::{Failure, print_warning};
use crate::nodes;
use crate::output;
use crate::{quantities, run, times};
use dvs_node::client::Client;
use dvs_node::cluster;
use dvs_node::folders::{Folders, reason};
use dvs_node::managing::{
    DetachedOptions, HealthOptions, ManageRequest, RestartPolicy, UNSEEN_TERMINAL,
};
use dvs_node::protocol::{Request, Response};

/// Runs it and prints its name.
///
/// # Errors
/// When its program did not come to run.
pub(crate) fn run(arguments: &RunArguments) -> Result<u8, Failure> {
    let (options, program, detached) = request(arguments)?;
    let client = node(arguments)?;
    start(&client, options, program, detached).and_then(|name| output::print_line(&name))?;
    Ok(0)
}

/// What is asked of the node.
pub(crate) type Parts =
    (dvs_node::protocol::ContainerOptions, dvs_node::protocol::ProgramOptions, DetachedOptions);

/// What the command line asks for.
///
/// # Errors
/// For options that make no sense.
pub(crate) fn request(arguments: &RunArguments) -> Result<Parts, Failure> {
    if arguments.stats.is_some() {
        return Err(Failure::new(
            "--stats tells at the end, which -d does not wait for; see: dvs stats",
        ));
    }
    if !arguments.hosts.is_empty() {
        return Err(Failure::new(
            "the nodes of --hosts end with their command, and -d waits for none; make a cluster that stays: dvs node join",
        ));
    }
    let (mut options, mut program) = run::options(arguments)?;
    options.placement = arguments.place.map(Into::into).unwrap_or_default();
    program.terminal = arguments.program.tty.then_some(UNSEEN_TERMINAL);
    let restart = quantities::restart(&arguments.life.restart)?;
    if arguments.life.rm && restart != RestartPolicy::No {
        return Err(Failure::new(format!(
            "--rm and --restart {restart} exclude each other: leave one away"
        )));
    }
    let detached = DetachedOptions {
        restart,
        remove_at_end: arguments.life.rm,
        open_input: arguments.program.interactive,
        health: health(&arguments.life)?,
    };
    Ok((options, program, detached))
}

/// Has a node make the container; its name.
///
/// # Errors
/// When its program did not come to run.
pub(crate) fn start(
    client: &Client,
    options: dvs_node::protocol::ContainerOptions,
    program: dvs_node::protocol::ProgramOptions,
    detached: DetachedOptions,
) -> Result<String, Failure> {
    client.be_patient()?;
    let request = ManageRequest::Run(Box::new(options), Box::new(program), Box::new(detached));
    match client.ask(&Request::Manage(request))? {
        Response::Started { container, warnings, .. } => {
            warnings.iter().for_each(|warning| print_warning(warning));
            Ok(container)
        }
        other => Err(client.unexpected(&other)),
    }
}

/// A node that stays; with none running they are started, and that is said.
fn node(arguments: &RunArguments) -> Result<Client, Failure> {
    staying_node(arguments.nodes.unwrap_or(1))
}

/// The first node that stays, of so many at least; with none running they are started, and that is
/// said.
///
/// # Errors
/// When there are too few, or none can be started.
pub(crate) fn staying_node(wanted: u16) -> Result<Client, Failure> {
    let folders = Folders::of_process();
    folders.clean_stale();
    let mut running = nodes::staying(&folders)?.nodes;
    if running.is_empty() {
        nodes::check_machine()?;
        let names = cluster::free_names(&[], wanted, None)?;
        cluster::start_staying(&folders, &names, &[], 0)?;
        print_warning(&format!(
            "{wanted} node{} started to keep the container; to end all: dvs node stop --all --force",
            if wanted == 1 { " was" } else { "s were" }
        ));
        running = nodes::staying(&folders)?.nodes;
    }
    let first = running.into_iter().next();
    let (client, info) = first.ok_or_else(|| Failure::new("no node was started"))?;
    // Itself and those that it is linked to, on this host and on others.
    let count = info.linked.len() + 1;
    if count < usize::from(wanted) {
        return Err(Failure::new(format!(
            "{wanted} nodes are asked for and {count} run; start more: dvs node start --count {}",
            usize::from(wanted) - count
        )));
    }
    Ok(client)
}

/// `--label` and `--label-file`; of one name the last wins.
///
/// # Errors
/// For a label without a name, or a file that cannot be read.
pub(crate) fn labels(arguments: &LifeArguments) -> Result<Vec<(String, String)>, Failure> {
    let mut words = Vec::new();
    for path in &arguments.label_file {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(format!("--label-file {}: {}", path.display(), reason(&error)))
        })?;
        let lines = text.lines().map(str::trim);
        words.extend(
            lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned),
        );
    }
    words.extend(arguments.label.iter().cloned());
    let mut labels: Vec<(String, String)> = Vec::new();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        if name.is_empty() {
            return Err(Failure::new(format!("--label {word}: write NAME or NAME=VALUE")));
        }
        labels.retain(|(other, _)| other != name);
        labels.push((name.to_owned(), value.to_owned()));
    }
    Ok(labels)
}

fn health(arguments: &LifeArguments) -> Result<Option<HealthOptions>, Failure> {
    let Some(command) = &arguments.health_cmd else { return Ok(None) };
    let milliseconds = |option: &str, word: &str| -> Result<u64, Failure> {
        times::duration(option, word)
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    };
    let interval = milliseconds("--health-interval", &arguments.health_interval)?;
    let timeout = milliseconds("--health-timeout", &arguments.health_timeout)?;
    if interval == 0 || timeout == 0 {
        return Err(Failure::new("--health-interval and --health-timeout must be above 0"));
    }
    Ok(Some(HealthOptions {
        command: command.clone(),
        interval,
        timeout,
        retries: arguments.health_retries,
        start_period: milliseconds("--health-start-period", &arguments.health_start_period)?,
    }))
}
