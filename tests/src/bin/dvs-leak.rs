//! Says what appeared on the machine since an earlier look: processes, mounts, cgroups, sockets,
//! shared memory, files, FUSE connections, namespaces.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{Parser, Subcommand};
use dvs_tests::machine::{Scope, Snapshot, left_over};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(
    about = "Says what is left behind",
    after_help = "Examples:
  dvs-leak save before.json; ...; dvs-leak check before.json
  dvs-leak run -- dvs run -- true

Exit code: 0 nothing new, 1 something is new (listed), 2 the check itself failed;
`run` gives the command's own status if nothing is new."
)]
struct Options {
    /// Also watch the entries of this folder.
    #[arg(long, global = true)]
    folder: Vec<PathBuf>,
    /// Entries of /tmp (and sockets there) that begin so are someone else's.
    #[arg(long, global = true)]
    ignore: Vec<String>,
    /// Only processes with this NAME=VALUE in their environment, and the given folders: for use
    /// beside other work on the machine.
    #[arg(long, global = true)]
    mark: Option<String>,
    /// Seconds that the kernel may take to clean up.
    #[arg(long, global = true, default_value_t = 10)]
    wait: u64,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Take a look and keep it.
    Save {
        /// Where to.
        file: PathBuf,
    },
    /// Look again and list what is new.
    Check {
        /// The earlier look.
        file: PathBuf,
    },
    /// Look, run a command, look again.
    Run {
        /// The command.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dvs-leak: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let scope = Scope {
        mark: options.mark.clone(),
        folders: options.folder.clone(),
        ignore: options.ignore.clone(),
    };
    let wait = Duration::from_secs(options.wait);
    match &options.what {
        What::Save { file } => {
            let text = serde_json::to_string_pretty(&Snapshot::take(&scope))?;
            std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        What::Check { file } => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("read {}", file.display()))?;
            let before: Snapshot = serde_json::from_str(&text)
                .with_context(|| format!("{} is no snapshot", file.display()))?;
            Ok(verdict(&left_over(&before, &scope, wait), ExitCode::SUCCESS))
        }
        What::Run { command } => {
            let (program, arguments) = command.split_first().context("no command")?;
            let before = Snapshot::take(&scope);
            let status = Command::new(program)
                .args(arguments)
                .status()
                .with_context(|| format!("cannot run {program}"))?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            Ok(verdict(&left_over(&before, &scope, wait), ExitCode::from(code)))
        }
    }
}

fn verdict(left: &[String], otherwise: ExitCode) -> ExitCode {
    if left.is_empty() {
        eprintln!("dvs-leak: nothing left behind");
        return otherwise;
    }
    for line in left {
        println!("left behind: {line}");
    }
    ExitCode::FAILURE
}
