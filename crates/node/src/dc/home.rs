//! A container at its home: made over all its nodes, its programs, its end on all of them.

use super::files::{FileService, fit_standard};
use super::links::Clients;
use super::manager::{Listener, ManagerClient, ManagerService, Way, remote_listener};
use super::messages::{Answer, Call, Description, PartAddresses, PartStatistics};
use super::network::NetService;
use super::part::{Part, Site};
use super::post::Poster;
use super::program;
use super::users;
use crate::folders::OwnedFolder;
use crate::host::{Host, Program};
use crate::managing::{NewLimits, Usage};
use crate::protocol::{
    ContainerInfo, ContainerOptions, Ended, EndedHow, Failure, ImageOption, NetworkOption,
    NodeStatistics, ProcessInfo, ProgramOptions, Statistics, Text,
};
use dvs_dvk::{DcId, Lane, NodeId};
use dvs_fs::messages::ClientId;
use dvs_fs_client::{Client, ClientOptions};
use dvs_linux::ProgramRef;
use dvs_sys::clock;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a node may take to build its part.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may take to say what its part uses.
const USAGE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a node may take to end its part.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);

/// Tells the user something.
pub(crate) type Notify = Box<dyn Fn(String) + Send + Sync>;

/// What a container is made from.
pub(crate) struct Plan {
    /// Its number.
    pub(crate) id: u64,
    /// Its name.
    pub(crate) name: String,
    /// What the user wants.
    pub(crate) options: ContainerOptions,
    /// Its nodes, this one first.
    pub(crate) members: Vec<(u16, String)>,
    /// Its folder.
    pub(crate) folder: OwnedFolder,
    /// First program, for lists.
    pub(crate) command: String,
    /// Environment that later programs find, too.
    pub(crate) environment: Vec<Text>,
    /// User of the first program; a container of an ordinary user has only this one.
    pub(crate) user: Option<String>,
    /// Tells the user.
    pub(crate) notify: Notify,
}

/// See the module.
pub(crate) struct Home {
    host: Arc<Host>,
    description: Arc<Description>,
    part: Part,
    files: Arc<FileService>,
    clients: Arc<Clients>,
    manager: Arc<ManagerService>,
    net_server: Option<Arc<NetService>>,
    /// Other nodes whose part is there.
    others: Mutex<BTreeSet<u16>>,
    folder: Mutex<Option<OwnedFolder>>,
    image_root: PathBuf,
    info: Mutex<ContainerInfo>,
    options: ContainerOptions,
    /// The program whose end is the container's.
    first: OnceLock<ProgramRef>,
    frozen: AtomicBool,
    environment: Vec<Text>,
    notify: Notify,
    warnings: Vec<String>,
    started: Instant,
    ended: Mutex<Option<Statistics>>,
}

impl Home {
    /// Makes a container on all its nodes. When that fails nothing is left on any.
    ///
    /// # Errors
    /// A sentence about what failed, and where.
    pub(crate) fn make(host: &Arc<Host>, plan: Plan) -> Result<Arc<Home>, Failure> {
        let id = plan.id;
        let made = Home::make_open(host, plan);
        if made.is_err() {
            host.dvk().dc(DcId(id), NodeId(host.node())).close();
        }
        made
    }

    fn make_open(host: &Arc<Host>, plan: Plan) -> Result<Arc<Home>, Failure> {
        let Plan { id, name, options, members, folder, command, environment, user, notify } = plan;
        let node = host.node();
        let arrived = (clock::monotonic(), clock::boot());
        let image_root = match &options.image {
            ImageOption::Host => PathBuf::from("/"),
            ImageOption::Directory(path) => path.clone(),
        };
        let identity = users::resolve(user.as_deref(), &image_root)?;
        check_user(&identity)?;
        let failed =
            |error: &dyn std::fmt::Display| Failure::new(format!("container {name}: {error}"));
        let dc = host.dvk().dc(DcId(id), NodeId(node));
        let nodes: Vec<NodeId> = members.iter().map(|(node, _)| NodeId(*node)).collect();
        dc.restrict(&nodes);
        let clients = Arc::new(Clients::default());
        let files = FileService::start(
            &options,
            &folder.path,
            (identity.uid, identity.gid),
            options.hostname.as_deref().unwrap_or(&name),
            Arc::clone(&clients),
        )?;
        if members.len() == 1 {
            files.one_client();
        }
        let files = Arc::new(files);
        let fs = dc.bind("fs").map_err(|error| failed(&error))?;
        files.serve(&fs);
        clients.post_from(fs.clone());
        let manager = ManagerService::new();
        let pm = dc.bind("pm").map_err(|error| failed(&error))?;
        serve_manager(&pm, &manager);
        let net_server = match options.network {
            NetworkOption::Dc => {
                let net = dc.bind("net").map_err(|error| failed(&error))?;
                let nodes: Vec<u16> = members.iter().map(|(node, _)| *node).collect();
                Some(NetService::start(net, &nodes))
            }
            NetworkOption::None | NetworkOption::Host => None,
        };
        let description = Arc::new(Description {
            id,
            name: name.clone(),
            home: node,
            members: members.clone(),
            policy: options.placement,
            hostname: options.hostname.clone().unwrap_or_else(|| name.clone()),
            network: options.network,
            millicpus: options.millicpus,
            memory: options.memory,
            pids: options.pids,
            single: (identity.uid, identity.gid),
            clocks: arrived,
            files: fs.address(),
            manager: pm.address(),
            net_server: net_server.as_ref().map(|server| server.address()),
        });
        // The others build while this node does.
        let others: Vec<u16> =
            members.iter().map(|(member, _)| *member).filter(|member| *member != node).collect();
        let joining = host.ask_all(&others, JOIN_PATIENCE, || {
            Call::Join(Box::new(Description {
                clocks: (clock::monotonic(), clock::boot()),
                ..(*description).clone()
            }))
        });
        let client_id = ClientId { node, incarnation: host.dvk().incarnation() };
        let part = Client::connect(files.local(), client_id, ClientOptions::default())
            .map_err(|error| failed(&error))
            .and_then(|client| {
                // Weak: the client holds the server, which holds its clients.
                let deliver = Arc::downgrade(&client);
                let deliver = move |notice| {
                    if let Some(client) = deliver.upgrade() {
                        client.deliver(notice);
                    }
                };
                clients.local(client_id, Box::new(deliver));
                let incarnation = host.dvk().incarnation();
                let way = Way::Here(Arc::clone(&manager));
                Part::build(Site {
                    node,
                    description: Arc::clone(&description),
                    dc: dc.clone(),
                    client,
                    manager: Arc::new(ManagerClient::new(node, incarnation, way)),
                    millicpus: host.millicpus(),
                    warm: host.warm().cloned(),
                    own_clock_offset: host.own_clock_offset(),
                    arrived,
                })
            });
        let joined = joining.wait();
        let result = part.and_then(|part| {
            let gathered = gather(host, &joined, &part);
            gathered.map(|(parts, warnings)| (part, parts, warnings))
        });
        let (part, parts, warnings) = match result {
            Ok(built) => built,
            Err(failure) => {
                // Also those that did not answer: their answer may come too late.
                host.ask_all(&others, LEAVE_PATIENCE, || Call::Leave { dc: id }).wait();
                files.stop();
                return Err(failure);
            }
        };
        let info = ContainerInfo {
            name: name.clone(),
            id: format!("{id:x}"),
            nodes: members.iter().map(|(_, name)| name.clone()).collect(),
            image: match &options.image {
                ImageOption::Host => "host".into(),
                ImageOption::Directory(path) => path.display().to_string(),
            },
            placement: options.placement.to_string(),
            command,
            created: u64::try_from(clock::real() / 1_000_000_000).unwrap_or(0),
        };
        let home = Arc::new(Home {
            host: Arc::clone(host),
            description,
            part,
            files,
            clients,
            manager,
            net_server,
            others: Mutex::new(others.iter().copied().collect()),
            folder: Mutex::new(Some(folder)),
            image_root,
            info: Mutex::new(info),
            options,
            first: OnceLock::new(),
            frozen: AtomicBool::new(false),
            environment,
            notify,
            warnings,
            started: Instant::now(),
            ended: Mutex::new(None),
        });
        let weak = Arc::downgrade(&home);
        home.clients.on_fenced(Box::new(move |node| {
            if let Some(home) = weak.upgrade() {
                home.cut_off(node);
            }
        }));
        if let Err(failure) = home.begin(&pm, &parts, &others) {
            home.end();
            return Err(failure);
        }
        Ok(home)
    }

    /// Introduces all parts to each other.
    fn begin(
        &self,
        pm: &dvs_dvk::Endpoint,
        parts: &[(u16, PartAddresses)],
        others: &[u16],
    ) -> Result<(), Failure> {
        self.part.begin(parts);
        if let Some(server) = &self.net_server {
            let members = parts.iter().filter_map(|(node, part)| Some((*node, part.network?)));
            server.begin(members.collect());
        }
        let dc = self.description.id;
        let call = || Call::Begin { dc, parts: parts.to_vec() };
        for (node, answer) in self.host.ask_all(others, JOIN_PATIENCE, call).wait() {
            match answer {
                Ok(Answer::Done) => {}
                other => return Err(self.host.failure(node, &other)),
            }
        }
        let poster = Poster::new(pm.clone(), Lane::Small);
        let mut members: BTreeMap<u16, Listener> = parts
            .iter()
            .map(|(node, part)| (*node, remote_listener(Arc::clone(&poster), part.member)))
            .collect();
        members.insert(self.host.node(), self.part.listener());
        self.manager.begin(members);
        Ok(())
    }

    /// For lists.
    pub(crate) fn info(&self) -> ContainerInfo {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its name now.
    pub(crate) fn name(&self) -> String {
        self.info().name
    }

    /// Makes it known by another name; its host name stays.
    pub(crate) fn rename(&self, to: &str) {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).name = to.to_owned();
    }

    /// What it was made with.
    pub(crate) fn options(&self) -> &ContainerOptions {
        &self.options
    }

    /// The program whose end is the container's, once it runs.
    pub(crate) fn first(&self) -> Option<&ProgramRef> {
        self.first.get()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run (any more).
    pub(crate) fn signal_first(&self, signal: i32) -> Result<(), Failure> {
        let gone = || Failure::new(format!("container {} does not run", self.name()));
        let first = self.first.get().ok_or_else(gone)?;
        match self.part.personality.signal_program(first, signal, false) {
            Ok(()) => Ok(()),
            Err(libc::ESRCH | libc::ESHUTDOWN) => Err(gone()),
            Err(errno) => Err(Failure::new(format!(
                "signal {signal} to container {}: {}",
                self.name(),
                crate::folders::reason(&std::io::Error::from_raw_os_error(errno))
            ))),
        }
    }

    /// Whether it is paused.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// Stops all its programs on all nodes, or lets them go on.
    ///
    /// # Errors
    /// The first node's that did not; then those that did go on again.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Failure> {
        let others: Vec<u16> = self.others().iter().copied().collect();
        let dc = self.description.id;
        let ask = |frozen: bool| {
            let mut result = self.part.freeze(frozen);
            for (node, answer) in
                self.host.ask_all(&others, LEAVE_PATIENCE, || Call::Freeze { dc, frozen }).wait()
            {
                if !matches!(answer, Ok(Answer::Done)) {
                    result = result.and(Err(self.host.failure(node, &answer)));
                }
            }
            result
        };
        let result = ask(frozen);
        match (&result, frozen) {
            (Ok(()), _) => self.frozen.store(frozen, Ordering::SeqCst),
            (Err(_), true) => {
                if let Err(failure) = ask(false) {
                    log::warn!("{failure}");
                }
            }
            (Err(_), false) => {}
        }
        result
    }

    /// What it uses on each node that answers.
    pub(crate) fn usage(&self) -> Vec<Usage> {
        let name = self.name();
        let others: Vec<u16> = self.others().iter().copied().collect();
        let dc = self.description.id;
        let asked = self.host.ask_all(&others, USAGE_PATIENCE, || Call::Usage { dc });
        let mut all = vec![(self.host.node(), self.part.usage())];
        for (node, answer) in asked.wait() {
            match answer {
                Ok(Answer::Usage(usage)) => all.push((node, *usage)),
                other => log::warn!("{}", self.host.failure(node, &other)),
            }
        }
        let named = |(node, usage): (u16, Usage)| Usage {
            container: name.clone(),
            node: self.name_of(node),
            ..usage
        };
        all.into_iter().map(named).collect()
    }

    /// Gives it other limits on every node; what could not be changed, a sentence each.
    pub(crate) fn limit(&self, limits: &NewLimits) -> Vec<String> {
        let others: Vec<u16> = self.others().iter().copied().collect();
        let dc = self.description.id;
        let call = || Call::Limit { dc, limits: limits.clone() };
        let asked = self.host.ask_all(&others, LEAVE_PATIENCE, call);
        let mut warnings = self.part.limit(limits);
        for (node, answer) in asked.wait() {
            match answer {
                Ok(Answer::Limited(theirs)) => warnings.extend(theirs),
                other => warnings.push(self.host.failure(node, &other).message),
            }
        }
        // The nodes of one machine say the same.
        warnings.sort();
        warnings.dedup();
        warnings
    }

    /// What the user should know although it works.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// Starts a program; the first one's end is the container's.
    ///
    /// # Errors
    /// Why it did not start.
    pub(crate) fn start(
        self: &Arc<Self>,
        options: &ProgramOptions,
        descriptors: Vec<OwnedFd>,
        first: bool,
    ) -> Result<(Arc<Running>, Option<OwnedFd>), Failure> {
        let identity = users::resolve(options.user.as_deref(), &self.image_root)?;
        let single = check_user(&identity)?;
        let base = if first { &[][..] } else { &self.environment };
        let spec = program::launch_spec(options, base, &identity, !single)?;
        let outside = |id: u32| self.part.ids.outside(id).unwrap_or(id);
        let owner = (outside(identity.uid), outside(identity.gid));
        let (descriptors, master) = match options.terminal {
            Some(size) => {
                let (master, slaves) =
                    super::files::open_terminal(&self.part.multiplexer(), size, owner)?;
                (slaves, Some(master))
            }
            None => (fit_standard(descriptors, owner)?, None),
        };
        let program = self
            .part
            .personality
            .run_program(spec, descriptors)
            .map_err(|failure| program::not_started(options, failure))?;
        if first {
            // There is one only.
            let _ = self.first.set(program.clone());
        }
        let home = Arc::clone(self);
        Ok((Arc::new(Running { home, program, first }), master))
    }

    /// All processes, from all nodes.
    pub(crate) fn processes(&self) -> Vec<ProcessInfo> {
        let mut all = self.part.processes(&|node| self.name_of(node));
        let others: Vec<u16> = self.others().iter().copied().collect();
        let dc = self.description.id;
        let asked = self.host.ask_all(&others, LEAVE_PATIENCE, || Call::Processes { dc });
        for (node, answer) in asked.wait() {
            match answer {
                Ok(Answer::Processes(list)) => all.extend(list),
                other => log::warn!("{}", self.host.failure(node, &other)),
            }
        }
        let name = self.name();
        all.iter_mut().for_each(|process| process.container.clone_from(&name));
        all
    }

    fn name_of(&self, node: u16) -> String {
        let member = self.description.members.iter().find(|(member, _)| *member == node);
        member.map_or_else(|| format!("node {node}"), |(_, name)| name.clone())
    }

    fn others(&self) -> std::sync::MutexGuard<'_, BTreeSet<u16>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's programs could see stale files: its part is ended, and it counts as lost.
    fn cut_off(self: &Arc<Self>, node: u16) {
        let home = Arc::clone(self);
        // Called by the file-system server, which must not be held up.
        let spawned = std::thread::Builder::new().name("cut-off".into()).spawn(move || {
            if node == home.host.node() {
                home.end();
                return;
            }
            let dc = home.description.id;
            home.host.ask_all(&[node], LEAVE_PATIENCE, || Call::Leave { dc }).wait();
            home.node_lost(node);
        });
        if let Err(error) = spawned {
            log::error!("no thread to cut a node off: {error}");
        }
    }

    /// A node is gone, if it was part of this.
    pub(crate) fn node_lost(&self, node: u16) {
        if !self.others().remove(&node) {
            return;
        }
        log::warn!("container {}: node {node} is lost", self.name());
        for client in self.clients.forget_node(node) {
            self.files.client_gone(client);
        }
        if let Some(server) = &self.net_server {
            server.node_lost(node);
        }
        // The manager tells every part that is left, this node's too.
        self.manager.node_lost(node);
        (self.notify)(format!(
            "node {} was lost: programs that ran there ended as killed (137); the container goes on without it",
            self.name_of(node)
        ));
    }

    /// Ends the container everywhere; what it did. Bounded, and done once: later callers wait for the
    /// first.
    pub(crate) fn end(&self) -> Statistics {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statistics) = ended.as_ref() {
            return statistics.clone();
        }
        let wall = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let others: Vec<u16> = self.others().iter().copied().collect();
        let dc = self.description.id;
        let leaving = self.host.ask_all(&others, LEAVE_PATIENCE, || Call::Leave { dc });
        let mut parts = BTreeMap::from([(self.host.node(), self.part.end())]);
        for (node, answer) in leaving.wait() {
            match answer {
                Ok(Answer::Left(statistics)) => {
                    parts.insert(node, statistics);
                }
                other => log::warn!("{}", self.host.failure(node, &other)),
            }
        }
        self.files.stop();
        self.host.dvk().dc(DcId(dc), NodeId(self.host.node())).close();
        self.folder.lock().unwrap_or_else(PoisonError::into_inner).take();
        let statistics = self.sum(&parts, wall);
        *ended = Some(statistics.clone());
        log::info!("container {} is gone", self.name());
        statistics
    }

    fn sum(&self, parts: &BTreeMap<u16, PartStatistics>, wall_microseconds: u64) -> Statistics {
        let mut stayed: BTreeMap<String, u64> = BTreeMap::new();
        for (reason, count) in parts.values().flat_map(|part| &part.stayed) {
            *stayed.entry(reason.clone()).or_default() += count;
        }
        let mut stayed: Vec<(String, u64)> = stayed.into_iter().collect();
        stayed.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let nodes = self
            .description
            .members
            .iter()
            .map(|(id, name)| {
                let part = parts.get(id).cloned().unwrap_or_default();
                NodeStatistics {
                    id: *id,
                    name: name.clone(),
                    placed: part.received,
                    stayed: part.stayed.iter().map(|(_, count)| count).sum(),
                }
            })
            .collect();
        Statistics { nodes, stayed, wall_microseconds }
    }
}

/// The container of an ordinary user has one user, root inside. Whether this is such a one.
fn check_user(identity: &users::Identity) -> Result<bool, Failure> {
    let single = dvs_sys::process::effective_ids().0 != 0;
    if single && (identity.uid, identity.gid) != (0, 0) {
        return Err(Failure::new(format!(
            "no program can run as user {}:{} here: a container that you start without being root has one user, you, shown as root; leave -u away, or run dvs as root",
            identity.uid, identity.gid
        )));
    }
    Ok(single)
}

/// A node and its part's endpoints.
type NodePart = (u16, PartAddresses);

/// The parts' endpoints and warnings, or the first failure.
fn gather(
    host: &Host,
    joined: &[(u16, Result<Answer, String>)],
    own: &Part,
) -> Result<(Vec<NodePart>, Vec<String>), Failure> {
    let mut parts = vec![(host.node(), own.addresses)];
    let mut all = own.warnings.clone();
    for (node, answer) in joined {
        match answer {
            Ok(Answer::Joined { addresses, warnings }) => {
                parts.push((*node, *addresses));
                // The nodes of one machine say the same.
                all.extend(warnings.iter().filter(|text| !own.warnings.contains(text)).cloned());
            }
            other => return Err(host.failure(*node, other)),
        }
    }
    Ok((parts, all))
}

fn serve_manager(endpoint: &dvs_dvk::Endpoint, manager: &Arc<ManagerService>) {
    let manager = Arc::clone(manager);
    endpoint.set_handler(move |message| {
        let source = message.source.node.0;
        match super::messages::decode::<dvs_pm::messages::Request>(&message.body) {
            Ok(request) if request.client.node == source => {
                if let Some(answer) = manager.ask(request) {
                    message.reply(super::messages::encode(&answer));
                }
            }
            Ok(request) => log::error!("node {source} speaks for node {}", request.client.node),
            Err(error) => log::error!("a question to the process manager: {error}"),
        }
    });
}

/// A program that a user started.
pub(crate) struct Running {
    home: Arc<Home>,
    program: ProgramRef,
    /// The container ends with it.
    first: bool,
}

impl Running {
    /// Pid inside.
    pub(crate) fn pid(&self) -> u32 {
        self.program.pid
    }
}

impl Program for Running {
    fn signal(&self, signal: i32, group: bool) {
        let sent = self.home.part.personality.signal_program(&self.program, signal, group);
        log::debug!("signal {signal} to {}: {sent:?}", self.program.pid);
    }

    fn wait(&self) -> Ended {
        let ended = self.program.wait();
        let how = EndedHow::of_status(ended.status);
        let statistics = self.first.then(|| {
            let statistics = self.home.end();
            self.home.host.forget(&self.home.name());
            statistics
        });
        Ended { how, statistics }
    }

    fn end_now(&self) {
        if self.first {
            self.home.end();
        } else {
            self.signal(libc::SIGKILL, true);
        }
    }

    fn abandon(&self) {
        if self.program.ended().is_none() {
            self.end_now();
        }
    }
}
