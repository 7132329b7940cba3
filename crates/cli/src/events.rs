//! `dvs events`: what happens to containers, told by all nodes.

use crate::container_arguments::EventsArguments;
use crate::failure::Failure;
use crate::nodes;
use crate::output;
use crate::times;
use dvs_node::client::Client;
use dvs_node::folders::Folders;
use dvs_node::managing::{Event, ManageRequest, ManageResponse};
use dvs_node::protocol::{Request, Response};
use dvs_sys::clock;
use dvs_sys::descriptor::{self, Poll};
use std::os::fd::AsFd;

/// `dvs events`.
///
/// # Errors
/// When no node runs, or one ends meanwhile.
pub(crate) fn events(arguments: &EventsArguments) -> Result<u8, Failure> {
    let now = clock::real();
    let moment = |option: &str, word: &Option<String>| {
        word.as_deref().map(|word| times::moment(option, word, now)).transpose()
    };
    let since = moment("--since", &arguments.since)?;
    let until = moment("--until", &arguments.until)?;
    let filters = Filters::parse(&arguments.filter)?;
    let reached = nodes::all(&Folders::of_process());
    if let Some(failure) = reached.failures.into_iter().next() {
        return Err(failure);
    }
    let clients: Vec<Client> = reached.nodes.into_iter().map(|(client, _)| client).collect();
    if clients.is_empty() {
        return Err(Failure::new("no node runs; start one: dvs node start"));
    }
    // The past needs no waiting; the future is waited for until it is over.
    let follow = until.is_none_or(|until| until > now);
    let mut past = Vec::new();
    for client in &clients {
        client.be_patient()?;
        client.send(&Request::Manage(ManageRequest::Events { since, follow }), &[])?;
        past.extend(next(client)?.unwrap_or_default());
    }
    past.sort_by_key(|event| event.time);
    let fits = |event: &Event| filters.fit(event) && until.is_none_or(|until| event.time <= until);
    let mut heard = past.iter().filter(|event| fits(event)).try_fold(true, |heard, event| {
        Ok::<bool, Failure>(heard && print(event, arguments.list.json)?)
    })?;
    while follow && heard {
        let limit = match until.map(|until| until.saturating_sub(clock::real())) {
            Some(rest) if rest <= 0 => break,
            Some(rest) => Some(u32::try_from(rest / 1_000_000 + 1).unwrap_or(u32::MAX)),
            None => None,
        };
        let mut waits: Vec<Poll<'_>> =
            clients.iter().map(|client| Poll::readable(client.as_fd())).collect();
        descriptor::poll(&mut waits, limit)
            .map_err(|error| Failure::new(format!("waiting for events: {error}")))?;
        let ready: Vec<bool> = waits.iter().map(|wait| wait.ready != 0).collect();
        for (client, _) in clients.iter().zip(&ready).filter(|(_, ready)| **ready) {
            for event in next(client)?.unwrap_or_default().iter().filter(|event| fits(event)) {
                heard = heard && print(event, arguments.list.json)?;
            }
        }
    }
    Ok(0)
}

fn next(client: &Client) -> Result<Option<Vec<Event>>, Failure> {
    match client.receive()?.0 {
        Response::Manage(ManageResponse::Events(events)) => Ok(Some(events)),
        Response::Done => Ok(None),
        other => Err(client.unexpected(&other)),
    }
}

fn print(event: &Event, json: bool) -> Result<bool, Failure> {
    let line = if json { as_json(event).to_string() } else { as_text(event) };
    output::print_listened(&format!("{}\n", crate::failure::one_line(&line)))
}

fn as_text(event: &Event) -> String {
    let mut more = vec![format!("node={}", event.node)];
    more.extend(event.attributes.iter().map(|(name, value)| format!("{name}={value}")));
    format!(
        "{} {} {} ({})",
        times::shown(event.time),
        event.action,
        event.container,
        more.join(", ")
    )
}

fn as_json(event: &Event) -> serde_json::Value {
    let attributes: serde_json::Map<String, serde_json::Value> =
        event.attributes.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    serde_json::json!({
        "time": times::shown(event.time),
        "action": event.action,
        "container": event.container,
        "node": event.node,
        "attributes": attributes,
    })
}

/// Of one kind any, of different kinds all.
struct Filters(Vec<(String, String)>);

impl Filters {
    fn parse(words: &[String]) -> Result<Filters, Failure> {
        const KINDS: [&str; 3] = ["container", "event", "node"];
        let parse = |word: &String| {
            let pair = word.split_once('=').filter(|(kind, _)| KINDS.contains(kind));
            pair.map(|(kind, value)| (kind.to_owned(), value.to_owned())).ok_or_else(|| {
                Failure::new(format!(
                    "--filter {word}: write KIND=VALUE; kinds are {}",
                    KINDS.join(", ")
                ))
            })
        };
        words.iter().map(parse).collect::<Result<_, _>>().map(Filters)
    }

    fn fit(&self, event: &Event) -> bool {
        let has = |kind: &str| match kind {
            "container" => event.container.as_str(),
            "event" => event.action.as_str(),
            _ => event.node.as_str(),
        };
        self.0.iter().all(|(kind, _)| {
            let mut same = self.0.iter().filter(|(other, _)| other == kind);
            same.any(|(kind, value)| has(kind) == value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_in_both_forms() {
        let event = Event {
            time: 0,
            action: "die".into(),
            container: "web".into(),
            node: "n1".into(),
            attributes: vec![("exitCode".into(), "3".into())],
        };
        assert_eq!(as_text(&event), "1970-01-01T00:00:00.000000000Z die web (node=n1, exitCode=3)");
        assert_eq!(as_json(&event)["attributes"]["exitCode"], "3");
        let fit = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            Filters::parse(&words).unwrap().fit(&event)
        };
        assert!(fit(&[]) && fit(&["event=die", "event=start", "container=web"]));
        assert!(!fit(&["event=die", "container=x"]) && fit(&["node=n1"]));
        assert!(Filters::parse(&["x=1".into()]).is_err());
    }
}
