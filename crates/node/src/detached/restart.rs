//! Whether and when a container that has ended is started again. Pure: times come in.
//!
//! As docker has it: the pause doubles from 0.1 s to a minute, and is forgotten once a run was long
//! enough to count as one that worked.

use crate::managing::RestartPolicy;
use std::time::Duration;

/// First pause.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A run as long as this worked.
const WORKED: Duration = Duration::from_secs(10);

/// What comes after an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It stays ended.
    Stay,
    /// It is started after a pause.
    Start(Duration),
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Exit code 0.
    pub(crate) succeeded: bool,
    /// How long it ran.
    pub(crate) lasted: Duration,
    /// A user (or the daemon's end) ended it.
    pub(crate) asked: bool,
}

/// Counts the runs of one container since it was started by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Restarts {
    /// Restarts in a row without a run that worked.
    in_a_row: u32,
}

impl Restarts {
    /// A run has ended: what now?
    pub(crate) fn ended(&mut self, policy: RestartPolicy, run: Run) -> Next {
        if run.lasted >= WORKED {
            self.in_a_row = 0;
        }
        let wanted = match policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure(most) => {
                !run.succeeded && most.is_none_or(|most| self.in_a_row < most)
            }
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        };
        if run.asked || !wanted {
            return Next::Stay;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.in_a_row.min(16)).min(LONGEST_PAUSE);
        self.in_a_row = self.in_a_row.saturating_add(1);
        Next::Start(pause)
    }
}

/// Whether a daemon that starts starts a container, too. `stopped`: it was stopped by hand.
pub(crate) fn starts_with_daemon(policy: RestartPolicy, stopped: bool) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::UnlessStopped => !stopped,
        RestartPolicy::No | RestartPolicy::OnFailure(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(succeeded: bool) -> Run {
        Run { succeeded, lasted: Duration::ZERO, asked: false }
    }

    #[test]
    fn pauses_double_to_a_minute_and_are_forgotten_after_a_long_run() {
        let mut restarts = Restarts::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let Next::Start(pause) = restarts.ended(RestartPolicy::Always, run(true)) else {
                panic!("always")
            };
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[10..], [60_000, 60_000]);
        let long = Run { lasted: WORKED, ..run(false) };
        assert_eq!(restarts.ended(RestartPolicy::Always, long), Next::Start(FIRST_PAUSE));
        for _ in 0..100 {
            restarts.ended(RestartPolicy::Always, run(true));
        }
    }

    #[test]
    fn failures_are_counted() {
        let mut restarts = Restarts::default();
        let policy = RestartPolicy::OnFailure(Some(2));
        assert_eq!(Restarts::default().ended(policy, run(true)), Next::Stay);
        assert!(matches!(restarts.ended(policy, run(false)), Next::Start(_)));
        assert!(matches!(restarts.ended(policy, run(false)), Next::Start(_)));
        assert_eq!(restarts.ended(policy, run(false)), Next::Stay);
        assert_eq!(restarts.ended(RestartPolicy::No, run(false)), Next::Stay);
    }

    #[test]
    fn what_was_asked_for_stays() {
        let asked = Run { asked: true, ..run(false) };
        for policy in
            [RestartPolicy::Always, RestartPolicy::UnlessStopped, RestartPolicy::OnFailure(None)]
        {
            assert_eq!(Restarts::default().ended(policy, asked), Next::Stay);
        }
        assert!(starts_with_daemon(RestartPolicy::Always, true));
        assert!(starts_with_daemon(RestartPolicy::UnlessStopped, false));
        assert!(!starts_with_daemon(RestartPolicy::UnlessStopped, true));
        assert!(!starts_with_daemon(RestartPolicy::OnFailure(None), false));
    }
}
