//! Containers that live without a command that follows them (`dvs run -d`): started, kept, started
//! again, removed.
//!
//! Each has a folder `STATE/kept/NODE/ID` with its [`record`] and its [`output`], which stays until it
//! is removed, also over an end of the daemon. While it runs it is an ordinary container of the host;
//! a thread ([`supervise`]) stands where the connection of a command would.

mod health;
mod output;
mod pump;
mod record;
mod restart;
mod supervise;

pub(crate) use output::{Output, Place};

use crate::daemon::DaemonConfig;
use crate::folders::{fresh_number, private_folder, remove_tree};
use crate::host::Program;
use crate::managing::{ContainerDetails, ContainerState, DetachedOptions, Health, RestartPolicy};
use crate::protocol::{ContainerInfo, ContainerOptions, Failure, ImageOption, ProgramOptions};
use dvs_sys::clock;
use record::{Exit, Record};
use restart::Restarts;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most detached containers of one node, ended ones counted.
pub(crate) const MAX_DETACHED: usize = 1000;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Being started.
    Starting,
    /// Its first program runs.
    Running,
    /// Waits for its next start.
    Waiting,
    /// Ended.
    Exited,
    /// Removed: nobody finds it any more.
    Removed,
}

/// One detached container.
pub(crate) struct Entry {
    folder: PathBuf,
    output: Arc<Output>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    record: Record,
    phase: Phase,
    /// Counts the starts.
    life: u64,
    program: Option<Arc<dyn Program>>,
    pid: Option<u32>,
    /// Its standard input or terminal, for `attach`.
    input: Option<OwnedFd>,
    /// A user asked for its end.
    asked: bool,
    health: Health,
    restarts: Restarts,
    began: Instant,
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its output.
    pub(crate) fn output(&self) -> &Arc<Output> {
        &self.output
    }

    /// Where it is in its life.
    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// The running first program.
    pub(crate) fn program(&self) -> Option<Arc<dyn Program>> {
        self.lock().program.clone()
    }

    /// Name, as it is now.
    pub(crate) fn name(&self) -> String {
        self.lock().record.name.clone()
    }

    /// A copy of the way to its input, and whether that is a terminal.
    pub(crate) fn input(&self) -> (Option<OwnedFd>, bool) {
        let state = self.lock();
        let copy = state.input.as_ref().and_then(|input| input.try_clone().ok());
        (copy, state.record.program.terminal.is_some())
    }

    /// Counts the starts; with the phase it says whether a run is over.
    pub(crate) fn life(&self) -> u64 {
        self.lock().life
    }

    /// The last exit code, once the run of this number is over; waits up to `patience` for it.
    pub(crate) fn wait_exit(&self, life: u64, patience: Duration) -> Option<Result<u8, Failure>> {
        let runs = |state: &mut State| {
            state.life == life && matches!(state.phase, Phase::Starting | Phase::Running)
        };
        let waited = self.changed.wait_timeout_while(self.lock(), patience, runs);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if runs(&mut state) {
            return None;
        }
        let exit = state.record.exit.as_ref().map(|exit| exit.code);
        let name = &state.record.name;
        Some(exit.ok_or_else(|| Failure::new(format!("container {name} has no exit status"))))
    }

    /// Waits until it neither runs nor is going to by itself; false: not in this time.
    pub(crate) fn wait_ended(&self, patience: Duration) -> bool {
        let alive = |state: &mut State| !matches!(state.phase, Phase::Exited | Phase::Removed);
        let waited = self.changed.wait_timeout_while(self.lock(), patience, alive);
        !alive(&mut waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// From now on its end is what a user wanted: it stays ended.
    pub(crate) fn ask_to_end(&self) {
        let mut state = self.lock();
        state.asked = true;
        state.record.stopped = true;
        self.save(&state);
        drop(state);
        self.changed.notify_all();
    }

    /// Lets its thread look again at what it waits for.
    pub(crate) fn stir(&self) {
        let _held = self.lock();
        self.changed.notify_all();
    }

    fn save(&self, state: &State) {
        if state.phase != Phase::Removed
            && let Err(failure) = state.record.save(&self.folder)
        {
            log::error!("{failure}");
        }
    }

    /// The signal and time that its end takes.
    pub(crate) fn options(&self) -> (ContainerOptions, DetachedOptions) {
        let state = self.lock();
        (state.record.options.clone(), state.record.detached.clone())
    }

    /// Changes what the next start is made with.
    pub(crate) fn change(&self, change: impl FnOnce(&mut ContainerOptions, &mut DetachedOptions)) {
        let mut state = self.lock();
        let record = &mut state.record;
        change(&mut record.options, &mut record.detached);
        self.save(&state);
    }

    /// For lists. `frozen`: it is paused.
    pub(crate) fn details(&self, frozen: bool) -> ContainerDetails {
        let state = self.lock();
        let record = &state.record;
        let words = record.program.arguments.iter().map(|word| String::from_utf8_lossy(&word.0));
        let command: Vec<_> = words.collect();
        let runs = state.phase == Phase::Running;
        ContainerDetails {
            info: ContainerInfo {
                name: record.name.clone(),
                id: record.number.clone(),
                nodes: record.nodes.clone(),
                image: match &record.options.image {
                    ImageOption::Host => "host".into(),
                    ImageOption::Directory(path) => path.display().to_string(),
                },
                placement: record.options.placement.to_string(),
                command: command.join(" "),
                created: record.created,
            },
            state: match state.phase {
                Phase::Starting if state.life <= 1 => ContainerState::Created,
                Phase::Starting | Phase::Waiting => ContainerState::Restarting,
                Phase::Running if frozen => ContainerState::Paused,
                Phase::Running => ContainerState::Running,
                Phase::Exited | Phase::Removed => ContainerState::Exited,
            },
            detached: true,
            pid: state.pid.filter(|_| runs),
            exit: record.exit.as_ref().map(|exit| exit.code).filter(|_| !runs),
            error: record.exit.as_ref().and_then(|exit| exit.error.clone()).filter(|_| !runs),
            started: record.started,
            finished: record.exit.as_ref().map(|exit| exit.at).filter(|_| !runs),
            restarts: record.restarts,
            health: state.health,
            options: record.options.clone(),
            detached_options: record.detached.clone(),
            program: Some(record.program.clone()),
        }
    }
}

/// All detached containers whose home is one node.
pub(crate) struct Registry {
    folder: PathBuf,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
}

impl Registry {
    /// Reads what is kept of a node's containers. A node that lives for one command has none.
    pub(crate) fn load(config: &DaemonConfig) -> Registry {
        let folder = config.state.join("kept").join(&config.name);
        let mut entries = BTreeMap::new();
        if config.session.is_none() {
            let found = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            for path in found.map(|entry| entry.path()).take(MAX_DETACHED) {
                match load(&path) {
                    Ok(entry) => {
                        entries.insert(entry.name(), Arc::new(entry));
                    }
                    // Left for somebody to look at.
                    Err(error) => log::error!("{}: {error}", path.display()),
                }
            }
        }
        Registry { folder, entries: Mutex::new(entries) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of a name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.lock().get(name).cloned()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.lock().values().cloned().collect()
    }

    /// Keeps a new one. Its name is free, as the caller has seen to.
    ///
    /// # Errors
    /// When there are too many, or its folder cannot be made.
    pub(crate) fn add(
        &self,
        name: &str,
        options: ContainerOptions,
        program: ProgramOptions,
        detached: DetachedOptions,
    ) -> Result<Arc<Entry>, Failure> {
        let mut entries = self.lock();
        if entries.len() >= MAX_DETACHED {
            return Err(Failure::new(format!(
                "{MAX_DETACHED} detached containers are kept, which is the limit; remove some: dvs dc prune"
            )));
        }
        let folder = self.folder.join(format!("{:016x}", fresh_number(0x6b65_7074)));
        private_folder(&folder)?;
        let record = Record {
            name: name.to_owned(),
            created: seconds(),
            options: ContainerOptions { name: Some(name.to_owned()), ..options },
            program,
            detached,
            started: None,
            exit: None,
            number: String::new(),
            nodes: Vec::new(),
            restarts: 0,
            stopped: false,
        };
        let made = record.save(&folder).and_then(|()| {
            Output::open(&folder).map_err(|error| {
                Failure::new(format!("{}: {}", folder.display(), crate::folders::reason(&error)))
            })
        });
        match made {
            Ok(output) => {
                let entry = Arc::new(Entry::new(folder, record, output));
                entries.insert(name.to_owned(), Arc::clone(&entry));
                Ok(entry)
            }
            Err(failure) => {
                self.remove_folder(&folder);
                Err(failure)
            }
        }
    }

    /// Forgets one that has ended, with its files.
    pub(crate) fn remove(&self, entry: &Arc<Entry>) {
        let mut entries = self.lock();
        let mut state = entry.lock();
        if state.phase == Phase::Removed {
            return;
        }
        state.phase = Phase::Removed;
        entries.remove(&state.record.name);
        drop(state);
        self.remove_folder(&entry.folder);
        entry.changed.notify_all();
        entry.output.wake();
    }

    fn remove_folder(&self, folder: &Path) {
        if let Err(error) = remove_tree(folder) {
            log::warn!("cannot remove {}: {error}", folder.display());
        }
        // Not empty: others are kept.
        let removed = std::fs::remove_dir(&self.folder)
            .and_then(|()| std::fs::remove_dir(self.folder.parent().unwrap_or(&self.folder)));
        log::trace!("removing {}: {removed:?}", self.folder.display());
    }

    /// Gives one another name, which is free.
    pub(crate) fn rename(&self, entry: &Arc<Entry>, to: &str) {
        let mut entries = self.lock();
        let mut state = entry.lock();
        let old = std::mem::replace(&mut state.record.name, to.to_owned());
        state.record.options.name = Some(to.to_owned());
        entry.save(&state);
        if let Some(found) = entries.remove(&old) {
            entries.insert(to.to_owned(), found);
        }
    }
}

fn load(folder: &Path) -> Result<Entry, String> {
    let mut record = Record::load(folder)?;
    let output = Output::open(folder).map_err(|error| crate::folders::reason(&error))?;
    if record.exit.is_none() && record.started.is_some() {
        let error = "its node's daemon ended".to_owned();
        record.exit = Some(Exit { code: 137, error: Some(error), at: seconds() });
    }
    Ok(Entry::new(folder.to_owned(), record, output))
}

impl Entry {
    fn new(folder: PathBuf, record: Record, output: Arc<Output>) -> Entry {
        Entry {
            folder,
            output,
            state: Mutex::new(State {
                record,
                phase: Phase::Exited,
                life: 0,
                program: None,
                pid: None,
                input: None,
                asked: false,
                health: Health::None,
                restarts: Restarts::default(),
                began: Instant::now(),
            }),
            changed: Condvar::new(),
        }
    }

    /// Whether it is started when its daemon starts.
    pub(crate) fn starts_with_daemon(&self) -> bool {
        let state = self.lock();
        let policy: RestartPolicy = state.record.detached.restart;
        restart::starts_with_daemon(policy, state.record.stopped)
    }
}

fn seconds() -> u64 {
    u64::try_from(clock::real() / 1_000_000_000).unwrap_or(0)
}
