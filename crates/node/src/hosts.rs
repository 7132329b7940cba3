//! What a daemon does as a member of a cluster of hosts: finds the others, keeps the links, follows
//! and spreads the roster, replaces its certificate.

use crate::dc::messages::{Answer, Call};
use crate::host::Host;
use crate::membership::Membership;
use crate::protocol::{Failure, LinkInfo, NodeInfo};
use dvs_dvk::core::hello::HelloError;
use dvs_dvk::tls::NodeKey;
use dvs_dvk::{ConnectError, Lane, LaneStatistics, Node, NodeId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one attempt to connect may take.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a question to another daemon may take.
const ASK_PATIENCE: Duration = Duration::from_secs(10);
/// How long links may take to be made anew with a new certificate.
const RELINK_PATIENCE: Duration = Duration::from_secs(15);

/// The host's place in a cluster.
///
/// # Errors
/// When it has none.
pub(crate) fn membership(host: &Host) -> Result<&Arc<Membership>, Failure> {
    host.membership().ok_or_else(|| {
        Failure::new(
            "the nodes of this host belong to no cluster of hosts; make one: dvs node start --listen IP:PORT, or join one: dvs node join",
        )
    })
}

/// Starts the thread that finds the other members.
///
/// # Errors
/// When there is no thread.
pub(crate) fn keep_linked(host: &Arc<Host>) -> Result<(), Failure> {
    let Some(membership) = host.membership() else { return Ok(()) };
    for (node, name, _) in membership.members() {
        host.name_node(node, name);
    }
    let (host, membership) = (Arc::downgrade(host), Arc::clone(membership));
    let dvk = host.upgrade().map(|host| host.dvk().clone());
    let body = move || {
        let Some(dvk) = dvk else { return };
        while let Some(due) = membership.due(&dvk) {
            let Some(host) = host.upgrade() else { return };
            std::thread::scope(|scope| {
                for (node, name, address) in &due.dial {
                    scope.spawn(|| dial(&host, *node, name, *address));
                }
                for (node, life) in &due.tell {
                    scope.spawn(|| tell(&host, &membership, *node, *life));
                }
            });
            if due.renew
                && let Err(failure) = replace_certificate(&host, &membership)
            {
                log::warn!("the certificate was not replaced: {failure}");
            }
        }
    };
    let spawned = std::thread::Builder::new().name("members".into()).spawn(body);
    spawned
        .map(drop)
        .map_err(|error| Failure::new(format!("no thread for the cluster's members: {error}")))
}

fn dial(host: &Host, node: u16, name: &str, address: SocketAddr) {
    match host.dvk().connect(node, address, DIAL_PATIENCE) {
        Ok(()) => match host.greet(node, name) {
            Ok(()) => log::info!("linked to node {name} at {address}"),
            Err(failure) => log::warn!("{failure}"),
        },
        Err(ConnectError::Handshake { error: HelloError::Ended { node }, .. })
            if node == NodeId(host.node()) =>
        {
            host.life_is_over();
        }
        Err(error) => {
            log::info!("node {name} is not reached: {error}");
            if let ConnectError::Handshake { error: HelloError::Revoked { node }, .. } = error
                && node == NodeId(host.node())
                && let Some(membership) = host.membership()
            {
                membership.refused();
            }
        }
    }
}

fn tell(host: &Host, membership: &Membership, node: u16, life: u64) {
    let roster = membership.roster();
    let version = roster.version;
    let call = || Call::Roster(Box::new(roster.clone()));
    for (_, answer) in host.ask_all(&[node], ASK_PATIENCE, call).wait() {
        match answer {
            Ok(Answer::Done) => membership.told(node, life, version),
            other => {
                log::info!("{}", host.failure(node, &other));
                membership.not_done();
            }
        }
    }
}

/// What members ask of each other.
pub(crate) fn answer(host: &Host, from: u16, call: Call) -> Answer {
    let done = |result: Result<(), Failure>| match result {
        Ok(()) => Answer::Done,
        Err(failure) => Answer::Failed(failure.message),
    };
    match call {
        Call::Info => Answer::Info(Box::new(host.info())),
        Call::Roster(roster) => done(membership(host).map(|membership| {
            membership.follow(from, *roster, host.dvk());
            for (node, name, _) in membership.members() {
                host.name_node(node, name);
            }
        })),
        Call::Renew { public } => {
            match membership(host).and_then(|membership| membership.certify(from, &public)) {
                Ok(issued) => {
                    Answer::Certificate { certificate: issued.certificate, ends: issued.ends }
                }
                Err(failure) => Answer::Failed(failure.message),
            }
        }
        Call::Renewed => {
            done(membership(host).and_then(|membership| membership.retire(from, host.dvk())))
        }
        _ => Answer::Failed("a question that has no place here".into()),
    }
}

/// Removes a member for good.
///
/// # Errors
/// When it is none, or this node does not decide.
pub(crate) fn remove(host: &Host, name: &str) -> Result<(), Failure> {
    membership(host)?.remove(name, host.dvk()).map(drop)
}

/// Replaces the node's certificate and key, makes its links anew with them, and has the old
/// certificate revoked.
///
/// # Errors
/// When the registrar cannot be asked; then the old certificate is valid still.
pub(crate) fn rotate(host: &Host) -> Result<(), Failure> {
    let membership = membership(host)?;
    replace_certificate(host, membership)?;
    relink(host.dvk());
    let registrar = membership.registrar();
    if registrar == host.node() {
        return membership.retire(registrar, host.dvk());
    }
    match ask(host, registrar, || Call::Renewed)? {
        Answer::Done => Ok(()),
        other => Err(host.failure(registrar, &Ok(other))),
    }
}

fn ask(host: &Host, node: u16, call: impl Fn() -> Call) -> Result<Answer, Failure> {
    let answers = host.ask_all(&[node], ASK_PATIENCE, call).wait();
    let answer = answers.into_iter().next().map(|(_, answer)| answer);
    match answer {
        Some(Ok(Answer::Failed(sentence))) => Err(Failure::new(sentence)),
        Some(Ok(answer)) => Ok(answer),
        Some(failed) => Err(host.failure(node, &failed)),
        None => Err(Failure::new(format!("node {node} was not asked"))),
    }
}

fn replace_certificate(host: &Host, membership: &Arc<Membership>) -> Result<(), Failure> {
    let key = NodeKey::generate().map_err(|error| Failure::new(error.to_string()))?;
    let (node, registrar) = (host.node(), membership.registrar());
    let issued = if registrar == node {
        let issued = membership.certify(node, &key.public())?;
        (issued.certificate, issued.ends)
    } else {
        match ask(host, registrar, || Call::Renew { public: key.public() })? {
            Answer::Certificate { certificate, ends } => (certificate, ends),
            other => return Err(host.failure(registrar, &Ok(other))),
        }
    };
    membership.replace(host.dvk(), key.private(), issued)?;
    log::info!("the certificate was replaced");
    Ok(())
}

/// Cuts all connections, one after the other's return; sessions go on.
fn relink(dvk: &Node) {
    let counts = |node: NodeId| -> Vec<u64> {
        let lanes = Lane::ALL.iter().filter_map(|lane| dvk.link_statistics(node, *lane));
        lanes.map(|lane| lane.connections).collect()
    };
    let before: BTreeMap<NodeId, Vec<u64>> =
        dvk.peers().into_iter().map(|(node, _)| (node, counts(node))).collect();
    before.keys().for_each(|node| dvk.cut(*node));
    let until = Instant::now() + RELINK_PATIENCE;
    let waits = |node: &NodeId, before: &Vec<u64>| {
        let is_up = dvk.peers().iter().any(|(up, _)| up == node);
        is_up && counts(*node).iter().zip(before).any(|(now, before)| now <= before)
    };
    while before.iter().any(|(node, before)| waits(node, before)) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Figures of all links.
pub(crate) fn links(dvk: &Node) -> Vec<LinkInfo> {
    let of = |node: NodeId| {
        let lanes: Vec<LaneStatistics> =
            Lane::ALL.iter().filter_map(|lane| dvk.link_statistics(node, *lane)).collect();
        let sum = |figure: fn(&LaneStatistics) -> u64| lanes.iter().map(figure).sum();
        LinkInfo {
            node: node.0,
            open: lanes.iter().all(|lane| lane.open),
            connections: sum(|lane| lane.connections),
            sent: sum(|lane| lane.sent_frames - lane.resent.min(lane.sent_frames)),
            sent_bytes: sum(|lane| lane.sent_bytes),
            received: sum(|lane| lane.delivered),
            received_bytes: sum(|lane| lane.delivered_bytes),
            resent: sum(|lane| lane.resent),
            waiting_bytes: sum(|lane| lane.buffered_bytes as u64),
        }
    };
    dvk.peers().into_iter().map(|(node, _)| of(node)).collect()
}

/// All nodes of the cluster: this one, those that answer, and those that are only known.
pub(crate) fn nodes(host: &Host) -> Vec<NodeInfo> {
    let linked: Vec<u16> = host.dvk().peers().into_iter().map(|(node, _)| node.0).collect();
    let mut found = BTreeMap::from([(host.node(), host.info())]);
    for (node, answer) in host.ask_all(&linked, ASK_PATIENCE, || Call::Info).wait() {
        match answer {
            Ok(Answer::Info(info)) => {
                found.insert(node, *info);
            }
            other => log::info!("{}", host.failure(node, &other)),
        }
    }
    for (node, name, address) in host.membership().map(|m| m.members()).unwrap_or_default() {
        found.entry(node).or_insert_with(|| unreachable(node, name, address));
    }
    found.into_values().collect()
}

fn unreachable(id: u16, name: String, address: Option<SocketAddr>) -> NodeInfo {
    NodeInfo {
        name,
        id,
        pid: 0,
        version: String::new(),
        kernel: String::new(),
        millicpus: 0,
        memory: 0,
        started: 0,
        containers: 0,
        linked: Vec::new(),
        ephemeral: false,
        link: PathBuf::new(),
        address: address.map(|address| address.to_string()),
        links: Vec::new(),
        down: true,
        refused: 0,
        warning: None,
    }
}
