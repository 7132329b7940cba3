//! The `dvs` command.

#![forbid(unsafe_code)]

mod arguments;
mod attach;
mod attached;
mod compose;
mod container_arguments;
mod containers;
mod copy;
mod detach;
mod detached;
mod details;
mod doctor;
mod doctor_host;
mod environment;
mod events;
mod failure;
mod hosts;
mod lists;
mod logs;
mod man;
mod named_signals;
mod nodes;
mod output;
mod quantities;
mod remote;
mod run;
mod shares;
mod ssh;
mod stats;
mod stdio;
mod terminal;
mod times;
mod top;
mod up;

use arguments::{Command, CommandLine, InternalCommand, ListArguments};
use clap::{CommandFactory, Parser};
use failure::{EXIT_DVS, Failure};
use std::io::IsTerminal;
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
    if let Some(address) = host(&line) {
        return remote::run(&address, wants_terminal(&line.command));
    }
    match line.command {
        Command::Run(arguments) => run::run(*arguments),
        Command::Exec(arguments) => run::exec(arguments),
        Command::Ps(arguments) => lists::ps(&arguments),
        Command::Ls(arguments) => details::list(&arguments),
        Command::Logs(arguments) => logs::logs(&arguments),
        Command::Attach(arguments) => attached::attach(&arguments),
        Command::Stop(arguments) => containers::stop(&arguments, false),
        Command::Restart(arguments) => containers::stop(&arguments, true),
        Command::Start(arguments) => containers::start(&arguments),
        Command::Kill(arguments) => containers::kill(&arguments),
        Command::Rm(arguments) => containers::remove(&arguments),
        Command::Wait(arguments) => containers::wait(&arguments),
        Command::Inspect(arguments) => details::inspect(&arguments),
        Command::Rename { container, name } => containers::rename(&container, &name),
        Command::Pause(arguments) => containers::freeze(&arguments, true),
        Command::Unpause(arguments) => containers::freeze(&arguments, false),
        Command::Update(arguments) => containers::update(&arguments),
        Command::Stats(arguments) => stats::stats(&arguments),
        Command::Top(list) => top::top(&list),
        Command::Events(arguments) => events::events(&arguments),
        Command::Cp(arguments) => copy::cp(&arguments),
        Command::Up(arguments) => up::up(&arguments.project, arguments.remove_orphans),
        Command::Down(arguments) => up::down(&arguments),
        Command::Diff(arguments) => up::diff(&arguments),
        Command::Man { folder } => man::man(folder.as_deref()),
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

/// The machine that the command is for, if it is another one.
fn host(line: &CommandLine) -> Option<String> {
    let variable = || std::env::var(remote::VARIABLE).ok().filter(|value| !value.is_empty());
    let here = matches!(
        line.command,
        Command::Completion { .. } | Command::Man { .. } | Command::Internal(_)
    );
    line.host.clone().or_else(variable).filter(|_| !here)
}

/// Whether a command that runs on another machine needs a terminal there.
fn wants_terminal(command: &Command) -> bool {
    let wanted = match command {
        Command::Run(arguments) => arguments.program.tty && !arguments.life.detach,
        Command::Exec(arguments) => arguments.program.tty,
        Command::Attach(_) => true,
        _ => false,
    };
    wanted && std::io::stdin().is_terminal()
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
