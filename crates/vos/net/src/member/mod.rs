//! One node's part of a DC's network: its sockets' claims, its routes for datagrams, its device.
//!
//! Threads: one reads the device ([`wire`]), one hears of sockets that go, one does what may take a
//! moment (routes, looking for sockets); a slow peer gets one while something waits for it.

mod wire;

use crate::core::claims::fits;
use crate::core::{Change, Routes};
use crate::messages::{Answer, Ask, Binding, Confirmation, Notice, Protocol};
use crate::outside::tcp::Connections;
use crate::outside::udp::Datagrams;
use dvs_container::network::{DcNetwork, EPHEMERAL, Handles, bound_port_rules, mark_of};
use dvs_sys::descriptor::{Poll, poll};
use dvs_sys::error::SysError;
use dvs_sys::netlink::{Netlink, diag, route};
use dvs_sys::poll::EventFd;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use wire::Traffic;

/// Most jobs that wait for the worker.
const MAX_JOBS: usize = 4096;

/// The other nodes or the server cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the net server cannot be reached")]
pub struct Unreachable;

/// Frames could not be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendError {
    /// No room; the frames are given back.
    Full(Vec<u8>),
    /// The node is gone, or not yet known.
    Gone,
}

/// How a member reaches the others.
pub trait Transport: Send + Sync {
    /// Asks the server and waits for its answer.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn ask(&self, ask: &Ask) -> Result<Answer, Unreachable>;
    /// Tells the server, after all that was asked and told before; does not wait.
    fn tell(&self, ask: &Ask);
    /// Sends frames to a node's member, without waiting.
    ///
    /// # Errors
    /// See [`SendError`].
    fn send(&self, node: u16, frames: Vec<u8>) -> Result<(), SendError>;
    /// The same, waiting for room.
    ///
    /// # Errors
    /// `Gone`, also when there was no room in time.
    fn send_within(&self, node: u16, frames: Vec<u8>, limit: Duration) -> Result<(), SendError>;
}

/// Where the other end of a connection will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// On this node, or nowhere: the kernel knows best.
    Here,
    /// On another node.
    There {
        /// Which.
        node: u16,
        /// The mark by which packets get there.
        mark: u32,
        /// Whether it takes IPv4, by which alone it can be reached.
        takes_v4: bool,
    },
}

/// What the personality needs of a network when a program binds, listens or connects.
pub trait Sockets: Send + Sync {
    /// Claims a port for a socket (named by its `SO_COOKIE`) that is about to be bound, or, with
    /// `listens`, to listen. May wait. Once granted, [`Sockets::settled`] must be called.
    ///
    /// # Errors
    /// errno: `EADDRINUSE`, `ENOBUFS`; nothing is claimed then.
    fn claim(&self, socket: u64, binding: Binding, listens: bool) -> Result<(), i32>;
    /// The kernel has done what was claimed, or not: then the claim is given back.
    fn settled(&self, socket: u64, done: bool);
    /// Who takes what is sent to this address? May wait.
    fn find(&self, protocol: Protocol, target: SocketAddr) -> Way;
    /// Whether an address is the DC's own.
    fn is_own(&self, address: IpAddr) -> bool;
}

/// What a member is made from.
#[derive(Debug)]
pub struct MemberConfig {
    /// This node and the others.
    pub network: DcNetwork,
    /// The container's network.
    pub handles: Handles,
}

struct Claim {
    binding: Binding,
    listens: bool,
    /// Claims whose outcome the kernel has not told yet; until then the socket may look unbound.
    settling: u32,
}

#[derive(Default)]
struct Claims {
    by_socket: HashMap<u64, Claim>,
    by_port: HashMap<(Protocol, u16), HashSet<u64>>,
}

impl Claims {
    fn port_of(binding: &Binding) -> (Protocol, u16) {
        (binding.protocol, binding.address.port())
    }

    /// The claim of a socket, which is for this from now on.
    fn set(&mut self, socket: u64, binding: Binding) -> &mut Claim {
        if let Some(old) = self.by_socket.get(&socket) {
            let port = Claims::port_of(&old.binding);
            if port != Claims::port_of(&binding) {
                self.unlist(socket, port);
            }
        }
        self.by_port.entry(Claims::port_of(&binding)).or_default().insert(socket);
        let claim = Claim { binding, listens: false, settling: 0 };
        let claim = self.by_socket.entry(socket).or_insert(claim);
        claim.binding = binding;
        claim
    }

    fn remove(&mut self, socket: u64) -> bool {
        let Some(claim) = self.by_socket.remove(&socket) else { return false };
        self.unlist(socket, Claims::port_of(&claim.binding));
        true
    }

    fn unlist(&mut self, socket: u64, port: (Protocol, u16)) {
        if let Some(sockets) = self.by_port.get_mut(&port) {
            sockets.remove(&socket);
            if sockets.is_empty() {
                self.by_port.remove(&port);
            }
        }
    }

    /// Whether a socket here takes what is sent to this address.
    fn has(&self, protocol: Protocol, target: SocketAddr) -> bool {
        let sockets = self.by_port.get(&(protocol, target.port())).into_iter().flatten();
        let mut claims = sockets.filter_map(|socket| self.by_socket.get(socket));
        claims.any(|claim| {
            (claim.listens || protocol == Protocol::Udp)
                && fits(&claim.binding, protocol, target).is_some()
        })
    }
}

type Job = Box<dyn FnOnce(&Member) + Send>;

/// See the module.
pub struct Member {
    network: DcNetwork,
    transport: Arc<dyn Transport>,
    device: OwnedFd,
    routing: Mutex<Netlink>,
    sockets: Mutex<Netlink>,
    claims: Mutex<Claims>,
    routes: Mutex<Routes>,
    wire: wire::Wire,
    pub(crate) connections: Connections,
    pub(crate) datagrams: Datagrams,
    jobs: Mutex<Option<SyncSender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopped: AtomicBool,
    stop: EventFd,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Member").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Member {
    /// Takes over a container's network.
    ///
    /// # Errors
    /// What the kernel says when it has no descriptors or threads left.
    pub fn start(
        config: MemberConfig,
        transport: Arc<dyn Transport>,
    ) -> Result<Arc<Member>, SysError> {
        let Handles { device, routes, sockets, ends, outside } = config.handles;
        let outside = TcpListener::from(outside);
        let (sender, jobs) = sync_channel(MAX_JOBS);
        let member = Arc::new(Member {
            wire: wire::Wire::new(&config.network),
            network: config.network,
            transport,
            device,
            routing: Mutex::new(routes),
            sockets: Mutex::new(sockets),
            claims: Mutex::default(),
            routes: Mutex::default(),
            connections: Connections::default(),
            datagrams: Datagrams::new()?,
            jobs: Mutex::new(Some(sender)),
            threads: Mutex::default(),
            stopped: AtomicBool::new(false),
            stop: EventFd::new()?,
        });
        let started = member
            .thread("net-device", Member::read_device)
            .and_then(|()| member.thread("net-ends", move |member| member.hear_ends(&ends)))
            .and_then(|()| member.thread("net-worker", move |member| member.work(&jobs)))
            .and_then(|()| {
                member.thread("net-accept", move |member| member.accept_for_outside(&outside))
            })
            .and_then(|()| member.thread("net-outside", |member| member.receive_from_outside()));
        if let Err(error) = started {
            member.stop();
            return Err(error);
        }
        Ok(member)
    }

    /// Ends all threads; packets are carried no more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = self.stop.signal();
        self.wire.wake();
        self.connections.end();
        self.datagrams.end();
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap());
        for thread in threads {
            // A worker's job may be what ends the member.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }

    /// Counts of frames so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.wire.traffic()
    }

    /// The server tells something; `confirm` is called when it is done, by another thread, or dropped.
    pub fn notice(&self, notice: Notice, confirm: impl FnOnce(Confirmation) + Send + 'static) {
        self.run(move |member| {
            let confirmation = match notice {
                Notice::Route { version, key, node } => {
                    member.change_route(version, key, node);
                    Confirmation::Yes
                }
                Notice::Verify { socket, protocol } => member.verify(socket, protocol),
            };
            confirm(confirmation);
        });
    }

    /// A node is gone: connections to it end.
    pub fn node_lost(&self, node: u16) {
        self.wire.lost(node);
        self.run(move |member| member.end_connections(mark_of(node)));
    }

    fn thread(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Arc<Member>) + Send + 'static,
    ) -> Result<(), SysError> {
        let member = Arc::clone(self);
        let spawned =
            std::thread::Builder::new().name(name.to_owned()).spawn(move || body(&member));
        let thread = spawned.map_err(|error| {
            SysError::new("clone", error.raw_os_error().unwrap_or(libc::EAGAIN))
        })?;
        self.threads.lock().unwrap().push(thread);
        Ok(())
    }

    fn run(&self, job: impl FnOnce(&Member) + Send + 'static) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = jobs.as_ref().is_some_and(|jobs| jobs.try_send(Box::new(job)).is_ok());
        if !taken {
            log::debug!("the network's worker takes no more jobs");
        }
    }

    fn work(&self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            job(self);
        }
    }

    pub(crate) fn here(&self) -> u16 {
        self.network.node
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Waits until something is to be read, or the member is stopped: false.
    pub(crate) fn wait(&self, fd: &impl AsFd) -> bool {
        let mut waits = [Poll::readable(fd.as_fd()), Poll::readable(self.stop.as_fd())];
        let _ = poll(&mut waits, None);
        !self.is_stopped()
    }

    fn change_route(&self, version: u64, key: crate::messages::RouteKey, node: Option<u16>) {
        let mut routes = self.routes.lock().unwrap();
        let netlink = self.routing.lock().unwrap();
        for change in routes.apply(version, key, node) {
            let (Change::Add((port, only), node) | Change::Remove((port, only), node)) = change;
            let here = self.network.node;
            // Without any rule a port is this node's, unless it is in another one's part of the
            // ephemeral ports.
            if node == here && !(EPHEMERAL.0..=EPHEMERAL.1).contains(&port) {
                continue;
            }
            for rule in bound_port_rules(here, node, only, port) {
                let (done, harmless) = match change {
                    Change::Add(..) => (route::add_rule(&netlink, &rule), libc::EEXIST),
                    Change::Remove(..) => (route::remove_rule(&netlink, &rule), libc::ENOENT),
                };
                if let Err(error) = done
                    && error.errno != harmless
                {
                    log::warn!("the way for UDP port {port}: {error}");
                }
            }
        }
    }

    /// Whether a socket with a claim exists.
    fn verify(&self, socket: u64, protocol: Protocol) -> Confirmation {
        match self.claims.lock().unwrap().by_socket.get(&socket) {
            None => return Confirmation::Gone,
            Some(claim) if claim.settling > 0 => return Confirmation::Yes,
            Some(_) => {}
        }
        match self.existing(protocol) {
            Ok(cookies) if !cookies.contains(&socket) => {
                self.forget(socket);
                Confirmation::Gone
            }
            Ok(_) => Confirmation::Yes,
            Err(error) => {
                log::warn!("looking for a socket: {error}");
                Confirmation::Yes
            }
        }
    }

    /// All sockets of a protocol.
    fn existing(&self, protocol: Protocol) -> Result<HashSet<u64>, SysError> {
        let mut cookies = HashSet::new();
        let netlink = self.sockets.lock().unwrap();
        for family in [libc::AF_INET, libc::AF_INET6] {
            diag::list(&netlink, family, number_of(protocol), |found| {
                cookies.insert(found.cookie);
            })?;
        }
        Ok(cookies)
    }

    /// A socket is gone. True if it had a claim.
    fn forget(&self, socket: u64) -> bool {
        let mut claims = self.claims.lock().unwrap();
        if claims.by_socket.get(&socket).is_none_or(|claim| claim.settling > 0) {
            return false;
        }
        claims.remove(socket)
    }

    fn hear_ends(&self, ends: &Netlink) {
        while self.wait(ends) {
            let mut gone = Vec::new();
            let heard = diag::ends(ends, |end| gone.push(end.cookie));
            for socket in gone {
                self.socket_gone(socket);
            }
            if heard.is_err() {
                // Some were lost: look for all.
                self.run(Member::look_for_all);
            }
        }
    }

    fn socket_gone(&self, socket: u64) {
        if self.forget(socket) {
            self.transport.tell(&Ask::Release { socket });
        }
    }

    fn look_for_all(&self) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let claimed: Vec<u64> = {
                let claims = self.claims.lock().unwrap();
                let of_it =
                    claims.by_socket.iter().filter(|(_, claim)| claim.binding.protocol == protocol);
                of_it.map(|(socket, _)| *socket).collect()
            };
            let Ok(existing) = self.existing(protocol) else { continue };
            for socket in claimed.into_iter().filter(|socket| !existing.contains(socket)) {
                self.socket_gone(socket);
            }
        }
    }

    fn end_connections(&self, mark: u32) {
        let netlink = self.sockets.lock().unwrap();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut ends = Vec::new();
            let listed = diag::list(&netlink, family, libc::IPPROTO_TCP, |found| {
                if found.mark == Some(mark) {
                    ends.push(found);
                }
            });
            if let Err(error) = listed {
                log::warn!("looking for connections to a lost node: {error}");
            }
            for socket in ends {
                // It may have ended by itself.
                if let Err(error) = diag::destroy(&netlink, libc::IPPROTO_TCP, &socket)
                    && error.errno != libc::ENOENT
                {
                    log::warn!("ending a connection to a lost node: {error}");
                }
            }
        }
    }
}

impl Sockets for Member {
    fn claim(&self, socket: u64, binding: Binding, listens: bool) -> Result<(), i32> {
        self.claims.lock().unwrap().set(socket, binding).settling += 1;
        let ask =
            if listens { Ask::Listen { socket, binding } } else { Ask::Bind { socket, binding } };
        let result = match self.transport.ask(&ask) {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::InUse) => Err(libc::EADDRINUSE),
            Ok(_) | Err(Unreachable) => Err(libc::ENOBUFS),
        };
        if result.is_err() {
            self.settled(socket, false);
        } else if listens {
            self.claims.lock().unwrap().set(socket, binding).listens = true;
        }
        result
    }

    fn settled(&self, socket: u64, done: bool) {
        let mut claims = self.claims.lock().unwrap();
        let Some(claim) = claims.by_socket.get_mut(&socket) else { return };
        claim.settling = claim.settling.saturating_sub(1);
        // A socket that listens already keeps what it has.
        if !done && claim.settling == 0 && !claim.listens {
            claims.remove(socket);
            drop(claims);
            self.transport.tell(&Ask::Release { socket });
        }
    }

    fn find(&self, protocol: Protocol, target: SocketAddr) -> Way {
        let here = self.claims.lock().unwrap().has(protocol, target);
        if here || self.network.members.len() < 2 {
            return Way::Here;
        }
        match self.transport.ask(&Ask::Find { protocol, target }) {
            Ok(Answer::At(Some(place))) if place.node != self.network.node => {
                Way::There { node: place.node, mark: mark_of(place.node), takes_v4: place.takes_v4 }
            }
            _ => Way::Here,
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                address.is_unspecified() || crate::switch::frame::is_own(address)
            }
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(address) => self.is_own(IpAddr::V4(address)),
                None => address.is_loopback() || address.is_unspecified(),
            },
        }
    }
}

fn number_of(protocol: Protocol) -> i32 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP,
        Protocol::Udp => libc::IPPROTO_UDP,
    }
}
