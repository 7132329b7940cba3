//! The `dvs` command.

#![forbid(unsafe_code)]

mod arguments;
mod attach;
mod doctor;
mod environment;
mod failure;
mod hosts;
mod lists;
mod nodes;
mod output;
mod quantities;
mod run;
mod shares;
mod ssh;
mod stdio;
mod terminal;

use arguments::{Command, CommandLine, InternalCommand, ListArguments};
use clap::{CommandFactory, Parser};
use failure::{EXIT_DVS, Failure};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before the grammar is built: a container waits for its keeper.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "internal")
        && words.next().is_some_and(|word| word == "keeper")
    {
        return ExitCode::from(u8::try_from(dvs_container::keeper::main()).unwrap_or(EXIT_DVS));
    }
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) if error.use_stderr() && !shows_help(&error) => {
            failure::print_error(&failure::of_clap(&error));
            return ExitCode::from(EXIT_DVS);
        }
        Err(help) => {
            let code = if help.use_stderr() { EXIT_DVS } else { 0 };
            // Help that nobody reads any more is no failure.
            let _ = help.print();
            return ExitCode::from(code);
        }
    };
    let code = execute(line).unwrap_or_else(|failure| {
        failure::print_error(&failure.message);
        failure.exit
    });
    ExitCode::from(code)
}

/// Clap's answer to a command without its sub-command: the help, as an error.
fn shows_help(error: &clap::Error) -> bool {
    error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

fn execute(line: CommandLine) -> Result<u8, Failure> {
    if line.debug {
        dvs_node::journal::start_to_standard_error("dvs");
    }
    match line.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Exec(arguments) => run::exec(arguments),
        Command::Ps(arguments) => lists::ps(&arguments),
        Command::Dc(command) => lists::dc(command),
        Command::Node(command) => nodes::command(command),
        Command::Doctor(list) => doctor::doctor(&list),
        Command::Completion { shell } => completion(shell),
        Command::Version(list) => version(&list),
        Command::Internal(InternalCommand::Host) => {
            Ok(u8::try_from(dvs_node::uplink::run(std::io::stdin(), std::io::stdout()))
                .unwrap_or(EXIT_DVS))
        }
        Command::Internal(InternalCommand::Keeper { .. }) => {
            Err(Failure::new("the keeper is started by its daemon alone"))
        }
    }
}

fn completion(shell: clap_complete::Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "dvs", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

fn version(list: &ListArguments) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if list.json {
        output::print_json(&serde_json::json!({
            "version": version,
            "control_protocol": dvs_node::protocol::PROTOCOL,
        }))?;
    } else {
        output::print_line(&format!("dvs {version}"))?;
    }
    Ok(0)
}
