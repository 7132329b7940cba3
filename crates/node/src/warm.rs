//! A container that is prepared before anybody asks: most of the time of a start is the same for every
//! container, and a daemon that stays spends it while its user thinks.
//!
//! There is at most one, so what an idle daemon keeps is bounded: three small processes that sleep. It
//! is prepared anew when the one before has been taken and its program runs; who comes meanwhile waits
//! for it, as that takes no longer than preparing another one.

use dvs_container::{ContainerSpec, Prepared, StartError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a container waits for the one that is being prepared before it makes one of its own.
const PATIENCE: Duration = Duration::from_millis(500);

/// Prepares a container whose first pid will probably be the given one.
type Prepare = Box<dyn Fn(Option<u32>) -> Result<Prepared, StartError> + Send + Sync>;

/// See the module.
pub(crate) struct Warm {
    prepare: Prepare,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: Option<Prepared>,
    /// A thread prepares one.
    preparing: bool,
    /// Somebody waits for that one already.
    awaited: bool,
    /// The first pid of the container before: the next one's is most often the same.
    first_pid: Option<u32>,
    ended: bool,
}

impl Warm {
    pub(crate) fn new(prepare: Prepare) -> Arc<Self> {
        Arc::new(Warm { prepare, state: Mutex::default(), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares one on a thread of its own, unless there is one.
    pub(crate) fn fill(self: &Arc<Self>) {
        let mut state = self.state();
        if state.ended || state.preparing || state.ready.is_some() {
            return;
        }
        state.preparing = true;
        let first_pid = state.first_pid;
        drop(state);
        let warm = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("warm".into()).spawn(move || {
            let prepared = (warm.prepare)(first_pid);
            if let Err(error) = &prepared {
                // Whoever needs a container makes one and hears why it cannot be made.
                log::warn!("no container could be prepared: {error}");
            }
            warm.prepared(prepared.ok());
        });
        if let Err(error) = spawned {
            log::error!("no thread to prepare a container: {error}");
            self.prepared(None);
        }
    }

    fn prepared(&self, prepared: Option<Prepared>) {
        let mut state = self.state();
        state.preparing = false;
        let unwanted = if state.ended {
            prepared
        } else {
            state.ready = prepared;
            None
        };
        drop(state);
        self.changed.notify_all();
        // Ends it, which takes a moment.
        drop(unwanted);
    }

    /// Takes the prepared one if it is alive and can become what is wanted of it: `wanted` says what
    /// that is, given what it was prepared for.
    pub(crate) fn take(
        &self,
        first_pid: u32,
        wanted: impl FnOnce(&ContainerSpec) -> ContainerSpec,
    ) -> Option<(Prepared, ContainerSpec)> {
        let mut state = self.state();
        state.first_pid = Some(first_pid);
        if state.preparing && !state.awaited {
            state.awaited = true;
            let waited = self.changed.wait_timeout_while(state, PATIENCE, |state| state.preparing);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.awaited = false;
        }
        let prepared = state.ready.take()?;
        let spec = wanted(prepared.spec());
        if !prepared.is_alive() {
            drop(state);
            log::warn!("the prepared container was ended by somebody");
            return None;
        }
        if prepared.fits(&spec) {
            return Some((prepared, spec));
        }
        state.ready = Some(prepared);
        None
    }

    /// Ends the prepared one; no other will be prepared. Waits for one that is being prepared, which
    /// is bounded.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        let ready = state.ready.take();
        drop(state);
        drop(ready);
        let waited = self.changed.wait_while(self.state(), |state| state.preparing);
        drop(waited);
    }
}
