//! Messages about containers that are there: detached ones, listing, stopping, output, ...
//!
//! They travel in [`crate::protocol::Request::Manage`] and [`crate::protocol::Response::Manage`].

use crate::protocol::{ContainerInfo, ContainerOptions, ProgramOptions, WindowSize};
use serde::{Deserialize, Serialize};

/// Most labels of one container.
pub const MAX_LABELS: usize = 128;
/// Seconds that a program gets to end after its stop signal when nobody says otherwise, as docker's.
pub const STOP_SECONDS: u32 = 10;
/// Most seconds that can be asked for.
pub const MAX_STOP_SECONDS: u32 = 24 * 3600;

/// When a detached container is started again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When it ended with a status other than 0, at most so many times in a row.
    OnFailure(Option<u32>),
    /// Always, also when its daemon starts.
    Always,
    /// As `Always`, but not when its daemon starts after it was stopped by hand.
    UnlessStopped,
}

impl std::fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RestartPolicy::No => f.write_str("no"),
            RestartPolicy::OnFailure(None) => f.write_str("on-failure"),
            RestartPolicy::OnFailure(Some(most)) => write!(f, "on-failure:{most}"),
            RestartPolicy::Always => f.write_str("always"),
            RestartPolicy::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl std::str::FromStr for RestartPolicy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match (word, word.strip_prefix("on-failure:")) {
            ("no", _) => Ok(RestartPolicy::No),
            ("always", _) => Ok(RestartPolicy::Always),
            ("unless-stopped", _) => Ok(RestartPolicy::UnlessStopped),
            ("on-failure", _) => Ok(RestartPolicy::OnFailure(None)),
            (_, Some(most)) => most
                .parse()
                .map(|most| RestartPolicy::OnFailure(Some(most)))
                .map_err(|_| format!("'{most}' is no number of restarts")),
            _ => Err("use no, on-failure, on-failure:N, always or unless-stopped".to_owned()),
        }
    }
}

/// How it is found out whether a container is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthOptions {
    /// Given to `sh -c` inside; status 0: well.
    pub command: String,
    /// Between two looks, milliseconds.
    pub interval: u64,
    /// A look that takes longer counts as a failure, milliseconds.
    pub timeout: u64,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
    /// Failures in this time after the start do not count, milliseconds.
    pub start_period: u64,
}

/// Whether a container is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Health {
    /// Nobody asked.
    #[default]
    None,
    /// Not known yet.
    Starting,
    /// Well.
    Healthy,
    /// Not.
    Unhealthy,
}

impl Health {
    /// As docker calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Health::None => "none",
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        }
    }
}

/// What a container without a command that follows it needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DetachedOptions {
    /// When it is started again.
    pub restart: RestartPolicy,
    /// Nothing of it is kept after its end.
    pub remove_at_end: bool,
    /// Standard input is kept open, for `attach`.
    pub open_input: bool,
    /// Health checks.
    pub health: Option<HealthOptions>,
}

/// Whether a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Its first program is being started for the first time.
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended, and will be started again.
    Restarting,
    /// Ended, and kept.
    Exited,
}

impl ContainerState {
    /// As docker calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Paused => "paused",
            ContainerState::Restarting => "restarting",
            ContainerState::Exited => "exited",
        }
    }
}

/// Everything about one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDetails {
    /// What lists show. The number is that of the last start.
    pub info: ContainerInfo,
    /// Whether it runs.
    pub state: ContainerState,
    /// Kept by its daemon, not by a command.
    pub detached: bool,
    /// First program's pid inside, while it runs.
    pub pid: Option<u32>,
    /// How the last run ended: exit code as a shell's.
    pub exit: Option<u8>,
    /// Why it ended, where it was not by itself.
    pub error: Option<String>,
    /// When the last run began, seconds since 1970.
    pub started: Option<u64>,
    /// When it ended.
    pub finished: Option<u64>,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// Whether it is well.
    pub health: Health,
    /// What it was made with.
    pub options: ContainerOptions,
    /// What a detached one was made with.
    pub detached_options: DetachedOptions,
    /// First program of a detached one.
    pub program: Option<ProgramOptions>,
}

/// A piece of a program's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPiece {
    /// 1: standard output (and a terminal's), 2: standard error.
    pub stream: u8,
    /// When it came, nanoseconds since 1970.
    pub time: i64,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Something that happened to a container or node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, nanoseconds since 1970.
    pub time: i64,
    /// What, in docker's words where it has one: `create`, `start`, `die`, `stop`, `kill`, `destroy`, ...
    pub action: String,
    /// Name of the container.
    pub container: String,
    /// Name of the node that tells.
    pub node: String,
    /// More, such as (`exitCode`, `0`).
    pub attributes: Vec<(String, String)>,
}

/// New limits; none: as before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NewLimits {
    /// CPUs on each node, thousandths.
    pub millicpus: Option<u32>,
    /// Memory on each node, bytes.
    pub memory: Option<u64>,
    /// Processes and threads on each node.
    pub pids: Option<u32>,
    /// When it is started again.
    pub restart: Option<RestartPolicy>,
}

/// What a container uses on one node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Container's name.
    pub container: String,
    /// Node's name.
    pub node: String,
    /// CPU time so far, microseconds: of its processes and those they waited for.
    pub cpu_microseconds: u64,
    /// Resident memory, bytes; pages shared between processes count for each.
    pub memory: u64,
    /// Limit of memory, bytes.
    pub memory_limit: Option<u64>,
    /// Processes.
    pub processes: u32,
    /// Read from disks by processes that run now, bytes.
    pub read: u64,
    /// Written to disks by processes that run now, bytes.
    pub written: u64,
}

/// Command line to daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ManageRequest {
    /// Make a container that lives without a connection. Answer: `Started`.
    Run(Box<ContainerOptions>, Box<ProgramOptions>, Box<DetachedOptions>),
    /// Containers whose home this is; with `all` also those that have ended. Answer: `Details`.
    List {
        /// Ended ones, too.
        all: bool,
    },
    /// Start one that has ended. Answer: `Done`.
    Start(String),
    /// End it in order: signal, wait, end by force. Answer: `Done`.
    Stop {
        /// Which.
        name: String,
        /// Signal; none: the container's.
        signal: Option<i32>,
        /// How long to wait; none: as long as the container says.
        seconds: Option<u32>,
        /// And start it again.
        restart: bool,
    },
    /// Send its first program a signal; SIGKILL ends all of it. Answer: `Done`.
    Kill {
        /// Which.
        name: String,
        /// Number.
        signal: i32,
    },
    /// Remove it with all that is kept of it. Answer: `Done`.
    Remove {
        /// Which.
        name: String,
        /// Also when it runs.
        force: bool,
    },
    /// Give it another name. Answer: `Done`.
    Rename {
        /// Which.
        name: String,
        /// The new one.
        to: String,
    },
    /// Wait until it has ended. Answer: `Exit`.
    Wait(String),
    /// Its output so far. Answers: `Output`s, then `Done`.
    Output {
        /// Which.
        name: String,
        /// Go on until it ends.
        follow: bool,
        /// Nothing older, nanoseconds since 1970.
        since: Option<i64>,
        /// So many lines.
        tail: Option<u64>,
    },
    /// Follow its output from now on and give the way to its input. Answers: `Attached` (with the
    /// input's descriptor, if there is one), `Output`s, `Exit`.
    Attach(String),
    /// Freeze it, or let it go on. Answer: `Done`.
    Freeze {
        /// Which.
        name: String,
        /// Freeze.
        frozen: bool,
    },
    /// What containers use on every node. Answer: `Usage`.
    Usage(Option<String>),
    /// Change limits. Answer: `Warnings`.
    Update {
        /// Which.
        name: String,
        /// To what.
        limits: NewLimits,
    },
    /// What happened. Answers: `Events`, with `follow` again and again, else `Done`.
    Events {
        /// From when on, nanoseconds since 1970; none: only what happens from now on.
        since: Option<i64>,
        /// Go on.
        follow: bool,
    },
}

/// Daemon to command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ManageResponse {
    /// To `List`.
    Details(Vec<ContainerDetails>),
    /// To `Wait` and at the end of `Attach`: exit code as a shell's.
    Exit(u8),
    /// To `Output` and `Attach`.
    Output(Vec<OutputPiece>),
    /// To `Attach`.
    Attached {
        /// The input is a terminal.
        terminal: bool,
    },
    /// To `Usage`.
    Usage(Vec<Usage>),
    /// To `Update`: what could not be changed, and what that means.
    Warnings(Vec<String>),
    /// To `Events`.
    Events(Vec<Event>),
}

/// The size of a terminal that nobody sees yet.
pub const UNSEEN_TERMINAL: WindowSize = WindowSize { rows: 24, columns: 80 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_written_as_they_are_read() {
        for word in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(word.parse::<RestartPolicy>().unwrap().to_string(), word);
        }
        for wrong in ["", "yes", "on-failure:", "on-failure:-1", "always:3"] {
            assert!(wrong.parse::<RestartPolicy>().is_err(), "{wrong}");
        }
    }
}
