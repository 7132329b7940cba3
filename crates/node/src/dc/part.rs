//! One node's part of a container: sandbox, file tree, carrier and personality, and their endpoints.
//!
//! | endpoint | at | speaks |
//! |---|---|---|
//! | `fs` | home | file-system protocol (calls), and to clients (posts) |
//! | `pm` | home | process manager (calls) |
//! | `fs-client@N` | every node but home | receives recalls |
//! | `linux@N` | every node | personality: calls and posts |
//! | `carry@N` | every node | streams and open files of placed programs (posts) |
//! | `member@N` | every node | hears from the process manager (posts) |
//! | `net@N` | every node, with `--network dc` | see [`super::network`] |

use super::adapters::{AttachPort, FifoPort, TreeHooks};
use super::links::{CarryLinks, Directory, LinuxLinks};
use super::load::{LoadMeter, Subject};
use super::manager::{Listener as NoticeListener, ManagerClient};
use super::messages::{Description, PartAddresses, PartStatistics};
use super::network::{NetPart, network_of};
use super::usage;
use crate::managing::{NewLimits, Usage};
use crate::protocol::{Failure, ProcessInfo};
use crate::warm::Warm;
use dvs_carry::{Carrier, CarrierConfig, CarryMessage, IdMap, IdRange};
use dvs_container::{
    ClockOffsets, Container, ContainerEvent, ContainerSpec, IdMapping, KeeperProgram, Limits,
    Network, Prepared, RootSpec, StartError,
};
use dvs_dvk::{Dc, Endpoint, Message, MessageKind};
use dvs_fs_client::{Client, Mount, MountHandle, MountOptions};
use dvs_linux::adapters::ContainerLauncher;
use dvs_linux::{Config, Parts, Personality, Place};
use dvs_pm::messages::Notice;
use dvs_sys::{clock, process};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// First host id of the ranges that containers of a root daemon map to: a part of the id space that
/// nobody else gives out (systemd's UIDS-GIDS.md calls it unused).
const FIRST_ID: u32 = 0x7000_0000;
/// How many such ranges there are.
const ID_RANGES: u64 = 4000;
/// Ids of one container.
const IDS: u32 = 65_536;
/// How long the file tree's threads may take to end after the container did.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);

/// What a part is built from.
pub(crate) struct Site {
    /// This node.
    pub(crate) node: u16,
    /// What the container is.
    pub(crate) description: Arc<Description>,
    /// Its endpoints.
    pub(crate) dc: Dc,
    /// The file-system client of this node.
    pub(crate) client: Arc<Client>,
    /// The way to the process manager.
    pub(crate) manager: Arc<ManagerClient>,
    /// CPUs of this node, thousandths.
    pub(crate) millicpus: u32,
    /// The prepared container of this node.
    pub(crate) warm: Option<Arc<Warm>>,
    /// What this daemon's own clocks are ahead of the host's, nanoseconds.
    pub(crate) own_clock_offset: i64,
    /// `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` here when the description arrived.
    pub(crate) arrived: (i64, i64),
}

/// See the module.
pub(crate) struct Part {
    pub(crate) description: Arc<Description>,
    pub(crate) addresses: PartAddresses,
    pub(crate) warnings: Vec<String>,
    pub(crate) personality: Arc<Personality>,
    pub(crate) ids: IdMap,
    node: u16,
    dc: Dc,
    container: Container,
    mount: MountHandle,
    meter: Arc<LoadMeter>,
    client: Arc<Client>,
    carrier: Arc<Carrier>,
    network: Option<NetPart>,
    linux_directory: Arc<Directory>,
    carry_directory: Arc<Directory>,
    endpoints: Vec<Endpoint>,
    member: NoticeListener,
    ended: Mutex<Option<PartStatistics>>,
}

impl Part {
    /// Builds it. When that fails nothing is left.
    ///
    /// # Errors
    /// A sentence about the step that failed.
    pub(crate) fn build(site: Site) -> Result<Part, Failure> {
        let Site { node, description, dc, client, manager, .. } = &site;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::new(format!("container {}: {what}: {error}", description.name))
        };
        let block = manager.join(site.millicpus).map_err(|error| failed("joining it", &error))?;
        let bind = |service: &str| {
            dc.bind(&format!("{service}@{node}")).map_err(|error| failed("its endpoints", &error))
        };
        let (linux, carry, member) = (bind("linux")?, bind("carry")?, bind("member")?);
        let wanted = |base: &ContainerSpec| container_spec(&site, block.first, base.clone());
        let (prepared, spec) =
            match site.warm.as_ref().and_then(|warm| warm.take(block.first, wanted)) {
                Some(found) => found,
                None => {
                    let range = u32::try_from(description.id % ID_RANGES).unwrap_or(0);
                    let spec = wanted(&base_spec(range, description.single));
                    let program =
                        KeeperProgram::own().map_err(|error| failed("its keeper", &error))?;
                    let prepared = Prepared::new(&spec, &program);
                    (prepared.map_err(|error| failed("building it", &error))?, spec)
                }
            };
        let exec_cookie = spec.exec_cookie;
        let hooks = Arc::new(TreeHooks::default());
        let late: Arc<OnceLock<Weak<Personality>>> = Arc::default();
        let mut mounted = None;
        let (mount_client, mount_hooks) = (Arc::clone(client), Arc::clone(&hooks));
        let events = Arc::clone(&late);
        let late_meter: Arc<OnceLock<Arc<LoadMeter>>> = Arc::default();
        let kicked = Arc::clone(&late_meter);
        let finished = prepared.finish(
            &spec,
            |fd| {
                let alone = description.members.len() == 1;
                let options = MountOptions { alone, ..MountOptions::default() };
                mounted = Some(Mount::serve(fd, mount_client, mount_hooks, options));
            },
            Box::new(move |event| {
                let Some(personality) = events.get().and_then(Weak::upgrade) else { return };
                match event {
                    ContainerEvent::Program(event) => {
                        personality.launcher_event(&event);
                        if let Some(meter) = kicked.get() {
                            meter.kick();
                        }
                    }
                    ContainerEvent::Gone => personality.container_gone(),
                }
            }),
        );
        let mut container = finished.map_err(|error| failed("building it", &error))?;
        let mount = match mounted {
            Some(Ok(mount)) => mount,
            Some(Err(error)) => return Err(failed("its file tree", &error)),
            None => return Err(failed("its file tree", &"it was not mounted")),
        };
        let network = match (&spec.network, container.network.take(), description.net_server) {
            (Network::Dc(network), Some(handles), Some(server)) => {
                let part = NetPart::start(network.clone(), handles, bind("net")?, server);
                Some(part.map_err(|error| failed("its network", &error))?)
            }
            (Network::Dc(_), ..) => return Err(failed("its network", &"it has no server")),
            _ => None,
        };
        let addresses = PartAddresses {
            linux: linux.address(),
            carry: carry.address(),
            member: member.address(),
            network: network.as_ref().map(NetPart::address),
        };
        let ids = id_map(&spec.users);
        let carry_directory = Arc::new(Directory::default());
        let linux_directory = Arc::new(Directory::default());
        let config = CarrierConfig {
            node: *node,
            multiplexer: multiplexer_path(&container),
            uids: ids.clone(),
            gids: id_map(&spec.groups),
        };
        let links = Arc::new(CarryLinks::new(carry.clone(), Arc::clone(&carry_directory)));
        let attacher = Arc::new(AttachPort(Arc::clone(client)));
        let carrier = Carrier::start(config, links, attacher)
            .map_err(|error| failed("its carrier", &error))?;
        let carrier = Arc::new(carrier);
        let listener = container
            .listener
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| failed("its listener", &error))?;
        let personality = Personality::start(
            Config {
                node: *node,
                // One more than what an earlier life of this node can have given.
                first_placement: u64::try_from(clock::real()).unwrap_or(1),
                policy: description.policy,
                exec_cookie,
            },
            Parts {
                listener: listener.into(),
                init: container.init,
                launcher: Arc::new(ContainerLauncher {
                    launcher: container.launcher.clone(),
                    init: container.init,
                    launcher_pid: container.launcher_pid,
                }),
                carry: Arc::clone(&carrier) as Arc<dyn dvs_linux::ports::Carry>,
                peers: Arc::new(LinuxLinks::new(linux.clone(), Arc::clone(&linux_directory))),
                pids: Arc::clone(manager) as Arc<dyn dvs_linux::ports::Pids>,
                files: Arc::new(dvs_linux::tree_files::TreeFiles::new(Arc::clone(client))),
                network: network
                    .as_ref()
                    .map(|network| Arc::clone(&network.member) as Arc<dyn dvs_net::Sockets>),
            },
        )
        .map_err(|error| failed("its personality", &error))?;
        personality.block_leased(block, *node);
        // Nothing happens in the container before the first program.
        let _ = late.set(Arc::downgrade(&personality));
        let launcher = container.launcher.clone();
        let fifos = FifoPort { client: Arc::clone(client), launcher };
        carrier.bridge_fifos(description.home, Arc::new(fifos));
        let _ = hooks.carrier.set(Arc::downgrade(&carrier));
        let _ = hooks.personality.set(Arc::downgrade(&personality));
        let subject = Subject {
            cgroups: container.cgroups.clone(),
            processes: (container.init, container.launcher_pid),
            millicpus: description.millicpus.unwrap_or(u32::MAX).min(site.millicpus),
            node: *node,
        };
        let meter = LoadMeter::start(subject, Arc::downgrade(&personality), Arc::clone(manager))
            .map_err(|error| failed("its load meter", &error))?;
        let _ = late_meter.set(Arc::clone(&meter));
        let net_member = network.as_ref().map(|network| Arc::downgrade(&network.member));
        let member_listener = listen(&personality, &carrier, net_member, &linux, &carry, &member);
        log::debug!("part of {} on node {node}: pid 1 is {}", description.name, container.init);
        Ok(Part {
            addresses,
            warnings: container.warnings.clone(),
            personality,
            ids,
            node: *node,
            dc: dc.clone(),
            mount,
            meter,
            client: Arc::clone(client),
            carrier,
            network,
            linux_directory,
            carry_directory,
            endpoints: vec![linux, carry, member],
            member: member_listener,
            ended: Mutex::new(None),
            description: Arc::clone(description),
            container,
        })
    }

    /// All parts are there, at these endpoints.
    pub(crate) fn begin(&self, parts: &[(u16, PartAddresses)]) {
        let others = || parts.iter().filter(|(node, _)| *node != self.node);
        let linux: BTreeMap<_, _> = others().map(|(node, part)| (*node, part.linux)).collect();
        let carry = others().map(|(node, part)| (*node, part.carry)).collect();
        self.linux_directory.learn(linux);
        self.carry_directory.learn(carry);
        if let Some(network) = &self.network {
            network.begin(others().filter_map(|(node, part)| Some((*node, part.network?))));
        }
    }

    /// Hears from the process manager when that is on the same node.
    pub(crate) fn listener(&self) -> NoticeListener {
        Arc::clone(&self.member)
    }

    /// The processes of this part.
    pub(crate) fn processes(&self, name_of: &dyn Fn(u16) -> String) -> Vec<ProcessInfo> {
        let shown = |process: dvs_linux::ProcessInfo| ProcessInfo {
            container: self.description.name.clone(),
            pid: process.pid,
            parent: process.parent,
            node: name_of(process.node),
            user: process.user,
            state: process.state,
            cpu_microseconds: 0,
            command: process.command,
            why: match process.place {
                Place::From(home) => format!("placed by {}", name_of(home)),
                Place::Here(Some(reason)) => reason.to_string(),
                Place::Here(None) => "never executed anything".into(),
            },
        };
        self.personality.processes().into_iter().map(shown).collect()
    }

    /// Stops all its programs, or lets them go on.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Failure> {
        self.container.freeze(frozen).map_err(|errno| {
            Failure::new(format!(
                "container {} on node {} cannot be {}: {}",
                self.description.name,
                self.node,
                if frozen { "paused" } else { "let go on" },
                crate::folders::reason(&std::io::Error::from_raw_os_error(errno))
            ))
        })
    }

    /// What it uses.
    pub(crate) fn usage(&self) -> Usage {
        usage::of(&self.container, self.description.memory)
    }

    /// Gives it other limits; what could not be changed, a sentence each.
    pub(crate) fn limit(&self, wanted: &NewLimits) -> Vec<String> {
        super::limits::change(&self.container.cgroups, wanted)
    }

    /// From where terminals of the container are made.
    pub(crate) fn multiplexer(&self) -> PathBuf {
        multiplexer_path(&self.container)
    }

    /// Ends everything of it on this node; what it did. Bounded, and done once.
    pub(crate) fn end(&self) -> PartStatistics {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statistics) = ended.as_ref() {
            return statistics.clone();
        }
        self.meter.stop();
        let statistics = statistics(&self.personality);
        if let Err(error) = self.container.end() {
            log::error!("container {}: {error}", self.description.name);
        }
        self.personality.container_gone();
        self.personality.stop();
        if let Some(network) = &self.network {
            log::debug!("network of {}: {:?}", self.description.name, network.member.traffic());
            network.end();
        }
        self.carrier.stop();
        if !self.mount.wait(UNMOUNT_PATIENCE) {
            log::error!("container {}: its file tree is still used", self.description.name);
        }
        self.client.goodbye();
        self.endpoints.iter().for_each(Endpoint::close);
        if self.description.home != self.node {
            self.dc.close();
        }
        *ended = Some(statistics.clone());
        statistics
    }
}

fn statistics(personality: &Personality) -> PartStatistics {
    let counts = personality.statistics();
    PartStatistics {
        received: counts.received,
        stayed: counts.stayed.iter().map(|(reason, count)| (reason.to_string(), *count)).collect(),
    }
}

/// Connects the endpoints to what serves them; returns the listener for the manager's notices.
fn listen(
    personality: &Arc<Personality>,
    carrier: &Arc<Carrier>,
    network: Option<Weak<dvs_net::Member>>,
    linux: &Endpoint,
    carry: &Endpoint,
    member: &Endpoint,
) -> NoticeListener {
    let weak = Arc::downgrade(personality);
    linux.set_handler(move |mut message: Message| {
        let Some(personality) = weak.upgrade() else { return };
        let from = message.source.node.0;
        match message.take_reply() {
            Some(reply) => {
                personality.handle_call(
                    from,
                    &message.body,
                    Box::new(move |body| reply.reply(body)),
                );
            }
            None => personality.handle_post(from, &message.body),
        }
    });
    let weak = Arc::downgrade(carrier);
    carry.set_handler(move |message| {
        let Some(carrier) = weak.upgrade() else { return };
        match CarryMessage::decode(&message.body) {
            Ok(decoded) => carrier.deliver(message.source.node.0, decoded),
            Err(error) => log::error!("a carrier's message: {error}"),
        }
    });
    let weak = Arc::downgrade(personality);
    let listener: NoticeListener = Arc::new(move |notice| {
        if let Some(personality) = weak.upgrade() {
            hear(&personality, network.as_ref().and_then(Weak::upgrade).as_deref(), &notice);
        }
    });
    let from_elsewhere = Arc::clone(&listener);
    member.set_handler(move |message| {
        if message.kind != MessageKind::Post {
            return;
        }
        match super::messages::decode::<Notice>(&message.body) {
            Ok(notice) => from_elsewhere(notice),
            Err(error) => log::error!("the process manager: {error}"),
        }
    });
    listener
}

fn hear(personality: &Arc<Personality>, network: Option<&dvs_net::Member>, notice: &Notice) {
    log::trace!("the process manager says {notice:?}");
    match notice {
        Notice::Joined(member) => personality.node_load(member.client.node, member.load),
        Notice::Gone(client) => {
            if let Some(network) = network {
                network.node_lost(client.node);
            }
            personality.node_lost(client.node);
        }
        Notice::Leased(block, node) => personality.block_leased(*block, *node),
        Notice::Load(node, load) => personality.node_load(*node, *load),
    }
}

/// The container's multiplexer as this process can open it: its root file system lets nobody outside
/// its user namespace through.
fn multiplexer_path(container: &Container) -> PathBuf {
    format!("/proc/self/fd/{}", container.multiplexer.as_raw_fd()).into()
}

fn exec_cookie() -> u32 {
    // Guessing it gains a guest nothing: traps are for semantics, not for protection.
    u32::try_from(crate::folders::fresh_number(7) >> 33).unwrap_or(1) | 1
}

/// What all containers of this node begin from, with one of the ranges of ids; `single`: the one id
/// of an ordinary user's container.
fn base_spec(range: u32, single: (u32, u32)) -> ContainerSpec {
    let spec = ContainerSpec::new("dvs", RootSpec::Fuse { max_read: None });
    let (uid, gid) = process::effective_ids();
    let mut spec = if uid == 0 {
        spec.with_id_range(FIRST_ID + range * IDS)
    } else {
        spec.with_single_id(single, (uid, gid))
    };
    spec.traps = dvs_linux::traps::numbers();
    spec.exec_cookie = exec_cookie();
    spec
}

/// Prepares a container before anybody asks for it: without limits, with a network of its own, for
/// the user that is root inside.
pub(crate) fn prepare(first_pid: Option<u32>) -> Result<Prepared, StartError> {
    let range = u32::try_from(crate::folders::fresh_number(3) % ID_RANGES).unwrap_or(0);
    // The first block of a container is its home's.
    let first_pid = first_pid.or(Some(dvs_pm::blocks::BLOCK));
    let spec = ContainerSpec { first_pid, ..base_spec(range, (0, 0)) };
    Prepared::new(&spec, &KeeperProgram::own().map_err(StartError::Keeper)?)
}

fn container_spec(site: &Site, first_pid: u32, base: ContainerSpec) -> ContainerSpec {
    let description = &site.description;
    let mut spec = base;
    spec.name = format!("dvs-{:x}-{}", description.id, site.node);
    spec.hostname.clone_from(&description.hostname);
    spec.network = network_of(description.network, site.node, &description.members);
    spec.limits = Limits {
        milli_cpus: description.millicpus,
        memory: description.memory,
        pids: description.pids.map(u64::from),
    };
    let passed = |now: i64, arrived: i64| now - arrived;
    let (monotonic, boot) = (clock::monotonic(), clock::boot());
    // The container's clock now is what it was when the description was sent, and what passed since
    // it arrived; offsets are against the host's clocks, not this daemon's.
    let offset = |sent: i64, now: i64, arrived: i64| {
        sent + passed(now, arrived) - now + site.own_clock_offset
    };
    spec.clocks = ClockOffsets {
        monotonic: offset(description.clocks.0, monotonic, site.arrived.0),
        boot: offset(description.clocks.1, boot, site.arrived.1),
    };
    spec.first_pid = Some(first_pid);
    spec
}

fn id_map(ranges: &[IdMapping]) -> IdMap {
    let range = |range: &IdMapping| IdRange {
        inside: range.inside,
        outside: range.outside,
        count: range.count,
    };
    IdMap::new(ranges.iter().map(range).collect())
}
