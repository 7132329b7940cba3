//! Posting in order without waiting: what does not go at once waits in a bounded queue.
//!
//! The DVK's `post` says `Busy` instead of blocking, and may not be waited for by a handler; the
//! carriers and personalities post from handlers and need every message to arrive, in order. So a
//! poster keeps what is too much and sends it from a thread of its own, which starts with the first
//! such message and ends when there is none left.

use dvs_dvk::{Address, CallError, Endpoint, Lane};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Most messages that wait.
pub(crate) const MAX_WAITING: usize = 16_384;
/// How long one message may wait for room at its destination.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub(crate) struct Poster {
    endpoint: Endpoint,
    lane: Lane,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Address, Vec<u8>)>,
    /// A thread sends what waits.
    sending: bool,
}

impl Poster {
    pub(crate) fn new(endpoint: Endpoint, lane: Lane) -> Arc<Self> {
        Arc::new(Poster { endpoint, lane, state: Mutex::default() })
    }

    /// The endpoint that it posts from.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Posts after all that was posted before.
    ///
    /// # Errors
    /// The destination is gone, or [`MAX_WAITING`] messages wait.
    pub(crate) fn post(self: &Arc<Self>, to: &Address, body: Vec<u8>) -> Result<(), CallError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.waiting.is_empty() && !state.sending {
            // The lock is held, so that nobody overtakes. A copy is kept for the case of no room.
            match self.endpoint.post_on(self.lane, to, body.clone()) {
                Err(CallError::Busy { .. }) => {}
                other => return other,
            }
        }
        if state.waiting.len() >= MAX_WAITING {
            return Err(CallError::Busy { address: *to });
        }
        state.waiting.push_back((*to, body));
        if !state.sending {
            state.sending = true;
            let poster = Arc::clone(self);
            let spawned = std::thread::Builder::new()
                .name("poster".into())
                .spawn(move || poster.send_waiting());
            if let Err(error) = spawned {
                log::error!("no thread for waiting messages: {error}");
                state.sending = false;
                return Err(CallError::Busy { address: *to });
            }
        }
        Ok(())
    }

    fn send_waiting(&self) {
        loop {
            let next = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let next = state.waiting.pop_front();
                state.sending = next.is_some();
                next
            };
            let Some((to, body)) = next else { return };
            if let Err(error) = self.endpoint.post_within(self.lane, &to, body, PATIENCE) {
                // The node is gone, which everybody concerned hears from the links.
                log::debug!("a message to {to} was not sent: {error}");
            }
        }
    }
}
