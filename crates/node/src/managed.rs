//! What users do to containers that are there: stop, kill, remove, rename, pause, ...
//!
//! Each works on detached containers, and, as far as that makes sense, on those that a command
//! follows.

use crate::control::Started;
use crate::dc::home::Home;
use crate::detached::{Entry, Phase};
use crate::host::Host;
use crate::managing::{
    ContainerDetails, ContainerState, DetachedOptions, Health, MAX_LABELS, MAX_STOP_SECONDS,
    NewLimits, STOP_SECONDS, Usage,
};
use crate::protocol::{
    ContainerInfo, ContainerOptions, EndedHow, Failure, ProgramOptions, Response,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an end by force may take: a part's own bounds are shorter.
const FORCE_PATIENCE: Duration = Duration::from_secs(60);

/// A container by its name.
enum Found {
    /// Kept by this daemon; with its home while it runs.
    Detached(Arc<Entry>),
    /// Followed by a command.
    Followed(Arc<Home>),
}

impl Host {
    fn find(&self, name: &str) -> Result<Found, Failure> {
        match self.detached().get(name) {
            Some(entry) => Ok(Found::Detached(entry)),
            None => self.home(name).map(Found::Followed),
        }
    }

    fn find_detached(&self, name: &str, what: &str) -> Result<Arc<Entry>, Failure> {
        match self.find(name)? {
            Found::Detached(entry) => Ok(entry),
            Found::Followed(_) => Err(Failure::new(format!(
                "container {name} is followed by the command that started it, {what}; only those of dvs run -d can be asked for it"
            ))),
        }
    }

    /// The detached one of a name, for its output.
    pub(crate) fn detached_output(&self, name: &str) -> Result<Arc<Entry>, Failure> {
        self.find_detached(name, "where its output goes")
    }

    /// Runs a detached container for the first time.
    pub(crate) fn run_detached(
        self: &Arc<Self>,
        options: ContainerOptions,
        program: ProgramOptions,
        detached: DetachedOptions,
    ) -> Result<Response, Failure> {
        if self.config().session.is_some() {
            return Err(Failure::new(
                "this node ends with its command and keeps no containers; start one that stays: dvs node start",
            ));
        }
        if options.labels.len() > MAX_LABELS {
            return Err(Failure::new(format!("more than {MAX_LABELS} labels")));
        }
        let seconds = options.stop_seconds.unwrap_or(STOP_SECONDS);
        if seconds > MAX_STOP_SECONDS {
            return Err(Failure::new(format!(
                "--stop-timeout {seconds}: at most {MAX_STOP_SECONDS} seconds"
            )));
        }
        // Takes the name as a container does, and gives it over to the kept one.
        let name = self.free_name(options.name.as_deref())?;
        let entry = self.detached().add(&name, options, program, detached);
        self.forget(&name);
        let entry = entry?;
        self.events().tell("create", &name, Vec::new());
        match entry.begin(self) {
            Ok((pid, warnings)) => Ok(Response::Started { container: name, pid, warnings }),
            Err(failure) => {
                // Nothing ran, so there is nothing to keep.
                self.remove_detached(&entry);
                Err(failure)
            }
        }
    }

    /// The daemon serves: those that are to run, run again.
    pub(crate) fn revive(self: &Arc<Self>) {
        for entry in self.detached().all() {
            if entry.starts_with_daemon()
                && let Err(failure) = entry.revive(self)
            {
                log::warn!("{failure}");
            }
        }
    }

    /// The daemon ends: waits until what is kept of the containers is written.
    pub(crate) fn settle_detached(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for entry in self.detached().all() {
            entry.stir();
            if !entry.wait_ended(deadline.saturating_duration_since(Instant::now())) {
                log::error!("container {} has not ended", entry.name());
            }
        }
    }

    /// Forgets a detached container that has ended.
    pub(crate) fn remove_detached(&self, entry: &Arc<Entry>) {
        let name = entry.name();
        self.detached().remove(entry);
        self.events().tell("destroy", &name, Vec::new());
    }

    /// What lists show of a running container.
    pub(crate) fn info_of(&self, name: &str) -> Option<ContainerInfo> {
        self.home(name).ok().map(|home| home.info())
    }

    /// Containers, by name.
    pub(crate) fn details(&self, all: bool) -> Vec<ContainerDetails> {
        let running = self.running();
        let frozen =
            |name: &str| running.iter().any(|home| home.name() == name && home.is_frozen());
        let mut list: Vec<ContainerDetails> = self
            .detached()
            .all()
            .iter()
            .map(|entry| entry.details(frozen(&entry.name())))
            .filter(|details| all || details.state != ContainerState::Exited)
            .collect();
        for home in running {
            if self.detached().get(&home.name()).is_none() {
                list.push(followed_details(&home));
            }
        }
        list.sort_by(|left, right| left.info.name.cmp(&right.info.name));
        list
    }

    /// Starts one that has ended.
    pub(crate) fn start_again(self: &Arc<Self>, name: &str) -> Result<(), Failure> {
        match self.find(name)? {
            // As docker has it, a running one is started already.
            Found::Detached(entry) if entry.phase() == Phase::Running => Ok(()),
            Found::Detached(entry) => entry.begin(self).map(|_| ()),
            Found::Followed(_) => Ok(()),
        }
    }

    /// Ends one in order; with `restart` it is started again.
    pub(crate) fn stop_container(
        self: &Arc<Self>,
        name: &str,
        signal: Option<i32>,
        seconds: Option<u32>,
        restart: bool,
    ) -> Result<(), Failure> {
        match self.find(name)? {
            Found::Detached(entry) => {
                let (options, _) = entry.options();
                entry.ask_to_end();
                let home = self.home(name).ok();
                if !self.end_in_order(home.as_ref(), &options, signal, seconds, |patience| {
                    entry.wait_ended(patience)
                }) {
                    return Err(does_not_end(name));
                }
                self.events().tell("stop", name, Vec::new());
                if restart {
                    entry.begin(self)?;
                    self.events().tell("restart", name, Vec::new());
                }
                Ok(())
            }
            Found::Followed(_) if restart => Err(Failure::new(format!(
                "container {name} is followed by the command that started it and ends with it; only those of dvs run -d can be started again"
            ))),
            Found::Followed(home) => {
                let options = home.options().clone();
                if !self.end_in_order(Some(&home), &options, signal, seconds, |patience| {
                    self.wait_gone(&home, patience)
                }) {
                    return Err(does_not_end(name));
                }
                self.events().tell("stop", name, Vec::new());
                Ok(())
            }
        }
    }

    /// Signal, wait, end by force, wait; false: it is still there.
    fn end_in_order(
        &self,
        home: Option<&Arc<Home>>,
        options: &ContainerOptions,
        signal: Option<i32>,
        seconds: Option<u32>,
        wait: impl Fn(Duration) -> bool,
    ) -> bool {
        let signal = signal.or(options.stop_signal).unwrap_or(libc::SIGTERM);
        let seconds = seconds.or(options.stop_seconds).unwrap_or(STOP_SECONDS);
        let Some(home) = home else { return wait(FORCE_PATIENCE) };
        if home.is_frozen()
            && let Err(failure) = home.freeze(false)
        {
            log::warn!("{failure}");
        }
        if signal != libc::SIGKILL {
            match home.signal_first(signal) {
                Ok(()) => {
                    let patience = Duration::from_secs(u64::from(seconds.min(MAX_STOP_SECONDS)));
                    if wait(patience) {
                        return true;
                    }
                }
                Err(failure) => log::debug!("{failure}"),
            }
        }
        home.end();
        wait(FORCE_PATIENCE)
    }

    /// Sends a signal to a container's first program; SIGKILL ends all of it.
    pub(crate) fn kill_container(&self, name: &str, signal: i32) -> Result<(), Failure> {
        if !(1..=64).contains(&signal) {
            return Err(Failure::new(format!("{signal} is no signal; they are 1 to 64")));
        }
        let found = self.find(name)?;
        let home = self.home(name).map_err(|_| {
            Failure::new(format!("container {name} does not run; start it: dvs start {name}"))
        })?;
        if let Found::Detached(entry) = &found {
            let (options, _) = entry.options();
            let stopping = options.stop_signal.unwrap_or(libc::SIGTERM);
            if signal == libc::SIGKILL || signal == stopping {
                entry.ask_to_end();
            }
        }
        if signal == libc::SIGKILL {
            home.end();
            let gone = match &found {
                Found::Detached(entry) => entry.wait_ended(FORCE_PATIENCE),
                Found::Followed(home) => self.wait_gone(home, FORCE_PATIENCE),
            };
            if !gone {
                return Err(does_not_end(name));
            }
        } else {
            home.signal_first(signal)?;
        }
        self.events().tell("kill", name, vec![("signal".to_owned(), signal.to_string())]);
        Ok(())
    }

    /// Removes a container. With `force` a running one is ended first.
    pub(crate) fn remove(&self, name: &str, force: bool) -> Result<(), Failure> {
        match self.find(name)? {
            Found::Detached(entry) => {
                if entry.phase() != Phase::Exited {
                    if !force {
                        return Err(runs(name));
                    }
                    entry.ask_to_end();
                    if let Ok(home) = self.home(name) {
                        home.end();
                    }
                    if !entry.wait_ended(FORCE_PATIENCE) {
                        return Err(does_not_end(name));
                    }
                }
                // One with --rm is gone already.
                if entry.phase() == Phase::Exited {
                    self.remove_detached(&entry);
                }
                Ok(())
            }
            Found::Followed(_) if !force => Err(runs(name)),
            Found::Followed(home) => {
                home.end();
                self.forget(name);
                self.events().tell("destroy", name, Vec::new());
                Ok(())
            }
        }
    }

    /// Gives a container another name.
    pub(crate) fn rename(&self, name: &str, to: &str) -> Result<(), Failure> {
        let found = self.find(name)?;
        self.rename_home(name, to, || {
            if let Found::Detached(entry) = &found {
                self.detached().rename(entry, to);
            }
        })?;
        let more = vec![("oldName".to_owned(), name.to_owned())];
        self.events().tell("rename", to, more);
        Ok(())
    }

    /// How a container ended, once it has: waits up to `patience` for it. `since`: the run that is
    /// meant, from [`Host::run_of`].
    pub(crate) fn exit_of(
        &self,
        awaited: &Awaited,
        patience: Duration,
    ) -> Option<Result<u8, Failure>> {
        match awaited {
            Awaited::Detached(entry, life) => entry.wait_exit(*life, patience),
            Awaited::Followed(home) => self.wait_gone(home, patience).then(|| {
                let ended = home.first().and_then(dvs_linux::ProgramRef::ended);
                let code = ended.map(|ended| EndedHow::of_status(ended.status).exit_code());
                code.ok_or_else(|| {
                    Failure::new(format!("container {} has no exit status", home.name()))
                })
            }),
        }
    }

    /// What to wait for.
    pub(crate) fn await_exit(&self, name: &str) -> Result<Awaited, Failure> {
        Ok(match self.find(name)? {
            Found::Detached(entry) => {
                let life = entry.life();
                Awaited::Detached(entry, life)
            }
            Found::Followed(home) => Awaited::Followed(home),
        })
    }

    /// Stops all programs of a container, or lets them go on.
    pub(crate) fn freeze(&self, name: &str, frozen: bool) -> Result<(), Failure> {
        self.find(name)?;
        let home = self.home(name).map_err(|_| {
            Failure::new(format!("container {name} does not run; start it: dvs start {name}"))
        })?;
        if home.is_frozen() == frozen {
            let state = if frozen { "paused already" } else { "not paused" };
            return Err(Failure::new(format!("container {name} is {state}")));
        }
        home.freeze(frozen)?;
        self.events().tell(if frozen { "pause" } else { "unpause" }, name, Vec::new());
        Ok(())
    }

    /// What containers use, on every node.
    pub(crate) fn usage(&self, of: Option<&str>) -> Result<Vec<Usage>, Failure> {
        let homes = match of {
            Some(name) => {
                self.find(name)?;
                vec![self.home(name).map_err(|_| {
                    Failure::new(format!(
                        "container {name} does not run; start it: dvs start {name}"
                    ))
                })?]
            }
            None => self.running(),
        };
        Ok(homes.iter().flat_map(|home| home.usage()).collect())
    }

    /// Changes limits of a container; what could not be changed now.
    pub(crate) fn update(&self, name: &str, limits: &NewLimits) -> Result<Vec<String>, Failure> {
        let found = self.find(name)?;
        if let Found::Detached(entry) = &found {
            entry.change(|options, detached| {
                options.millicpus = limits.millicpus.or(options.millicpus);
                options.memory = limits.memory.or(options.memory);
                options.pids = limits.pids.or(options.pids);
                detached.restart = limits.restart.unwrap_or(detached.restart);
            });
        } else if limits.restart.is_some() {
            return Err(Failure::new(format!(
                "--restart: container {name} is followed by a command and ends with it"
            )));
        }
        let warnings = match self.home(name) {
            Ok(home) => home.limit(limits),
            Err(_) => Vec::new(),
        };
        self.events().tell("update", name, Vec::new());
        Ok(warnings)
    }

    /// Runs one more program for a connection; told as an event.
    pub(crate) fn exec_told(
        self: &Arc<Self>,
        container: &str,
        program: ProgramOptions,
        descriptors: Vec<std::os::fd::OwnedFd>,
    ) -> Result<Started, Failure> {
        let word =
            program.arguments.first().map(|word| String::from_utf8_lossy(&word.0).into_owned());
        let started = self.exec(container, program, descriptors)?;
        let more = word.map(|word| ("program".to_owned(), word));
        self.events().tell("exec_start", container, more.into_iter().collect());
        Ok(started)
    }
}

/// Whose end is awaited.
pub(crate) enum Awaited {
    /// The run of this number of a detached container.
    Detached(Arc<Entry>, u64),
    /// One that a command follows.
    Followed(Arc<Home>),
}

fn runs(name: &str) -> Failure {
    Failure::new(format!(
        "container {name} runs; stop it first (dvs stop {name}), or end and remove it: dvs rm -f {name}"
    ))
}

fn does_not_end(name: &str) -> Failure {
    Failure::new(format!(
        "container {name} has not ended within {} s; see the log of its node (DVS_LOG=debug)",
        FORCE_PATIENCE.as_secs()
    ))
}

fn followed_details(home: &Arc<Home>) -> ContainerDetails {
    let info = home.info();
    ContainerDetails {
        state: if home.is_frozen() { ContainerState::Paused } else { ContainerState::Running },
        detached: false,
        pid: home.first().map(|first| first.pid),
        exit: None,
        error: None,
        started: Some(info.created),
        finished: None,
        restarts: 0,
        health: Health::None,
        options: home.options().clone(),
        detached_options: DetachedOptions { remove_at_end: true, ..DetachedOptions::default() },
        program: None,
        info,
    }
}
