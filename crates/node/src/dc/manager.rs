//! The process manager of a container: the pure core of `dvs-pm`, at its home, and its clients.

use super::post::Poster;
use dvs_dvk::{Address, Endpoint};
use dvs_linux::ports::Pids;
use dvs_pm::blocks::Block;
use dvs_pm::core::{Command, Event, Manager};
use dvs_pm::messages::{Answer, Ask, Client, Load, Member, Notice, PROTOCOL, Request};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long the manager may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hears what the manager tells.
pub(crate) type Listener = Arc<dyn Fn(Notice) + Send + Sync>;

/// The manager of one container.
pub(crate) struct ManagerService {
    core: Mutex<Manager>,
    /// Ways to the members; set once all are there.
    members: OnceLock<BTreeMap<u16, Listener>>,
}

impl ManagerService {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(ManagerService { core: Mutex::new(Manager::new()), members: OnceLock::new() })
    }

    /// From now on notices reach the members; what happened before they know from joining, or are
    /// told now.
    pub(crate) fn begin(&self, members: BTreeMap<u16, Listener>) {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<Member> = core.members().collect();
        let leases: Vec<(Block, u16)> = core.blocks().leases().collect();
        for listener in members.values() {
            known.iter().for_each(|member| listener(Notice::Joined(*member)));
            leases.iter().for_each(|(block, node)| listener(Notice::Leased(*block, *node)));
        }
        if self.members.set(members).is_err() {
            log::error!("the members of a container were named twice");
        }
    }

    /// Answers a request.
    pub(crate) fn ask(&self, request: Request) -> Option<Answer> {
        self.step(Event::Request(request))
    }

    /// A node was given up.
    pub(crate) fn node_lost(&self, node: u16) {
        self.step(Event::NodeLost(node));
    }

    fn step(&self, event: Event) -> Option<Answer> {
        // Held while the commands are carried out, so that notices keep their order.
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answered = None;
        for command in core.step(event) {
            match command {
                Command::Reply { answer, .. } => answered = Some(answer),
                Command::Tell { node, notice } => {
                    let listener = self.members.get().and_then(|members| members.get(&node));
                    if let Some(listener) = listener {
                        listener(notice);
                    }
                }
            }
        }
        answered
    }
}

/// The way to the manager.
pub(crate) enum Way {
    /// It is here.
    Here(Arc<ManagerService>),
    /// On another node.
    There(Endpoint, Address),
}

/// One node's access to the manager.
pub(crate) struct ManagerClient {
    client: Client,
    /// Number of the last request; held while one is under way, as the manager knows only the last.
    sequence: Mutex<u64>,
    way: Way,
}

impl ManagerClient {
    pub(crate) fn new(node: u16, incarnation: u64, way: Way) -> Self {
        ManagerClient { client: Client { node, incarnation }, sequence: Mutex::new(0), way }
    }

    /// Joins; the first pid block.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn join(&self, millicpus: u32) -> Result<Block, String> {
        match self.ask(Ask::Join { protocol: PROTOCOL, millicpus })? {
            Answer::Joined { block, .. } => Ok(block),
            Answer::NoBlock(error) => Err(error.to_string()),
            Answer::Refused(refusal) => Err(refusal.to_string()),
            other => Err(format!("the process manager answered {other:?} to a join")),
        }
    }

    /// Tells the load.
    pub(crate) fn report(&self, load: Load) {
        if let Err(error) = self.ask(Ask::Report(load)) {
            log::debug!("reporting the load: {error}");
        }
    }

    fn ask(&self, body: Ask) -> Result<Answer, String> {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        *sequence += 1;
        let request = Request { client: self.client, sequence: *sequence, body };
        match &self.way {
            Way::Here(service) => {
                service.ask(request).ok_or_else(|| "the process manager gave no answer".into())
            }
            Way::There(endpoint, address) => {
                let answer = endpoint
                    .call(address, super::messages::encode(&request), PATIENCE)
                    .map_err(|error| format!("the process manager: {error}"))?;
                super::messages::decode(&answer)
            }
        }
    }
}

impl Pids for ManagerClient {
    fn lease(&self) -> Option<Block> {
        match self.ask(Ask::LeaseBlock) {
            Ok(Answer::Block(block)) => Some(block),
            Ok(other) => {
                log::warn!("no further pid block: {other:?}");
                None
            }
            Err(error) => {
                log::warn!("no further pid block: {error}");
                None
            }
        }
    }
}

/// A member elsewhere hears by messages.
pub(crate) fn remote_listener(poster: Arc<Poster>, to: Address) -> Listener {
    Arc::new(move |notice| {
        if let Err(error) = poster.post(&to, super::messages::encode(&notice)) {
            log::debug!("telling {to} of {notice:?}: {error}");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_hear_of_each_other_and_of_losses() {
        let service = ManagerService::new();
        let client = |node| ManagerClient::new(node, 1, Way::Here(Arc::clone(&service)));
        let (first, second) = (client(1), client(2));
        let blocks = [first.join(1000).unwrap(), second.join(1000).unwrap()];
        assert_ne!(blocks[0], blocks[1]);
        let heard: Arc<Mutex<Vec<Notice>>> = Arc::default();
        let log = Arc::clone(&heard);
        let listener: Listener = Arc::new(move |notice| log.lock().unwrap().push(notice));
        let deaf: Listener = Arc::new(|_| {});
        service.begin(BTreeMap::from([(1, listener), (2, deaf)]));
        assert_eq!(heard.lock().unwrap().len(), 4, "two members, two blocks");
        let block = second.lease().unwrap();
        second.report(Load { runnable: 3, millicpus: 1000 });
        service.node_lost(2);
        let heard = heard.lock().unwrap();
        assert_eq!(heard[4], Notice::Leased(block, 2));
        assert_eq!(heard[5], Notice::Load(2, Load { runnable: 3, millicpus: 1000 }));
        assert_eq!(heard[6], Notice::Gone(Client { node: 2, incarnation: 1 }));
        assert!(second.lease().is_none(), "a lost node gets nothing");
    }
}
