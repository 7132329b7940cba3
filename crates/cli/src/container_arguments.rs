//! The grammar of the commands about containers that are there; see [`crate::arguments`].

use crate::arguments::ListArguments;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

/// What `run` knows of a container's life.
#[derive(Debug, Args)]
pub(crate) struct LifeArguments {
    /// Let it run without this command, and print its name. Its output is kept: dvs logs.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// With -d: keep nothing after its end (without -d nothing is kept anyway).
    #[arg(long)]
    pub(crate) rm: bool,
    /// With -d, start it again when it has ended: no, on-failure[:N], always, unless-stopped.
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub(crate) restart: String,
    /// A label, for lists and filters.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Labels from a file, one a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) label_file: Vec<PathBuf>,
    /// Signal that asks its program to end [default: TERM].
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds until it is ended by force after that [default: 10].
    #[arg(long, value_name = "S")]
    pub(crate) stop_timeout: Option<u32>,
    /// Program to run in place of CMD's first word, which becomes its first argument.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<OsString>,
    /// A resource limit of its programs, such as nofile=1024:4096.
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimit: Vec<String>,
    /// Accepted as docker has it; there is always an init that reaps.
    #[arg(long)]
    pub(crate) init: bool,
    /// With -d: look whether it is well by running this in its shell; status 0 is well.
    #[arg(long, value_name = "CMD")]
    pub(crate) health_cmd: Option<String>,
    /// Time between two looks.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) health_interval: String,
    /// A look that takes longer has failed.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) health_timeout: String,
    /// So many failures in a row make it unhealthy.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) health_retries: u32,
    /// Failures do not count in this time after the start.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub(crate) health_start_period: String,
}

/// Arguments of `dvs dc ls`, `dvs ls` and `dvs ps -a`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs dc ls
  dvs dc ls -a --filter status=exited
  dvs dc ls -q --filter label=app=shop
  dvs dc ls -a --json

Filters: name=PART, status=created|running|paused|restarting|exited, exited=CODE, health=WORD,
node=NAME, label=NAME[=VALUE]. Several of one kind: any of them; of different kinds: all.")]
pub(crate) struct ContainersArguments {
    /// Ended ones, too.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only the names.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only those that fit.
    #[arg(short, long, value_name = "KIND=VALUE")]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// Names of containers.
#[derive(Debug, Args)]
pub(crate) struct NamesArguments {
    /// Which.
    #[arg(required = true, value_name = "DC")]
    pub(crate) containers: Vec<String>,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// Arguments of `dvs logs`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs logs web
  dvs logs -f --tail 20 web
  dvs logs --since 10m --timestamps web
  dvs logs --json web

Kept are the last 4 to 8 MiB that a detached container has written.
With --json each line is an object: time, stream, text.")]
pub(crate) struct LogsArguments {
    /// Go on until the container ends.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Nothing older: a time (2026-01-31T10:00:00Z, or seconds since 1970) or how long ago (10m).
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Only so many of the last lines; all: every one.
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub(crate) tail: String,
    /// Begin each line with its time.
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    #[command(flatten)]
    pub(crate) list: ListArguments,
    /// Which.
    #[arg(value_name = "DC")]
    pub(crate) container: String,
}

/// Arguments of `dvs stop` and `dvs restart`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs stop web
  dvs stop -t 30 web db
  dvs restart -s INT web

The first program gets TERM (or its --stop-signal); what still runs after 10 s (or its
--stop-timeout) is ended by force.")]
pub(crate) struct StopArguments {
    /// Seconds until it is ended by force.
    #[arg(short, long, value_name = "S", visible_alias = "timeout")]
    pub(crate) time: Option<u32>,
    /// Signal in place of the container's.
    #[arg(short, long, value_name = "SIGNAL")]
    pub(crate) signal: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArguments,
}

/// Arguments of `dvs kill`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs kill web
  dvs kill -s HUP web

KILL ends everything in it; any other signal goes to its first program.")]
pub(crate) struct KillArguments {
    /// Which signal: a name or number.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub(crate) signal: String,
    #[command(flatten)]
    pub(crate) names: NamesArguments,
}

/// Arguments of `dvs rm`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  dvs rm web\n  dvs rm -f web db")]
pub(crate) struct RemoveArguments {
    /// Also those that run: they are ended first.
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) names: NamesArguments,
}

/// Arguments of `dvs attach`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs run -dit --name sh -- bash
  dvs attach sh                     leave it with ctrl-p ctrl-q
  dvs attach --detach-keys ctrl-x sh

Ends with the container, with its exit code; with 0 when left by the keys.")]
pub(crate) struct AttachArguments {
    /// Leave the input alone.
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Keys that leave it to itself: ctrl-LETTER or characters, with commas between.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: String,
    /// Which.
    #[arg(value_name = "DC")]
    pub(crate) container: String,
}

/// Arguments of `dvs stats`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs stats                 every second, until ^C
  dvs stats --no-stream web
  dvs stats --json

One line for a container and node. CPU % is of one CPU: two busy ones are 200. Memory is what its
processes have resident, pages that they share counted for each. With --json one object a line.")]
pub(crate) struct StatsArguments {
    /// Once only.
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) interval: u32,
    #[command(flatten)]
    pub(crate) list: ListArguments,
    /// Which [default: all].
    #[arg(value_name = "DC")]
    pub(crate) containers: Vec<String>,
}

/// Arguments of `dvs events`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs events
  dvs events --since 10m --until 0s --json
  dvs events --filter container=web --filter event=die

Actions: create, start, die, stop, restart, kill, pause, unpause, rename, update, destroy,
exec_start, health_status. Each daemon keeps its last 4096. With --json one object a line.")]
pub(crate) struct EventsArguments {
    /// Those from then on: a time, or how long ago.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// End at this time: a time, or how long ago (0s: now).
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Only those that fit: container=NAME, event=ACTION, node=NAME.
    #[arg(short, long, value_name = "KIND=VALUE")]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// Arguments of `dvs update`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs update --cpus 1.5 --memory 2g web
  dvs update --restart unless-stopped web

A limit takes effect at once where the container was started with one of its kind, else at its next
start, which is then said.")]
pub(crate) struct UpdateArguments {
    /// CPUs it may use on each node.
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<String>,
    /// Memory it may use on each node.
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Processes and threads it may have on each node.
    #[arg(long, value_name = "N", alias = "pids-limit", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pids: Option<u32>,
    /// When it is started again.
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArguments,
}

/// Arguments of `dvs cp`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs cp web:/var/log/app.log .
  dvs cp ./site web:/srv
  dvs cp ./site/. web:/srv           the content of the folder
  dvs cp web:/etc - | tar t          a tar stream

The container must run, and have tar. A file takes the name of the target, or goes into it where that
is a folder; so does a folder. Copied out are files, folders and symbolic links, as your own and
without set-user-id bits; copied in they belong to its root.")]
pub(crate) struct CopyArguments {
    /// From: PATH, DC:PATH, or - for a tar stream from standard input.
    #[arg(value_name = "FROM", allow_hyphen_values = true)]
    pub(crate) from: OsString,
    /// To: PATH, DC:PATH, or - for a tar stream to standard output.
    #[arg(value_name = "TO", allow_hyphen_values = true)]
    pub(crate) to: OsString,
}

/// Arguments of `dvs down` and `dvs diff`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs up
  dvs diff -f shop/dvs.yaml
  dvs down

The file is dvs.yaml or a compose file of this folder, unless -f names it:

  nodes: 3
  services:
    db:
      command: python3 db.py
      restart: unless-stopped
    web:
      command: [python3, -m, http.server]
      volumes: [./site:/site:ro]
      cpus: 0.5
      place: spread
      depends_on: [db]

See docs/commands.md for what is understood of compose files.")]
pub(crate) struct ProjectArguments {
    /// The file [default: dvs.yaml, compose.yaml, docker-compose.yaml of this folder].
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// Arguments of `dvs up`.
#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    #[command(flatten)]
    pub(crate) project: ProjectArguments,
    /// Remove containers of the project that are not in the file any more.
    #[arg(long)]
    pub(crate) remove_orphans: bool,
    /// Accepted as docker has it: services always run detached.
    #[arg(short, long)]
    pub(crate) detach: bool,
}
