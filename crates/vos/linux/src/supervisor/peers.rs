//! What other nodes ask and tell.

use super::Personality;
use super::bodies::{Answered, TakenSignal};
use crate::core::away::{self, Key};
use crate::core::home;
use crate::messages::{Answer, Note, Request, decode, encode};
use dvs_sys::ghost::Order;
use std::sync::Arc;

/// Longest request that is served by the thread that brings it.
const MAX_AT_ONCE: usize = 64 << 10;

/// Gives the answer to a request, once; an empty one if it could not be understood.
pub type Reply = Box<dyn FnOnce(Vec<u8>) + Send>;

fn encoded(answer: &Answer) -> Vec<u8> {
    encode(answer).unwrap_or_default()
}

impl Personality {
    /// A request of another node's personality. Never waits: the answer comes from another thread.
    pub fn handle_call(self: &Arc<Self>, from: u16, bytes: &[u8], reply: Reply) {
        let Ok(request) = decode::<Request>(bytes) else {
            reply(Vec::new());
            return;
        };
        let request = match request {
            // Waits for nothing, and a change of threads costs as much as the rest of it.
            Request::Prepare(prepare) if bytes.len() <= MAX_AT_ONCE => {
                self.prepare(from, *prepare, Box::new(move |answer| reply(encoded(&answer))));
                return;
            }
            request => request,
        };
        let personality = Arc::clone(self);
        // Dropped unanswered when there is no room: the one who asked has a deadline, and its program
        // runs at home.
        let _ = self.pool.run(move || {
            let answered: Answered = Box::new(move |answer| reply(encoded(&answer)));
            match request {
                Request::Prepare(prepare) => personality.prepare(from, *prepare, answered),
                request => answered(personality.answer(from, request)),
            }
        });
    }

    fn answer(&self, from: u16, request: Request) -> Answer {
        match request {
            // Taken care of by the caller.
            Request::Prepare(_) => Answer::NotPrepared,
            Request::Identity { pid } => Answer::Identity(self.identity_of(pid)),
            Request::SetGroup { pid, group } => self.for_owner(from, pid, Order::SetGroup(group)),
            Request::NewSession { pid } => self.for_owner(from, pid, Order::NewSession),
            Request::DeathSignal { pid, signal } => {
                self.for_owner(from, pid, Order::DeathSignal(signal))
            }
            Request::SetFor { pid, setting, setter } => {
                Answer::Done(self.set_for(pid, setting, setter))
            }
            Request::NiceOf { pid } => Answer::Nice(self.nice_of(pid)),
            Request::Set { pid, setting } => Answer::Done(self.set(from, pid, setting)),
            Request::Signal { target, signal, sender } => {
                Answer::Done(self.signal_request(target, signal, sender))
            }
        }
    }

    /// Only the node on which its program runs may order a ghost about.
    fn for_owner(&self, from: u16, pid: u32, order: Order) -> Answer {
        let node = self.home.lock().unwrap().ghost(pid).map(|(node, _)| node);
        Answer::Done(if node == Some(from) { self.order_group(pid, order) } else { libc::ESRCH })
    }

    /// News from another node's personality, in the order in which it was posted. Does not wait.
    pub fn handle_post(self: &Arc<Self>, from: u16, bytes: &[u8]) {
        let Ok(note) = decode::<Note>(bytes) else { return };
        let key = move |placement| Key { home: from, placement };
        match note {
            Note::Release(placement) => self.away_event(away::Event::Release(key(placement))),
            Note::Abort(placement) => self.abort_body(key(placement)),
            Note::Acknowledge(placement) => {
                self.away_event(away::Event::Acknowledged(key(placement)));
            }
            Note::Signal { placement, signal, sender, terminal, order, confirm } => {
                if (1..=64).contains(&signal) {
                    let taken = TakenSignal { signal, sender, terminal, order, confirm };
                    self.deliver(key(placement), taken);
                }
            }
            Note::StopAsked { placement, signal, sender, order } => {
                let stop = (1..=64).contains(&signal)
                    && self.stop_asked(key(placement), signal, sender, order);
                self.post(from, &Note::StopAnswer { placement, stop });
            }
            Note::GroupSignal { placement, signal, sender, whole } => {
                if (1..=64).contains(&signal) {
                    self.deliver_to_group(key(placement), signal, sender, whole);
                }
            }
            Note::Query(placement) => self.home_event(home::Event::Query { from, placement }),
            Note::Ended { placement, status, usage } => {
                if self.runs_on(placement, from) {
                    self.account(placement, usage);
                }
                if !self.holds.lock().unwrap().postpones(placement, from, status) {
                    self.home_event(home::Event::Ended { from, placement, status });
                }
            }
            Note::Stopped { placement, signal, order } => {
                if self.runs_on(placement, from) {
                    self.mirror(placement, signal, order);
                }
            }
            Note::Continued { placement, order } => {
                if self.runs_on(placement, from) {
                    self.mirror(placement, libc::SIGCONT, order);
                }
            }
            Note::Delivered { placement, signal } => {
                if self.runs_on(placement, from) {
                    self.release_streams(|holds| holds.delivered(placement, signal));
                }
            }
            Note::Shares(thing) => self.shared_elsewhere(from, thing),
            Note::StopAnswer { placement, stop } => {
                if self.runs_on(placement, from) {
                    self.stop_answer(placement, stop);
                }
            }
        }
    }

    /// Whether a program of ours runs on the node that speaks of it.
    fn runs_on(&self, placement: crate::core::Placement, node: u16) -> bool {
        let home = self.home.lock().unwrap();
        home.pid(placement).and_then(|pid| home.ghost(pid)) == Some((node, placement))
    }
}
