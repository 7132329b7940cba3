//! The network of a container over DVK endpoints.
//!
//! | endpoint | at | speaks |
//! |---|---|---|
//! | `net` | home | the net server (calls, and posts of what is gone) |
//! | `net@N` | every node | its member: notices of the server (calls), frames (posts) |

use super::links::Directory;
use super::post::Poster;
use crate::protocol::NetworkOption;
use dvs_container::{DcNetwork, NetworkHandles};
use dvs_dvk::{Address, CallError, Endpoint, Lane, Message, MessageKind, ReplyTo};
use dvs_net::core::{Command, Event, Server};
use dvs_net::messages::{Answer, Ask, Confirmation, decode, encode};
use dvs_net::{Member, MemberConfig, SendError, Transport, Unreachable};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// How long the server may take to answer: it may wait for every node in turn.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a member may take to confirm a notice.
const NOTICE_PATIENCE: Duration = Duration::from_secs(5);

/// The net server of one container.
pub(crate) struct NetService {
    core: Mutex<Server>,
    replies: Mutex<HashMap<u64, ReplyTo>>,
    next: AtomicU64,
    endpoint: Endpoint,
    /// Set once all parts are there.
    members: OnceLock<Vec<(u16, Address)>>,
}

impl NetService {
    /// Serves the endpoint.
    pub(crate) fn start(endpoint: Endpoint, members: &[u16]) -> Arc<Self> {
        let service = Arc::new(NetService {
            core: Mutex::new(Server::new(members.iter().copied())),
            replies: Mutex::default(),
            next: AtomicU64::new(1),
            endpoint: endpoint.clone(),
            members: OnceLock::new(),
        });
        let weak = Arc::downgrade(&service);
        endpoint.set_handler(move |message| {
            if let Some(service) = weak.upgrade() {
                service.hear(message);
            }
        });
        service
    }

    /// Where the server is.
    pub(crate) fn address(&self) -> Address {
        self.endpoint.address()
    }

    /// All parts are there.
    pub(crate) fn begin(&self, members: Vec<(u16, Address)>) {
        if self.members.set(members).is_err() {
            log::error!("the members of a network were named twice");
        }
    }

    /// A node was given up.
    pub(crate) fn node_lost(self: &Arc<Self>, node: u16) {
        self.step(Event::NodeLost(node));
    }

    fn hear(self: &Arc<Self>, mut message: Message) {
        let from = message.source.node.0;
        let ask = match decode::<Ask>(&message.body) {
            Ok(ask) => ask,
            Err(error) => {
                log::error!("node {from}: {error}");
                return;
            }
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(reply) = message.take_reply() {
            self.replies.lock().unwrap_or_else(PoisonError::into_inner).insert(number, reply);
        }
        self.step(Event::Ask { from, number, ask });
    }

    fn step(self: &Arc<Self>, event: Event) {
        let commands = self.core.lock().unwrap_or_else(PoisonError::into_inner).step(event);
        for command in commands {
            self.carry_out(command);
        }
    }

    fn carry_out(self: &Arc<Self>, command: Command) {
        match command {
            Command::Answer { number, answer } => {
                let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
                let reply = replies.remove(&number);
                drop(replies);
                if let Some(reply) = reply {
                    reply.reply(encode(&answer));
                }
            }
            Command::Tell { node, ticket, notice } => {
                let members = self.members.get();
                let address =
                    members.and_then(|all| all.iter().find(|(member, _)| *member == node));
                let Some((_, address)) = address else {
                    self.step(Event::Confirmed { ticket, confirmation: None });
                    return;
                };
                let service = Arc::downgrade(self);
                self.endpoint.call_with(
                    Lane::Small,
                    address,
                    encode(&notice),
                    NOTICE_PATIENCE,
                    move |answer| confirmed(&service, ticket, answer),
                );
            }
        }
    }
}

fn confirmed(service: &Weak<NetService>, ticket: u64, answer: Result<Vec<u8>, CallError>) {
    let Some(service) = service.upgrade() else { return };
    let confirmation = match answer {
        Ok(body) => decode::<Confirmation>(&body).ok(),
        Err(error) => {
            log::debug!("a notice of the net server: {error}");
            None
        }
    };
    service.step(Event::Confirmed { ticket, confirmation });
}

/// A member's ways to the others.
struct Links {
    endpoint: Endpoint,
    /// Keeps what is told in order with what is asked.
    poster: Arc<Poster>,
    server: Address,
    directory: Arc<Directory>,
}

impl Transport for Links {
    fn ask(&self, ask: &Ask) -> Result<Answer, Unreachable> {
        let answer = self.endpoint.call(&self.server, encode(ask), PATIENCE).map_err(|error| {
            log::debug!("asking the net server: {error}");
            Unreachable
        })?;
        decode(&answer).map_err(|error| {
            log::error!("the net server's answer: {error}");
            Unreachable
        })
    }

    fn tell(&self, ask: &Ask) {
        if let Err(error) = self.poster.post(&self.server, encode(ask)) {
            log::debug!("telling the net server: {error}");
        }
    }

    fn send(&self, node: u16, frames: Vec<u8>) -> Result<(), SendError> {
        let address = self.directory.of(node).ok_or(SendError::Gone)?;
        self.endpoint.try_post_on(Lane::Bulk, &address, frames).map_err(|(error, frames)| {
            match error {
                CallError::Busy { .. } => SendError::Full(frames),
                _ => SendError::Gone,
            }
        })
    }

    fn send_within(&self, node: u16, frames: Vec<u8>, limit: Duration) -> Result<(), SendError> {
        let address = self.directory.of(node).ok_or(SendError::Gone)?;
        self.endpoint.post_within(Lane::Bulk, &address, frames, limit).map_err(|_| SendError::Gone)
    }
}

/// One node's member with its endpoint.
pub(crate) struct NetPart {
    pub(crate) member: Arc<Member>,
    endpoint: Endpoint,
    directory: Arc<Directory>,
}

impl NetPart {
    /// Takes over the container's network.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn start(
        network: DcNetwork,
        handles: NetworkHandles,
        endpoint: Endpoint,
        server: Address,
    ) -> Result<NetPart, String> {
        let directory = Arc::new(Directory::default());
        let links = Links {
            poster: Poster::new(endpoint.clone(), Lane::Small),
            endpoint: endpoint.clone(),
            server,
            directory: Arc::clone(&directory),
        };
        let member = Member::start(MemberConfig { network, handles }, Arc::new(links))
            .map_err(|error| error.to_string())?;
        let weak = Arc::downgrade(&member);
        endpoint.set_handler(move |mut message| {
            let Some(member) = weak.upgrade() else { return };
            match message.take_reply() {
                Some(reply) => match decode(&message.body) {
                    Ok(notice) => {
                        member.notice(notice, move |confirmation| {
                            reply.reply(encode(&confirmation));
                        });
                    }
                    Err(error) => log::error!("the net server: {error}"),
                },
                None if message.kind == MessageKind::Post => {
                    member.deliver(message.source.node.0, &message.body);
                }
                None => {}
            }
        });
        Ok(NetPart { member, endpoint, directory })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> Address {
        self.endpoint.address()
    }

    /// The other nodes' members.
    pub(crate) fn begin(&self, members: impl Iterator<Item = (u16, Address)>) {
        self.directory.learn(members.collect());
    }

    /// Ends it, after the container.
    pub(crate) fn end(&self) {
        self.endpoint.close();
        self.member.stop();
    }
}

/// The network of one node's container.
pub(crate) fn network_of(
    option: NetworkOption,
    node: u16,
    members: &[(u16, String)],
) -> dvs_container::Network {
    use dvs_container::Network;
    match option {
        NetworkOption::None => Network::Loopback,
        NetworkOption::Host => Network::Host,
        NetworkOption::Dc => {
            let mut members: Vec<u16> = members.iter().map(|(member, _)| *member).collect();
            members.sort_unstable();
            Network::Dc(DcNetwork { node, members })
        }
    }
}
