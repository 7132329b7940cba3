//! The edge of the personality: threads that receive trapped calls, convert callers, start and end
//! programs, and carry out what the pure cores decide.
//!
//! One thread at a time waits for trapped calls (the kernel would wake all that wait). It answers at
//! once what can be answered at once; when a call needs more, it hands the waiting on to another
//! thread and carries that call through itself, because ptrace wants one thread from seizing to
//! detaching. The number of threads is bounded; when all are busy, calls wait in the kernel.

pub(crate) mod bodies;
pub(crate) mod convert;
pub(crate) mod exec;
pub(crate) mod ghosts;
pub(crate) mod identity;
pub(crate) mod openings;
pub(crate) mod peers;
pub(crate) mod pids;
pub(crate) mod programs;
pub(crate) mod reception;
pub(crate) mod settings;
pub(crate) mod shared;
pub(crate) mod signals;
pub(crate) mod sockets;
pub(crate) mod usage;

use crate::core::Placement;
use crate::core::away::{Away, Key};
use crate::core::holds::Holds;
use crate::core::home::{Command, Event, Home};
use crate::core::sharing::Sharing;
use crate::core::usage::Accounts;
use crate::files::Files;
use crate::image::Baseline;
use crate::messages::{Note, encode};
use crate::pool::Pool;
use crate::ports::{Carry, Launch, Peers, Pids};
use crate::statistics::{Counters, Statistics};
use dvs_carry::ProgramKey;
use dvs_pm::messages::Load;
use dvs_pm::placement::Policy;
use dvs_sys::error::SysError;
use dvs_sys::poll::Epoll;
use dvs_sys::seccomp::Listener;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Most threads that serve requests of other nodes and deliver signals.
const MAX_SERVERS: usize = 32;
/// Most requests of other nodes that wait.
const MAX_REQUESTS: usize = 4096;
/// How often unanswered messages are repeated, while there are any.
const TICK: Duration = Duration::from_millis(500);
/// Epoll key that ends the watcher.
const STOP_KEY: u64 = u64::MAX;

/// Settings of one node's part of one DC.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: u16,
    /// Above every placement number that an earlier life of this node gave.
    pub first_placement: u64,
    /// Where programs go.
    pub policy: Policy,
    /// The container's cookie in the upper half of `execveat`'s flags.
    pub exec_cookie: u32,
}

/// Everything that a personality works with.
pub struct Parts {
    /// The container's listener.
    pub listener: Listener,
    /// Pid 1 of the container, outside.
    pub init: u32,
    /// Starts programs in the container.
    pub launcher: Arc<dyn Launch>,
    /// Carries descriptors.
    pub carry: Arc<dyn Carry>,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// Pid blocks.
    pub pids: Arc<dyn Pids>,
    /// The file tree.
    pub files: Arc<dyn Files>,
    /// The network over the DC's nodes, if it has one.
    pub network: Option<Arc<dyn dvs_net::Sockets>>,
}

/// The linux personality of one (node, DC).
pub struct Personality {
    pub(crate) config: Config,
    pub(crate) listener: Listener,
    pub(crate) launcher: Arc<dyn Launch>,
    pub(crate) carry: Arc<dyn Carry>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) lease: Arc<dyn Pids>,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) network: Option<Arc<dyn dvs_net::Sockets>>,
    /// The container's pid namespace. An ordinary user's daemon may not look at pid 1, so it is learnt
    /// from the first program.
    namespace: OnceLock<File>,
    pub(crate) init: u32,
    /// The ghost's binary.
    pub(crate) ghost: OwnedFd,
    baseline: OnceLock<Baseline>,
    pub(crate) home: Mutex<Home>,
    pub(crate) away: Mutex<Away>,
    pub(crate) holds: Mutex<Holds>,
    pub(crate) accounts: Mutex<Accounts>,
    pub(crate) ghosts: Mutex<ghosts::Ghosts>,
    pub(crate) bodies: Mutex<bodies::Bodies>,
    pub(crate) programs: Mutex<programs::Programs>,
    pub(crate) placement: Mutex<dvs_pm::placement::Placement>,
    pub(crate) blocks: Mutex<pids::Blocks>,
    pub(crate) sharing: Mutex<Sharing>,
    pub(crate) pinned: Mutex<shared::Pinned>,
    pub(crate) counters: Counters,
    pub(crate) watcher: Epoll,
    wake: dvs_sys::poll::EventFd,
    pub(crate) reception: reception::Reception,
    pub(crate) pool: Pool,
    /// One thread: signals of one sender arrive in their order.
    pub(crate) deliveries: Pool,
    ticking: Mutex<bool>,
    tick_wanted: Condvar,
    stopped: AtomicBool,
    pub(crate) execs: AtomicU32,
    started: Instant,
}

impl Personality {
    /// Takes over a container: its trapped calls are answered from now on.
    ///
    /// # Errors
    /// What the kernel says when it has no descriptors or threads left, or the container is gone.
    pub fn start(config: Config, parts: Parts) -> Result<Arc<Personality>, SysError> {
        // Without it (before Linux 6.6) everything works, ten times slower.
        let _ = parts.listener.set_sync_wake_up();
        let watcher = Epoll::new()?;
        let wake = dvs_sys::poll::EventFd::new()?;
        watcher.add(&wake, libc::EPOLLIN as u32, STOP_KEY)?;
        let placement = dvs_pm::placement::Placement::new(config.node, config.policy);
        let personality = Arc::new(Personality {
            namespace: OnceLock::new(),
            ghost: dvs_sys::ghost::sealed()?,
            home: Mutex::new(Home::new(config.first_placement)),
            sharing: Mutex::new(Sharing::new(config.node)),
            config,
            listener: parts.listener,
            launcher: parts.launcher,
            carry: parts.carry,
            peers: parts.peers,
            lease: parts.pids,
            files: parts.files,
            network: parts.network,
            init: parts.init,
            baseline: OnceLock::new(),
            away: Mutex::default(),
            holds: Mutex::default(),
            accounts: Mutex::default(),
            ghosts: Mutex::default(),
            bodies: Mutex::default(),
            programs: Mutex::default(),
            placement: Mutex::new(placement),
            blocks: Mutex::default(),
            pinned: Mutex::default(),
            counters: Counters::default(),
            watcher,
            wake,
            reception: reception::Reception::default(),
            pool: Pool::new("linux-server", MAX_SERVERS, MAX_REQUESTS),
            deliveries: Pool::new("linux-signals", 1, MAX_REQUESTS),
            ticking: Mutex::new(false),
            tick_wanted: Condvar::new(),
            stopped: AtomicBool::new(false),
            execs: AtomicU32::new(0),
            started: Instant::now(),
        });
        personality.thread("linux-watcher", Personality::watch)?;
        personality.thread("linux-ticker", Personality::tick)?;
        personality.begin_reception()?;
        Ok(personality)
    }

    /// Ends all threads. To be called when the container has ended: until then trapped calls wait
    /// for somebody who answers.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.pool.stop();
        self.deliveries.stop();
        let _ = self.wake.signal();
        *self.ticking.lock().unwrap() = true;
        self.tick_wanted.notify_all();
        self.end_reception();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub(crate) fn thread(
        self: &Arc<Self>,
        name: &str,
        body: fn(&Arc<Self>),
    ) -> Result<(), SysError> {
        let personality = Arc::clone(self);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(&personality))
            .map(|_| ())
            .map_err(|error| SysError::new("clone", error.raw_os_error().unwrap_or(libc::EAGAIN)))
    }

    /// Counts so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counters.now()
    }

    /// Milliseconds on a steady clock of this personality.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What every program of the container has; `None` until the first one was started.
    pub(crate) fn baseline(&self) -> Option<&Baseline> {
        self.baseline.get()
    }

    /// Learns the baseline from a program that is held before its first instruction.
    pub(crate) fn learn_baseline(&self, untouched: u32) {
        if self.namespace.get().is_none()
            && let Ok(namespace) = File::open(format!("/proc/{untouched}/ns/pid"))
        {
            let _ = self.namespace.set(namespace);
        }
        if self.baseline.get().is_none()
            && let Ok(baseline) = Baseline::read(self.init, untouched)
        {
            let _ = self.baseline.set(baseline);
        }
    }

    /// The pid outside of a process of the container; `ESRCH` before the first program was started.
    pub(crate) fn process_of(&self, pid: u32) -> Result<u32, SysError> {
        let namespace = self.namespace.get().ok_or(SysError::new("ioctl", libc::ESRCH))?;
        dvs_sys::task::process_from(namespace, pid)
    }

    /// A node takes part, or reports its load.
    pub fn node_load(&self, node: u16, load: Load) {
        let now = self.now();
        self.placement.lock().unwrap().report(node, load, now);
    }

    /// A node is lost, or left: its programs are gone, and what it placed here ends.
    pub fn node_lost(self: &Arc<Self>, node: u16) {
        self.placement.lock().unwrap().remove(node);
        self.blocks.lock().unwrap().node_lost(node);
        self.sharing.lock().unwrap().node_lost(node);
        self.carry.node_gone(node);
        self.home_event(Event::NodeLost(node));
        self.away_event(crate::core::away::Event::HomeLost(node));
    }

    /// Has the home side decide, and does what it wants.
    pub(crate) fn home_event(self: &Arc<Self>, event: Event) {
        let commands = self.home.lock().unwrap().step(event);
        for command in commands {
            self.home_command(command);
        }
    }

    pub(crate) fn home_command(self: &Arc<Self>, command: Command) {
        match command {
            // These two belong to the thread that carries the placement through (see `exec`).
            Command::Prepare { .. } | Command::Convert(_) | Command::Settle { .. } => {}
            Command::Release { node, placement } => self.post(node, &Note::Release(placement)),
            Command::Abort { node, placement } => {
                self.post(node, &Note::Abort(placement));
                self.want_ticks();
            }
            Command::Continue(call) => {
                let _ = self.listener.proceed(call.0);
            }
            Command::Fail(call, errno) => {
                let _ = self.listener.fail(call.0, errno);
            }
            Command::Drain(placement) => {
                let personality = Arc::clone(self);
                self.carry.drain(
                    self.key_of(placement),
                    Box::new(move || personality.home_event(Event::Drained(placement))),
                );
            }
            Command::Finish { pid, status } => self.finish_ghost(pid, status),
            Command::Acknowledge { node, placement } => {
                self.post(node, &Note::Acknowledge(placement));
            }
            Command::Forget(placement) => self.forget_placement(placement),
        }
    }

    pub(crate) fn key_of(&self, placement: Placement) -> ProgramKey {
        ProgramKey { home: self.config.node, number: placement.0 }
    }

    /// Tells another node something. One that cannot be reached is about to be reported as lost.
    pub(crate) fn post(&self, node: u16, note: &Note) {
        if let Ok(bytes) = encode(note) {
            let _ = self.peers.post(node, bytes);
        }
    }

    fn watch(self: &Arc<Self>) {
        let mut events = Vec::new();
        while !self.is_stopped() {
            if self.watcher.wait(&mut events, None).is_err() {
                return;
            }
            for event in &events {
                if event.key != STOP_KEY {
                    self.process_gone(Placement(event.key));
                }
            }
        }
    }

    /// Something waits for an answer from now on, so messages may have to be repeated.
    pub(crate) fn want_ticks(&self) {
        let mut ticking = self.ticking.lock().unwrap();
        if !*ticking {
            *ticking = true;
            self.tick_wanted.notify_one();
        }
    }

    fn tick(self: &Arc<Self>) {
        loop {
            {
                let mut ticking = self.ticking.lock().unwrap();
                while !*ticking {
                    ticking = self.tick_wanted.wait(ticking).unwrap();
                }
            }
            if self.is_stopped() {
                return;
            }
            std::thread::sleep(TICK);
            self.home_event(Event::Tick);
            self.away_event(crate::core::away::Event::Tick);
            let now = self.now();
            self.release_streams(|holds| holds.expire(now));
            let waits = || {
                self.away.lock().unwrap().waits()
                    || self.home.lock().unwrap().waits()
                    || !self.holds.lock().unwrap().is_empty()
            };
            if !waits() && !self.is_stopped() {
                *self.ticking.lock().unwrap() = false;
                // What began to wait between the question and the answer asks for itself.
                if waits() {
                    self.want_ticks();
                }
            }
        }
    }

    /// A placed program's name in the away core.
    pub(crate) fn away_key(key: Key) -> ProgramKey {
        ProgramKey { home: key.home, number: key.placement.0 }
    }
}
