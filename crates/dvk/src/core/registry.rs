//! Names of the endpoints of one container: one authority on its home node, a cache on every node.
//!
//! The cache is never asked to be right: an address that turns out to be void is dropped from it by
//! the answer of the node that was tried, and the authority is asked again.

use crate::error::{CallError, NameError};
use crate::ids::{Address, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Most bytes of a name.
pub const MAX_NAME: usize = 255;
/// Most names of one container.
pub const MAX_NAMES: usize = 64 << 10;
/// Most requests that wait for a name to be bound.
pub const MAX_WAITING: usize = 4096;

/// Most endpoints that stand by for one name.
pub const MAX_STANDBY: usize = 64;

/// As what an endpoint is bound to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Has the name; there is one.
    Primary,
    /// Stands by: has the name when all before it are gone. Nobody finds it until then.
    Backup,
    /// Like a backup, but those on its own node find it by the name at once: all replicas can serve.
    Replica,
}

/// What a node asks the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryRequest {
    /// Give an endpoint of the asking node a name.
    Bind {
        /// The name.
        name: String,
        /// The endpoint.
        address: Address,
        /// As what.
        role: Role,
    },
    /// Take it away.
    Unbind {
        /// The name.
        name: String,
        /// The endpoint that has it.
        address: Address,
    },
    /// Who has the name, now or within a time?
    Resolve {
        /// The name.
        name: String,
        /// Nanoseconds to wait for it to be bound.
        wait: u64,
    },
}

/// What the registry answers.
pub type RegistryReply = Result<Option<Address>, NameError>;

/// The endpoints of one name.
#[derive(Debug)]
struct Holders {
    primary: Address,
    /// In the order of their coming.
    standby: VecDeque<(Address, Role)>,
}

impl Holders {
    fn standby(&self, address: &Address) -> bool {
        self.standby.iter().any(|(other, _)| other == address)
    }

    /// Whom those on a node find.
    fn seen_from(&self, node: NodeId) -> Address {
        let replica = self
            .standby
            .iter()
            .find(|(address, role)| *role == Role::Replica && address.node == node);
        match replica {
            Some((address, _)) if self.primary.node != node => *address,
            _ => self.primary,
        }
    }

    /// Takes endpoints out. `None`: nobody is left. Otherwise who has the name now, if that changed.
    fn remove(&mut self, goes: impl Fn(&Address) -> bool) -> Option<Option<Address>> {
        self.standby.retain(|(address, _)| !goes(address));
        if !goes(&self.primary) {
            return Some(None);
        }
        let (next, _) = self.standby.pop_front()?;
        self.primary = next;
        Some(Some(next))
    }
}

#[derive(Debug)]
struct Wait<W> {
    waiter: W,
    deadline: u64,
}

/// The authority for the names of one container. `W` answers whoever waits.
#[derive(Debug)]
pub struct Authority<W> {
    names: BTreeMap<String, Holders>,
    /// Endpoints that got a name because another one is gone, and were not told yet.
    promoted: Vec<Address>,
    waiting: BTreeMap<String, Vec<Wait<W>>>,
    waiters: usize,
    closed: bool,
}

impl<W> Default for Authority<W> {
    fn default() -> Self {
        Authority {
            names: BTreeMap::new(),
            promoted: Vec::new(),
            waiting: BTreeMap::new(),
            waiters: 0,
            closed: false,
        }
    }
}

impl<W> Authority<W> {
    /// A request of a node's life; answers of this and earlier ones are appended.
    pub fn request(
        &mut self,
        now: u64,
        node: NodeId,
        incarnation: u64,
        request: RegistryRequest,
        waiter: W,
        answers: &mut Vec<(W, RegistryReply)>,
    ) {
        if self.closed {
            answers.push((waiter, Err(NameError::Registry(CallError::Closed))));
            return;
        }
        let name = match &request {
            RegistryRequest::Bind { name, .. }
            | RegistryRequest::Unbind { name, .. }
            | RegistryRequest::Resolve { name, .. } => name,
        };
        if name.is_empty() || name.len() > MAX_NAME {
            answers.push((waiter, Err(NameError::BadName)));
            return;
        }
        match request {
            RegistryRequest::Bind { address, .. } | RegistryRequest::Unbind { address, .. }
                if address.node != node || address.incarnation != incarnation =>
            {
                answers.push((waiter, Err(NameError::NotYours)));
            }
            RegistryRequest::Bind { name, address, role } => {
                let answer = self.bind(name.clone(), address, role);
                let bound = answer.is_ok();
                answers.push((waiter, answer));
                for wait in bound.then(|| self.waiting.remove(&name)).flatten().unwrap_or_default()
                {
                    self.waiters -= 1;
                    answers.push((wait.waiter, Ok(Some(address))));
                }
            }
            RegistryRequest::Unbind { name, address } => {
                self.remove(|other| *other == address, Some(&name));
                answers.push((waiter, Ok(None)));
            }
            RegistryRequest::Resolve { name, wait } => match self.names.get(&name) {
                Some(holders) => answers.push((waiter, Ok(Some(holders.seen_from(node))))),
                None if wait == 0 => answers.push((waiter, Err(NameError::NotBound { name }))),
                None if self.waiters >= MAX_WAITING => answers.push((waiter, Err(NameError::Full))),
                None => {
                    self.waiters += 1;
                    let deadline = now.saturating_add(wait);
                    self.waiting.entry(name).or_default().push(Wait { waiter, deadline });
                }
            },
        }
    }

    /// The answer says who has the name.
    fn bind(&mut self, name: String, address: Address, role: Role) -> RegistryReply {
        let full = self.names.len() >= MAX_NAMES;
        match self.names.get_mut(&name) {
            // The same again: the first answer was lost.
            Some(holders) if holders.primary == address || holders.standby(&address) => {
                Ok(Some(holders.primary))
            }
            Some(holders) if role == Role::Primary => {
                Err(NameError::Taken { name, holder: holders.primary })
            }
            Some(holders) if holders.standby.len() >= MAX_STANDBY => Err(NameError::Full),
            Some(holders) => {
                holders.standby.push_back((address, role));
                Ok(Some(holders.primary))
            }
            None if full => Err(NameError::Full),
            None => {
                let standby = VecDeque::new();
                self.names.insert(name, Holders { primary: address, standby });
                Ok(Some(address))
            }
        }
    }

    fn remove(&mut self, goes: impl Fn(&Address) -> bool, name: Option<&str>) {
        let mut promoted = Vec::new();
        let mut keep = |holders: &mut Holders| match holders.remove(&goes) {
            None => false,
            Some(next) => {
                promoted.extend(next);
                true
            }
        };
        match name {
            Some(name) => {
                if let Some(holders) = self.names.get_mut(name)
                    && !keep(holders)
                {
                    self.names.remove(name);
                }
            }
            None => self.names.retain(|_, holders| keep(holders)),
        }
        self.promoted.extend(promoted);
    }

    /// Endpoints that have a name since the one before them is gone. They are to be told.
    pub fn take_promoted(&mut self) -> Vec<Address> {
        std::mem::take(&mut self.promoted)
    }

    /// The life of a node is over, and with it the names of its endpoints.
    pub fn node_gone(&mut self, node: NodeId, incarnation: u64) {
        self.remove(|address| address.node == node && address.incarnation <= incarnation, None);
    }

    /// Time goes on: waiting requests past their deadline are answered.
    pub fn tick(&mut self, now: u64, answers: &mut Vec<(W, RegistryReply)>) {
        if self.waiters == 0 {
            return;
        }
        for (name, waits) in &mut self.waiting {
            for wait in waits.extract_if(.., |wait| wait.deadline <= now) {
                self.waiters -= 1;
                answers.push((wait.waiter, Err(NameError::NotBound { name: name.clone() })));
            }
        }
        self.waiting.retain(|_, waits| !waits.is_empty());
    }

    /// When [`Authority::tick`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.waiting.values().flatten().map(|wait| wait.deadline).min()
    }

    /// The names and who has them.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Address)> {
        self.names.iter().map(|(name, holders)| (name.as_str(), &holders.primary))
    }

    /// Gives all waiters back, when the container is closed; nobody waits from now on.
    pub fn close(&mut self) -> Vec<W> {
        self.closed = true;
        self.waiters = 0;
        std::mem::take(&mut self.waiting).into_values().flatten().map(|wait| wait.waiter).collect()
    }
}

/// What a node remembers of the names of one container.
#[derive(Debug, Default)]
pub struct Cache {
    names: BTreeMap<String, Address>,
}

impl Cache {
    /// Who had the name when it was last asked for.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Address> {
        self.names.get(name).copied()
    }

    /// The authority said so.
    pub fn insert(&mut self, name: String, address: Address) {
        if self.names.len() < MAX_NAMES {
            self.names.insert(name, address);
        }
    }

    /// An address is void.
    pub fn stale(&mut self, address: &Address) {
        self.names.retain(|_, cached| cached != address);
    }

    /// The life of a node is over.
    pub fn node_gone(&mut self, node: NodeId, incarnation: u64) {
        self.names.retain(|_, address| address.node != node || address.incarnation > incarnation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DcId;

    fn address(node: u16, number: u64) -> Address {
        Address { dc: DcId(1), node: NodeId(node), incarnation: 1, number }
    }

    fn ask(
        authority: &mut Authority<u32>,
        node: u16,
        request: RegistryRequest,
        waiter: u32,
    ) -> Vec<(u32, RegistryReply)> {
        let mut answers = Vec::new();
        authority.request(100, NodeId(node), 1, request, waiter, &mut answers);
        answers
    }

    fn bind(name: &str, node: u16) -> RegistryRequest {
        bind_as(name, node, Role::Primary)
    }

    fn bind_as(name: &str, node: u16, role: Role) -> RegistryRequest {
        RegistryRequest::Bind { name: name.into(), address: address(node, 5), role }
    }

    fn resolve(name: &str, wait: u64) -> RegistryRequest {
        RegistryRequest::Resolve { name: name.into(), wait }
    }

    #[test]
    fn names_are_bound_once_and_by_their_owner() {
        let mut authority = Authority::default();
        assert_eq!(ask(&mut authority, 1, bind("fs", 1), 1), [(1, Ok(Some(address(1, 5))))]);
        assert_eq!(ask(&mut authority, 1, bind("fs", 1), 2), [(2, Ok(Some(address(1, 5))))]);
        assert!(matches!(
            ask(&mut authority, 2, bind("fs", 2), 3)[..],
            [(3, Err(NameError::Taken { .. }))]
        ));
        assert_eq!(ask(&mut authority, 2, bind("pm", 1), 4), [(4, Err(NameError::NotYours))]);
        assert_eq!(ask(&mut authority, 2, bind("", 2), 5), [(5, Err(NameError::BadName))]);
        let long = "x".repeat(MAX_NAME + 1);
        assert_eq!(ask(&mut authority, 2, bind(&long, 2), 6), [(6, Err(NameError::BadName))]);
    }

    #[test]
    fn a_resolve_waits_for_the_name_until_its_deadline() {
        let mut authority = Authority::default();
        assert_eq!(ask(&mut authority, 1, resolve("fs", 50), 1), []);
        assert_eq!(ask(&mut authority, 1, resolve("fs", 500), 2), []);
        assert_eq!(authority.next_deadline(), Some(150));
        let mut answers = Vec::new();
        authority.tick(150, &mut answers);
        assert_eq!(answers, [(1, Err(NameError::NotBound { name: "fs".into() }))]);
        assert_eq!(
            ask(&mut authority, 3, bind("fs", 3), 9),
            [(9, Ok(Some(address(3, 5)))), (2, Ok(Some(address(3, 5))))]
        );
        assert_eq!(authority.next_deadline(), None);
    }

    #[test]
    fn names_go_with_their_node() {
        let mut authority = Authority::default();
        ask(&mut authority, 1, bind("fs", 1), 1);
        ask(&mut authority, 2, bind("pm", 2), 1);
        authority.node_gone(NodeId(1), 1);
        assert_eq!(authority.names().map(|(name, _)| name).collect::<Vec<_>>(), ["pm"]);
        let mut cache = Cache::default();
        cache.insert("fs".into(), address(1, 5));
        cache.insert("pm".into(), address(2, 5));
        cache.stale(&address(2, 5));
        cache.node_gone(NodeId(1), 1);
        assert_eq!((cache.get("fs"), cache.get("pm")), (None, None));
    }

    #[test]
    fn who_stands_by_follows_in_order_and_replicas_serve_their_own_node() {
        let mut authority = Authority::default();
        ask(&mut authority, 1, bind("fs", 1), 1);
        for (node, role) in [(2, Role::Backup), (3, Role::Replica), (4, Role::Backup)] {
            let answers = ask(&mut authority, node, bind_as("fs", node, role), 2);
            assert_eq!(answers, [(2, Ok(Some(address(1, 5))))], "the primary is told");
        }
        let seen =
            |authority: &mut Authority<u32>, node| match &ask(authority, node, resolve("fs", 0), 3)
                [..]
            {
                [(3, Ok(Some(address)))] => address.node.0,
                other => panic!("{other:?}"),
            };
        assert_eq!([1, 2, 3, 4].map(|node| seen(&mut authority, node)), [1, 1, 3, 1]);
        authority.node_gone(NodeId(4), 1);
        assert!(authority.take_promoted().is_empty());
        authority.node_gone(NodeId(1), 1);
        assert_eq!(authority.take_promoted(), [address(2, 5)]);
        assert_eq!([1, 2, 3].map(|node| seen(&mut authority, node)), [2, 2, 3]);
        let unbind = RegistryRequest::Unbind { name: "fs".into(), address: address(2, 5) };
        ask(&mut authority, 2, unbind, 4);
        assert_eq!(authority.take_promoted(), [address(3, 5)]);
        assert_eq!(seen(&mut authority, 1), 3);
        authority.node_gone(NodeId(3), 1);
        assert!(matches!(
            ask(&mut authority, 1, resolve("fs", 0), 5)[..],
            [(5, Err(NameError::NotBound { .. }))]
        ));
        // A name that nobody has goes to the first that asks, whatever it wants to be.
        let answers = ask(&mut authority, 2, bind_as("fs", 2, Role::Backup), 6);
        assert_eq!(answers, [(6, Ok(Some(address(2, 5))))]);
    }

    #[test]
    fn those_who_stand_by_are_bounded() {
        let mut authority = Authority::default();
        ask(&mut authority, 1, bind("fs", 1), 1);
        for number in 0..=MAX_STANDBY as u64 {
            let address = Address { number: 10 + number, ..address(2, 0) };
            let request = RegistryRequest::Bind { name: "fs".into(), address, role: Role::Backup };
            let answers = ask(&mut authority, 2, request, 2);
            assert_eq!(answers[0].1.is_ok(), number < MAX_STANDBY as u64);
        }
    }

    #[test]
    fn waiting_requests_are_bounded() {
        let mut authority = Authority::default();
        for waiter in 0..MAX_WAITING as u32 {
            assert_eq!(ask(&mut authority, 1, resolve("fs", 50), waiter), []);
        }
        assert_eq!(ask(&mut authority, 1, resolve("fs", 50), 7), [(7, Err(NameError::Full))]);
        assert_eq!(authority.close().len(), MAX_WAITING);
    }
}
