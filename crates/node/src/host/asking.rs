//! Questions of a daemon to those of other nodes.

use super::{ENDPOINT, Host, lock};
use crate::dc::messages::{Answer, Call, decode, encode};
use crate::protocol::Failure;
use dvs_dvk::{Address, Dc, DcId, Lane, NodeId};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long a linked daemon may take to make its endpoint known; then it is looked whether it is
/// still linked.
const RESOLVE_STEP: Duration = Duration::from_millis(100);

/// Questions under way.
pub(crate) struct Asked {
    answers: Receiver<(u16, Result<Answer, String>)>,
    count: usize,
}

impl Asked {
    /// Waits for all answers; every question has a deadline of its own.
    pub(crate) fn wait(self) -> Vec<(u16, Result<Answer, String>)> {
        let mut all: Vec<_> = self.answers.iter().take(self.count).collect();
        all.sort_by_key(|(node, _)| *node);
        all
    }
}

impl Host {
    /// A sentence for an answer that was not the wanted one.
    pub(crate) fn failure(&self, node: u16, answer: &Result<Answer, String>) -> Failure {
        let name = lock(&self.names).get(&node).cloned().unwrap_or_else(|| format!("n{node}"));
        match answer {
            Ok(Answer::Failed(sentence)) => Failure::new(sentence.clone()),
            Ok(_) => Failure::new(format!(
                "node {name} gave an answer that does not fit; run the same version of dvs on all nodes"
            )),
            Err(error) => Failure::new(format!("node {name}: {error}")),
        }
    }

    /// Address of a daemon's endpoint. One that is not linked (any more) is not waited for: it will
    /// not come back in this life.
    fn resolve_daemon(&self, dc: &Dc, node: u16, patience: Duration) -> Result<Address, String> {
        let until = Instant::now() + patience;
        loop {
            if !self.dvk.peers().iter().any(|(peer, _)| peer.0 == node) {
                return Err("it is gone".into());
            }
            match dc.resolve(ENDPOINT, RESOLVE_STEP.min(patience)) {
                Ok(address) => return Ok(address),
                Err(error) if Instant::now() >= until => return Err(error.to_string()),
                Err(error) => log::debug!("node {node} is asked again: {error}"),
            }
        }
    }

    /// Asks daemons of other nodes, all at once.
    pub(crate) fn ask_all(
        &self,
        nodes: &[u16],
        patience: Duration,
        call: impl Fn() -> Call,
    ) -> Asked {
        let (sender, answers) = channel();
        for node in nodes.iter().copied() {
            // The address of the well-known endpoint: names of a node's own container are kept by it.
            let dc = self.dvk.dc(DcId(u64::from(node)), NodeId(node));
            let sender = sender.clone();
            match self.resolve_daemon(&dc, node, patience) {
                Ok(address) => {
                    let endpoint = dc.endpoint();
                    let Ok(endpoint) = endpoint else {
                        let _ = sender.send((node, Err("its endpoints are closed".to_owned())));
                        continue;
                    };
                    let keep = endpoint.clone();
                    endpoint.call_with(
                        Lane::Small,
                        &address,
                        encode(&call()),
                        patience,
                        move |answer| {
                            let answer = answer
                                .map_err(|error| error.to_string())
                                .and_then(|bytes| decode::<Answer>(&bytes));
                            // Nobody waits any more where the asking one has given up.
                            let _ = sender.send((node, answer));
                            drop(keep);
                        },
                    );
                }
                Err(error) => {
                    let _ = sender.send((node, Err(error)));
                }
            }
        }
        Asked { answers, count: nodes.len() }
    }
}
