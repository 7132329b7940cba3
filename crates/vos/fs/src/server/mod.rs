//! The edge: threads, the clock and the tree around the pure [core](crate::core).
//!
//! A request runs on its caller's thread, where it is a matter of microseconds; what can take long
//! (syncing, copying) goes to a small pool, so that a link's reading thread is never held up. The core's
//! lock is held only for its decisions, never while the tree works.

pub(crate) mod execute;
mod pool;
#[cfg(test)]
mod tests;

use crate::config::{ConfigError, TreeConfig};
use crate::core::{CIRCLE_PATIENCE, Command, Core, Event, Load};
use crate::messages::{ClientId, Notice, Operation, Reply, Request, Time};
use crate::tree::Tree;
use crate::tree::host::HostTree;
use pool::Pool;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Takes one reply.
pub type ReplySink = Box<dyn FnOnce(Reply) + Send>;

/// Where notices to clients go. Called without any lock of the server's; must not block for long.
pub trait Notifier: Send + Sync {
    /// Passes a notice on. A client that cannot be reached is reported by
    /// [`FileServer::client_gone`] when that is certain.
    fn notify(&self, client: ClientId, notice: Notice);
    /// The client did not give up what it must in time, and its session has ended: its programs could
    /// still read stale pages and must be ended.
    fn fenced(&self, _client: ClientId) {}
}

/// The server's time.
pub trait Clock: Send + Sync {
    /// Milliseconds that never go back.
    fn monotonic(&self) -> u64;
    /// Time of day, for the times of files.
    fn real(&self) -> Time;
}

/// The clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn monotonic(&self) -> u64 {
        (dvs_sys::clock::monotonic() / 1_000_000) as u64
    }

    fn real(&self) -> Time {
        let now = dvs_sys::clock::real();
        Time {
            seconds: now.div_euclid(1_000_000_000),
            nanoseconds: now.rem_euclid(1_000_000_000) as u32,
        }
    }
}

/// What the threads share.
struct Shared {
    core: Mutex<Core>,
    sinks: Mutex<HashMap<(ClientId, u64), ReplySink>>,
    tree: Arc<dyn Tree>,
    clock: Arc<dyn Clock>,
    notifier: Arc<dyn Notifier>,
    timer: Mutex<Timer>,
    timer_changed: Condvar,
}

#[derive(Default)]
struct Timer {
    due: Option<u64>,
    ended: bool,
}

/// The file-system server of one DC.
pub struct FileServer {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    timer: Option<std::thread::JoinHandle<()>>,
}

impl FileServer {
    /// Serves the tree that a configuration describes.
    ///
    /// # Errors
    /// A folder of the configuration cannot be used.
    pub fn new(
        config: &TreeConfig,
        clock: Arc<dyn Clock>,
        notifier: Arc<dyn Notifier>,
    ) -> Result<Self, ConfigError> {
        let tree = Arc::new(HostTree::open(config)?);
        Ok(Self::with_tree(tree, clock, notifier))
    }

    /// Serves any tree.
    ///
    /// # Panics
    /// When no thread can be started.
    #[must_use]
    pub fn with_tree(
        tree: Arc<dyn Tree>,
        clock: Arc<dyn Clock>,
        notifier: Arc<dyn Notifier>,
    ) -> Self {
        let now = clock.real();
        let incarnation = (now.seconds as u64) << 30 ^ u64::from(now.nanoseconds);
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(incarnation, Some(CIRCLE_PATIENCE))),
            sinks: Mutex::default(),
            tree,
            clock,
            notifier,
            timer: Mutex::default(),
            timer_changed: Condvar::new(),
        });
        let pool = Arc::new(Pool::new());
        let timer = {
            let (shared, pool) = (Arc::clone(&shared), Arc::clone(&pool));
            std::thread::Builder::new()
                .name("fs-timer".into())
                .spawn(move || keep_time(&shared, &pool))
                .expect("a thread can be started")
        };
        FileServer { shared, pool, timer: Some(timer) }
    }

    /// There will be one client only: its kernel may keep more. See [`Core::one_client`].
    pub fn one_client(&self) {
        lock(&self.shared.core).one_client();
    }

    /// Takes a request; `reply` is called exactly once, soon or late, on any thread, unless the
    /// client's session ends before.
    pub fn handle(&self, request: Request, reply: ReplySink) {
        let key = (request.client, request.sequence);
        lock(&self.shared.sinks).insert(key, reply);
        step(&self.shared, &self.pool, Event::Request(request));
    }

    /// The client will not be heard of again: its open files, locks and leases end.
    pub fn client_gone(&self, client: ClientId) {
        step(&self.shared, &self.pool, Event::ClientGone(client));
        lock(&self.shared.sinks).retain(|(owner, _), _| *owner != client);
    }

    /// How much the server holds.
    #[must_use]
    pub fn load(&self) -> Load {
        lock(&self.shared.core).load()
    }
}

impl std::fmt::Debug for FileServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileServer").field("load", &self.load()).finish_non_exhaustive()
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        lock(&self.shared.timer).ended = true;
        self.shared.timer_changed.notify_all();
        if let Some(timer) = self.timer.take() {
            let _ = timer.join();
        }
        self.pool.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the core take an event and does what it wants, and what comes of that.
fn step(shared: &Arc<Shared>, pool: &Arc<Pool>, event: Event) {
    let mut commands = VecDeque::from(decide(shared, event));
    while let Some(command) = commands.pop_front() {
        match command {
            Command::Reply(client, reply) => {
                let sink = lock(&shared.sinks).remove(&(client, reply.sequence));
                if let Some(sink) = sink {
                    sink(reply);
                }
            }
            Command::Notify(client, notice) => shared.notifier.notify(client, notice),
            Command::Fenced(client) => {
                lock(&shared.sinks).retain(|(owner, _), _| *owner != client);
                shared.notifier.fenced(client);
            }
            Command::Close(file) => shared.tree.close(file),
            Command::Forget(inode, references) => shared.tree.forget(inode, references),
            Command::Execute { ticket, credentials, operation, files } => {
                let now = shared.clock.real();
                let slow = is_slow(&*shared.tree, &operation);
                let work = move |shared: &Shared| Event::Executed {
                    ticket,
                    result: execute::run(&*shared.tree, credentials, now, &operation, files),
                };
                if slow {
                    let (shared, further) = (Arc::clone(shared), Arc::clone(pool));
                    let job = Box::new(move || {
                        let event = work(&shared);
                        step(&shared, &further, event);
                    });
                    // A full pool slows its callers down instead of growing.
                    if let Err(job) = pool.run(job) {
                        job();
                    }
                } else {
                    commands.extend(decide(shared, work(shared)));
                }
            }
        }
    }
}

fn is_slow(tree: &dyn Tree, operation: &Operation) -> bool {
    let writes = |flags: u32| flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
    match operation {
        Operation::Fsync { .. } | Operation::CopyRange { .. } | Operation::Allocate { .. } => true,
        Operation::Open { inode, flags } => writes(*flags) && tree.is_slow_to_change(*inode),
        Operation::SetAttributes { inode, .. } | Operation::Link { inode, .. } => {
            tree.is_slow_to_change(*inode)
        }
        _ => false,
    }
}

fn decide(shared: &Shared, event: Event) -> Vec<Command> {
    let mut core = lock(&shared.core);
    let commands = core.step(shared.clock.monotonic(), event);
    let due = core.next_deadline();
    drop(core);
    let mut timer = lock(&shared.timer);
    if timer.due != due {
        let sooner = due.is_some_and(|due| timer.due.is_none_or(|old| due < old));
        timer.due = due;
        if sooner {
            shared.timer_changed.notify_all();
        }
    }
    commands
}

/// The timer's thread: gives the core its ticks when one is due.
fn keep_time(shared: &Arc<Shared>, pool: &Arc<Pool>) {
    /// Longest sleep; then what is over is swept out.
    const IDLE: Duration = Duration::from_secs(60);
    let mut timer = lock(&shared.timer);
    while !timer.ended {
        let now = shared.clock.monotonic();
        let wait = timer.due.map_or(IDLE, |due| Duration::from_millis(due.saturating_sub(now)));
        if wait.is_zero() {
            drop(timer);
            step(shared, pool, Event::Tick);
            timer = lock(&shared.timer);
            continue;
        }
        let (next, waited) = shared
            .timer_changed
            .wait_timeout(timer, wait.min(IDLE))
            .unwrap_or_else(PoisonError::into_inner);
        timer = next;
        if waited.timed_out() && timer.due.is_none() && !timer.ended {
            drop(timer);
            step(shared, pool, Event::Tick);
            timer = lock(&shared.timer);
        }
    }
}
