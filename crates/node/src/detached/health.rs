//! Whether a detached container is well: a command is run in it from time to time.
//!
//! The counting is pure ([`Judge`]); the thread ends with the run that it looks after.

use super::Entry;
use crate::host::Host;
use crate::managing::{Health, HealthOptions};
use crate::protocol::{ProgramOptions, Text};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Decides from the results of the checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judge {
    retries: u32,
    start_period: Duration,
    failures: u32,
    health: Health,
}

impl Judge {
    /// Of a run that begins.
    pub(crate) fn new(options: &HealthOptions) -> Judge {
        Judge {
            retries: options.retries.max(1),
            start_period: Duration::from_millis(options.start_period),
            failures: 0,
            health: Health::Starting,
        }
    }

    /// A check came out, so long after the start.
    pub(crate) fn looked(&mut self, good: bool, age: Duration) -> Health {
        if good {
            self.failures = 0;
            self.health = Health::Healthy;
        } else if self.health != Health::Starting || age >= self.start_period {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.retries {
                self.health = Health::Unhealthy;
            }
        }
        self.health
    }
}

/// Starts to look after a run.
pub(crate) fn start(entry: &Arc<Entry>, host: &Arc<Host>, life: u64, options: HealthOptions) {
    let (entry, host) = (Arc::clone(entry), Arc::clone(host));
    let spawned = std::thread::Builder::new().name("health".into()).spawn(move || {
        let mut judge = Judge::new(&options);
        let began = Instant::now();
        while entry.pause_in_run(life, Duration::from_millis(options.interval)) {
            let good = check(&entry, &host, &options);
            let health = judge.looked(good, began.elapsed());
            if !entry.note_health(&host, life, health) {
                return;
            }
        }
    });
    if let Err(error) = spawned {
        log::error!("no thread for health checks: {error}");
    }
}

/// Runs the command once.
fn check(entry: &Entry, host: &Arc<Host>, options: &HealthOptions) -> bool {
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let streams: Result<Vec<OwnedFd>, _> = (0..3).map(|_| null()).collect();
    let Ok(streams) = streams else { return false };
    let (directory, user) = {
        let state = entry.lock();
        (state.record.program.directory.clone(), state.record.program.user.clone())
    };
    let program = ProgramOptions {
        arguments: ["sh", "-c", &options.command].map(Text::from).to_vec(),
        directory,
        user,
        umask: 0o22,
        ..ProgramOptions::default()
    };
    let started = match host.exec(&entry.name(), program, streams) {
        Ok(started) => started,
        Err(failure) => {
            log::debug!("a health check did not start: {failure}");
            return false;
        }
    };
    let (sender, ended) = channel();
    let program = Arc::clone(&started.program);
    let spawned = std::thread::Builder::new().name("check".into()).spawn(move || {
        // Nobody waits any more after a time-out.
        let _ = sender.send(program.wait());
    });
    if spawned.is_err() {
        started.program.end_now();
        return false;
    }
    match ended.recv_timeout(Duration::from_millis(options.timeout)) {
        Ok(ended) => ended.how.exit_code() == 0,
        Err(RecvTimeoutError::Timeout) => {
            started.program.end_now();
            false
        }
        Err(RecvTimeoutError::Disconnected) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_and_after_the_start_count() {
        let options = HealthOptions {
            command: String::new(),
            interval: 1,
            timeout: 1,
            retries: 2,
            start_period: 1000,
        };
        let mut judge = Judge::new(&options);
        let (early, late) = (Duration::from_millis(1), Duration::from_secs(2));
        for _ in 0..5 {
            assert_eq!(judge.looked(false, early), Health::Starting);
        }
        assert_eq!(judge.looked(false, late), Health::Starting);
        assert_eq!(judge.looked(true, late), Health::Healthy);
        assert_eq!(judge.looked(false, late), Health::Healthy);
        assert_eq!(judge.looked(true, late), Health::Healthy);
        assert_eq!(judge.looked(false, late), Health::Healthy);
        assert_eq!(judge.looked(false, late), Health::Unhealthy);
        assert_eq!(judge.looked(true, late), Health::Healthy);
    }
}
