//! Commands about containers that are there: each name is sent to the daemon that is its home.

use crate::arguments::ListArguments;
use crate::container_arguments::{
    KillArguments, NamesArguments, RemoveArguments, StopArguments, UpdateArguments,
};
use crate::failure::{Failure, print_warning};
use crate::named_signals;
use crate::nodes;
use crate::output;
use crate::quantities;
use dvs_node::client::Client;
use dvs_node::folders::Folders;
use dvs_node::managing::{
    ContainerDetails, ContainerState, ManageRequest, ManageResponse, NewLimits,
};
use dvs_node::names;
use dvs_node::protocol::{Request, Response};

/// Asks a daemon about containers; the answer is of the managing kind, or plain.
///
/// # Errors
/// The daemon's failure.
pub(crate) fn ask(
    client: &Client,
    request: ManageRequest,
) -> Result<Option<ManageResponse>, Failure> {
    match client.ask(&Request::Manage(request))? {
        Response::Manage(response) => Ok(Some(response)),
        Response::Done => Ok(None),
        other => Err(client.unexpected(&other)),
    }
}

/// The containers of one daemon.
///
/// # Errors
/// The daemon's failure.
pub(crate) fn of_node(client: &Client, all: bool) -> Result<Vec<ContainerDetails>, Failure> {
    match ask(client, ManageRequest::List { all })? {
        Some(ManageResponse::Details(list)) => Ok(list),
        _ => Err(Failure::new("a node gave an answer that does not fit; are all of one version?")),
    }
}

/// The containers of all daemons that answer; the others are warned about.
pub(crate) fn of_all(all: bool) -> Vec<ContainerDetails> {
    let reached = nodes::all(&Folders::of_process());
    let mut found = Vec::new();
    for (client, _) in &reached.nodes {
        match of_node(client, all) {
            Ok(list) => found.extend(list),
            Err(failure) => print_warning(&failure.message),
        }
    }
    reached.failures.iter().for_each(|failure| print_warning(&failure.message));
    found.sort_by(|left, right| left.info.name.cmp(&right.info.name));
    found
}

/// The daemon that is a container's home, and the container.
///
/// # Errors
/// When there is no such container.
pub(crate) fn find(container: &str) -> Result<(Client, ContainerDetails), Failure> {
    names::check("container", container)?;
    let reached = nodes::all(&Folders::of_process());
    for (client, _) in reached.nodes {
        let mut list = of_node(&client, true)?;
        if let Some(index) = list.iter().position(|found| found.info.name == container) {
            return Ok((client, list.swap_remove(index)));
        }
    }
    let unreached = reached.failures.into_iter().next();
    Err(unreached.unwrap_or_else(|| {
        Failure::new(format!("no container is called {container}; there are: dvs dc ls -a"))
    }))
}

/// The daemon that is a container's home.
///
/// # Errors
/// When there is no such container.
pub(crate) fn home_of(container: &str) -> Result<Client, Failure> {
    find(container).map(|(client, _)| client)
}

/// Does something with each of some containers: the names of those where it worked are printed, and
/// what went wrong with the others is said.
///
/// # Errors
/// The last failure; those before it are warnings.
fn each(
    containers: &[String],
    list: &ListArguments,
    done: &str,
    mut act: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut worked = Vec::new();
    let mut failure: Option<Failure> = None;
    for name in containers {
        match act(name) {
            Ok(()) => {
                if !list.json {
                    output::print_line(name)?;
                }
                worked.push(name.clone());
            }
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    print_warning(&earlier.message);
                }
            }
        }
    }
    if list.json {
        output::print_json(&serde_json::json!({ done: worked }))?;
    }
    failure.map_or(Ok(0), Err)
}

/// Asks the home of a container for something that may take long.
fn patiently(name: &str, request: ManageRequest) -> Result<Option<ManageResponse>, Failure> {
    let client = home_of(name)?;
    client.be_patient()?;
    ask(&client, request)
}

/// `dvs stop` and `dvs restart`.
///
/// # Errors
/// See [`each`].
pub(crate) fn stop(arguments: &StopArguments, restart: bool) -> Result<u8, Failure> {
    let signal = arguments.signal.as_deref().map(named_signals::signal).transpose()?;
    let done = if restart { "restarted" } else { "stopped" };
    each(&arguments.names.containers, &arguments.names.list, done, |name| {
        let name = name.to_owned();
        patiently(
            &name.clone(),
            ManageRequest::Stop { name, signal, seconds: arguments.time, restart },
        )
        .map(|_| ())
    })
}

/// `dvs kill`.
///
/// # Errors
/// See [`each`].
pub(crate) fn kill(arguments: &KillArguments) -> Result<u8, Failure> {
    let signal = named_signals::signal(&arguments.signal)?;
    each(&arguments.names.containers, &arguments.names.list, "killed", |name| {
        let name = name.to_owned();
        patiently(&name.clone(), ManageRequest::Kill { name, signal }).map(|_| ())
    })
}

/// `dvs rm`, `dvs dc rm`.
///
/// # Errors
/// See [`each`].
pub(crate) fn remove(arguments: &RemoveArguments) -> Result<u8, Failure> {
    remove_each(&arguments.names.containers, &arguments.names.list, arguments.force)
}

/// The same.
///
/// # Errors
/// See [`each`].
pub(crate) fn remove_each(
    containers: &[String],
    list: &ListArguments,
    force: bool,
) -> Result<u8, Failure> {
    each(containers, list, "removed", |name| {
        let name = name.to_owned();
        patiently(&name.clone(), ManageRequest::Remove { name, force }).map(|_| ())
    })
}

/// `dvs dc prune`.
///
/// # Errors
/// See [`each`].
pub(crate) fn prune(list: &ListArguments) -> Result<u8, Failure> {
    let ended = |container: &ContainerDetails| container.state == ContainerState::Exited;
    let names: Vec<String> =
        of_all(true).into_iter().filter(ended).map(|container| container.info.name).collect();
    remove_each(&names, list, false)
}

/// `dvs start`.
///
/// # Errors
/// See [`each`].
pub(crate) fn start(arguments: &NamesArguments) -> Result<u8, Failure> {
    each(&arguments.containers, &arguments.list, "started", |name| {
        patiently(name, ManageRequest::Start(name.to_owned())).map(|_| ())
    })
}

/// `dvs pause` and `dvs unpause`.
///
/// # Errors
/// See [`each`].
pub(crate) fn freeze(arguments: &NamesArguments, frozen: bool) -> Result<u8, Failure> {
    let done = if frozen { "paused" } else { "unpaused" };
    each(&arguments.containers, &arguments.list, done, |name| {
        let name = name.to_owned();
        patiently(&name.clone(), ManageRequest::Freeze { name, frozen }).map(|_| ())
    })
}

/// `dvs rename`.
///
/// # Errors
/// When there is no such container, or the new name is no good or taken.
pub(crate) fn rename(from: &str, to: &str) -> Result<u8, Failure> {
    names::check("container", to)?;
    let reached = nodes::all(&Folders::of_process());
    let mut home = None;
    for (client, _) in reached.nodes {
        let list = of_node(&client, true)?;
        if list.iter().any(|found| found.info.name == to) {
            return Err(Failure::new(format!(
                "a container called {to} is there already; choose another name"
            )));
        }
        if list.iter().any(|found| found.info.name == from) {
            home = Some(client);
        }
    }
    let client = match home {
        Some(client) => client,
        None => home_of(from)?,
    };
    ask(&client, ManageRequest::Rename { name: from.to_owned(), to: to.to_owned() })?;
    Ok(0)
}

/// `dvs wait`: prints the exit code of each.
///
/// # Errors
/// When there is no such container, or its daemon ends.
pub(crate) fn wait(arguments: &NamesArguments) -> Result<u8, Failure> {
    let mut codes = Vec::new();
    for name in &arguments.containers {
        let client = home_of(name)?;
        client.be_patient()?;
        match ask(&client, ManageRequest::Wait(name.clone()))? {
            Some(ManageResponse::Exit(code)) => {
                if !arguments.list.json {
                    output::print_line(&code.to_string())?;
                }
                codes.push(serde_json::json!({ "container": name, "exit_code": code }));
            }
            _ => return Err(Failure::new(format!("no exit status of {name}"))),
        }
    }
    if arguments.list.json {
        output::print_json(&codes.into())?;
    }
    Ok(0)
}

/// `dvs update`.
///
/// # Errors
/// See [`each`]; and when nothing is to be changed.
pub(crate) fn update(arguments: &UpdateArguments) -> Result<u8, Failure> {
    let limits = NewLimits {
        millicpus: arguments.cpus.as_deref().map(quantities::millicpus).transpose()?,
        memory: arguments.memory.as_deref().map(quantities::memory).transpose()?,
        pids: arguments.pids,
        restart: arguments.restart.as_deref().map(quantities::restart).transpose()?,
    };
    if limits == NewLimits::default() {
        return Err(Failure::new(
            "nothing to change; give --cpus, --memory, --pids or --restart; see: dvs update --help",
        ));
    }
    each(&arguments.names.containers, &arguments.names.list, "updated", |name| {
        let request = ManageRequest::Update { name: name.to_owned(), limits: limits.clone() };
        if let Some(ManageResponse::Warnings(warnings)) = patiently(name, request)? {
            warnings.iter().for_each(|warning| print_warning(&format!("{name}: {warning}")));
        }
        Ok(())
    })
}
