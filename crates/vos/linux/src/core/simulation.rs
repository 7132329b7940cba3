//! Both sides against each other over a network that loses, doubles and reorders, with nodes that
//! crash and callers that are killed at any moment.
//!
//! `DVS_SEED=n` replays one run, `DVS_SEEDS=n` makes n of them.

use super::away::{self, Away, Key};
use super::home::{self, Call, Home};
use super::{KILLED, Placement};
use std::collections::{BTreeMap, BTreeSet};

const HOME: u16 = 1;
const AWAY: u16 = 2;
const PROGRAMS: u32 = 12;
/// Steps after which a run must have come to rest.
const MAX_STEPS: usize = 20_000;

struct Random(u64);

impl Random {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Clone, Copy)]
enum Happening {
    AtHome(home::Event),
    AtAway(away::Event),
    /// The caller's program is killed from inside the container at home.
    KillCaller(u32),
    CrashAway,
    CrashHome,
}

/// What the world knows of one program.
#[derive(Debug, Default, Clone)]
struct Fate {
    ran_here: u32,
    ran_there: u32,
    failed: u32,
    aborted: bool,
    true_status: Option<i32>,
    shown_status: Option<i32>,
    caller_dead: bool,
    ghost: bool,
    /// Status that the world gives it without asking: a lost node took it.
    lost: bool,
}

struct World {
    random: Random,
    time: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    count: u64,
    home: Home,
    away: Away,
    away_life: u32,
    fates: BTreeMap<u32, Fate>,
    pids: BTreeMap<Placement, u32>,
    held: BTreeSet<Key>,
    running: BTreeSet<Key>,
    kept: BTreeSet<Key>,
    bad_network: bool,
}

impl World {
    fn after(&mut self, delay: u64, what: Happening) {
        self.count += 1;
        let jitter = self.random.below(delay.max(1));
        self.queue.insert((self.time + 1 + jitter, self.count), what);
    }

    fn send(&mut self, what: &Happening) {
        if self.bad_network && self.random.chance(15) {
            return;
        }
        self.after(60, *what);
        if self.bad_network && self.random.chance(10) {
            self.after(400, *what);
        }
    }

    fn fate(&mut self, placement: Placement) -> &mut Fate {
        let pid = self.pids[&placement];
        self.fates.entry(pid).or_default()
    }

    fn home_commands(&mut self, commands: Vec<home::Command>) {
        use home::{Command, Event};
        for command in commands {
            match command {
                Command::Prepare { placement, lowest_open, .. } => {
                    let pid = self.home.pid(placement).expect("just opened");
                    self.pids.insert(placement, pid);
                    let key = Key { home: HOME, placement };
                    let prepare = away::Event::Prepare { key, lowest_open };
                    self.send(&Happening::AtAway(prepare));
                    self.count += 1;
                    let deadline = (self.time + 300, self.count);
                    self.queue.insert(deadline, Happening::AtHome(Event::NotPrepared(placement)));
                }
                Command::Convert(placement) => {
                    let pid = self.pids[&placement];
                    if self.random.chance(85) {
                        self.after(30, Happening::AtHome(Event::Hello { pid }));
                    } else {
                        self.after(30, Happening::AtHome(Event::NotConverted(placement)));
                    }
                }
                Command::Release { placement, .. } => {
                    let fate = self.fate(placement);
                    fate.ghost = true;
                    assert!(!fate.aborted, "released after it was aborted");
                    let key = Key { home: HOME, placement };
                    self.send(&Happening::AtAway(away::Event::Release(key)));
                }
                Command::Abort { placement, .. } => {
                    self.fate(placement).aborted = true;
                    let key = Key { home: HOME, placement };
                    self.send(&Happening::AtAway(away::Event::Abort(key)));
                }
                Command::Continue(call) => {
                    let fate = self.fates.entry(call.0 as u32).or_default();
                    if !fate.caller_dead {
                        fate.ran_here += 1;
                    }
                }
                Command::Fail(call, _) => {
                    self.fates.entry(call.0 as u32).or_default().failed += 1;
                }
                Command::Settle { .. } | Command::Forget(_) => {}
                Command::Drain(placement) => {
                    self.after(40, Happening::AtHome(Event::Drained(placement)));
                }
                Command::Finish { pid, status } => {
                    let fate = self.fates.entry(pid).or_default();
                    if !fate.caller_dead {
                        assert_eq!(fate.shown_status, None, "it ends once");
                        fate.shown_status = Some(status);
                        self.after(10, Happening::AtHome(Event::CallerGone { pid }));
                    }
                }
                Command::Acknowledge { placement, .. } => {
                    let key = Key { home: HOME, placement };
                    self.send(&Happening::AtAway(away::Event::Acknowledged(key)));
                }
            }
        }
    }

    fn away_commands(&mut self, commands: Vec<away::Command>) {
        use away::{Command, Event};
        for command in commands {
            match command {
                Command::Launch(key) => {
                    assert!(self.kept.insert(key), "launched twice");
                    if self.random.chance(90) {
                        self.held.insert(key);
                        self.after(50, Happening::AtAway(Event::Launched(key)));
                    } else {
                        self.after(50, Happening::AtAway(Event::NotLaunched(key)));
                        let failed = home::Event::Impossible(key.placement, 2);
                        self.send(&Happening::AtHome(failed));
                    }
                }
                Command::Prepared(key) => {
                    self.send(&Happening::AtHome(home::Event::Prepared(key.placement)));
                }
                Command::Start(key) => {
                    assert!(self.held.remove(&key), "it was held");
                    self.running.insert(key);
                    self.fate(key.placement).ran_there += 1;
                    let status = self.random.below(256) as i32;
                    self.after(500, Happening::AtAway(Event::Exited(key, status << 8)));
                }
                Command::Discard(key) => {
                    assert!(self.held.remove(&key), "it was held");
                }
                Command::Kill(key) => {
                    if self.running.contains(&key) {
                        self.after(5, Happening::AtAway(Event::Exited(key, KILLED)));
                    }
                }
                Command::Report(key, status) => {
                    let ended = home::Event::Ended { from: AWAY, placement: key.placement, status };
                    self.send(&Happening::AtHome(ended));
                }
                Command::Query(key) => {
                    let query = home::Event::Query { from: AWAY, placement: key.placement };
                    self.send(&Happening::AtHome(query));
                }
                Command::Forget(key) => {
                    self.kept.remove(&key);
                }
            }
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::AtHome(event) => {
                if let home::Event::CallerGone { pid } = &event {
                    self.fates.entry(*pid).or_default().caller_dead = true;
                }
                // A dead caller makes no ghost and no progress.
                if let home::Event::Hello { pid } | home::Event::Exec { pid, .. } = &event
                    && self.fates.entry(*pid).or_default().caller_dead
                {
                    return;
                }
                let commands = self.home.step(event);
                self.home_commands(commands);
            }
            Happening::AtAway(event) => {
                if let away::Event::Exited(key, status) = &event {
                    if !self.running.remove(key) {
                        return;
                    }
                    self.fate(key.placement).true_status = Some(*status);
                }
                if let away::Event::Launched(key) = &event
                    && !self.held.contains(key)
                {
                    return;
                }
                let commands = self.away.step(event);
                self.away_commands(commands);
            }
            Happening::KillCaller(pid) => {
                let fate = self.fates.entry(pid).or_default();
                if !fate.caller_dead && fate.shown_status.is_none() {
                    fate.caller_dead = true;
                    fate.shown_status = Some(KILLED);
                    self.after(20, Happening::AtHome(home::Event::CallerGone { pid }));
                }
            }
            Happening::CrashAway => {
                self.away_life += 1;
                self.away = Away::new();
                self.held.clear();
                self.kept.clear();
                let running = std::mem::take(&mut self.running);
                for key in running {
                    self.fate(key.placement).lost = true;
                }
                // Nothing of the old life arrives any more, and the new one is not asked until the
                // failure is known.
                self.queue.retain(|_, what| !matches!(what, Happening::AtAway(_)));
                for fate in self.fates.values_mut().filter(|fate| fate.ghost) {
                    fate.lost = true;
                }
                let commands = self.home.step(home::Event::NodeLost(AWAY));
                self.home_commands(commands);
            }
            Happening::CrashHome => {
                // With the daemon its container ends: every caller and ghost is gone.
                self.home = Home::new(1_000_000);
                self.queue.retain(|_, what| !matches!(what, Happening::AtHome(_)));
                for fate in self.fates.values_mut() {
                    fate.caller_dead = true;
                    fate.lost = true;
                }
                let commands = self.away.step(away::Event::HomeLost(HOME));
                self.away_commands(commands);
            }
        }
    }

    fn run_until_quiet(&mut self) {
        let mut steps = 0;
        let mut quiet_ticks = 0;
        while quiet_ticks < 3 {
            while let Some(((time, _), what)) = self.queue.pop_first() {
                self.time = self.time.max(time);
                self.happen(what);
                steps += 1;
                assert!(steps < MAX_STEPS, "does not come to rest");
                // Ticks come at any time, not only when nothing else happens.
                if self.random.chance(1) {
                    self.tick();
                }
            }
            self.bad_network = false;
            self.tick();
            quiet_ticks = if self.queue.is_empty() { quiet_ticks + 1 } else { 0 };
        }
    }

    fn tick(&mut self) {
        let commands = self.home.step(home::Event::Tick);
        self.home_commands(commands);
        let commands = self.away.step(away::Event::Tick);
        self.away_commands(commands);
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let bad_network = random.chance(70);
    let mut world = World {
        random,
        time: 0,
        queue: BTreeMap::new(),
        count: 0,
        home: Home::new(100),
        away: Away::new(),
        away_life: 0,
        fates: BTreeMap::new(),
        pids: BTreeMap::new(),
        held: BTreeSet::new(),
        running: BTreeSet::new(),
        kept: BTreeSet::new(),
        bad_network,
    };
    for pid in 1000..1000 + PROGRAMS {
        world.fates.insert(pid, Fate::default());
        let call = Call(u64::from(pid));
        let exec = home::Event::Exec { pid, thread: pid, call, node: AWAY };
        world.after(1500, Happening::AtHome(exec));
        if world.random.chance(25) {
            world.after(2500, Happening::KillCaller(pid));
        }
    }
    let home_crashes = world.random.chance(15);
    let away_crashes = world.random.chance(25);
    if home_crashes {
        world.after(2000, Happening::CrashHome);
    }
    if away_crashes {
        world.after(2000, Happening::CrashAway);
    }
    world.run_until_quiet();

    assert!(world.home.is_empty(), "home keeps {:?}", world.home);
    assert!(world.away.is_empty(), "away keeps {:?}", world.away);
    assert!(world.held.is_empty() && world.running.is_empty() && world.kept.is_empty());
    for (pid, fate) in &world.fates {
        let runs = fate.ran_here + fate.ran_there;
        assert!(runs + fate.failed <= 1, "{pid} ran or failed more than once: {fate:?}");
        if !fate.caller_dead && !home_crashes {
            assert_eq!(runs + fate.failed, 1, "{pid} never ran: {fate:?}");
        }
        if let Some(shown) = fate.shown_status
            && !fate.lost
            && fate.ran_there == 1
            && shown != KILLED
        {
            assert_eq!(Some(shown), fate.true_status, "{pid}: {fate:?}");
        }
        if fate.ran_there == 1 && !fate.lost {
            assert!(fate.shown_status.is_some(), "{pid} ended and nobody was told: {fate:?}");
        }
    }
}

#[test]
fn at_most_one_copy_runs_and_its_status_arrives() {
    if let Ok(seed) = std::env::var("DVS_SEED") {
        run(seed.parse().expect("DVS_SEED is a number"));
        return;
    }
    let seeds = std::env::var("DVS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    for seed in 0..seeds {
        if let Err(failure) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("replay with DVS_SEED={seed}");
            std::panic::resume_unwind(failure);
        }
    }
}
