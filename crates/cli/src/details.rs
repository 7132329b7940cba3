//! Lists of containers (`dvs dc ls`) and everything about one (`dvs inspect`).

use crate::container_arguments::{ContainersArguments, NamesArguments};
use crate::containers;
use crate::failure::Failure;
use crate::output::{self, Table};
use crate::times;
use dvs_node::managing::{ContainerDetails, ContainerState, Health};
use dvs_node::protocol::{NetworkOption, ShareMode, Text};

/// `dvs dc ls`.
///
/// # Errors
/// For a filter that is none.
pub(crate) fn list(arguments: &ContainersArguments) -> Result<u8, Failure> {
    let filters = Filters::parse(&arguments.filter)?;
    // A filter for ended ones looks at ended ones.
    let all = arguments.all || filters.asks_for_ended();
    let mut found = containers::of_all(all);
    found.retain(|container| filters.fit(container));
    if arguments.quiet {
        for container in &found {
            output::print_line(&container.info.name)?;
        }
        return Ok(0);
    }
    if arguments.list.json {
        let rows: Vec<serde_json::Value> = found.iter().map(json).collect();
        output::print_json(&rows.into())?;
        return Ok(0);
    }
    table(&found, now()).print()?;
    Ok(0)
}

fn now() -> u64 {
    u64::try_from(dvs_sys::clock::real() / 1_000_000_000).unwrap_or(0)
}

fn table(found: &[ContainerDetails], now: u64) -> Table {
    let mut table =
        Table::new(&["CONTAINER", "ID", "STATUS", "NODES", "IMAGE", "PLACE", "COMMAND"]);
    for container in found {
        let info = &container.info;
        table.row(vec![
            info.name.clone(),
            info.id.clone(),
            status(container, now),
            info.nodes.join(","),
            info.image.clone(),
            info.placement.clone(),
            info.command.clone(),
        ]);
    }
    table
}

/// `Up 5 s (healthy)`, `Exited (3) 2 min ago`.
fn status(container: &ContainerDetails, now: u64) -> String {
    let since = |time: Option<u64>| times::age(now.saturating_sub(time.unwrap_or(now)));
    let code = container.exit.map_or_else(String::new, |code| format!(" ({code})"));
    match container.state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running => {
            let health = match container.health {
                Health::None => String::new(),
                health => format!(" ({})", health.word()),
            };
            format!("Up {}{health}", since(container.started))
        }
        ContainerState::Paused => format!("Up {} (paused)", since(container.started)),
        ContainerState::Restarting => {
            format!("Restarting{code} {} ago", since(container.finished))
        }
        ContainerState::Exited => format!("Exited{code} {} ago", since(container.finished)),
    }
}

/// One container of the list.
pub(crate) fn json(container: &ContainerDetails) -> serde_json::Value {
    let info = &container.info;
    serde_json::json!({
        "container": info.name,
        "id": info.id,
        "state": container.state.word(),
        "exit_code": container.exit,
        "error": container.error,
        "pid": container.pid,
        "detached": container.detached,
        "restarts": container.restarts,
        "health": container.health.word(),
        "started": container.started,
        "finished": container.finished,
        "created": info.created,
        "nodes": info.nodes,
        "image": info.image,
        "place": info.placement,
        "command": info.command,
        "labels": labels(container),
    })
}

fn labels(container: &ContainerDetails) -> serde_json::Value {
    let labels = container.options.labels.iter();
    labels
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// `dvs inspect`: JSON, as docker's.
///
/// # Errors
/// When there is no such container.
pub(crate) fn inspect(arguments: &NamesArguments) -> Result<u8, Failure> {
    let mut all = Vec::new();
    for name in &arguments.containers {
        let (_, container) = containers::find(name)?;
        all.push(everything(&container));
    }
    output::print_json(&all.into())?;
    Ok(0)
}

fn everything(container: &ContainerDetails) -> serde_json::Value {
    let mut value = json(container);
    let options = &container.options;
    let shares: Vec<serde_json::Value> = options
        .shares
        .iter()
        .map(|share| {
            serde_json::json!({
                "host": share.host,
                "path": share.path,
                "mode": match share.mode {
                    ShareMode::ReadWrite => "rw",
                    ShareMode::ReadOnly => "ro",
                    ShareMode::CopyOnWrite => "cow",
                },
            })
        })
        .collect();
    let when = |time: Option<u64>| time.map(times::shown_seconds);
    value["created_at"] = times::shown_seconds(container.info.created).into();
    value["started_at"] = when(container.started).into();
    value["finished_at"] = when(container.finished).into();
    value["hostname"] =
        options.hostname.clone().unwrap_or_else(|| container.info.name.clone()).into();
    value["network"] = match options.network {
        NetworkOption::None => "none",
        NetworkOption::Dc => "dc",
        NetworkOption::Host => "host",
    }
    .into();
    value["volumes"] = shares.into();
    value["limits"] = serde_json::json!({
        "cpus": options.millicpus.map(|milli| f64::from(milli) / 1000.0),
        "memory_bytes": options.memory,
        "pids": options.pids,
    });
    value["stop_signal"] = options.stop_signal.unwrap_or(libc::SIGTERM).into();
    value["stop_seconds"] = options.stop_seconds.unwrap_or(dvs_node::managing::STOP_SECONDS).into();
    value["restart"] = container.detached_options.restart.to_string().into();
    value["remove_at_end"] = container.detached_options.remove_at_end.into();
    if let Some(health) = &container.detached_options.health {
        value["health_check"] = serde_json::json!({
            "command": health.command,
            "interval_seconds": seconds(health.interval),
            "timeout_seconds": seconds(health.timeout),
            "start_period_seconds": seconds(health.start_period),
            "retries": health.retries,
        });
    }
    if let Some(program) = &container.program {
        let text = |words: &[Text]| -> Vec<String> {
            words.iter().map(|word| String::from_utf8_lossy(&word.0).into_owned()).collect()
        };
        value["program"] = serde_json::json!({
            "arguments": text(&program.arguments),
            "environment": text(&program.environment),
            "directory": program.directory,
            "user": program.user,
            "terminal": program.terminal.is_some(),
        });
    }
    value
}

fn seconds(milliseconds: u64) -> f64 {
    // Exact: far below 2^53.
    milliseconds as f64 / 1000.0
}

/// `--filter`: of one kind any, of different kinds all.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filters(Vec<(String, String)>);

impl Filters {
    fn parse(words: &[String]) -> Result<Filters, Failure> {
        const KINDS: [&str; 6] = ["name", "status", "exited", "health", "node", "label"];
        const STATES: [&str; 5] = ["created", "running", "paused", "restarting", "exited"];
        let mut filters = Vec::new();
        for word in words {
            let wrong = |what: String| Failure::new(format!("--filter {word}: {what}"));
            let (kind, value) =
                word.split_once('=').filter(|(kind, _)| KINDS.contains(kind)).ok_or_else(|| {
                    wrong(format!("write KIND=VALUE; kinds are {}", KINDS.join(", ")))
                })?;
            if kind == "status" && !STATES.contains(&value) {
                return Err(wrong(format!("states are {}", STATES.join(", "))));
            }
            if kind == "exited" && value.parse::<u8>().is_err() {
                return Err(wrong("an exit code is a number from 0 to 255".to_owned()));
            }
            filters.push((kind.to_owned(), value.to_owned()));
        }
        Ok(Filters(filters))
    }

    fn asks_for_ended(&self) -> bool {
        self.0
            .iter()
            .any(|(kind, value)| kind == "exited" || (kind == "status" && value != "running"))
    }

    fn fit(&self, container: &ContainerDetails) -> bool {
        self.0.iter().all(|(kind, _)| {
            let mut same = self.0.iter().filter(|(other, _)| other == kind);
            same.any(|(kind, value)| fits(container, kind, value))
        })
    }
}

fn fits(container: &ContainerDetails, kind: &str, value: &str) -> bool {
    match kind {
        "name" => container.info.name.contains(value),
        "status" => container.state.word() == value,
        "exited" => {
            container.state == ContainerState::Exited
                && container.exit.map(|code| code.to_string()).as_deref() == Some(value)
        }
        "health" => container.health.word() == value,
        "node" => container.info.nodes.iter().any(|node| node == value),
        "label" => {
            let (name, wanted) = match value.split_once('=') {
                Some((name, wanted)) => (name, Some(wanted)),
                None => (value, None),
            };
            let mut labels = container.options.labels.iter();
            labels.any(|(label, has)| label == name && wanted.is_none_or(|wanted| has == wanted))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvs_node::managing::DetachedOptions;
    use dvs_node::protocol::{ContainerInfo, ContainerOptions};

    fn container(state: ContainerState) -> ContainerDetails {
        ContainerDetails {
            info: ContainerInfo {
                name: "web".into(),
                id: "ab".into(),
                nodes: vec!["n1".into()],
                image: "host".into(),
                placement: "load".into(),
                command: "sleep 9".into(),
                created: 100,
            },
            state,
            detached: true,
            pid: None,
            exit: Some(3),
            error: None,
            started: Some(100),
            finished: Some(150),
            restarts: 0,
            health: Health::Healthy,
            options: ContainerOptions {
                labels: vec![("app".into(), "shop".into())],
                ..ContainerOptions::default()
            },
            detached_options: DetachedOptions::default(),
            program: None,
        }
    }

    #[test]
    fn statuses_speak_as_docker_does() {
        let of = |state| status(&container(state), 160);
        assert_eq!(of(ContainerState::Running), "Up 60 s (healthy)");
        assert_eq!(of(ContainerState::Paused), "Up 60 s (paused)");
        assert_eq!(of(ContainerState::Exited), "Exited (3) 10 s ago");
        assert_eq!(of(ContainerState::Restarting), "Restarting (3) 10 s ago");
    }

    #[test]
    fn filters_of_one_kind_are_any_and_of_several_all() {
        let fit = |words: &[&str], state| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            Filters::parse(&words).unwrap().fit(&container(state))
        };
        let exited = ContainerState::Exited;
        assert!(fit(&[], exited));
        assert!(fit(&["name=we", "status=exited"], exited));
        assert!(fit(&["status=running", "status=exited"], exited));
        assert!(!fit(&["status=running", "name=web"], exited));
        assert!(fit(&["exited=3"], exited) && !fit(&["exited=0"], exited));
        assert!(fit(&["label=app"], exited) && fit(&["label=app=shop"], exited));
        assert!(!fit(&["label=app=x"], exited) && fit(&["node=n1"], exited));
        for wrong in ["x", "foo=1", "status=up", "exited=x"] {
            let failure = Filters::parse(&[wrong.to_owned()]).unwrap_err();
            assert!(failure.message.starts_with(&format!("--filter {wrong}:")), "{failure}");
        }
    }

    #[test]
    fn an_inspection_has_everything() {
        let value = everything(&container(ContainerState::Exited));
        assert_eq!(value["exit_code"], 3);
        assert_eq!(value["labels"]["app"], "shop");
        assert_eq!(value["created_at"], "1970-01-01T00:01:40Z");
        assert_eq!(value["restart"], "no");
        assert_eq!(value["hostname"], "web");
    }
}
