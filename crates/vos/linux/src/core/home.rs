//! The side on which a program was started: its caller asks to execute, becomes a ghost, ends as the
//! placed program ends.

use super::{KILLED, Placement};
use std::collections::{BTreeMap, HashMap};

/// Most other threads of one caller whose own exec is held while the first one's is decided.
pub const MAX_SIBLINGS: usize = 64;

/// A trapped call, by the number that the kernel gave its notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call(pub u64);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A process that may be placed on `node` asks to execute a program.
    Exec {
        /// The process.
        pid: u32,
        /// The thread that asks.
        thread: u32,
        /// Its call.
        call: Call,
        /// The node chosen.
        node: u16,
    },
    /// The other node holds the program ready.
    Prepared(Placement),
    /// It does not: the program itself cannot be executed.
    Impossible(Placement, i32),
    /// It does not, or did not answer in time.
    NotPrepared(Placement),
    /// It turned out before anybody was asked that the program has to stay.
    Withdrawn(Placement),
    /// The caller could not be made a ghost; it executes the program itself.
    NotConverted(Placement),
    /// The ghost's first report.
    Hello {
        /// The process.
        pid: u32,
    },
    /// The process is gone: killed before it became a ghost, or its ghost has ended.
    CallerGone {
        /// The process.
        pid: u32,
    },
    /// The other node holds a program and wants to know whether to go on.
    Query {
        /// Who asks.
        from: u16,
        /// About what.
        placement: Placement,
    },
    /// The placed program ended.
    Ended {
        /// Who says so.
        from: u16,
        /// Which.
        placement: Placement,
        /// Wait status.
        status: i32,
    },
    /// All that the program wrote has been written at home.
    Drained(Placement),
    /// A node is lost.
    NodeLost(u16),
    /// Time to repeat what was not answered.
    Tick,
}

/// What is to be done, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Ask the node to prepare the program.
    Prepare {
        /// Which.
        placement: Placement,
        /// Where.
        node: u16,
        /// No placement below this one is open any more.
        lowest_open: Placement,
    },
    /// Make the caller a ghost.
    Convert(Placement),
    /// Let the placed program run. Sent again on [`Event::Query`].
    Release {
        /// Where.
        node: u16,
        /// Which.
        placement: Placement,
    },
    /// End the placed program, held or running.
    Abort {
        /// Where.
        node: u16,
        /// Which.
        placement: Placement,
    },
    /// The call goes on natively.
    Continue(Call),
    /// The call fails.
    Fail(Call, i32),
    /// The ghost may settle down: answer its first report.
    Settle {
        /// The process.
        pid: u32,
    },
    /// Write out what the program has written.
    Drain(Placement),
    /// The ghost ends with this wait status.
    Finish {
        /// The process.
        pid: u32,
        /// Wait status.
        status: i32,
    },
    /// The end of the program is known here; the node need not repeat it.
    Acknowledge {
        /// Where.
        node: u16,
        /// Which.
        placement: Placement,
    },
    /// Nothing of the placement is needed any more.
    Forget(Placement),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Asked; nobody has changed anything yet.
    Preparing { call: Call },
    /// The program is held; the caller is being made a ghost.
    Converting { call: Call },
    /// Committed: the program runs.
    Ghost,
    /// It ended; its output is on the way.
    Draining { status: i32 },
    /// The ghost has been told to end.
    Ending,
    /// The ghost is gone before the program; the program is being ended.
    Orphan,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    pid: u32,
    thread: u32,
    node: u16,
    state: State,
    siblings: Vec<Call>,
    /// The node is lost while the caller is being converted: its ghost dies at its first report.
    lost: bool,
}

/// All placements of one node's programs.
#[derive(Debug, Clone)]
pub struct Home {
    next: u64,
    open: BTreeMap<Placement, Entry>,
    by_pid: HashMap<u32, Placement>,
}

impl Home {
    /// Nothing placed. `first`: above every number that an earlier life of this node gave.
    #[must_use]
    pub fn new(first: u64) -> Self {
        Home { next: first, open: BTreeMap::new(), by_pid: HashMap::new() }
    }

    /// Number of placements that are not over.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing is placed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether [`Event::Tick`] has anything to do.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.open.values().any(|entry| entry.state == State::Orphan)
    }

    /// Where the program of a ghost runs, and by which number; `None` before the commit and after
    /// the end.
    #[must_use]
    pub fn ghost(&self, pid: u32) -> Option<(u16, Placement)> {
        let placement = *self.by_pid.get(&pid)?;
        let entry = self.open.get(&placement)?;
        (entry.state == State::Ghost).then_some((entry.node, placement))
    }

    /// The process of a placement.
    #[must_use]
    pub fn pid(&self, placement: Placement) -> Option<u32> {
        self.open.get(&placement).map(|entry| entry.pid)
    }

    /// All ghosts whose programs run: pid, node, placement.
    pub fn ghosts(&self) -> impl Iterator<Item = (u32, u16, Placement)> + '_ {
        self.open
            .iter()
            .filter(|(_, entry)| entry.state == State::Ghost)
            .map(|(placement, entry)| (entry.pid, entry.node, *placement))
    }

    /// One event; the commands are to be carried out in order.
    pub fn step(&mut self, event: Event) -> Vec<Command> {
        match event {
            Event::Exec { pid, thread, call, node } => self.exec(pid, thread, call, node),
            Event::Prepared(placement) => self.prepared(placement),
            Event::Impossible(placement, errno) => self.not_placed(placement, Some(errno), false),
            Event::NotPrepared(placement) => self.not_placed(placement, None, true),
            Event::Withdrawn(placement) => self.not_placed(placement, None, false),
            Event::NotConverted(placement) => self.not_converted(placement),
            Event::Hello { pid } => self.hello(pid),
            Event::CallerGone { pid } => self.caller_gone(pid),
            Event::Query { from, placement } => self.query(from, placement),
            Event::Ended { from, placement, status } => self.ended(from, placement, status),
            Event::Drained(placement) => self.drained(placement),
            Event::NodeLost(node) => self.node_lost(node),
            Event::Tick => self.tick(),
        }
    }

    fn exec(&mut self, pid: u32, thread: u32, call: Call, node: u16) -> Vec<Command> {
        let mut commands = Vec::new();
        if let Some(placement) = self.by_pid.get(&pid).copied() {
            let entry = self.open.get_mut(&placement).expect("by_pid names open placements");
            let undecided =
                matches!(entry.state, State::Preparing { .. } | State::Converting { .. });
            if undecided && entry.thread != thread {
                // The kernel lets one exec win and kills the other threads: this one waits for the
                // first one's fate, or its own exec would kill the thread that is being converted.
                if entry.siblings.len() >= MAX_SIBLINGS {
                    return vec![Command::Fail(call, libc::EAGAIN)];
                }
                entry.siblings.push(call);
                return Vec::new();
            }
            // The pid has a new owner, or the thread repeats its call: the old attempt is over.
            commands.extend(self.caller_gone(pid));
        }
        let placement = Placement(self.next);
        self.next += 1;
        let state = State::Preparing { call };
        let entry = Entry { pid, thread, node, state, siblings: Vec::new(), lost: false };
        self.open.insert(placement, entry);
        self.by_pid.insert(pid, placement);
        commands.push(Command::Prepare { placement, node, lowest_open: self.lowest_open() });
        commands
    }

    fn lowest_open(&self) -> Placement {
        self.open.keys().next().copied().unwrap_or(Placement(self.next))
    }

    fn prepared(&mut self, placement: Placement) -> Vec<Command> {
        let Some(entry) = self.open.get_mut(&placement) else { return Vec::new() };
        let State::Preparing { call } = entry.state else { return Vec::new() };
        entry.state = State::Converting { call };
        vec![Command::Convert(placement)]
    }

    fn not_placed(
        &mut self,
        placement: Placement,
        errno: Option<i32>,
        abort: bool,
    ) -> Vec<Command> {
        let Some(entry) = self.open.get(&placement) else { return Vec::new() };
        let State::Preparing { call } = entry.state else { return Vec::new() };
        let entry = self.remove(placement).expect("it is there");
        let mut commands = Vec::new();
        if abort {
            commands.push(Command::Abort { node: entry.node, placement });
        }
        commands.push(match errno {
            Some(errno) => Command::Fail(call, errno),
            None => Command::Continue(call),
        });
        commands.extend(entry.siblings.into_iter().map(Command::Continue));
        commands.push(Command::Forget(placement));
        commands
    }

    fn not_converted(&mut self, placement: Placement) -> Vec<Command> {
        let Some(entry) = self.open.get(&placement) else { return Vec::new() };
        let State::Converting { call } = entry.state else { return Vec::new() };
        let entry = self.remove(placement).expect("it is there");
        let mut commands = vec![
            Command::Abort { node: entry.node, placement },
            // Where the call has been answered already this finds nobody, which is harmless.
            Command::Continue(call),
        ];
        commands.extend(entry.siblings.into_iter().map(Command::Continue));
        commands.push(Command::Forget(placement));
        commands
    }

    fn hello(&mut self, pid: u32) -> Vec<Command> {
        let Some(placement) = self.by_pid.get(&pid).copied() else { return Vec::new() };
        let entry = self.open.get_mut(&placement).expect("by_pid names open placements");
        if !matches!(entry.state, State::Converting { .. }) {
            return Vec::new();
        }
        // Other threads that asked have been killed by the ghost's exec.
        entry.siblings.clear();
        if entry.lost {
            entry.state = State::Ending;
            return vec![Command::Finish { pid, status: KILLED }];
        }
        entry.state = State::Ghost;
        vec![Command::Release { node: entry.node, placement }, Command::Settle { pid }]
    }

    fn caller_gone(&mut self, pid: u32) -> Vec<Command> {
        let Some(placement) = self.by_pid.remove(&pid) else { return Vec::new() };
        let entry = self.open.get_mut(&placement).expect("by_pid names open placements");
        let abort = Command::Abort { node: entry.node, placement };
        match entry.state {
            State::Ghost => {
                entry.state = State::Orphan;
                vec![abort]
            }
            State::Preparing { .. } | State::Converting { .. } => {
                let siblings = std::mem::take(&mut entry.siblings);
                self.open.remove(&placement);
                let mut commands = vec![abort];
                commands.extend(siblings.into_iter().map(Command::Continue));
                commands.push(Command::Forget(placement));
                commands
            }
            State::Draining { .. } | State::Ending | State::Orphan => {
                self.open.remove(&placement);
                vec![Command::Forget(placement)]
            }
        }
    }

    fn query(&mut self, from: u16, placement: Placement) -> Vec<Command> {
        match self.open.get(&placement) {
            Some(entry) if entry.node != from => Vec::new(),
            Some(entry) => match entry.state {
                State::Preparing { .. } | State::Converting { .. } => Vec::new(),
                State::Ghost => vec![Command::Release { node: from, placement }],
                _ => vec![Command::Abort { node: from, placement }],
            },
            None => vec![Command::Abort { node: from, placement }],
        }
    }

    fn ended(&mut self, from: u16, placement: Placement, status: i32) -> Vec<Command> {
        let mut commands = vec![Command::Acknowledge { node: from, placement }];
        let Some(entry) = self.open.get_mut(&placement) else { return commands };
        if entry.node != from {
            return Vec::new();
        }
        match entry.state {
            State::Ghost => {
                entry.state = State::Draining { status };
                commands.push(Command::Drain(placement));
            }
            State::Orphan => {
                self.open.remove(&placement);
                commands.push(Command::Forget(placement));
            }
            _ => {}
        }
        commands
    }

    fn drained(&mut self, placement: Placement) -> Vec<Command> {
        let Some(entry) = self.open.get_mut(&placement) else { return Vec::new() };
        let State::Draining { status } = entry.state else { return Vec::new() };
        entry.state = State::Ending;
        vec![Command::Finish { pid: entry.pid, status }]
    }

    fn node_lost(&mut self, node: u16) -> Vec<Command> {
        let placements: Vec<Placement> = self
            .open
            .iter()
            .filter(|(_, entry)| entry.node == node)
            .map(|(placement, _)| *placement)
            .collect();
        let mut commands = Vec::new();
        for placement in placements {
            let entry = self.open.get_mut(&placement).expect("collected above");
            match entry.state {
                State::Preparing { .. } => {
                    commands.extend(self.not_placed(placement, None, false));
                }
                State::Converting { .. } => entry.lost = true,
                State::Ghost => {
                    entry.state = State::Ending;
                    commands.push(Command::Finish { pid: entry.pid, status: KILLED });
                }
                State::Draining { status } => {
                    entry.state = State::Ending;
                    commands.push(Command::Finish { pid: entry.pid, status });
                }
                State::Ending => {}
                State::Orphan => {
                    self.open.remove(&placement);
                    commands.push(Command::Forget(placement));
                }
            }
        }
        commands
    }

    fn tick(&self) -> Vec<Command> {
        self.open
            .iter()
            .filter(|(_, entry)| entry.state == State::Orphan)
            .map(|(placement, entry)| Command::Abort { node: entry.node, placement: *placement })
            .collect()
    }

    fn remove(&mut self, placement: Placement) -> Option<Entry> {
        let entry = self.open.remove(&placement)?;
        self.by_pid.remove(&entry.pid);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(home: &mut Home, pid: u32, thread: u32, call: u64) -> Vec<Command> {
        home.step(Event::Exec { pid, thread, call: Call(call), node: 2 })
    }

    #[test]
    fn a_program_is_released_only_after_hello() {
        let mut home = Home::new(10);
        let placement = Placement(10);
        let prepare = Command::Prepare { placement, node: 2, lowest_open: placement };
        assert_eq!(exec(&mut home, 50, 50, 1), vec![prepare]);
        assert_eq!(home.step(Event::Hello { pid: 50 }), vec![], "not converted yet");
        assert_eq!(home.step(Event::Prepared(placement)), vec![Command::Convert(placement)]);
        assert_eq!(home.step(Event::Query { from: 2, placement }), vec![], "undecided");
        assert_eq!(
            home.step(Event::Hello { pid: 50 }),
            vec![Command::Release { node: 2, placement }, Command::Settle { pid: 50 }]
        );
        assert_eq!(home.ghost(50), Some((2, placement)));
        let ended = Event::Ended { from: 2, placement, status: 0x700 };
        assert_eq!(
            home.step(ended),
            vec![Command::Acknowledge { node: 2, placement }, Command::Drain(placement)]
        );
        assert_eq!(home.step(ended), vec![Command::Acknowledge { node: 2, placement }]);
        assert_eq!(
            home.step(Event::Drained(placement)),
            vec![Command::Finish { pid: 50, status: 0x700 }]
        );
        assert_eq!(home.step(Event::CallerGone { pid: 50 }), vec![Command::Forget(placement)]);
        assert!(home.is_empty());
    }

    #[test]
    fn racing_threads_wait_for_the_first() {
        let mut home = Home::new(1);
        let placement = Placement(1);
        exec(&mut home, 50, 50, 1);
        assert_eq!(exec(&mut home, 50, 51, 2), vec![]);
        assert_eq!(
            home.step(Event::NotPrepared(placement)),
            vec![
                Command::Abort { node: 2, placement },
                Command::Continue(Call(1)),
                Command::Continue(Call(2)),
                Command::Forget(placement)
            ]
        );
        exec(&mut home, 50, 50, 3);
        for sibling in 0..MAX_SIBLINGS as u64 {
            assert_eq!(exec(&mut home, 50, 51, 10 + sibling), vec![]);
        }
        assert_eq!(exec(&mut home, 50, 51, 99), vec![Command::Fail(Call(99), libc::EAGAIN)]);
    }

    #[test]
    fn a_repeated_call_starts_anew() {
        let mut home = Home::new(1);
        exec(&mut home, 50, 50, 1);
        home.step(Event::Prepared(Placement(1)));
        let commands = exec(&mut home, 50, 50, 2);
        assert!(commands.contains(&Command::Abort { node: 2, placement: Placement(1) }));
        assert!(matches!(commands.last(), Some(Command::Prepare { placement: Placement(2), .. })));
    }

    #[test]
    fn a_lost_node_kills_ghosts_and_sends_the_undecided_home() {
        let mut home = Home::new(1);
        exec(&mut home, 50, 50, 1);
        exec(&mut home, 60, 60, 2);
        home.step(Event::Prepared(Placement(2)));
        exec(&mut home, 70, 70, 3);
        home.step(Event::Prepared(Placement(3)));
        home.step(Event::Hello { pid: 70 });
        let commands = home.step(Event::NodeLost(2));
        assert!(commands.contains(&Command::Continue(Call(1))));
        assert!(commands.contains(&Command::Finish { pid: 70, status: KILLED }));
        assert_eq!(
            home.step(Event::Hello { pid: 60 }),
            vec![Command::Finish { pid: 60, status: KILLED }]
        );
    }

    #[test]
    fn an_orphan_is_ended_until_its_end_is_known() {
        let mut home = Home::new(1);
        let placement = Placement(1);
        exec(&mut home, 50, 50, 1);
        home.step(Event::Prepared(placement));
        home.step(Event::Hello { pid: 50 });
        let abort = Command::Abort { node: 2, placement };
        assert_eq!(home.step(Event::CallerGone { pid: 50 }), vec![abort]);
        assert_eq!(home.step(Event::Tick), vec![abort]);
        home.step(Event::Ended { from: 2, placement, status: KILLED });
        assert!(home.is_empty());
    }
}
