//! Clusters of hosts: made by the first node, joined by a token, left, and kept clean.

use crate::arguments::{
    ListArguments, NodeJoinArguments, NodeStartArguments, NodeTokenArguments, PlaceArguments,
};
use crate::failure::Failure;
use crate::nodes::{check_machine, print_nodes, staying};
use crate::{output, quantities};
use dvs_node::client::Client;
use dvs_node::cluster;
use dvs_node::folders::{Folders, reason};
use dvs_node::membership::store::{Identity, Store};
use dvs_node::membership::token::Token;
use dvs_node::membership::{self, DEFAULT_PORT};
use dvs_node::protocol::{NodeInfo, Request, Response};
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

/// Most bytes of a file with a token.
const MAX_TOKEN_FILE: u64 = 4096;

/// Where the node is to be found, from the command line.
fn place(arguments: &PlaceArguments) -> Result<(Option<SocketAddr>, Option<SocketAddr>), Failure> {
    let read = |word: &Option<String>| {
        word.as_ref().map(|word| membership::resolve(word, DEFAULT_PORT)).transpose()
    };
    Ok((read(&arguments.listen)?, read(&arguments.advertise)?))
}

/// Starts this host's node of a cluster of hosts, if it has a place in one or is to make one; `None`:
/// nodes of this machine alone are wanted.
///
/// # Errors
/// When what is asked for does not fit what the host is.
pub(crate) fn start(
    arguments: &NodeStartArguments,
    folders: &Folders,
    running: &[NodeInfo],
) -> Result<Option<NodeInfo>, Failure> {
    let store = Store::below(&folders.state);
    let (listen, advertise) = place(&arguments.place)?;
    let known = store.identity()?;
    if known.is_none() && listen.is_none() {
        if advertise.is_some() {
            return Err(Failure::new("--advertise is of use only with --listen"));
        }
        return Ok(None);
    }
    if arguments.count > 1 {
        return Err(Failure::new(
            "a host has one node in a cluster of hosts; leave --count away, or leave the cluster: dvs node leave",
        ));
    }
    if let Some(other) = running.first() {
        return Err(Failure::new(format!(
            "node {} runs on this host already, and a host has one node in a cluster of hosts; stop it first: dvs node stop {}",
            other.name, other.name
        )));
    }
    let identity = match known {
        Some(identity) => moved(&store, identity, arguments, listen, advertise)?,
        None => {
            let listen = listen.ok_or_else(|| Failure::new("--listen is missing"))?;
            folders.prepare()?;
            membership::create(&store, arguments.name.as_deref(), listen, advertise)?
        }
    };
    let offset = arguments.clock_offset.unwrap_or(0);
    cluster::start_member(folders, &identity, offset).map(Some)
}

/// A node that starts again may do so at another address, but not under another name.
fn moved(
    store: &Store,
    identity: Identity,
    arguments: &NodeStartArguments,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
) -> Result<Identity, Failure> {
    if arguments.name.as_ref().is_some_and(|name| *name != identity.name) {
        return Err(Failure::new(format!(
            "this host is node {} of its cluster; leave --name away",
            identity.name
        )));
    }
    if listen.is_none() && advertise.is_none() {
        return Ok(identity);
    }
    let mut moved = identity;
    moved.advertise = advertise.or(moved.advertise.filter(|_| listen.is_none()));
    moved.listen = listen.unwrap_or(moved.listen);
    moved.check()?;
    moved.save(store)?;
    Ok(moved)
}

/// The running node of this host's place in a cluster.
fn member() -> Result<Client, Failure> {
    let folders = Folders::of_process();
    let running = staying(&folders)?;
    let member = running.nodes.into_iter().find(|(_, info)| info.address.is_some());
    if let Some((client, _)) = member {
        return Ok(client);
    }
    Err(match Store::below(&folders.state).identity()? {
        Some(identity) => Failure::new(format!(
            "node {} of this host does not run; start it: dvs node start",
            identity.name
        )),
        None => Failure::new(
            "this host belongs to no cluster of hosts; make one: dvs node start --listen IP:PORT, or join one: dvs node join",
        ),
    })
}

/// `dvs node token`.
///
/// # Errors
/// When this host does not decide who joins.
pub(crate) fn token(arguments: &NodeTokenArguments) -> Result<u8, Failure> {
    let life = quantities::seconds(&arguments.life)?;
    let client = member()?;
    let word = match client.ask(&Request::Token { life, uses: arguments.uses })? {
        Response::Token(word) => word,
        other => return Err(client.unexpected(&other)),
    };
    if arguments.list.json {
        let uses = arguments.uses;
        let value = serde_json::json!({ "token": word, "seconds": life, "uses": uses });
        output::print_json(&value)?;
    } else {
        output::print_line(&word)?;
    }
    Ok(0)
}

/// `dvs node join`.
///
/// # Errors
/// When the cluster does not let this host in, or it has a place already.
pub(crate) fn join(arguments: &NodeJoinArguments) -> Result<u8, Failure> {
    let folders = Folders::of_process();
    folders.clean_stale();
    check_machine()?;
    let store = Store::below(&folders.state);
    if let Some(identity) = store.identity()? {
        return Err(Failure::new(format!(
            "this host is node {} of a cluster already; start it (dvs node start), or leave that cluster first (dvs node leave)",
            identity.name
        )));
    }
    if let Some((_, other)) = staying(&folders)?.nodes.first() {
        return Err(Failure::new(format!(
            "node {} runs on this host already, and a host has one node in a cluster of hosts; stop it first: dvs node stop {}",
            other.name, other.name
        )));
    }
    let (listen, advertise) = place(&arguments.place)?;
    let at = arguments.address.as_ref().map(|word| membership::resolve(word, DEFAULT_PORT));
    let word = match (&arguments.token, &arguments.token_file) {
        (Some(word), _) => word.clone(),
        (None, Some(path)) => read_token(path)?,
        (None, None) => return Err(Failure::new("a token is needed: --token-file FILE")),
    };
    let token = Token::parse(&word)?;
    folders.prepare()?;
    let name = arguments.name.as_deref();
    let identity = membership::join(&store, &token, at.transpose()?, name, listen, advertise)?;
    let info = cluster::start_member(&folders, &identity, arguments.clock_offset.unwrap_or(0))?;
    print_nodes(&[info], &arguments.list)?;
    Ok(0)
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_TOKEN_FILE).read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_TOKEN_FILE).read_to_string(&mut text))
    };
    match read {
        Ok(_) => Ok(text),
        Err(error) => {
            Err(Failure::new(format!("--token-file {}: {}", path.display(), reason(&error))))
        }
    }
}

/// `dvs node rm`.
///
/// # Errors
/// When one of them is no member, or this host does not decide.
pub(crate) fn remove(names: &[String], list: &ListArguments) -> Result<u8, Failure> {
    let client = member()?;
    for name in names {
        client.ask(&Request::RemoveNode(name.clone()))?;
        if !list.json {
            output::print_line(name)?;
        }
    }
    if list.json {
        output::print_json(&serde_json::json!({ "removed": names }))?;
    }
    Ok(0)
}

/// `dvs node leave`.
///
/// # Errors
/// When the node runs, or the authority would be lost.
pub(crate) fn leave(force: bool, list: &ListArguments) -> Result<u8, Failure> {
    let folders = Folders::of_process();
    let store = Store::below(&folders.state);
    let identity = store.identity();
    let name = match &identity {
        Ok(Some(identity)) => identity.name.clone(),
        Ok(None) => return Err(Failure::new("this host belongs to no cluster of hosts")),
        Err(_) if force => String::new(),
        Err(failure) => return Err(failure.clone()),
    };
    let running = staying(&folders)?;
    if running.nodes.iter().any(|(_, info)| info.address.is_some()) {
        return Err(Failure::new(format!("node {name} runs; stop it first: dvs node stop {name}")));
    }
    let decides = matches!(&identity, Ok(Some(identity)) if identity.node == identity.registrar);
    if decides && !force {
        return Err(Failure::new(format!(
            "{name} keeps the cluster's authority: without it no host can join or be removed any more; add --force if the cluster is to end"
        )));
    }
    store.forget()?;
    folders.tidy();
    if list.json {
        output::print_json(&serde_json::json!({ "left": name }))?;
    } else {
        output::print_line(&name)?;
    }
    Ok(0)
}

/// `dvs node rotate`.
///
/// # Errors
/// When the node that certifies cannot be reached.
pub(crate) fn rotate(list: &ListArguments) -> Result<u8, Failure> {
    let client = member()?;
    client.ask(&Request::Rotate)?;
    if list.json {
        output::print_json(&serde_json::json!({ "rotated": true }))?;
    }
    Ok(0)
}
