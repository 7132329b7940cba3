//! Figures of DVS with native or the peer beside it: both run in turns, in one run, so that the
//! ratio means something even on a machine whose speed wanders.
#![forbid(unsafe_code)]

mod build;
mod figures;
mod files;
mod idle;
mod inner;
mod link;
mod network;
mod programs;
mod start;

use clap::{Parser, Subcommand};
use dvs_tests::command::Dvs;
use figures::Report;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(
    about = "Benchmarks of DVS, with the peer beside it",
    after_help = "Examples:
  dvs-bench all
  dvs-bench start --rounds 50
  dvs-bench placed --pin 0
  dvs-bench build --files 240"
)]
struct Options {
    /// The dvs to measure [default: $DVS_BIN, or the one beside this program].
    #[arg(long, global = true)]
    dvs: Option<PathBuf>,
    /// Rounds: in each, everything that is compared runs once.
    #[arg(long, global = true)]
    rounds: Option<u32>,
    /// Everything on this CPU (as taskset takes it).
    #[arg(long, global = true)]
    pin: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// `dvs run -- true` from nothing, on a running node, on three nodes; bwrap and crun beside it.
    Start,
    /// A program started and awaited on another node.
    Placed,
    /// The same on the container's own node.
    Local,
    /// System calls that nobody traps.
    Calls,
    /// A build on one, two and three nodes of half a core each, our daemons within it.
    Build {
        /// Source files.
        #[arg(long, default_value_t = 200)]
        files: u32,
        /// Most nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u16,
    },
    /// Connections natively, in a network over nodes within one node, and between two.
    Network,
    /// The file system at home and on another node, with the host's own beside it.
    Files {
        /// Only what has this in its title ("calls": the single calls).
        #[arg(long)]
        only: Option<String>,
    },
    /// CPU time of daemons that have nothing to do.
    Idle {
        /// For so many seconds.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Messages between processes over TLS; bare rustls and plain TCP beside it.
    Link,
    /// All of them.
    All,
    /// Measuring programs, run natively and in containers by the others.
    #[command(hide = true)]
    Inner {
        #[command(subcommand)]
        what: inner::Inner,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let What::Inner { what } = &options.what {
        return inner::run(what);
    }
    match run(&options) {
        Ok(report) => {
            if options.json {
                println!("{}", report.json());
            } else {
                print!("{}", report.table());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dvs-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<Report> {
    let dvs = Dvs::new(options.dvs.as_deref(), None)?;
    let bench = Bench { dvs, pin: options.pin.clone() };
    let rounds = |default: u32| options.rounds.unwrap_or(default);
    let mut report = Report::default();
    match &options.what {
        What::Start => start::measure(&bench, rounds(30), &mut report)?,
        What::Placed => programs::placed(&bench, rounds(10), &mut report)?,
        What::Local => programs::local(&bench, rounds(10), &mut report)?,
        What::Calls => programs::calls(&bench, rounds(10), &mut report)?,
        What::Network => network::measure(&bench, rounds(10), &mut report)?,
        What::Build { files, nodes } => {
            build::measure(&bench, *files, *nodes, rounds(1), &mut report)?;
        }
        What::Files { only } => {
            files::measure(&bench, rounds(3), only.as_deref(), &mut report)?;
        }
        What::Idle { seconds } => idle::measure(&bench, *seconds, &mut report)?,
        What::Link => link::measure(&bench, rounds(7), &mut report)?,
        What::All => {
            start::measure(&bench, rounds(30), &mut report)?;
            programs::placed(&bench, rounds(10), &mut report)?;
            programs::local(&bench, rounds(10), &mut report)?;
            programs::calls(&bench, rounds(10), &mut report)?;
            network::measure(&bench, rounds(10), &mut report)?;
            files::measure(&bench, rounds(3).min(5), None, &mut report)?;
            idle::measure(&bench, 20, &mut report)?;
            link::measure(&bench, rounds(7), &mut report)?;
            build::measure(&bench, 200, 3, rounds(1).min(3), &mut report)?;
        }
        What::Inner { .. } => {}
    }
    Ok(report)
}

/// What all benchmarks share.
struct Bench {
    dvs: Dvs,
    pin: Option<String>,
}

impl Bench {
    /// Puts a command on the chosen CPU.
    fn pinned(&self, command: std::process::Command) -> std::process::Command {
        let Some(cpu) = &self.pin else { return command };
        let mut outer = self.dvs.native("taskset");
        outer.args(["-c", cpu]).arg(command.get_program()).args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            outer.current_dir(folder);
        }
        outer
    }
}
