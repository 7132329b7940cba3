//! What a daemon has: its identity, its links to other daemons, the containers that have a part on it.
//! `asking` and `answering` are its talk with other daemons.

mod answering;
mod asking;

use crate::control::Started;
use crate::daemon::DaemonConfig;
use crate::dc::home::{Home, Notify, Plan};
use crate::dc::messages::{Answer, Call};
use crate::dc::part::{self, Part};
use crate::folders::{OwnedFolder, fresh_number, link_socket};
use crate::hosts;
use crate::machine::Machine;
use crate::membership::Membership;
use crate::membership::store::Store;
use crate::names;
use crate::protocol::{
    ContainerInfo, ContainerOptions, Ended, Failure, NodeInfo, Peer, ProcessInfo, ProgramOptions,
};
use crate::uplink::Streams;
use crate::warm::Warm;
use answering::PartSlot;
use dvs_dvk::{DcId, Endpoint, Node, NodeConfig, NodeEvent, NodeId};
use dvs_sys::clock;
use dvs_sys::poll::EventFd;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long connecting to another daemon may take.
const LINK_PATIENCE: Duration = Duration::from_secs(10);
/// Something is written on every link at least this often.
const HEARTBEAT: Duration = Duration::from_secs(4);
/// A daemon that was silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(15);
/// How long an ending daemon waits for containers that are being made. Building takes no longer.
const END_PATIENCE: Duration = Duration::from_secs(25);
/// Most containers with their home on one node.
pub(crate) const MAX_CONTAINERS: usize = 1000;
/// Name of a daemon's endpoint.
const ENDPOINT: &str = "daemon";
/// Numbers of containers are above these; below are the daemons' own, one for each node.
const FIRST_CONTAINER: u64 = 1 << 32;

/// A program that a connection follows.
pub(crate) trait Program: Send + Sync {
    /// Sends it a signal, or its whole process group.
    fn signal(&self, signal: i32, group: bool);
    /// Waits until it has ended, and, where it was a container's first, until the container is gone.
    fn wait(&self) -> Ended;
    /// Ends it at once, by force.
    fn end_now(&self);
    /// Nobody follows it any more: its connection is gone.
    fn abandon(&self);
}

/// A container whose home this is.
enum Slot {
    /// Being made, with this number: the name is taken.
    Reserved(u64),
    /// Running.
    Running(Arc<Home>),
}

/// See the module.
pub(crate) struct Host {
    config: DaemonConfig,
    stop: EventFd,
    machine: Machine,
    started: u64,
    dvk: Node,
    /// Asks other daemons.
    endpoint: Endpoint,
    homes: Mutex<BTreeMap<String, Slot>>,
    /// A container was made, or was not.
    homes_changed: Condvar,
    detached: crate::detached::Registry,
    events: crate::events::Events,
    /// The daemon ends: no container is made any more.
    ending: AtomicBool,
    parts: Mutex<BTreeMap<u64, PartSlot>>,
    names: Mutex<BTreeMap<u16, String>>,
    membership: Option<Arc<Membership>>,
    streams: Streams,
    /// Its life was given up by others: it is to begin a new one.
    renewing: AtomicBool,
    /// A container that is prepared; a daemon that lives for one command has none.
    warm: Option<Arc<Warm>>,
}

impl Host {
    /// Makes it and listens for other daemons.
    pub(crate) fn make(config: DaemonConfig) -> Result<Arc<Host>, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::new(format!("node {}: {error}", config.name));
        let stop = EventFd::new().map_err(|error| failed(&error))?;
        let incarnation = u64::try_from(clock::real()).unwrap_or(1).max(1);
        // The kernel cuts a unix socket the moment that its process ends; heartbeats are for daemons
        // that live and answer nothing, and every one of them wakes an idle machine.
        let dvk = Node::new(NodeConfig {
            heartbeat: HEARTBEAT,
            silence: SILENCE,
            ..NodeConfig::new(config.id, config.cluster, incarnation)
        });
        dvk.listen(link_socket(&config.folder)).map_err(|error| failed(&error))?;
        let own = dvk.dc(DcId(u64::from(config.id)), NodeId(config.id));
        let endpoint = own.bind(ENDPOINT).map_err(|error| failed(&error))?;
        let store = config.member.then(|| Store::below(&config.state));
        let membership = store.map(|store| Membership::open(store, &dvk)).transpose()?;
        let warm = config.session.is_none().then(|| Warm::new(Box::new(part::prepare)));
        if let Some(warm) = &warm {
            warm.fill();
        }
        let host = Arc::new(Host {
            stop,
            warm,
            machine: Machine::look(),
            started: u64::try_from(clock::real() / 1_000_000_000).unwrap_or(0),
            dvk,
            endpoint,
            homes: Mutex::default(),
            homes_changed: Condvar::new(),
            detached: crate::detached::Registry::load(&config),
            events: crate::events::Events::new(&config.name),
            ending: AtomicBool::new(false),
            parts: Mutex::default(),
            names: Mutex::new(BTreeMap::from([(config.id, config.name.clone())])),
            membership,
            streams: Streams::default(),
            renewing: AtomicBool::new(false),
            config,
        });
        let weak = Arc::downgrade(&host);
        host.endpoint.set_handler(move |message| {
            if let Some(host) = weak.upgrade() {
                host.asked(message);
            }
        });
        let weak: Weak<Host> = Arc::downgrade(&host);
        host.dvk.on_peer(move |event| {
            if let NodeEvent::Refused { reason } = event {
                log::warn!("link: {reason}");
                return;
            }
            log::debug!("link: {event:?}");
            let Some(host) = weak.upgrade() else { return };
            if let NodeEvent::NodeDown { node, .. } = event {
                host.node_lost(node.0);
            }
            if let Some(membership) = &host.membership {
                membership.wake();
            }
        });
        hosts::keep_linked(&host)?;
        Ok(host)
    }

    /// Its place in a cluster of hosts.
    pub(crate) fn membership(&self) -> Option<&Arc<Membership>> {
        self.membership.as_ref()
    }

    /// Byte streams to nodes that are reached by nothing else.
    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// What a node is called.
    pub(crate) fn name_of(&self, node: u16) -> String {
        lock(&self.names).get(&node).cloned().unwrap_or_else(|| format!("n{node}"))
    }

    /// The name of a node is known.
    pub(crate) fn name_node(&self, node: u16, name: String) {
        lock(&self.names).insert(node, name);
    }

    /// Another node has given this life up, so there can be no link to it any more: the daemon
    /// begins a new life as soon as nothing runs on it.
    pub(crate) fn life_is_over(&self) {
        if self.may_stop(false).is_ok() && !self.renewing.swap(true, Ordering::SeqCst) {
            log::warn!("another node has given this one up: it begins anew");
            self.stop();
        }
    }

    /// Whether its end is to be followed by a new life.
    pub(crate) fn is_renewing(&self) -> bool {
        self.renewing.load(Ordering::SeqCst)
    }

    /// Who it is.
    pub(crate) fn config(&self) -> &DaemonConfig {
        &self.config
    }

    /// Its number.
    pub(crate) fn node(&self) -> u16 {
        self.config.id
    }

    /// Its links and endpoints.
    pub(crate) fn dvk(&self) -> &Node {
        &self.dvk
    }

    /// CPUs it may use, thousandths.
    pub(crate) fn millicpus(&self) -> u32 {
        self.machine.millicpus
    }

    /// Its prepared container.
    pub(crate) fn warm(&self) -> Option<&Arc<Warm>> {
        self.warm.as_ref()
    }

    /// Prepares the next container, if this daemon does.
    fn fill_warm(&self) {
        if let Some(warm) = &self.warm {
            warm.fill();
        }
    }

    /// What its clocks are ahead of the host's, nanoseconds.
    pub(crate) fn own_clock_offset(&self) -> i64 {
        self.config.clock_offset.saturating_mul(1_000_000_000)
    }

    /// Containers that live without a command.
    pub(crate) fn detached(&self) -> &crate::detached::Registry {
        &self.detached
    }

    /// What happens here.
    pub(crate) fn events(&self) -> &crate::events::Events {
        &self.events
    }

    /// Everything on it is being ended.
    pub(crate) fn is_stopping(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Readable when the daemon is to end.
    pub(crate) fn stopping(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    /// Ends the daemon.
    pub(crate) fn stop(&self) {
        if let Err(error) = self.stop.signal() {
            log::error!("telling the main thread to end: {error}");
        }
    }

    /// Ends everything that runs on it, and its links.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(membership) = &self.membership {
            membership.end();
        }
        // Those that are being made end themselves as soon as they see it.
        let made = |homes: &mut BTreeMap<String, Slot>| {
            homes.values().any(|slot| matches!(slot, Slot::Reserved(_)))
        };
        let waited = self.homes_changed.wait_timeout_while(lock(&self.homes), END_PATIENCE, made);
        let (reserved, _) = waited.unwrap_or_else(PoisonError::into_inner);
        // With this process what they consist of ends; their files would stay.
        let stuck: Vec<u64> = reserved
            .values()
            .filter_map(|slot| match slot {
                Slot::Reserved(id) => Some(*id),
                Slot::Running(_) => None,
            })
            .collect();
        drop(reserved);
        for id in stuck {
            let path = self.container_folder(id);
            log::error!("a container is still being made; removing {}", path.display());
            if let Err(error) = crate::folders::remove_tree(&path) {
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
        if let Some(warm) = &self.warm {
            warm.end();
        }
        let homes: Vec<Arc<Home>> = self.running();
        let parts: Vec<Arc<Part>> = lock(&self.parts)
            .values()
            .filter_map(|slot| match slot {
                PartSlot::Ready(part) => Some(Arc::clone(part)),
                _ => None,
            })
            .collect();
        std::thread::scope(|scope| {
            for home in &homes {
                scope.spawn(|| home.end());
            }
            for part in &parts {
                scope.spawn(|| part.end());
            }
        });
        self.settle_detached(END_PATIENCE);
        self.dvk.close();
    }

    pub(crate) fn running(&self) -> Vec<Arc<Home>> {
        let homes = lock(&self.homes);
        let running = homes.values().filter_map(|slot| match slot {
            Slot::Running(home) => Some(Arc::clone(home)),
            Slot::Reserved(_) => None,
        });
        running.collect()
    }

    /// Facts.
    pub(crate) fn info(&self) -> NodeInfo {
        let containers = lock(&self.homes).len() + lock(&self.parts).len();
        NodeInfo {
            name: self.config.name.clone(),
            id: self.config.id,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.machine.kernel.clone(),
            millicpus: self.machine.millicpus,
            memory: self.machine.memory,
            started: self.started,
            containers: u32::try_from(containers).unwrap_or(u32::MAX),
            linked: self.dvk.peers().into_iter().map(|(node, _)| node.0).collect(),
            ephemeral: self.config.session.is_some(),
            link: link_socket(&self.config.folder),
            address: self.membership.as_ref().map(|member| member.address().to_string()),
            links: hosts::links(&self.dvk),
            down: false,
            refused: self.dvk.refused_connections(),
            warning: self.membership.as_ref().and_then(|member| member.warning()),
        }
    }

    /// Links to other daemons, and tells them its name.
    pub(crate) fn link(&self, peers: &[Peer]) -> Result<(), Failure> {
        for peer in peers {
            self.dvk.connect(peer.id, &peer.link, LINK_PATIENCE).map_err(|error| {
                Failure::new(format!(
                    "node {} cannot reach node {}: {error}",
                    self.config.name, peer.name
                ))
            })?;
            self.greet(peer.id, &peer.name)?;
        }
        Ok(())
    }

    /// Says its name to a node that it has connected to.
    pub(crate) fn greet(&self, node: u16, name: &str) -> Result<(), Failure> {
        self.name_node(node, name.to_owned());
        let address = self.membership.as_ref().map(|member| member.address());
        let hello = Call::Hello { name: self.config.name.clone(), address };
        for (node, answer) in self.ask_all(&[node], LINK_PATIENCE, || hello.clone()).wait() {
            if !matches!(answer, Ok(Answer::Done)) {
                return Err(self.failure(node, &answer));
            }
        }
        Ok(())
    }

    /// Makes a container and runs its first program. `kept`: for a detached container, whose name is its
    /// own already.
    pub(crate) fn run(
        self: &Arc<Self>,
        options: ContainerOptions,
        program: ProgramOptions,
        descriptors: Vec<OwnedFd>,
        notify: Notify,
        kept: bool,
    ) -> Result<Started, Failure> {
        let (name, id) = self.reserve(options.name.as_deref(), kept)?;
        let members = self.members(options.nodes).inspect_err(|_| self.forget(&name))?;
        let made = self.make_home(options, &program, members, &name, id, notify);
        let home = match made {
            Ok(home) if !self.ending.load(Ordering::SeqCst) => home,
            Ok(home) => {
                home.end();
                self.forget(&name);
                return Err(self.is_ending());
            }
            Err(failure) => {
                self.forget(&name);
                return Err(failure);
            }
        };
        lock(&self.homes).insert(name.clone(), Slot::Running(Arc::clone(&home)));
        self.homes_changed.notify_all();
        match home.start(&program, descriptors, true) {
            Ok((running, terminal)) => {
                self.fill_warm();
                Ok(Started {
                    container: name,
                    pid: running.pid(),
                    warnings: home.warnings(),
                    terminal,
                    program: running,
                })
            }
            Err(failure) => {
                home.end();
                self.forget(&name);
                Err(failure)
            }
        }
    }

    fn make_home(
        self: &Arc<Self>,
        options: ContainerOptions,
        program: &ProgramOptions,
        members: Vec<(u16, String)>,
        name: &str,
        id: u64,
        notify: Notify,
    ) -> Result<Arc<Home>, Failure> {
        let path = self.container_folder(id);
        let folder = OwnedFolder::make(&path)?
            .ok_or_else(|| Failure::new(format!("{} is in use", path.display())))?;
        let words = program.arguments.iter().map(|word| String::from_utf8_lossy(&word.0));
        let command: Vec<_> = words.collect();
        let made = Home::make(
            self,
            Plan {
                id,
                name: name.to_owned(),
                options,
                members,
                folder,
                command: command.join(" "),
                environment: program.environment.clone(),
                user: program.user.clone(),
                notify,
            },
        );
        if made.is_err() {
            // What was half made may be held on to by threads that end later than this process.
            if let Err(error) = crate::folders::remove_tree(&path) {
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
        made
    }

    fn container_folder(&self, id: u64) -> std::path::PathBuf {
        self.config.state.join(format!("dc-{id:x}"))
    }

    /// This node and as many others as asked for; none asked for: all.
    fn members(&self, wanted: Option<u16>) -> Result<Vec<(u16, String)>, Failure> {
        let mut linked: Vec<u16> = self.dvk.peers().into_iter().map(|(node, _)| node.0).collect();
        linked.sort_unstable();
        let available = linked.len() + 1;
        let wanted = wanted.map_or(available, usize::from);
        if wanted == 0 || wanted > available {
            return Err(Failure::new(format!(
                "{wanted} nodes are asked for and {available} are linked; start more: dvs node start"
            )));
        }
        let names = lock(&self.names);
        let name = |node: u16| {
            let known = names.get(&node).cloned();
            (node, known.unwrap_or_else(|| format!("n{node}")))
        };
        let mut members = vec![name(self.config.id)];
        members.extend(linked.into_iter().take(wanted - 1).map(name));
        Ok(members)
    }

    /// Takes a name and a number. `kept`: the name is a detached container's own.
    fn reserve(&self, wanted: Option<&str>, kept: bool) -> Result<(String, u64), Failure> {
        let mut homes = lock(&self.homes);
        if self.ending.load(Ordering::SeqCst) {
            return Err(self.is_ending());
        }
        if homes.len() >= MAX_CONTAINERS {
            return Err(Failure::new(format!(
                "{MAX_CONTAINERS} containers run on this node, which is the limit; end some: dvs dc rm DC"
            )));
        }
        let id = (fresh_number(u64::from(self.config.id)) >> 8).max(FIRST_CONTAINER);
        let name = match wanted {
            Some(name) => {
                names::check("container", name)?;
                if homes.contains_key(name) {
                    return Err(Failure::new(format!(
                        "a container called {name} runs already; choose another name, or end it: dvs dc rm {name}"
                    )));
                }
                if !kept && self.detached.get(name).is_some() {
                    return Err(Failure::new(format!(
                        "a container called {name} is kept; choose another name, start it again (dvs start {name}), or remove it: dvs rm {name}"
                    )));
                }
                name.to_owned()
            }
            None => {
                let free =
                    |name: &String| !homes.contains_key(name) && self.detached.get(name).is_none();
                let candidates = (0..1000).map(|turn| names::made_up(fresh_number(turn)));
                candidates
                    .into_iter()
                    .find(free)
                    .ok_or_else(|| Failure::new("no free container name; give one with --name"))?
            }
        };
        homes.insert(name.clone(), Slot::Reserved(id));
        Ok((name, id))
    }

    /// A free name, taken until it is forgotten.
    pub(crate) fn free_name(&self, wanted: Option<&str>) -> Result<String, Failure> {
        self.reserve(wanted, false).map(|(name, _)| name)
    }

    /// The container is gone: its name is free.
    pub(crate) fn forget(&self, name: &str) {
        lock(&self.homes).remove(name);
        self.homes_changed.notify_all();
    }

    fn is_ending(&self) -> Failure {
        Failure::new(format!("node {} is being stopped; try another one", self.config.name))
    }

    pub(crate) fn home(&self, name: &str) -> Result<Arc<Home>, Failure> {
        match lock(&self.homes).get(name) {
            Some(Slot::Running(home)) => Ok(Arc::clone(home)),
            Some(Slot::Reserved(_)) => {
                Err(Failure::new(format!("container {name} is being made; try again in a moment")))
            }
            None if self.detached.get(name).is_some() => Err(Failure::new(format!(
                "container {name} does not run; start it: dvs start {name}"
            ))),
            None => Err(Failure::new(format!(
                "no container is called {name}; the running ones: dvs dc ls"
            ))),
        }
    }

    /// Runs one more program in a container.
    pub(crate) fn exec(
        self: &Arc<Self>,
        container: &str,
        program: ProgramOptions,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Started, Failure> {
        let home = self.home(container)?;
        if home.is_frozen() {
            return Err(Failure::new(format!(
                "container {container} is paused; let it go on first: dvs unpause {container}"
            )));
        }
        let (running, terminal) = home.start(&program, descriptors, false)?;
        Ok(Started {
            container: container.to_owned(),
            pid: running.pid(),
            warnings: Vec::new(),
            terminal,
            program: running,
        })
    }

    /// Whether the daemon may be ended.
    pub(crate) fn may_stop(&self, force: bool) -> Result<(), Failure> {
        let names: Vec<String> = lock(&self.homes).keys().cloned().collect();
        let parts = lock(&self.parts).len();
        if force || (names.is_empty() && parts == 0) {
            return Ok(());
        }
        let what = if names.is_empty() {
            format!("parts of {parts} containers")
        } else {
            format!("containers ({})", names.join(", "))
        };
        Err(Failure::new(format!(
            "node {} runs {what}; end them first (dvs dc rm), or add --force",
            self.config.name
        )))
    }

    /// Processes of one or all containers whose home this is.
    pub(crate) fn processes(&self, of: Option<&str>) -> Result<Vec<ProcessInfo>, Failure> {
        let homes = match of {
            Some(name) => vec![self.home(name)?],
            None => self.running(),
        };
        Ok(homes.iter().flat_map(|home| home.processes()).collect())
    }

    /// Containers whose home this is.
    pub(crate) fn containers(&self) -> Vec<ContainerInfo> {
        self.running().iter().map(|home| home.info()).collect()
    }

    /// Waits until a container is no longer here; false: it still is after this time.
    pub(crate) fn wait_gone(&self, home: &Arc<Home>, patience: Duration) -> bool {
        let here = |homes: &mut BTreeMap<String, Slot>| {
            homes
                .values()
                .any(|slot| matches!(slot, Slot::Running(other) if Arc::ptr_eq(other, home)))
        };
        let waited = self.homes_changed.wait_timeout_while(lock(&self.homes), patience, here);
        !here(&mut waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Makes a container free of name, to be kept or not, known by another one. `change` is called
    /// while nobody can take the name.
    pub(crate) fn rename_home(
        &self,
        name: &str,
        to: &str,
        change: impl FnOnce(),
    ) -> Result<(), Failure> {
        names::check("container", to)?;
        let mut homes = lock(&self.homes);
        if homes.contains_key(to) || self.detached.get(to).is_some() {
            return Err(Failure::new(format!(
                "a container called {to} is there already; choose another name"
            )));
        }
        if matches!(homes.get(name), Some(Slot::Reserved(_))) {
            return Err(Failure::new(format!(
                "container {name} is being made; try again in a moment"
            )));
        }
        if let Some(slot) = homes.remove(name) {
            if let Slot::Running(home) = &slot {
                home.rename(to);
            }
            homes.insert(to.to_owned(), slot);
        }
        change();
        Ok(())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
