//! What other nodes ask and tell.

use super::Personality;
use crate::core::away::{self, Key};
use crate::core::home;
use crate::messages::{Answer, Note, Request, decode, encode};
use dvs_sys::ghost::Order;
use std::sync::Arc;

/// Gives the answer to a request, once; an empty one if it could not be understood.
pub type Reply = Box<dyn FnOnce(Vec<u8>) + Send>;

impl Personality {
    /// A request of another node's personality. Never waits: the answer comes from another thread.
    pub fn handle_call(self: &Arc<Self>, from: u16, bytes: &[u8], reply: Reply) {
        let Ok(request) = decode::<Request>(bytes) else {
            reply(Vec::new());
            return;
        };
        let personality = Arc::clone(self);
        // Dropped unanswered when there is no room: the one who asked has a deadline, and its program
        // runs at home.
        let _ = self.pool.run(move || {
            let answer = personality.answer(from, request);
            reply(encode(&answer).unwrap_or_default());
        });
    }

    fn answer(self: &Arc<Self>, from: u16, request: Request) -> Answer {
        match request {
            Request::Prepare(prepare) => self.prepare(from, *prepare),
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
            Note::Abort(placement) => self.away_event(away::Event::Abort(key(placement))),
            Note::Acknowledge(placement) => {
                self.away_event(away::Event::Acknowledged(key(placement)));
            }
            Note::Signal { placement, signal, sender, terminal } => {
                let personality = Arc::clone(self);
                let key = key(placement);
                if (1..=64).contains(&signal) {
                    let _ = self
                        .deliveries
                        .run(move || personality.deliver(key, signal, sender, terminal));
                }
            }
            Note::StopAsked { placement, signal, sender } => {
                let personality = Arc::clone(self);
                let answered = self.deliveries.run(move || {
                    let stop = (1..=64).contains(&signal)
                        && personality.stop_asked(key(placement), signal, sender);
                    personality.post(from, &Note::StopAnswer { placement, stop });
                });
                if answered.is_err() {
                    self.post(from, &Note::StopAnswer { placement, stop: false });
                }
            }
            Note::GroupSignal { placement, signal, sender } => {
                let personality = Arc::clone(self);
                let key = key(placement);
                if (1..=64).contains(&signal) {
                    let _ = self
                        .deliveries
                        .run(move || personality.deliver_to_children(key, signal, sender));
                }
            }
            Note::Query(placement) => self.home_event(home::Event::Query { from, placement }),
            Note::Ended { placement, status } => {
                self.home_event(home::Event::Ended { from, placement, status });
            }
            Note::Stopped { placement, .. } => {
                if self.runs_on(placement, from) {
                    self.mirror(placement, libc::SIGSTOP);
                }
            }
            Note::Continued { placement } => {
                if self.runs_on(placement, from) {
                    self.mirror(placement, libc::SIGCONT);
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
