//! Binding, listening and connecting in a DC with a network over its nodes.
//!
//! The address is read once. A bind or listen is carried out here, on the program's own socket, after
//! the net server has granted it, so that what was granted is what happens. A connect only needs its
//! socket to be marked with the other end's node; then the program's own call goes on, and waits, is
//! interrupted and fails as it would anywhere. Where the address itself has to be another one (`::1`
//! cannot leave a node), the connection is begun here and the program's call waits for it.

use super::Personality;
use super::shared::write_if_room;
use dvs_net::messages::{Binding, Protocol};
use dvs_net::{Sockets, Way};
use dvs_sys::descriptor::status_flags;
use dvs_sys::inet::{self, MAX_ADDRESS, SocketInfo};
use dvs_sys::process::{pidfd_open, pidfd_send_signal};
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{TaskMemory, TaskStatus, duplicate_descriptor};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

/// How often a port is chosen before the caller is told that there is none.
const MAX_CHOICES: usize = 8;

/// A call on a socket of the Internet's protocols.
struct SocketCall<'a> {
    call: &'a Notification,
    status: TaskStatus,
    socket: OwnedFd,
    info: SocketInfo,
    protocol: Protocol,
}

/// What becomes of the call.
enum Outcome {
    /// The kernel carries it out.
    Proceed,
    /// It has been carried out here; errno, or 0.
    Done(i32),
    /// Its program has been ended.
    Ended,
}

impl Personality {
    /// Answers a bind, listen or connect if it is about an Internet socket; false if not.
    pub(crate) fn socket_call(&self, network: &dyn Sockets, call: &Notification) -> bool {
        let Some(socket) = open(call) else { return false };
        let Some(protocol) = protocol_of(&socket.1) else {
            // Other kinds of Internet sockets (ping, raw) are of one node, and share nothing.
            let internet = matches!(socket.1.family, libc::AF_INET | libc::AF_INET6);
            drop(socket);
            if internet {
                let _ = self.listener.proceed(call.id);
            }
            return internet;
        };
        let (socket, info, status) = socket;
        let socket = SocketCall { call, status, socket, info, protocol };
        let outcome = match i64::from(call.number) {
            libc::SYS_bind => self.bind(network, &socket),
            libc::SYS_listen => self.listen(network, &socket),
            _ => self.connect(network, &socket),
        };
        // Before the program goes on: when it closes its socket, nobody else may hold it open.
        drop(socket);
        let _ = match outcome {
            Outcome::Proceed => self.listener.proceed(call.id),
            Outcome::Done(0) => self.listener.answer(call.id, 0),
            Outcome::Done(errno) => self.listener.fail(call.id, errno),
            Outcome::Ended => self.listener.fail(call.id, libc::EINTR),
        };
        true
    }

    fn bind(&self, network: &dyn Sockets, socket: &SocketCall<'_>) -> Outcome {
        let Some((bytes, address)) = self.address_of(socket) else { return Outcome::Proceed };
        let bound = inet::local_address(&socket.socket).is_ok_and(|own| own.port() != 0);
        if bound || !network.is_own(address.ip()) {
            return Outcome::Proceed;
        }
        if address.port() == 0 {
            return bind_anywhere(network, socket, &bytes);
        }
        let cookie = socket.info.cookie;
        if let Err(errno) = network.claim(cookie, binding(socket, address), false) {
            return Outcome::Done(errno);
        }
        let done = inet::bind(&socket.socket, &bytes);
        network.settled(cookie, done.is_ok());
        Outcome::Done(done.err().map_or(0, |error| error.errno))
    }

    fn listen(&self, network: &dyn Sockets, socket: &SocketCall<'_>) -> Outcome {
        let Ok(address) = inet::local_address(&socket.socket) else { return Outcome::Proceed };
        if socket.protocol != Protocol::Tcp || !self.listener.is_valid(socket.call.id) {
            return Outcome::Proceed;
        }
        let backlog = socket.call.arguments[1] as u32 as i32;
        let listen = || inet::listen(&socket.socket, backlog);
        let claim = |address| network.claim(socket.info.cookie, binding(socket, address), true);
        if address.port() == 0 {
            // The kernel chooses a port now; it is this node's own.
            if let Err(error) = listen() {
                return Outcome::Done(error.errno);
            }
            let Ok(address) = inet::local_address(&socket.socket) else {
                return Outcome::Done(0);
            };
            let claimed = claim(address);
            if claimed.is_ok() {
                network.settled(socket.info.cookie, true);
            }
            return Outcome::Done(claimed.err().unwrap_or(0));
        }
        if let Err(errno) = claim(address) {
            return Outcome::Done(errno);
        }
        let done = listen();
        network.settled(socket.info.cookie, done.is_ok());
        Outcome::Done(done.err().map_or(0, |error| error.errno))
    }

    fn connect(&self, network: &dyn Sockets, socket: &SocketCall<'_>) -> Outcome {
        let Some((_, address)) = self.address_of(socket) else { return Outcome::Proceed };
        let way = match socket.protocol {
            // A connection that exists keeps its way.
            Protocol::Tcp if !inet::is_unconnected(&socket.socket) => return Outcome::Proceed,
            _ if !network.is_own(address.ip()) => Way::Here,
            // The routes of this node know where datagrams go.
            Protocol::Udp if travels(address.ip()) => return Outcome::Proceed,
            protocol => network.find(protocol, address),
        };
        match way {
            Way::Here => {
                // An earlier attempt may have left a mark.
                if inet::mark(&socket.socket).is_ok_and(|mark| mark != 0) {
                    let _ = inet::set_mark(&socket.socket, 0);
                }
                Outcome::Proceed
            }
            Way::There { node, mark, takes_v4 } => {
                if !travels(address.ip()) && (!takes_v4 || socket.info.only_v6) {
                    self.end_for(socket, address, node);
                    return Outcome::Ended;
                }
                if socket.protocol == Protocol::Tcp
                    && let Err(error) = inet::set_mark(&socket.socket, mark)
                {
                    return Outcome::Done(error.errno);
                }
                if travels(address.ip()) {
                    return Outcome::Proceed;
                }
                begin(socket, address.port())
            }
        }
    }

    /// The address that the call names: its bytes, and what they mean. `None`: not an Internet
    /// address, or the caller is gone.
    fn address_of(&self, socket: &SocketCall<'_>) -> Option<(Vec<u8>, SocketAddr)> {
        let [_, address, length, ..] = socket.call.arguments;
        let length = usize::try_from(length as u32).ok().filter(|length| *length <= MAX_ADDRESS)?;
        let bytes = TaskMemory::new(socket.call.pid).bytes(address, length).ok()?;
        let parsed = inet::parse(&bytes)?;
        self.listener.is_valid(socket.call.id).then_some((bytes, parsed))
    }

    /// Ends a program that cannot reach what it would reach on one machine, with one line that says so.
    fn end_for(&self, socket: &SocketCall<'_>, address: SocketAddr, node: u16) {
        let line = format!(
            "dvs: {}: {address} is on node {node} and takes IPv6 alone, which does not leave a node; \
             let it listen on 127.0.0.1 or 0.0.0.0, or run with --place home\n",
            String::from_utf8_lossy(&socket.status.name),
        );
        let Ok(process) = pidfd_open(socket.status.process) else { return };
        if let Ok(stderr) = duplicate_descriptor(&process, 2) {
            write_if_room(stderr, line.as_bytes());
        }
        let _ = pidfd_send_signal(process.as_fd(), libc::SIGKILL);
    }
}

/// Binds to a port that the kernel chooses, of this node's own part. One that a program of another
/// node has taken as its own choice is left to it.
fn bind_anywhere(network: &dyn Sockets, socket: &SocketCall<'_>, bytes: &[u8]) -> Outcome {
    for _ in 0..MAX_CHOICES {
        if let Err(error) = inet::bind(&socket.socket, bytes) {
            return Outcome::Done(error.errno);
        }
        let Ok(address) = inet::local_address(&socket.socket) else { return Outcome::Done(0) };
        match network.claim(socket.info.cookie, binding(socket, address), false) {
            Ok(()) => {
                network.settled(socket.info.cookie, true);
                return Outcome::Done(0);
            }
            Err(_) => {
                if let Err(error) = inet::dissolve(&socket.socket) {
                    return Outcome::Done(error.errno);
                }
            }
        }
    }
    Outcome::Done(libc::EADDRINUSE)
}

/// The caller's socket, what it is, and its caller; `None` if it is no socket or the caller is gone.
fn open(call: &Notification) -> Option<(OwnedFd, SocketInfo, TaskStatus)> {
    let status = TaskStatus::read(call.pid).ok()?;
    let process = pidfd_open(status.process).ok()?;
    let number = i32::try_from(call.arguments[0] as u32).ok()?;
    let socket = duplicate_descriptor(&process, number).ok()?;
    let info = SocketInfo::of(&socket).ok()?;
    Some((socket, info, status))
}

fn protocol_of(info: &SocketInfo) -> Option<Protocol> {
    match (info.family, info.protocol) {
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => Some(Protocol::Tcp),
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => Some(Protocol::Udp),
        _ => None,
    }
}

fn binding(socket: &SocketCall<'_>, address: SocketAddr) -> Binding {
    Binding {
        protocol: socket.protocol,
        address,
        only_v6: socket.info.only_v6,
        reuse_address: socket.info.reuse_address,
        reuse_port: socket.info.reuse_port,
        user: socket.status.uids[1],
    }
}

/// Whether packets to an address of the DC can leave a node: those of IPv4 that name an address.
fn travels(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_unspecified(),
        IpAddr::V6(address) => address.to_ipv4_mapped().is_some_and(|v4| !v4.is_unspecified()),
    }
}

/// Begins a connection to localhost by IPv4 on a socket that may be one of IPv6.
fn begin(socket: &SocketCall<'_>, port: u16) -> Outcome {
    let localhost = match socket.info.family {
        libc::AF_INET6 => IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let address = inet::encode(SocketAddr::new(localhost, port));
    match inet::begin_connect(&socket.socket, &address) {
        Ok(true) => Outcome::Done(0),
        Ok(false) => {
            let waits = status_flags(socket.socket.as_fd())
                .is_ok_and(|flags| flags & libc::O_NONBLOCK == 0);
            if waits { Outcome::Proceed } else { Outcome::Done(libc::EINPROGRESS) }
        }
        Err(error) => Outcome::Done(error.errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_an_address_of_ipv4_travels() {
        for (text, expected) in [
            ("127.0.0.1", true),
            ("10.77.0.1", true),
            ("0.0.0.0", false),
            ("::1", false),
            ("::", false),
            ("::ffff:127.0.0.1", true),
            ("::ffff:0.0.0.0", false),
        ] {
            assert_eq!(travels(text.parse().unwrap()), expected, "{text}");
        }
    }
}
