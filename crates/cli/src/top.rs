//! `dvs top`: nodes and containers, the busiest first, redrawn every second; a plain table where standard
//! output is no terminal. A screen of two tables needs no library for terminals: it is drawn whole.

use crate::arguments::ListArguments;
use crate::containers;
use crate::failure::{Failure, one_line};
use crate::nodes;
use crate::output::{self, Table};
use crate::stats::{self, Meter, Row};
use crate::terminal::{self, Raw};
use dvs_node::client::Client;
use dvs_node::folders::Folders;
use dvs_node::managing::ContainerDetails;
use dvs_node::protocol::{NodeInfo, WindowSize};
use dvs_sys::clock;
use dvs_sys::descriptor;
use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::Duration;

/// Between two looks, milliseconds.
const PAUSE: u32 = 1000;
/// Between the two looks of a single table.
const SHORT: Duration = Duration::from_millis(500);
/// Into the other screen, cursor hidden; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// What is shown.
struct View {
    nodes: Vec<NodeInfo>,
    containers: Vec<ContainerDetails>,
    rows: Vec<Row>,
}

/// `dvs top`.
///
/// # Errors
/// When no node runs, or the terminal cannot be used.
pub(crate) fn top(list: &ListArguments) -> Result<u8, Failure> {
    let mut meter = Meter::default();
    let screen = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if list.json || !screen {
        look(&mut meter)?;
        std::thread::sleep(SHORT);
        let view = look(&mut meter)?;
        if list.json {
            output::print_json(&json(&view))?;
        } else {
            output::print(&text(&view))?;
        }
        return Ok(0);
    }
    look(&mut meter)?;
    let raw = Raw::enter()?;
    output::print(ENTER)?;
    let result = redraw(&mut meter);
    let left = output::print(LEAVE);
    drop(raw);
    result.and(left)?;
    Ok(0)
}

/// Draws until a key that ends it.
fn redraw(meter: &mut Meter) -> Result<(), Failure> {
    loop {
        let view = look(meter)?;
        // A terminal that nobody has given a size says 0.
        let known = terminal::size().filter(|size| size.rows > 0 && size.columns > 0);
        let size = known.unwrap_or(WindowSize { rows: 24, columns: 80 });
        if !output::print_listened(&drawn(&text(&view), size))? {
            return Ok(());
        }
        let input = std::io::stdin();
        let typed = descriptor::wait_readable(input.as_fd(), Some(PAUSE))
            .map_err(|error| Failure::new(format!("waiting for a key: {error}")))?;
        if typed {
            let mut keys = [0; 16];
            let got = input.lock().read(&mut keys).unwrap_or(0);
            // q, ^C (raw: it comes as a key), ^D; the end of the input.
            let ends = |key: &u8| matches!(key, b'q' | b'Q' | 3 | 4);
            if got == 0 || keys.iter().take(got).any(ends) {
                return Ok(());
            }
        }
    }
}

fn look(meter: &mut Meter) -> Result<View, Failure> {
    let reached = nodes::all(&Folders::of_process());
    if reached.nodes.is_empty() {
        let failure = reached.failures.into_iter().next();
        return Err(
            failure.unwrap_or_else(|| Failure::new("no node runs; start one: dvs node start"))
        );
    }
    let (clients, nodes): (Vec<Client>, Vec<NodeInfo>) = reached.nodes.into_iter().unzip();
    let mut found = Vec::new();
    for client in &clients {
        // One that ends at this moment is gone at the next look.
        found.extend(containers::of_node(client, false).unwrap_or_default());
    }
    let mut rows = meter.rows(stats::look(&clients), clock::monotonic());
    rows.sort_by(|left, right| right.cpu_percent.total_cmp(&left.cpu_percent));
    Ok(View { nodes, containers: found, rows })
}

fn of_node<'a>(view: &'a View, node: &str) -> impl Iterator<Item = &'a Row> {
    let node = node.to_owned();
    view.rows.iter().filter(move |row| row.usage.node == node)
}

fn text(view: &View) -> String {
    let mut nodes =
        Table::new(&["NODE", "CPUS", "CPU %", "MEMORY", "USED", "PROCESSES", "PARTS", "LINKS"]);
    for node in &view.nodes {
        let sum = |of: fn(&Row) -> u64| of_node(view, &node.name).map(of).sum::<u64>();
        let cpu: f64 = of_node(view, &node.name).map(|row| row.cpu_percent).sum();
        nodes.row(vec![
            node.name.clone(),
            output::cpus(node.millicpus),
            format!("{cpu:.1}"),
            output::bytes(node.memory),
            output::bytes(sum(|row| row.usage.memory)),
            sum(|row| u64::from(row.usage.processes)).to_string(),
            node.containers.to_string(),
            node.linked.len().to_string(),
        ]);
    }
    let mut parts =
        Table::new(&["CONTAINER", "NODE", "CPU %", "MEMORY", "PROCESSES", "STATE", "COMMAND"]);
    for row in &view.rows {
        let mut all = view.containers.iter();
        let container = all.find(|found| found.info.name == row.usage.container);
        parts.row(vec![
            row.usage.container.clone(),
            row.usage.node.clone(),
            format!("{:.1}", row.cpu_percent),
            output::bytes(row.usage.memory),
            row.usage.processes.to_string(),
            container.map_or("ending", |found| found.state.word()).to_owned(),
            container.map(|found| found.info.command.clone()).unwrap_or_default(),
        ]);
    }
    format!("{}\n{}", nodes.text(), parts.text())
}

/// The text as a screen of this size: cut, not wrapped.
fn drawn(text: &str, size: WindowSize) -> String {
    let (rows, columns) = (usize::from(size.rows), usize::from(size.columns));
    let cut = |line: &str| line.chars().take(columns).collect::<String>();
    let mut screen = String::from("\x1b[H");
    screen.push_str(&cut("dvs top: q quits"));
    screen.push_str("\x1b[K\r\n\x1b[K");
    for line in text.lines().take(rows.saturating_sub(3)) {
        screen.push_str("\r\n");
        screen.push_str(&cut(&one_line(line)));
        // The rest of an older line.
        screen.push_str("\x1b[K");
    }
    screen.push_str("\x1b[J");
    screen
}

fn json(view: &View) -> serde_json::Value {
    let nodes: Vec<serde_json::Value> = view
        .nodes
        .iter()
        .map(|node| {
            serde_json::json!({
                "node": node.name,
                "cpus": f64::from(node.millicpus) / 1000.0,
                "memory_bytes": node.memory,
                "links": node.linked.len(),
            })
        })
        .collect();
    let parts: Vec<serde_json::Value> = view.rows.iter().map(stats::json).collect();
    serde_json::json!({ "nodes": nodes, "containers": parts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvs_node::managing::Usage;

    fn view() -> View {
        let row = |node: &str, cpu_percent| Row {
            usage: Usage {
                container: "web".into(),
                node: node.into(),
                processes: 3,
                memory: 1 << 20,
                ..Usage::default()
            },
            cpu_percent,
        };
        let node = |name: &str, id| NodeInfo {
            name: name.into(),
            id,
            millicpus: 2000,
            memory: 1 << 30,
            linked: vec![9],
            ..NodeInfo::default()
        };
        View {
            nodes: vec![node("n1", 1), node("n2", 2)],
            containers: Vec::new(),
            rows: vec![row("n2", 150.0), row("n1", 25.0), row("n1", 0.5)],
        }
    }

    #[test]
    fn nodes_sum_their_containers() {
        let text = text(&view());
        let line = |number: usize| {
            text.lines().nth(number).unwrap().split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(line(1)[..6], ["n1", "2", "25.5", "1.0G", "2.0M", "6"]);
        assert_eq!(line(5)[..3], ["web", "n2", "150.0"]);
        assert_eq!(json(&view())["containers"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn the_screen_is_never_too_large() {
        let screen = drawn(&text(&view()), WindowSize { rows: 5, columns: 10 });
        assert_eq!(screen.matches("\r\n").count(), 3);
        let longest = screen.split("\r\n").map(|line| {
            line.replace("\x1b[K", "").replace("\x1b[H", "").replace("\x1b[J", "").len()
        });
        assert!(longest.max() <= Some(10), "{screen:?}");
    }
}
