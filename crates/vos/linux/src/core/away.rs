//! The side on which a placed program runs: prepared and held, released, ended.

use super::{KILLED, Placement};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A placement as the node that runs it names it: whose, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Home node.
    pub home: u16,
    /// Its number there.
    pub placement: Placement,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The home node asks for a program to be held ready.
    Prepare {
        /// Which.
        key: Key,
        /// Every placement of that node below this one is over.
        lowest_open: Placement,
    },
    /// The program is held at its exec stop.
    Launched(Key),
    /// It could not be started; nothing is left of it.
    NotLaunched(Key),
    /// The home node lets it run.
    Release(Key),
    /// The home node ends it, held or running.
    Abort(Key),
    /// It ended.
    Exited(Key, i32),
    /// The home node knows of its end.
    Acknowledged(Key),
    /// A node is lost.
    HomeLost(u16),
    /// Time to repeat what was not answered.
    Tick,
}

/// What is to be done, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Start it and hold it.
    Launch(Key),
    /// Tell home that it is held.
    Prepared(Key),
    /// Let the held program run.
    Start(Key),
    /// End the held program; it has never run.
    Discard(Key),
    /// Kill the running program.
    Kill(Key),
    /// Tell home how it ended.
    Report(Key, i32),
    /// Ask home whether it is still wanted.
    Query(Key),
    /// Nothing of the placement is needed any more.
    Forget(Key),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Launching {
        aborted: bool,
    },
    /// `asked`: a tick has passed since, so home is asked at the next one.
    Held {
        waited: bool,
    },
    Running,
    /// Running, and nobody is to be told of its end.
    Orphan,
    Ended {
        status: i32,
    },
}

/// All programs that other nodes have placed here.
#[derive(Debug, Clone, Default)]
pub struct Away {
    programs: BTreeMap<Key, State>,
    /// Placements that were prepared or aborted once: a late copy of a message starts nothing.
    used: HashMap<u16, BTreeSet<Placement>>,
    /// Placements below this one are over.
    floor: HashMap<u16, Placement>,
}

impl Away {
    /// Nothing placed here.
    #[must_use]
    pub fn new() -> Self {
        Away::default()
    }

    /// Number of programs that are not over.
    #[must_use]
    pub fn len(&self) -> usize {
        self.programs.len()
    }

    /// Whether nothing is placed here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Whether it runs here.
    #[must_use]
    pub fn runs(&self, key: Key) -> bool {
        matches!(self.programs.get(&key), Some(State::Running | State::Orphan))
    }

    /// Whether [`Event::Tick`] has anything to do.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.programs
            .values()
            .any(|state| matches!(state, State::Held { .. } | State::Ended { .. }))
    }

    /// One event; the commands are to be carried out in order.
    pub fn step(&mut self, event: Event) -> Vec<Command> {
        match event {
            Event::Prepare { key, lowest_open } => self.prepare(key, lowest_open),
            Event::Launched(key) => self.launched(key),
            Event::NotLaunched(key) => {
                self.programs.remove(&key);
                vec![Command::Forget(key)]
            }
            Event::Release(key) => self.release(key),
            Event::Abort(key) => self.abort(key),
            Event::Exited(key, status) => self.exited(key, status),
            Event::Acknowledged(key) => {
                if matches!(self.programs.get(&key), Some(State::Ended { .. })) {
                    self.programs.remove(&key);
                    return vec![Command::Forget(key)];
                }
                Vec::new()
            }
            Event::HomeLost(home) => self.home_lost(home),
            Event::Tick => self.tick(),
        }
    }

    fn prepare(&mut self, key: Key, lowest_open: Placement) -> Vec<Command> {
        let floor = self.floor.entry(key.home).or_insert(lowest_open);
        *floor = (*floor).max(lowest_open);
        let floor = *floor;
        let used = self.used.entry(key.home).or_default();
        *used = used.split_off(&floor);
        if key.placement < floor || !used.insert(key.placement) {
            return Vec::new();
        }
        self.programs.insert(key, State::Launching { aborted: false });
        vec![Command::Launch(key)]
    }

    fn launched(&mut self, key: Key) -> Vec<Command> {
        match self.programs.get_mut(&key) {
            Some(state @ State::Launching { aborted: false }) => {
                *state = State::Held { waited: false };
                vec![Command::Prepared(key)]
            }
            Some(State::Launching { aborted: true }) => self.discard(key),
            _ => Vec::new(),
        }
    }

    /// The answer tells a home node that waits for it that nothing runs here (it is not repeated: a
    /// home node that needs it aborts again).
    fn discard(&mut self, key: Key) -> Vec<Command> {
        self.programs.remove(&key);
        vec![Command::Discard(key), Command::Report(key, KILLED), Command::Forget(key)]
    }

    fn release(&mut self, key: Key) -> Vec<Command> {
        match self.programs.get_mut(&key) {
            Some(state @ State::Held { .. }) => {
                *state = State::Running;
                vec![Command::Start(key)]
            }
            _ => Vec::new(),
        }
    }

    fn abort(&mut self, key: Key) -> Vec<Command> {
        match self.programs.get_mut(&key) {
            Some(State::Launching { aborted }) => {
                *aborted = true;
                Vec::new()
            }
            Some(State::Held { .. }) => self.discard(key),
            Some(State::Running | State::Orphan) => vec![Command::Kill(key)],
            Some(State::Ended { .. }) => Vec::new(),
            None => {
                // It may have overtaken its own Prepare.
                if self.floor.get(&key.home).is_none_or(|floor| key.placement >= *floor) {
                    self.used.entry(key.home).or_default().insert(key.placement);
                }
                vec![Command::Report(key, KILLED)]
            }
        }
    }

    fn exited(&mut self, key: Key, status: i32) -> Vec<Command> {
        match self.programs.get_mut(&key) {
            // One that was held and died (of SIGKILL from inside the container) ended as well.
            Some(state @ (State::Running | State::Held { .. })) => {
                *state = State::Ended { status };
                vec![Command::Report(key, status)]
            }
            Some(State::Orphan) => {
                self.programs.remove(&key);
                vec![Command::Forget(key)]
            }
            _ => Vec::new(),
        }
    }

    fn home_lost(&mut self, home: u16) -> Vec<Command> {
        // Numbers rise over all lives of a node: what a lost life sent late starts nothing.
        if let Some(last) = self.used.remove(&home).and_then(|used| used.last().copied()) {
            let floor = self.floor.entry(home).or_insert(last);
            *floor = (*floor).max(Placement(last.0.saturating_add(1)));
        }
        let keys: Vec<Key> = self.programs.keys().filter(|key| key.home == home).copied().collect();
        let mut commands = Vec::new();
        for key in keys {
            let state = self.programs.get_mut(&key).expect("collected above");
            match state {
                State::Launching { aborted } => *aborted = true,
                State::Held { .. } => {
                    self.programs.remove(&key);
                    commands.extend([Command::Discard(key), Command::Forget(key)]);
                }
                State::Running | State::Orphan => {
                    *state = State::Orphan;
                    commands.push(Command::Kill(key));
                }
                State::Ended { .. } => {
                    self.programs.remove(&key);
                    commands.push(Command::Forget(key));
                }
            }
        }
        commands
    }

    fn tick(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        for (key, state) in &mut self.programs {
            match state {
                State::Held { waited: true } => commands.push(Command::Query(*key)),
                State::Held { waited } => *waited = true,
                State::Ended { status } => commands.push(Command::Report(*key, *status)),
                State::Launching { .. } | State::Running | State::Orphan => {}
            }
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { home: 1, placement: Placement(5) };

    fn held() -> Away {
        let mut away = Away::new();
        let prepare = Event::Prepare { key: KEY, lowest_open: Placement(5) };
        assert_eq!(away.step(prepare), vec![Command::Launch(KEY)]);
        assert_eq!(away.step(Event::Launched(KEY)), vec![Command::Prepared(KEY)]);
        away
    }

    #[test]
    fn the_ordinary_course() {
        let mut away = held();
        assert_eq!(away.step(Event::Tick), vec![]);
        assert_eq!(away.step(Event::Tick), vec![Command::Query(KEY)]);
        assert_eq!(away.step(Event::Release(KEY)), vec![Command::Start(KEY)]);
        assert_eq!(away.step(Event::Release(KEY)), vec![], "once");
        assert_eq!(away.step(Event::Exited(KEY, 3)), vec![Command::Report(KEY, 3)]);
        assert_eq!(away.step(Event::Tick), vec![Command::Report(KEY, 3)]);
        assert_eq!(away.step(Event::Acknowledged(KEY)), vec![Command::Forget(KEY)]);
        assert!(away.is_empty());
    }

    #[test]
    fn an_aborted_program_never_starts() {
        let mut away = held();
        let discarded =
            vec![Command::Discard(KEY), Command::Report(KEY, KILLED), Command::Forget(KEY)];
        assert_eq!(away.step(Event::Abort(KEY)), discarded);
        assert_eq!(away.step(Event::Release(KEY)), vec![]);
        let again = Event::Prepare { key: KEY, lowest_open: Placement(5) };
        assert_eq!(away.step(again), vec![], "a late copy of the message");

        let mut away = Away::new();
        away.step(Event::Abort(KEY));
        let late = Event::Prepare { key: KEY, lowest_open: Placement(5) };
        assert_eq!(away.step(late), vec![], "the abort came first");

        let mut away = Away::new();
        away.step(Event::Prepare { key: KEY, lowest_open: Placement(5) });
        away.step(Event::Abort(KEY));
        assert_eq!(away.step(Event::Launched(KEY)), discarded);
    }

    #[test]
    fn a_lost_home_takes_its_programs_along() {
        let mut away = held();
        away.step(Event::Release(KEY));
        assert_eq!(away.step(Event::HomeLost(2)), vec![]);
        assert_eq!(away.step(Event::HomeLost(1)), vec![Command::Kill(KEY)]);
        assert_eq!(away.step(Event::Exited(KEY, 9)), vec![Command::Forget(KEY)]);
        assert!(away.is_empty());
    }

    #[test]
    fn the_memory_of_used_numbers_is_bounded_by_what_is_open() {
        let mut away = Away::new();
        for number in 0..1000 {
            let key = Key { home: 1, placement: Placement(number) };
            away.step(Event::Prepare { key, lowest_open: Placement(number) });
            away.step(Event::NotLaunched(key));
        }
        assert_eq!(away.used[&1].len(), 1);
        let old = Key { home: 1, placement: Placement(3) };
        assert_eq!(away.step(Event::Prepare { key: old, lowest_open: Placement(0) }), vec![]);
    }
}
