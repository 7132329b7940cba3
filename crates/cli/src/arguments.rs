//! The command line's grammar: one definition for parsing, help and completions.

use crate::container_arguments::{
    AttachArguments, ContainersArguments, CopyArguments, EventsArguments, KillArguments,
    LifeArguments, LogsArguments, NamesArguments, ProjectArguments, RemoveArguments,
    StatsArguments, StopArguments, UpArguments, UpdateArguments,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use dvs_pm::placement::Policy;
use std::ffi::OsString;
use std::path::PathBuf;

/// Run programs in one container that spans many machines.
#[derive(Debug, Parser)]
#[command(
    name = "dvs",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Examples:
  dvs run -- make -j4                       build here, in a container on one node
  dvs run --nodes 3 -- make -j6             the same over three nodes
  dvs run -it -- bash                       a shell inside
  dvs run -d --name web -- python3 -m http.server
  dvs logs -f web                           what it writes; also: attach, stop, restart, rm
  dvs exec web -- ps ax                     one more program in a running container
  dvs ps --why                              what runs where, and why there
  dvs --host ssh://me@box ps                the same on another machine
  dvs doctor                                what this machine can do, and what to fix

Exit codes: the program's own; 128+N if signal N ended it; 125 if dvs itself failed;
126 if the program cannot be executed; 127 if it was not found."
)]
pub(crate) struct CommandLine {
    /// Log what happens inside to standard error (level: DVS_LOG, or debug).
    #[arg(long, global = true, hide_short_help = true)]
    pub(crate) debug: bool,
    /// Run the command on another machine, through ssh: ssh://[USER@]HOST[:PORT][/PATH/TO/dvs].
    /// Also by the environment variable DVS_HOST.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program in a new container.
    Run(Box<RunArguments>),
    /// Run one more program in a container that exists.
    Exec(ExecArguments),
    /// List the processes of containers (with -a the containers, ended ones too).
    Ps(PsArguments),
    /// List the containers: the same as dvs dc ls.
    Ls(ContainersArguments),
    /// Print what a detached container has written.
    Logs(LogsArguments),
    /// Connect to a detached container's first program.
    Attach(AttachArguments),
    /// End containers in order.
    Stop(StopArguments),
    /// End containers in order and start them again.
    Restart(StopArguments),
    /// Start containers that have ended, from fresh files.
    #[command(after_help = "Examples:\n  dvs start web")]
    Start(NamesArguments),
    /// Send containers a signal, or end them at once.
    Kill(KillArguments),
    /// Remove containers with all that is kept of them.
    Rm(RemoveArguments),
    /// Wait until containers have ended, and print their exit codes.
    #[command(after_help = "Examples:\n  dvs wait web\n  dvs wait --json web db")]
    Wait(NamesArguments),
    /// Print everything about containers, as JSON.
    #[command(after_help = "Examples:\n  dvs inspect web\n  dvs inspect web | jq '.[0].exit_code'")]
    Inspect(NamesArguments),
    /// Give a container another name.
    #[command(after_help = "Examples:\n  dvs rename web old-web")]
    Rename {
        /// Which.
        #[arg(value_name = "DC")]
        container: String,
        /// The new name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Stop all programs of containers where they are, until they are unpaused.
    #[command(after_help = "Examples:\n  dvs pause web")]
    Pause(NamesArguments),
    /// Let paused containers go on.
    #[command(after_help = "Examples:\n  dvs unpause web")]
    Unpause(NamesArguments),
    /// Change limits of containers.
    Update(UpdateArguments),
    /// Show what containers use, on each node.
    Stats(StatsArguments),
    /// Show nodes and containers, the busiest first, until q.
    #[command(after_help = "Examples:\n  dvs top\n  dvs top --json")]
    Top(ListArguments),
    /// Show what happens to containers.
    Events(EventsArguments),
    /// Copy files into and out of containers.
    Cp(CopyArguments),
    /// Make the containers that a file describes.
    Up(UpArguments),
    /// Stop and remove them.
    Down(ProjectArguments),
    /// Tell what dvs up would do; exit code 1 if anything.
    Diff(ProjectArguments),
    /// Print the manual page, or write the pages of all commands into a folder.
    #[command(after_help = "Examples:\n  dvs man | man -l -\n  dvs man ~/.local/share/man/man1")]
    Man {
        /// The folder.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// List and remove distributed containers.
    #[command(
        subcommand,
        visible_alias = "container",
        after_help = "Examples:\n  dvs dc ls\n  dvs dc rm web\n  dvs dc prune"
    )]
    Dc(DcCommand),
    /// Start, stop and list the daemons of nodes.
    #[command(
        subcommand,
        after_help = "Examples:
  dvs node start --count 3                              three nodes on this machine
  dvs node ls
  dvs node stop --all

Hosts:
  a$ dvs node start --listen 10.0.0.1                   makes a cluster
  a$ dvs node token | ssh b dvs node join --token-file -
  a$ dvs run --nodes 2 -- make -j8"
    )]
    Node(NodeCommand),
    /// Say what this machine can do, what is missing and how to fix it.
    #[command(
        after_help = "Examples:\n  dvs doctor\n  dvs doctor --json\n\nExit code: 0 if containers can run, 1 if not."
    )]
    Doctor(ListArguments),
    /// Print a completion script for a shell.
    #[command(
        after_help = "Examples:\n  dvs completion bash > ~/.local/share/bash-completion/completions/dvs\n  dvs completion zsh > ~/.zfunc/_dvs"
    )]
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    #[command(after_help = "Examples:\n  dvs version\n  dvs version --json")]
    Version(ListArguments),
    /// Parts of DVS that it starts itself.
    #[command(subcommand, hide = true)]
    Internal(InternalCommand),
}

/// How placement is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlaceArgument {
    /// Everything stays on the first node.
    Home,
    /// Every program goes to another node, in turn.
    Spread,
    /// To the least loaded node; an idle node keeps its work.
    Load,
}

impl From<PlaceArgument> for Policy {
    fn from(argument: PlaceArgument) -> Self {
        match argument {
            PlaceArgument::Home => Policy::Home,
            PlaceArgument::Spread => Policy::Spread,
            PlaceArgument::Load => Policy::Load,
        }
    }
}

/// Which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkArgument {
    /// A loopback of the container's own.
    None,
    /// The host's network.
    Host,
    /// One address, one localhost and one port space over all nodes of the container.
    Dc,
}

/// Form of the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatsArgument {
    /// For people.
    Text,
    /// For programs: one JSON object on one line.
    Json,
}

/// What both `run` and `exec` know of a program.
#[derive(Debug, Args)]
pub(crate) struct ProgramArguments {
    /// Keep standard input connected when it is a terminal (pipes and files always are).
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal of its own; with -i connected to yours.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable, or pass yours (-e NAME). Your environment is passed anyway,
    /// except what belongs to your login session (DISPLAY, SSH_AUTH_SOCK, ...) and what looks like a
    /// secret (*TOKEN*, *SECRET*, *PASSWORD*, *API_KEY*, ...): name those.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Read environment variables from a file: NAME=VALUE or NAME a line, # for comments.
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory inside [default: the current one].
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,
    /// User inside: name or number, with group if wanted [default: root of the container].
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
}

/// Arguments of `dvs run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs run -- make -j4                    the current folder is shared, so the result is here
  dvs run --nodes 3 --stats -- make -j6  with nothing running, three nodes for this command
  dvs run --hosts b,me@c -- make -j16    this host and two more, over your ssh
  dvs run --isolated -- make install     all writes stay in the container and vanish with it
  dvs run -v /srv/data:/data:ro -- ls /data
  dvs run --image ./rootfs -it -- sh     another root than this machine's
  seq 5 | dvs run -- wc -l               pipes and files are connected as they are
  dvs run -d --name web --restart always -- python3 -m http.server

The current folder is shared read-write at the same path unless --isolated, which makes it
copy-on-write. The rest of this machine's files are shown read-only; /home, /root, /tmp, /run and
other private places are hidden.")]
pub(crate) struct RunArguments {
    /// On how many nodes. With no daemons running they are started for this command only
    /// [default: all daemons that run, or one].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: Option<u16>,
    /// On this host and on these, which are reached by your ssh. Nothing has to be installed there;
    /// only a cached copy of dvs remains.
    #[arg(long, value_name = "[USER@]HOST,...", value_delimiter = ',', conflicts_with = "nodes")]
    pub(crate) hosts: Vec<String>,
    /// Name of the container [default: made up].
    #[arg(long, value_name = "DC")]
    pub(crate) name: Option<String>,
    /// Share a folder: at the same path or at PATH; `ro`: read-only, `cow`: copy-on-write.
    #[arg(short, long = "volume", value_name = "HOST[:PATH][:ro|rw|cow]")]
    pub(crate) volume: Vec<OsString>,
    #[command(flatten)]
    pub(crate) program: ProgramArguments,
    #[command(flatten)]
    pub(crate) life: LifeArguments,
    /// Files to start from: `host` or a folder with a root file system.
    #[arg(long, value_name = "host|DIR", default_value = "host")]
    pub(crate) image: PathBuf,
    /// Where programs run [default: load].
    #[arg(long, value_enum)]
    pub(crate) place: Option<PlaceArgument>,
    /// Network: none is a loopback of the container's own on each node, dc one over all of them.
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) network: NetworkArgument,
    /// CPUs the container may use on each node, such as 0.5 or 2.
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<String>,
    /// Memory it may use on each node, such as 512m or 2g.
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Processes and threads it may have on each node.
    #[arg(long, value_name = "N", alias = "pids-limit", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pids: Option<u32>,
    /// Keep all writes in the container: the current folder becomes copy-on-write.
    #[arg(long)]
    pub(crate) isolated: bool,
    /// At the end, tell on standard error what ran where.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "text", value_name = "text|json")]
    pub(crate) stats: Option<StatsArgument>,
    /// Host name inside [default: the container's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Shift the monotonic clocks of nodes started for this command, seconds, in turn (for tests).
    #[arg(
        long,
        value_name = "S,...",
        value_delimiter = ',',
        allow_hyphen_values = true,
        hide = true
    )]
    pub(crate) clock_offset: Vec<i64>,
    /// The program and its arguments.
    #[arg(required_unless_present = "entrypoint", trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of `dvs exec`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dvs exec web -- ps ax
  dvs exec -it web -- bash
  tar c . | dvs exec web -- tar x -C /srv")]
pub(crate) struct ExecArguments {
    #[command(flatten)]
    pub(crate) program: ProgramArguments,
    /// The container; `dvs dc ls` lists them.
    #[arg(value_name = "DC")]
    pub(crate) container: String,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of commands that print a list.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `dvs ps`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  dvs ps\n  dvs ps web --why\n  dvs ps --json")]
pub(crate) struct PsArguments {
    /// Only this container's.
    #[arg(value_name = "DC")]
    pub(crate) container: Option<String>,
    /// Say why each process is where it is.
    #[arg(long)]
    pub(crate) why: bool,
    /// List the containers instead, ended ones too, as docker ps -a does: dvs dc ls -a.
    #[arg(short, long, conflicts_with_all = ["container", "why"])]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// `dvs dc ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum DcCommand {
    /// List the containers.
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ContainersArguments),
    /// Remove all that have ended.
    #[command(after_help = "Examples:\n  dvs dc prune")]
    Prune(ListArguments),
    /// End containers and remove all that is theirs.
    #[command(after_help = "Examples:\n  dvs dc rm web db")]
    Rm {
        /// Which.
        #[arg(required = true, value_name = "DC")]
        containers: Vec<String>,
        #[command(flatten)]
        list: ListArguments,
    },
}

/// `dvs node ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the daemons.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  dvs node ls\n  dvs node ls --json"
    )]
    Ls(ListArguments),
    /// Start daemons that stay until they are stopped.
    #[command(after_help = "Examples:
  dvs node start
  dvs node start --count 3
  dvs node start --name build1
  dvs node start --listen 10.0.0.1        the first node of a cluster of hosts

A host that belongs to a cluster (dvs node join) has one node; start it with: dvs node start")]
    Start(NodeStartArguments),
    /// Stop daemons and end all that runs on them.
    #[command(after_help = "Examples:\n  dvs node stop n1\n  dvs node stop --all --force")]
    Stop(NodeStopArguments),
    /// Print a token by which another host can join this cluster.
    #[command(
        after_help = "Examples:\n  dvs node token\n  dvs node token | ssh b dvs node join --token-file -\n  dvs node token --uses 10 --for 1h\n\nWhoever has the token can join while it is valid: treat it as a password."
    )]
    Token(NodeTokenArguments),
    /// Join the cluster of another host with a token of its.
    #[command(
        after_help = "Examples:\n  dvs node join --token-file token\n  dvs node join 10.0.0.1:7117 --token-file -   from standard input\n  dvs node join --token dvs1...                other users see it in the list of processes"
    )]
    Join(NodeJoinArguments),
    /// Remove nodes from the cluster for good: their certificates are revoked.
    #[command(after_help = "Examples:\n  dvs node rm n3")]
    Rm {
        /// Which.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
        #[command(flatten)]
        list: ListArguments,
    },
    /// Forget the cluster that this host belongs to.
    #[command(
        after_help = "Examples:\n  dvs node leave\n\nThe others know this host until it is removed there: dvs node rm NODE."
    )]
    Leave {
        /// Also when this host keeps the cluster's authority: nobody can join any more then.
        #[arg(short, long)]
        force: bool,
        #[command(flatten)]
        list: ListArguments,
    },
    /// Replace this host's certificate and key; the old ones are revoked.
    #[command(
        after_help = "Examples:\n  dvs node rotate\n\nIt is done by itself long before a certificate ends; do it when a key may be known to others."
    )]
    Rotate(ListArguments),
}

/// Arguments of `dvs node token`.
#[derive(Debug, Args)]
pub(crate) struct NodeTokenArguments {
    /// How many hosts may join with it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) uses: u32,
    /// How long it is valid: seconds, or with a unit (s, m, h, d).
    #[arg(long = "for", value_name = "TIME", default_value = "15m")]
    pub(crate) life: String,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// Arguments of `dvs node join`.
#[derive(Debug, Args)]
pub(crate) struct NodeJoinArguments {
    /// Where the cluster's first node is reached [default: as the token says].
    #[arg(value_name = "HOST[:PORT]")]
    pub(crate) address: Option<String>,
    /// File with the token; - is standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "token", conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    /// The token itself. Other users of this machine can see it; prefer --token-file.
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Name [default: n2, n3, ...].
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) place: PlaceArguments,
    /// Shift its monotonic clock, seconds (for tests).
    #[arg(long, value_name = "S", allow_hyphen_values = true, hide = true)]
    pub(crate) clock_offset: Option<i64>,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// Where a node is found by others.
#[derive(Debug, Args)]
pub(crate) struct PlaceArguments {
    /// Take links of other hosts at this address of this host [port: 7117].
    #[arg(long, value_name = "IP[:PORT]")]
    pub(crate) listen: Option<String>,
    /// What others are to connect to, where that is another address.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) advertise: Option<String>,
}

/// Arguments of `dvs node start`.
#[derive(Debug, Args)]
pub(crate) struct NodeStartArguments {
    /// How many.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) count: u16,
    /// Name, for a single one [default: n1, n2, ...].
    #[arg(long, conflicts_with = "count")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) place: PlaceArguments,
    /// Shift its monotonic clock, seconds (for tests).
    #[arg(long, value_name = "S", allow_hyphen_values = true, hide = true)]
    pub(crate) clock_offset: Option<i64>,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// Arguments of `dvs node stop`.
#[derive(Debug, Args)]
pub(crate) struct NodeStopArguments {
    /// Which.
    #[arg(required_unless_present = "all", value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with = "nodes")]
    pub(crate) all: bool,
    /// Also when containers run on them.
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) list: ListArguments,
}

/// `dvs internal ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum InternalCommand {
    /// A node whose only way to the others is its standard input and output; started over ssh.
    Host,
    /// The keeper of one container on one node; started by its daemon with a socket.
    Keeper {
        /// Arguments of the keeper.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_visible_command_has_examples() {
        fn look(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:\n"), "{path}");
                look(sub, &path);
            }
        }
        look(&CommandLine::command(), "dvs");
    }

    #[test]
    fn programs_keep_their_own_flags() {
        let parse = |words: &[&str]| CommandLine::try_parse_from(words).unwrap().command;
        for words in [&["dvs", "run", "--", "make", "-j4"][..], &["dvs", "run", "make", "-j4"]] {
            let Command::Run(run) = parse(words) else { panic!("run") };
            assert_eq!(run.command, ["make", "-j4"]);
        }
        let Command::Exec(exec) = parse(&["dvs", "exec", "-it", "web", "--", "sh", "-c", "x"])
        else {
            panic!("exec")
        };
        assert!(exec.program.interactive && exec.program.tty);
        assert_eq!((exec.container.as_str(), exec.command.len()), ("web", 3));
        let Command::Run(run) = parse(&["dvs", "run", "--stats=json", "ls"]) else { panic!("run") };
        assert_eq!(run.stats, Some(StatsArgument::Json));
        let Command::Run(run) = parse(&["dvs", "run", "--stats", "ls"]) else { panic!("run") };
        assert_eq!((run.stats, run.command.len()), (Some(StatsArgument::Text), 1));
    }
}
