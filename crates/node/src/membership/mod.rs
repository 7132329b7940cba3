//! A cluster of hosts: one node is the registrar, lets others in by tokens, and says who belongs.
//!
//! A host has at most one place in a cluster and one daemon for it. What it is, and whom it knows, is
//! kept in its state folder (see [`store`]), so that it finds the others again after a restart.

pub(crate) mod core;
mod join;
pub mod store;
pub mod token;

pub(crate) use join::{Admission, Question};
pub use join::{create, join, resolve};

use crate::protocol::Failure;
use core::{Member, Refusal, Registrar, Roster};
use dvs_dvk::tls::{Authority, CERTIFICATE_LIFE, Issued, fingerprint, secret};
use dvs_dvk::{Node, NodeId};
use dvs_sys::clock;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::{Identity, Office, Store};
use token::Token;

/// The port of links where none is given.
pub const DEFAULT_PORT: u16 = 7117;
/// How long a token is valid unless something else is asked for, seconds.
pub const TOKEN_LIFE: u64 = 900;
/// A certificate is replaced when less than this is left of it.
const RENEW_BEFORE: Duration = Duration::from_secs(CERTIFICATE_LIFE.as_secs() / 3);
/// When nothing happens, certificates are looked at this often.
const IDLE: Duration = Duration::from_secs(3600);
/// Members that cannot be reached are tried again after this time, and more each time,
const AGAIN: Duration = Duration::from_millis(500);
/// at most this.
const AGAIN_AT_MOST: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Membership {
    store: Store,
    state: Mutex<State>,
    woken: Condvar,
}

struct State {
    identity: Identity,
    roster: Roster,
    /// On the registrar's node.
    office: Option<(Registrar, Authority)>,
    /// The address that others are told.
    address: SocketAddr,
    /// Something happened that may need doing.
    wake: bool,
    ending: bool,
    /// The roster that each life of a node was told.
    told: BTreeMap<(u16, u64), u64>,
    /// Attempts in a row that did not reach everybody.
    attempts: u32,
    /// The others do not accept our certificate.
    refused: bool,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Members to connect to.
    pub(crate) dial: Vec<(u16, String, SocketAddr)>,
    /// Linked members that have to be told the roster.
    pub(crate) tell: Vec<(u16, u64)>,
    /// The own certificate is to be replaced.
    pub(crate) renew: bool,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    u64::try_from(clock::real() / 1_000_000_000).unwrap_or(0)
}

impl Membership {
    /// Takes the host's place in its cluster: gives the node its certificate and listens.
    ///
    /// # Errors
    /// When a file is damaged, or the address cannot be used.
    pub(crate) fn open(store: Store, dvk: &Node) -> Result<Arc<Self>, Failure> {
        let mut identity = store
            .identity()?
            .ok_or_else(|| Failure::new("this host belongs to no cluster; dvs node join"))?;
        let office = match store.office()? {
            Some(Office { registrar, certificate, key }) => {
                let authority = Authority::load(identity.cluster, certificate, key)
                    .map_err(|error| Failure::new(format!("the cluster's authority: {error}")))?;
                Some((registrar, authority))
            }
            None => None,
        };
        let roster = match &office {
            Some((registrar, _)) => registrar.roster.clone(),
            None => store.roster()?,
        };
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format!("node {}: {error}", identity.name))
        };
        dvk.set_revoked(revoked(&roster));
        let membership = Arc::new(Membership {
            store,
            state: Mutex::new(State {
                roster,
                office,
                address: identity.listen,
                wake: true,
                ending: false,
                told: BTreeMap::new(),
                attempts: 0,
                refused: false,
                identity: identity.clone(),
            }),
            woken: Condvar::new(),
        });
        membership.use_credentials(dvk, &identity).map_err(|error| failed(&error))?;
        let bound = dvk.listen_tcp(identity.listen).map_err(|error| {
            Failure::new(format!(
                "node {} cannot listen for other hosts: {error}; choose another address: dvs node start --listen IP:PORT",
                identity.name
            ))
        })?;
        // A port that the system chose is kept: others find this node there after a restart.
        if bound != identity.listen {
            identity.listen = bound;
            membership.store.set_identity(&identity)?;
        }
        let mut state = membership.lock();
        state.address = identity.advertise.unwrap_or(bound);
        state.identity = identity;
        let (node, address) = (state.identity.node, state.address);
        if state.moved(node, address) {
            membership.store_roster(&state)?;
        }
        drop(state);
        Ok(membership)
    }

    fn use_credentials(
        self: &Arc<Self>,
        dvk: &Node,
        identity: &Identity,
    ) -> Result<(), dvs_dvk::tls::CredentialsError> {
        let weak = Arc::downgrade(self);
        let visitor = move |question: &[u8]| weak.upgrade()?.visited(question);
        dvk.set_credentials(&identity.credentials(), Some(Arc::new(visitor)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_roster(&self, state: &State) -> Result<(), Failure> {
        match &state.office {
            Some((registrar, authority)) => self.store.set_office(&Office {
                registrar: registrar.clone(),
                certificate: authority.certificate().to_vec(),
                key: authority.key().to_vec(),
            }),
            None => self.store.set_roster(&state.roster),
        }
    }

    /// The address that others are told.
    pub(crate) fn address(&self) -> SocketAddr {
        self.lock().address
    }

    /// The node that decides.
    pub(crate) fn registrar(&self) -> u16 {
        self.lock().identity.registrar
    }

    /// The roster, for others.
    pub(crate) fn roster(&self) -> Roster {
        self.lock().roster.clone()
    }

    /// Names and numbers of all members.
    pub(crate) fn members(&self) -> Vec<(u16, String, Option<SocketAddr>)> {
        let state = self.lock();
        state.roster.members.iter().map(|m| (m.node, m.name.clone(), m.address)).collect()
    }

    /// Another member says that our certificate is revoked.
    pub(crate) fn refused(&self) {
        self.lock().refused = true;
    }

    /// What the user should know.
    pub(crate) fn warning(&self) -> Option<String> {
        self.lock().refused.then(|| {
            "the cluster does not accept this host's certificate: it was removed from there; leave the cluster (dvs node stop, dvs node leave) and join it anew".to_owned()
        })
    }

    /// Something about the links changed.
    pub(crate) fn wake(&self) {
        let mut state = self.lock();
        state.wake = true;
        state.attempts = 0;
        drop(state);
        self.woken.notify_all();
    }

    /// The daemon ends.
    pub(crate) fn end(&self) {
        self.lock().ending = true;
        self.woken.notify_all();
    }

    /// Waits until something is to be done; `None`: the daemon ends. `dvk` says who is linked. What
    /// does not succeed is due again, after a while.
    pub(crate) fn due(&self, dvk: &Node) -> Option<Due> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if state.ending {
                return None;
            }
            if state.wake || waited {
                state.wake = false;
                let due = state.due(&dvk.peers(), now());
                let busy = !due.dial.is_empty() || due.renew;
                state.attempts = if busy { state.attempts.saturating_add(1) } else { 0 };
                if busy || !due.tell.is_empty() {
                    return Some(due);
                }
            }
            let pause = if state.attempts > 0 { pause(state.attempts) } else { IDLE };
            let woken = self.woken.wait_timeout(state, pause);
            let (guard, time) = woken.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            waited = time.timed_out();
        }
    }

    /// Something that was due did not succeed.
    pub(crate) fn not_done(&self) {
        let mut state = self.lock();
        state.attempts = state.attempts.max(1);
    }

    /// A member was told the roster of a version.
    pub(crate) fn told(&self, node: u16, life: u64, version: u64) {
        self.lock().told.insert((node, life), version);
    }

    /// A member says where it listens.
    pub(crate) fn heard(&self, node: u16, address: Option<SocketAddr>) {
        let mut state = self.lock();
        if let Some(address) = address
            && state.moved(node, address)
            && let Err(failure) = self.store_roster(&state)
        {
            log::warn!("{failure}");
        }
    }

    /// A roster from another node; only the registrar's is followed.
    pub(crate) fn follow(&self, from: u16, roster: Roster, dvk: &Node) {
        let mut state = self.lock();
        if from != state.identity.registrar || state.office.is_some() {
            log::warn!("node {from} sent a roster and is not the registrar");
            return;
        }
        if !state.roster.follow(roster) {
            return;
        }
        log::info!("roster {}: {} members", state.roster.version, state.roster.members.len());
        if let Err(failure) = self.store_roster(&state) {
            log::warn!("{failure}");
        }
        let revoked = revoked(&state.roster);
        drop(state);
        dvk.set_revoked(revoked);
        self.wake();
    }

    /// A token for `uses` nodes, valid for `life` seconds.
    pub(crate) fn token(&self, life: u64, uses: u32) -> Result<String, Failure> {
        let mut state = self.lock();
        let (address, identity) = (state.address, state.identity.clone());
        let token = Token {
            address,
            cluster: identity.cluster,
            node: identity.node,
            authority: fingerprint(&identity.authority),
            secret: secret(),
        };
        let registrar = state.registrar_mut()?;
        registrar.add_token(fingerprint(&token.secret), now(), life, uses).map_err(refused)?;
        self.store_roster(&state)?;
        Ok(token.word())
    }

    /// Removes a member for good; its number.
    pub(crate) fn remove(&self, name: &str, dvk: &Node) -> Result<u16, Failure> {
        let mut state = self.lock();
        let node = state.registrar_mut()?.remove(name, now()).map_err(refused)?;
        state.roster_changed();
        self.store_roster(&state)?;
        let revoked = revoked(&state.roster);
        drop(state);
        log::info!("node {name} ({node}) was removed from the cluster");
        dvk.set_revoked(revoked);
        dvk.give_up(NodeId(node));
        self.wake();
        Ok(node)
    }

    /// A new certificate for a member, or for the registrar itself. The old one is valid until
    /// [`Membership::retire`].
    pub(crate) fn certify(&self, node: u16, public: &[u8]) -> Result<Issued, Failure> {
        let mut state = self.lock();
        state.registrar_mut()?;
        if state.roster.member(node).is_none() {
            return Err(Failure::new(format!("node {node} is no member of the cluster")));
        }
        let Some((registrar, authority)) = state.office.as_mut() else {
            return Err(Failure::new("this node is not the registrar"));
        };
        let issued = authority
            .issue(NodeId(node), public, CERTIFICATE_LIFE)
            .map_err(|error| Failure::new(error.to_string()))?;
        registrar.renewed(node, issued.fingerprint, issued.ends, now());
        state.roster_changed();
        self.store_roster(&state)?;
        Ok(issued)
    }

    /// From now on this certificate and key are shown. The lives of links go on.
    pub(crate) fn replace(
        self: &Arc<Self>,
        dvk: &Node,
        key: Vec<u8>,
        issued: (Vec<u8>, u64),
    ) -> Result<(), Failure> {
        let mut state = self.lock();
        let identity =
            Identity { certificate: issued.0, ends: issued.1, key, ..state.identity.clone() };
        self.use_credentials(dvk, &identity).map_err(|error| Failure::new(error.to_string()))?;
        self.store.set_identity(&identity)?;
        state.identity = identity;
        Ok(())
    }

    /// A member shows its new certificate everywhere.
    pub(crate) fn retire(&self, node: u16, dvk: &Node) -> Result<(), Failure> {
        let mut state = self.lock();
        state.registrar_mut()?.retire(node, now());
        state.roster_changed();
        self.store_roster(&state)?;
        let revoked = revoked(&state.roster);
        drop(state);
        dvk.set_revoked(revoked);
        self.wake();
        Ok(())
    }

    /// Somebody without a certificate asks.
    fn visited(&self, question: &[u8]) -> Option<Vec<u8>> {
        let question = Question::decode(question)?;
        let admitted = self.admit(&question);
        match &admitted {
            Ok(admission) => log::info!("node {} joined the cluster", admission.name),
            Err(refusal) => log::warn!("a node that wants to join is refused: {refusal}"),
        }
        self.wake();
        Some(join::encode(&admitted))
    }

    fn admit(&self, question: &Question) -> Result<Admission, Refusal> {
        let mut state = self.lock();
        let identity = state.identity.clone();
        let Some((registrar, authority)) = state.office.as_mut() else {
            return Err(Refusal::Token);
        };
        let digest = fingerprint(&question.secret);
        let (node, name) = registrar.admit(&digest, question.name.as_deref(), now())?;
        let wrong = |error: &dyn std::fmt::Display| Refusal::Certificate(error.to_string());
        let issued = authority
            .issue(NodeId(node), &question.public, CERTIFICATE_LIFE)
            .map_err(|error| wrong(&error))?;
        registrar.enter(Member {
            node,
            name: name.clone(),
            address: None,
            fingerprint: issued.fingerprint,
            ends: issued.ends,
        });
        state.roster_changed();
        self.store_roster(&state).map_err(|failure| wrong(&failure))?;
        Ok(Admission {
            node,
            name,
            registrar: identity.node,
            certificate: issued.certificate,
            ends: issued.ends,
            roster: state.roster.clone(),
        })
    }
}

impl State {
    fn registrar_mut(&mut self) -> Result<&mut Registrar, Failure> {
        let registrar = self.identity.registrar;
        let keeper = self.roster.member(registrar);
        let name = keeper.map_or_else(|| format!("n{registrar}"), |member| member.name.clone());
        let at = keeper.and_then(|member| member.address);
        match self.office.as_mut() {
            Some((registrar, _)) => Ok(registrar),
            None => Err(Failure::new(format!(
                "the cluster's members are decided on node {name}{}; run this there",
                at.map_or_else(String::new, |at| format!(" ({at})"))
            ))),
        }
    }

    fn roster_changed(&mut self) {
        if let Some((registrar, _)) = &self.office {
            self.roster.clone_from(&registrar.roster);
        }
    }

    fn moved(&mut self, node: u16, address: SocketAddr) -> bool {
        let mut moved = self.roster.moved(node, address);
        if let Some((registrar, _)) = self.office.as_mut()
            && registrar.roster.moved(node, address)
        {
            // The others are to know it as well.
            registrar.roster.version += 1;
            self.roster.clone_from(&registrar.roster);
            moved = true;
        }
        moved
    }

    fn due(&self, linked: &[(NodeId, u64)], now: u64) -> Due {
        let own = self.identity.node;
        let is_linked = |node: u16| linked.iter().any(|(id, _)| id.0 == node);
        let others = self.roster.members.iter().filter(|m| m.node != own && !is_linked(m.node));
        let tell = linked.iter().map(|(id, life)| (id.0, *life)).filter(|key| {
            self.office.is_some()
                && self.roster.member(key.0).is_some()
                && self.told.get(key).is_none_or(|told| *told < self.roster.version)
        });
        Due {
            dial: others.filter_map(|m| Some((m.node, m.name.clone(), m.address?))).collect(),
            tell: tell.collect(),
            renew: self.identity.ends.saturating_sub(now) < RENEW_BEFORE.as_secs(),
        }
    }
}

fn pause(attempts: u32) -> Duration {
    (AGAIN * 2_u32.saturating_pow(attempts.min(6))).min(AGAIN_AT_MOST)
}

fn revoked(roster: &Roster) -> BTreeSet<dvs_dvk::tls::Fingerprint> {
    roster.revoked.iter().map(|(fingerprint, _)| *fingerprint).collect()
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(refusal: Refusal) -> Failure {
    Failure::new(refusal.to_string())
}
