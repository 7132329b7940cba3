//! A container's part on a node that is not its home: built, introduced, ended at the home's word.

use super::links::RemoteFiles;
use super::manager::{ManagerClient, Way};
use super::messages::{Answer, Description, MAX_PROCESSES};
use super::part::{Part, Site};
use crate::host::Host;
use crate::protocol::Failure;
use dvs_dvk::{DcId, MessageKind, NodeId};
use dvs_fs::messages::{ClientId, Notice};
use dvs_fs_client::{Client, ClientOptions};
use dvs_sys::clock;
use std::sync::Arc;

/// Builds the part.
///
/// # Errors
/// A sentence; nothing is left then.
pub(crate) fn join(host: &Host, description: Description) -> Result<Part, Failure> {
    let arrived = (clock::monotonic(), clock::boot());
    let node = host.node();
    let description = Arc::new(description);
    let dc = host.dvk().dc(DcId(description.id), NodeId(description.home));
    let built = build(host, &description, &dc, arrived);
    if built.is_err() {
        dc.close();
        log::warn!("no part of {} on node {node}", description.name);
    }
    built
}

fn build(
    host: &Host,
    description: &Arc<Description>,
    dc: &dvs_dvk::Dc,
    arrived: (i64, i64),
) -> Result<Part, Failure> {
    let node = host.node();
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("container {} on node {node}: {error}", description.name))
    };
    let members: Vec<NodeId> =
        description.members.iter().map(|(member, _)| NodeId(*member)).collect();
    dc.restrict(&members);
    let endpoint = dc.bind(&format!("fs-client@{node}")).map_err(|error| failed(&error))?;
    let incarnation = host.dvk().incarnation();
    let transport = Arc::new(RemoteFiles::new(endpoint.clone(), description.files));
    let id = ClientId { node, incarnation };
    let client =
        Client::connect(transport, id, ClientOptions::default()).map_err(|error| failed(&error))?;
    let weak = Arc::downgrade(&client);
    endpoint.set_handler(move |message| {
        let Some(client) = weak.upgrade().filter(|_| message.kind == MessageKind::Post) else {
            return;
        };
        match super::messages::decode::<Notice>(&message.body) {
            Ok(notice) => client.deliver(notice),
            Err(error) => log::error!("a notice of the file-system server: {error}"),
        }
    });
    let manager = dc.endpoint().map_err(|error| failed(&error))?;
    let way = Way::There(manager, description.manager);
    Part::build(Site {
        node,
        description: Arc::clone(description),
        dc: dc.clone(),
        client,
        manager: Arc::new(ManagerClient::new(node, incarnation, way)),
        millicpus: host.millicpus(),
        warm: host.warm().cloned(),
        own_clock_offset: host.own_clock_offset(),
        arrived,
    })
}

/// Its processes, as an answer.
pub(crate) fn processes(part: &Part) -> Answer {
    let name_of = |node: u16| {
        let member = part.description.members.iter().find(|(member, _)| *member == node);
        member.map_or_else(|| format!("node {node}"), |(_, name)| name.clone())
    };
    let mut list = part.processes(&name_of);
    list.truncate(MAX_PROCESSES);
    Answer::Processes(list)
}
