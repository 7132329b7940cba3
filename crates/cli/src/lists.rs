//! `dvs ps` and `dvs dc`.

use crate::arguments::{DcCommand, ListArguments, PsArguments};
use crate::container_arguments::ContainersArguments;
use crate::containers::{self, home_of};
use crate::details;
use crate::failure::{Failure, print_warning};
use crate::nodes;
use crate::output::{self, Table};
use dvs_node::folders::Folders;
use dvs_node::protocol::{ProcessInfo, Request, Response};

/// `dvs ps`.
///
/// # Errors
/// When the container does not exist.
pub(crate) fn ps(arguments: &PsArguments) -> Result<u8, Failure> {
    if arguments.all {
        return details::list(&ContainersArguments {
            all: true,
            quiet: false,
            filter: Vec::new(),
            list: ListArguments { json: arguments.list.json },
        });
    }
    let mut processes = Vec::new();
    if let Some(name) = &arguments.container {
        let client = home_of(name)?;
        match client.ask(&Request::Processes(Some(name.clone())))? {
            Response::Processes(list) => processes.extend(list),
            other => return Err(client.unexpected(&other)),
        }
    } else {
        let reached = nodes::all(&Folders::of_process());
        for (client, _) in &reached.nodes {
            match client.ask(&Request::Processes(None)) {
                Ok(Response::Processes(list)) => processes.extend(list),
                Ok(other) => return Err(client.unexpected(&other)),
                Err(failure) => print_warning(&failure.message),
            }
        }
        reached.failures.iter().for_each(|failure| print_warning(&failure.message));
    }
    processes
        .sort_by(|left, right| (&left.container, left.pid).cmp(&(&right.container, right.pid)));
    if arguments.list.json {
        let rows: Vec<serde_json::Value> =
            processes.iter().map(|process| process_json(process, arguments.why)).collect();
        output::print_json(&rows.into())?;
    } else {
        process_table(&processes, arguments).print()?;
    }
    Ok(0)
}

fn process_table(processes: &[ProcessInfo], arguments: &PsArguments) -> Table {
    let one = arguments.container.is_some();
    let mut header = if one { Vec::new() } else { vec!["CONTAINER"] };
    header.extend(["PID", "PPID", "NODE", "USER", "STATE", "TIME"]);
    if arguments.why {
        header.push("WHY");
    }
    header.push("COMMAND");
    let mut table = Table::new(&header);
    for process in processes {
        let mut row = if one { Vec::new() } else { vec![process.container.clone()] };
        row.extend([
            process.pid.to_string(),
            process.parent.to_string(),
            process.node.clone(),
            process.user.to_string(),
            process.state.to_string(),
            output::cpu_time(process.cpu_microseconds),
        ]);
        if arguments.why {
            row.push(process.why.clone());
        }
        row.push(process.command.clone());
        table.row(row);
    }
    table
}

fn process_json(process: &ProcessInfo, why: bool) -> serde_json::Value {
    let mut value = serde_json::json!({
        "container": process.container,
        "pid": process.pid,
        "ppid": process.parent,
        "node": process.node,
        "user": process.user,
        "state": process.state.to_string(),
        "cpu_seconds": process.cpu_microseconds as f64 / 1e6,
        "command": process.command,
    });
    if why {
        value["why"] = process.why.clone().into();
    }
    value
}

/// `dvs dc ...`.
///
/// # Errors
/// When a container does not exist or cannot be removed.
pub(crate) fn dc(command: DcCommand) -> Result<u8, Failure> {
    match command {
        DcCommand::Ls(arguments) => details::list(&arguments),
        DcCommand::Rm { containers, list } => containers::remove_each(&containers, &list, true),
        DcCommand::Prune(list) => containers::prune(&list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> ProcessInfo {
        ProcessInfo {
            container: "web".into(),
            pid: 8193,
            parent: 1,
            node: "n2".into(),
            user: 0,
            state: 'S',
            cpu_microseconds: 1_250_000,
            command: "sleep 100".into(),
            why: "placed: least loaded".into(),
        }
    }

    fn arguments(container: Option<&str>, why: bool) -> PsArguments {
        let list = ListArguments { json: false };
        PsArguments { container: container.map(str::to_owned), why, all: false, list }
    }

    #[test]
    fn processes_are_listed() {
        let all = process_table(&[process()], &arguments(None, false)).text();
        assert!(all.starts_with("CONTAINER  PID   PPID  NODE"), "{all}");
        assert!(!all.contains("least loaded"));
        let one = process_table(&[process()], &arguments(Some("web"), true)).text();
        assert!(one.starts_with("PID ") && one.contains("least loaded"), "{one}");
        assert_eq!(process_json(&process(), true)["why"], "placed: least loaded");
        assert!(process_json(&process(), false).get("why").is_none());
    }
}
