//! `dvs stats`: what containers use on each node, looked at again and again.

use crate::container_arguments::StatsArguments;
use crate::containers;
use crate::failure::{Failure, print_warning};
use crate::nodes;
use crate::output::{self, Table};
use dvs_node::client::Client;
use dvs_node::folders::Folders;
use dvs_node::managing::{ManageRequest, ManageResponse, Usage};
use dvs_sys::clock;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

/// First look and second one are so far apart where only one is wanted.
const SHORT: Duration = Duration::from_millis(500);

/// What is shown of a container on a node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// The second look.
    pub(crate) usage: Usage,
    /// CPU in hundredths of one, between the looks.
    pub(crate) cpu_percent: f64,
}

/// Looks from time to time; keeps the last look.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    before: BTreeMap<(String, String), u64>,
    at: i64,
}

impl Meter {
    /// What the containers used since the last look; after the first look CPU is 0. `now`:
    /// nanoseconds.
    pub(crate) fn rows(&mut self, looked: Vec<Usage>, now: i64) -> Vec<Row> {
        let passed = now.saturating_sub(self.at).max(1);
        let first = self.at == 0;
        let mut next = BTreeMap::new();
        let mut rows: Vec<Row> = looked
            .into_iter()
            .map(|usage| {
                let key = (usage.container.clone(), usage.node.clone());
                // A started container's first look shows all that it has used.
                let before = self.before.get(&key).copied().unwrap_or(usage.cpu_microseconds);
                let used = usage.cpu_microseconds.saturating_sub(before);
                next.insert(key, usage.cpu_microseconds);
                // Exact enough: percents with one digit.
                let cpu_percent = if first { 0.0 } else { used as f64 * 1e5 / passed as f64 };
                Row { usage, cpu_percent }
            })
            .collect();
        self.before = next;
        self.at = now;
        rows.sort_by(|left, right| {
            let key = |row: &Row| (row.usage.container.clone(), row.usage.node.clone());
            key(left).cmp(&key(right))
        });
        rows
    }
}

/// One look at all nodes.
pub(crate) fn look(clients: &[Client]) -> Vec<Usage> {
    let mut all = Vec::new();
    for client in clients {
        match containers::ask(client, ManageRequest::Usage(None)) {
            Ok(Some(ManageResponse::Usage(list))) => all.extend(list),
            Ok(_) => {}
            Err(failure) => print_warning(&failure.message),
        }
    }
    all
}

/// `dvs stats`.
///
/// # Errors
/// When a container that is named does not exist or run.
pub(crate) fn stats(arguments: &StatsArguments) -> Result<u8, Failure> {
    for name in &arguments.containers {
        let client = containers::home_of(name)?;
        containers::ask(&client, ManageRequest::Usage(Some(name.clone())))?;
    }
    let reached = nodes::all(&Folders::of_process());
    reached.failures.iter().for_each(|failure| print_warning(&failure.message));
    let clients: Vec<Client> = reached.nodes.into_iter().map(|(client, _)| client).collect();
    let wanted = |usage: &Usage| {
        arguments.containers.is_empty() || arguments.containers.contains(&usage.container)
    };
    let mut meter = Meter::default();
    let once = arguments.no_stream;
    let pause = if once { SHORT } else { Duration::from_secs(u64::from(arguments.interval)) };
    meter.rows(look(&clients), clock::monotonic());
    let screen = std::io::stdout().is_terminal() && !once && !arguments.list.json;
    loop {
        std::thread::sleep(pause);
        let mut looked = look(&clients);
        looked.retain(wanted);
        let rows = meter.rows(looked, clock::monotonic());
        let text = if arguments.list.json {
            rows.iter().map(|row| format!("{}\n", json(row))).collect()
        } else {
            table(&rows).text()
        };
        let text = if screen { format!("\x1b[H\x1b[2J{text}") } else { text };
        if !output::print_listened(&text)? || once {
            return Ok(0);
        }
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "CONTAINER",
        "NODE",
        "CPU %",
        "MEMORY",
        "LIMIT",
        "PROCESSES",
        "CPU TIME",
        "READ",
        "WRITTEN",
    ]);
    for row in rows {
        let usage = &row.usage;
        table.row(vec![
            usage.container.clone(),
            usage.node.clone(),
            format!("{:.1}", row.cpu_percent),
            output::bytes(usage.memory),
            usage.memory_limit.map_or_else(|| "-".to_owned(), output::bytes),
            usage.processes.to_string(),
            output::cpu_time(usage.cpu_microseconds),
            output::bytes(usage.read),
            output::bytes(usage.written),
        ]);
    }
    table
}

/// A line of JSON.
pub(crate) fn json(row: &Row) -> serde_json::Value {
    let usage = &row.usage;
    serde_json::json!({
        "container": usage.container,
        "node": usage.node,
        "cpu_percent": row.cpu_percent,
        "cpu_seconds": usage.cpu_microseconds as f64 / 1e6,
        "memory_bytes": usage.memory,
        "memory_limit_bytes": usage.memory_limit,
        "processes": usage.processes,
        "read_bytes": usage.read,
        "written_bytes": usage.written,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(container: &str, cpu_microseconds: u64) -> Usage {
        Usage {
            container: container.into(),
            node: "n1".into(),
            cpu_microseconds,
            memory: 3 << 20,
            ..Usage::default()
        }
    }

    #[test]
    fn cpu_is_what_was_used_between_two_looks() {
        let mut meter = Meter::default();
        let second = 1_000_000_000;
        assert_eq!(meter.rows(vec![usage("a", 5_000_000)], second)[0].cpu_percent, 0.0);
        let rows = meter.rows(vec![usage("b", 9), usage("a", 5_500_000)], 2 * second);
        assert_eq!((rows[0].usage.container.as_str(), rows[0].cpu_percent), ("a", 50.0));
        assert_eq!(rows[1].cpu_percent, 0.0, "new between the looks");
        let rows = meter.rows(vec![usage("a", 7_500_000)], 3 * second);
        assert_eq!(rows[0].cpu_percent, 200.0);
        let text = table(&rows).text();
        assert!(text.contains("200.0") && text.contains("3.0M"), "{text}");
        assert_eq!(json(&rows[0])["memory_bytes"], 3 << 20);
    }
}
