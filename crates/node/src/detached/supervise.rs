//! The thread of one detached container: starts its first program, waits for its end, and starts it
//! again where its policy says so.

use super::restart::{Next, Run};
use super::{Entry, Exit, Phase, pump, seconds};
use crate::control::Started;
use crate::host::Host;
use crate::managing::{Health, UNSEEN_TERMINAL};
use crate::protocol::{EndedHow, Failure};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How long the last output may take once the container is gone; all its writers are dead.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for a start: a container's parts have shorter ones of their own.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// What the first start gave: pid inside and warnings.
pub(crate) type Began = Result<(u32, Vec<String>), Failure>;

impl Entry {
    /// Starts it, if it does not run; returns when its first program runs or could not be started.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn begin(self: &Arc<Self>, host: &Arc<Host>) -> Began {
        {
            let mut state = self.lock();
            match state.phase {
                Phase::Exited => {}
                Phase::Removed => {
                    return Err(Failure::new(format!(
                        "container {} has been removed",
                        state.record.name
                    )));
                }
                Phase::Starting | Phase::Running | Phase::Waiting => {
                    return Err(Failure::new(format!(
                        "container {} runs already",
                        state.record.name
                    )));
                }
            }
            state.phase = Phase::Starting;
            state.asked = false;
            state.record.stopped = false;
            state.restarts = super::Restarts::default();
        }
        let (sender, first) = channel();
        self.spawn(host, Some(sender))?;
        first.recv_timeout(START_PATIENCE).unwrap_or_else(|_| {
            Err(Failure::new(format!(
                "container {} has not started within {} s",
                self.name(),
                START_PATIENCE.as_secs()
            )))
        })
    }

    /// Starts it because its daemon has started: nobody waits, and a start that fails (its other nodes
    /// may not be there yet) is tried again as its policy says.
    ///
    /// # Errors
    /// When there is no thread.
    pub(crate) fn revive(self: &Arc<Self>, host: &Arc<Host>) -> Result<(), Failure> {
        {
            let mut state = self.lock();
            if state.phase != Phase::Exited {
                return Ok(());
            }
            state.phase = Phase::Starting;
            state.record.restarts = state.record.restarts.saturating_add(1);
        }
        self.spawn(host, None)
    }

    fn spawn(
        self: &Arc<Self>,
        host: &Arc<Host>,
        first: Option<Sender<Began>>,
    ) -> Result<(), Failure> {
        let (entry, host) = (Arc::clone(self), Arc::clone(host));
        let spawned = std::thread::Builder::new()
            .name("detached".into())
            .spawn(move || entry.run(&host, first));
        spawned.map(|_| ()).map_err(|error| {
            self.lock().phase = Phase::Exited;
            self.changed.notify_all();
            Failure::new(format!("no thread for a container: {error}"))
        })
    }

    fn run(self: &Arc<Self>, host: &Arc<Host>, mut first: Option<Sender<Began>>) {
        loop {
            let began = self.start(host);
            let exit = match began {
                Ok((started, output)) => {
                    if let Some(first) = first.take() {
                        // The asking one may have given up.
                        let _ = first.send(Ok((started.pid, started.warnings.clone())));
                    }
                    self.follow(host, &started, &output)
                }
                Err(failure) => {
                    if let Some(first) = first.take() {
                        self.finish(host, Phase::Exited, &failed(&failure));
                        let _ = first.send(Err(failure));
                        return;
                    }
                    failed(&failure)
                }
            };
            let next = {
                let mut state = self.lock();
                let run = Run {
                    succeeded: exit.code == 0,
                    lasted: state.began.elapsed(),
                    asked: state.asked || host.is_stopping(),
                };
                let policy = state.record.detached.restart;
                state.restarts.ended(policy, run)
            };
            match next {
                Next::Stay => return self.stay(host, &exit),
                Next::Start(pause) => {
                    self.finish(host, Phase::Waiting, &exit);
                    if !self.pause(host, pause) {
                        return self.stay(host, &exit);
                    }
                }
            }
        }
    }

    /// Waits for the next start; false: somebody wants it ended meanwhile.
    fn pause(&self, host: &Host, pause: Duration) -> bool {
        let waits = |state: &mut super::State| !state.asked && !host.is_stopping();
        let waited = self.changed.wait_timeout_while(self.lock(), pause, waits);
        let mut state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        if !waits(&mut state) {
            return false;
        }
        state.phase = Phase::Starting;
        state.record.restarts = state.record.restarts.saturating_add(1);
        true
    }

    fn stay(self: &Arc<Self>, host: &Arc<Host>, exit: &Exit) {
        self.finish(host, Phase::Exited, exit);
        // When the daemon ends it may be the last that is heard of it; a removal is a user's wish.
        if self.lock().record.detached.remove_at_end {
            host.remove_detached(self);
        }
    }

    /// Notes an end. It is told first: who sees the end and acts on it is told of after it.
    fn finish(&self, host: &Host, phase: Phase, exit: &Exit) {
        let mut more = vec![("exitCode".to_owned(), exit.code.to_string())];
        more.extend(exit.error.iter().map(|error| ("error".to_owned(), error.clone())));
        host.events().tell("die", &self.name(), more);
        let mut state = self.lock();
        state.phase = phase;
        state.program = None;
        state.pid = None;
        state.input = None;
        state.health = Health::None;
        state.record.exit = Some(exit.clone());
        self.save(&state);
        drop(state);
        self.changed.notify_all();
        self.output.wake();
    }

    /// Makes the container and starts its first program.
    fn start(self: &Arc<Self>, host: &Arc<Host>) -> Result<(Started, Receiver<()>), Failure> {
        let (options, mut program, open_input) = {
            let mut state = self.lock();
            state.life += 1;
            state.began = Instant::now();
            let record = &state.record;
            (record.options.clone(), record.program.clone(), record.detached.open_input)
        };
        let io = |error: std::io::Error| {
            Failure::new(format!("its streams: {}", crate::folders::reason(&error)))
        };
        let mut sources = Vec::new();
        let mut input: Option<OwnedFd> = None;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        if program.terminal.is_some() {
            program.terminal = Some(UNSEEN_TERMINAL);
        } else {
            if open_input {
                let (reader, writer) = std::io::pipe().map_err(io)?;
                descriptors.push(reader.into());
                input = Some(writer.into());
            } else {
                descriptors.push(File::open("/dev/null").map_err(io)?.into());
            }
            for stream in [1, 2] {
                let (reader, writer) = std::io::pipe().map_err(io)?;
                sources.push((stream, reader.into()));
                descriptors.push(writer.into());
            }
        }
        let notices = Arc::downgrade(self);
        let notify = Box::new(move |text: String| {
            if let Some(entry) = notices.upgrade() {
                log::warn!("container {}: {text}", entry.name());
            }
        });
        let mut started = host.run(options, program, descriptors, notify, true)?;
        if let Some(master) = started.terminal.take() {
            input = Some(master.try_clone().map_err(io)?);
            sources.push((1, master));
        }
        let pumped = pump::start(sources, Arc::clone(&self.output));
        let pumped = match pumped {
            Ok(end) => end,
            Err(error) => {
                started.program.end_now();
                return Err(Failure::new(format!("no thread for its output: {error}")));
            }
        };
        let info = host.info_of(&started.container);
        let mut state = self.lock();
        state.program = Some(Arc::clone(&started.program));
        state.pid = Some(started.pid);
        state.input = input;
        state.phase = Phase::Running;
        let has_health = state.record.detached.health.is_some();
        state.health = if has_health { Health::Starting } else { Health::None };
        state.record.started = Some(seconds());
        state.record.exit = None;
        if let Some(info) = info {
            state.record.number = info.id;
            state.record.nodes = info.nodes;
        }
        self.save(&state);
        let asked = state.asked;
        let name = state.record.name.clone();
        drop(state);
        host.events().tell("start", &name, Vec::new());
        self.changed.notify_all();
        if asked {
            // It was to be ended before it was there.
            started.program.end_now();
        }
        Ok((started, pumped))
    }

    /// Waits for the end of the container and of its output.
    fn follow(
        self: &Arc<Self>,
        host: &Arc<Host>,
        started: &Started,
        output: &Receiver<()>,
    ) -> Exit {
        let (life, health) = {
            let state = self.lock();
            (state.life, state.record.detached.health.clone())
        };
        if let Some(options) = health {
            super::health::start(self, host, life, options);
        }
        let ended = started.program.wait();
        // The way to the input keeps a terminal's other side open.
        self.lock().input = None;
        if output.recv_timeout(OUTPUT_PATIENCE).is_err() {
            log::warn!("container {}: somebody still holds its output", self.name());
        }
        let error = match &ended.how {
            EndedHow::Lost(why) => Some(why.clone()),
            _ => None,
        };
        Exit { code: ended.how.exit_code(), error, at: seconds() }
    }

    /// Notes what the health check says of the run of this number; false: that is over.
    pub(crate) fn note_health(&self, host: &Host, life: u64, health: Health) -> bool {
        let mut state = self.lock();
        if state.life != life || state.phase != Phase::Running {
            return false;
        }
        if std::mem::replace(&mut state.health, health) != health {
            let name = state.record.name.clone();
            drop(state);
            let more = vec![("health".to_owned(), health.word().to_owned())];
            host.events().tell("health_status", &name, more);
        }
        true
    }

    /// Waits, at most as long as the run of this number; false: that is over.
    pub(crate) fn pause_in_run(&self, life: u64, pause: Duration) -> bool {
        let runs = |state: &mut super::State| state.life == life && state.phase == Phase::Running;
        let waited = self.changed.wait_timeout_while(self.lock(), pause, runs);
        runs(&mut waited.unwrap_or_else(std::sync::PoisonError::into_inner).0)
    }
}

fn failed(failure: &Failure) -> Exit {
    Exit { code: failure.exit, error: Some(failure.message.clone()), at: seconds() }
}
