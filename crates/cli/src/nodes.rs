//! `dvs node`, and finding the daemons that run.

use crate::arguments::{ListArguments, NodeCommand, NodeStartArguments, NodeStopArguments};
use crate::failure::{Failure, print_warning};
use crate::hosts;
use crate::output::{self, Table};
use dvs_node::client::Client;
use dvs_node::cluster;
use dvs_node::folders::Folders;
use dvs_node::protocol::{LinkInfo, NodeInfo, Request};
use dvs_sys::descriptor;
use dvs_sys::features::Features;
use dvs_sys::process;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

/// How long a stopped daemon may take to be gone, in milliseconds.
const STOP_PATIENCE: u32 = 20_000;

/// Daemons that answered, in the order of their numbers, and why others did not.
pub(crate) struct Reached {
    /// Connection and facts.
    pub(crate) nodes: Vec<(Client, NodeInfo)>,
    /// One for each that is alive and does not answer.
    pub(crate) failures: Vec<Failure>,
}

/// The daemons that stay.
///
/// # Errors
/// When one is alive and does not answer: the cluster is not whole.
pub(crate) fn staying(folders: &Folders) -> Result<Reached, Failure> {
    let (nodes, mut failures) = cluster::connect_folders(&folders.live_nodes());
    if failures.is_empty() { Ok(Reached { nodes, failures }) } else { Err(failures.remove(0)) }
}

/// Those that stay and those of running commands.
pub(crate) fn all(folders: &Folders) -> Reached {
    let mut found = folders.live_nodes();
    found.extend(folders.live_session_nodes());
    let (nodes, failures) = cluster::connect_folders(&found);
    Reached { nodes, failures }
}

/// Refuses early and clearly where no container can be made.
///
/// # Errors
/// With the first need that is not met.
pub(crate) fn check_machine() -> Result<(), Failure> {
    // Cheap looks only; the whole probe, which starts children, is `dvs doctor`'s.
    const FUSE: (u32, u32) = (10, 229);
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let wrong = match opened.and_then(|file| file.metadata()) {
        Ok(found) if (libc::major(found.rdev()), libc::minor(found.rdev())) == FUSE => None,
        Ok(_) => Some("it is another device".to_owned()),
        Err(error) => Some(dvs_node::folders::reason(&error)),
    };
    if let Some(why) = wrong {
        return Err(Failure::new(format!(
            "/dev/fuse cannot be opened: {why}; load it (modprobe fuse), let this user read and write it (chmod 666 /dev/fuse), and see: dvs doctor"
        )));
    }
    Ok(())
}

/// `dvs node ...`.
///
/// # Errors
/// As its parts.
pub(crate) fn command(command: NodeCommand) -> Result<u8, Failure> {
    match command {
        NodeCommand::Ls(list) => ls(&list),
        NodeCommand::Start(arguments) => start(&arguments),
        NodeCommand::Stop(arguments) => stop(&arguments),
        NodeCommand::Token(arguments) => hosts::token(&arguments),
        NodeCommand::Join(arguments) => hosts::join(&arguments),
        NodeCommand::Rm { nodes, list } => hosts::remove(&nodes, &list),
        NodeCommand::Leave { force, list } => hosts::leave(force, &list),
        NodeCommand::Rotate(list) => hosts::rotate(&list),
    }
}

fn ls(list: &ListArguments) -> Result<u8, Failure> {
    let folders = Folders::of_process();
    folders.clean_stale();
    let reached = all(&folders);
    let mut infos: Vec<NodeInfo> = Vec::new();
    for (client, info) in reached.nodes {
        // Members of a cluster of hosts know the others.
        match (&info.address, client.cluster()) {
            (Some(_), Ok(all)) => infos.extend(all),
            _ => infos.push(info),
        }
    }
    print_nodes(&infos, list)?;
    report(reached.failures)
}

/// Failures beside a result: told as warnings, and in the exit code.
fn report(failures: Vec<Failure>) -> Result<u8, Failure> {
    let mut failures = failures.into_iter();
    let last = failures.next();
    failures.for_each(|failure| print_warning(&failure.message));
    last.map_or(Ok(0), Err)
}

pub(crate) fn print_nodes(infos: &[NodeInfo], list: &ListArguments) -> Result<(), Failure> {
    for info in infos {
        if let Some(warning) = &info.warning {
            print_warning(&format!("node {}: {warning}", info.name));
        }
    }
    if list.json {
        let rows: Vec<serde_json::Value> = infos.iter().map(json).collect();
        return output::print_json(&rows.into());
    }
    let mut table = Table::new(&[
        "NODE",
        "ID",
        "PID",
        "CPUS",
        "MEMORY",
        "CONTAINERS",
        "LINKS",
        "KIND",
        "ADDRESS",
    ]);
    for info in infos {
        let links: Vec<String> = info.linked.iter().map(ToString::to_string).collect();
        table.row(vec![
            info.name.clone(),
            info.id.to_string(),
            info.pid.to_string(),
            output::cpus(info.millicpus),
            output::bytes(info.memory),
            info.containers.to_string(),
            if links.is_empty() { "-".into() } else { links.join(",") },
            kind(info).into(),
            info.address.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    table.print()
}

fn kind(info: &NodeInfo) -> &'static str {
    match info {
        NodeInfo { down: true, .. } => "not reached",
        NodeInfo { ephemeral: true, .. } => "one command",
        _ => "staying",
    }
}

fn json(info: &NodeInfo) -> serde_json::Value {
    serde_json::json!({
        "node": info.name,
        "id": info.id,
        "pid": info.pid,
        "version": info.version,
        "kernel": info.kernel,
        "cpus": f64::from(info.millicpus) / 1000.0,
        "memory_bytes": info.memory,
        "started": info.started,
        "containers": info.containers,
        "links": info.linked,
        "ephemeral": info.ephemeral,
        "address": info.address,
        "reached": !info.down,
        "warning": info.warning,
        "refused_connections": info.refused,
        "link_statistics": info.links.iter().map(link).collect::<Vec<_>>(),
    })
}

fn link(link: &LinkInfo) -> serde_json::Value {
    serde_json::json!({
        "node": link.node,
        "open": link.open,
        "connections": link.connections,
        "sent": link.sent,
        "sent_bytes": link.sent_bytes,
        "received": link.received,
        "received_bytes": link.received_bytes,
        "resent": link.resent,
        "waiting_bytes": link.waiting_bytes,
    })
}

fn start(arguments: &NodeStartArguments) -> Result<u8, Failure> {
    let folders = Folders::of_process();
    folders.clean_stale();
    check_machine()?;
    let running = staying(&folders)?;
    let infos: Vec<NodeInfo> = running.nodes.into_iter().map(|(_, info)| info).collect();
    if let Some(info) = hosts::start(arguments, &folders, &infos)? {
        print_nodes(&[info], &arguments.list)?;
        return Ok(0);
    }
    let names = cluster::free_names(&infos, arguments.count, arguments.name.as_deref())?;
    let offset = arguments.clock_offset.unwrap_or(0);
    let started = cluster::start_staying(&folders, &names, &infos, offset)?;
    print_nodes(&started, &arguments.list)?;
    Ok(0)
}

fn stop(arguments: &NodeStopArguments) -> Result<u8, Failure> {
    let folders = Folders::of_process();
    folders.clean_stale();
    let (reached, mut failures) = cluster::connect_folders(&folders.live_nodes());
    let missing = arguments.nodes.iter().find(|wanted| {
        let named = |folder: &std::path::PathBuf| {
            folder.file_name().is_some_and(|name| name == wanted.as_str())
        };
        !folders.live_nodes().iter().any(named)
    });
    if let Some(missing) = missing {
        return Err(Failure::new(format!(
            "no node is called {missing}; the running ones: dvs node ls"
        )));
    }
    let wanted = |info: &NodeInfo| arguments.all || arguments.nodes.contains(&info.name);
    let mut stopped = Vec::new();
    for (client, info) in reached.into_iter().filter(|(_, info)| wanted(info)) {
        match stop_one(&client, &info, arguments.force) {
            Ok(()) => stopped.push(info.name),
            Err(failure) => failures.push(failure),
        }
    }
    folders.tidy();
    if arguments.list.json {
        output::print_json(&serde_json::json!({ "stopped": stopped }))?;
    } else {
        for name in &stopped {
            output::print_line(name)?;
        }
    }
    report(failures)
}

fn stop_one(client: &Client, info: &NodeInfo, force: bool) -> Result<(), Failure> {
    let pidfd = process::pidfd_open(info.pid);
    client.ask(&Request::Stop { force })?;
    let Ok(pidfd) = pidfd else { return Ok(()) };
    match descriptor::wait_readable(pidfd.as_fd(), Some(STOP_PATIENCE)) {
        Ok(true) => Ok(()),
        _ => Err(Failure::new(format!(
            "node {} (process {}) has not ended within {} s; kill it: kill -9 {}",
            info.name,
            info.pid,
            STOP_PATIENCE / 1000,
            info.pid
        ))),
    }
}

/// The whole probe of the machine; for `dvs doctor`.
pub(crate) fn features() -> Features {
    Features::get()
}
