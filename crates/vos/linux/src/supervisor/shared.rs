//! Calls by which programs begin to share something or leave the baseline without a trace.

use super::Personality;
use crate::core::sharing::{Found, MAX_NAME, Thing};
use crate::messages::Note;
use dvs_sys::descriptor::{Poll, poll};
use dvs_sys::process::{pidfd_open, pidfd_send_signal};
use dvs_sys::seccomp::Notification;
use dvs_sys::task::{TaskMemory, TaskStat, TaskStatus, duplicate_descriptor, is_stream_socket};
use std::collections::HashSet;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

/// Longest socket address that is read.
const MAX_ADDRESS: u64 = 128;
/// Most pinned processes that are told apart; with more, everything stays.
const MAX_PINNED: usize = 65_536;
/// Most generations looked through.
const MAX_GENERATIONS: usize = 1024;

/// Processes that must stay, and so must what they start.
#[derive(Debug, Default)]
pub(crate) struct Pinned {
    /// Pid outside and start time.
    processes: HashSet<(u32, u64)>,
    everything: bool,
}

/// What an address means for placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// A name that others can find begins.
    Serve,
    /// A name of others is looked for.
    Seek,
}

impl Personality {
    /// Lets the call go on at once if nobody else can be concerned.
    pub(crate) fn shared_at_once(self: &Arc<Self>, call: &Notification) -> bool {
        let alone = self.placement.lock().unwrap().nodes().nth(1).is_none();
        let quiet = match i64::from(call.number) {
            libc::SYS_bind | libc::SYS_listen | libc::SYS_connect if self.network.is_some() => {
                return false;
            }
            libc::SYS_connect => !self.sharing.lock().unwrap().is_elsewhere(),
            _ => false,
        };
        if alone || quiet {
            let _ = self.listener.proceed(call.id);
        }
        alone || quiet
    }

    /// Notes what begins, ends a program that reaches for what is elsewhere, lets all others go on.
    pub(crate) fn shared(self: &Arc<Self>, call: &Notification) {
        let key = call.arguments[0] as u32 as i32;
        if matches!(i64::from(call.number), libc::SYS_bind | libc::SYS_listen | libc::SYS_connect)
            && let Some(network) = &self.network
            && self.socket_call(&**network, call)
        {
            return;
        }
        match i64::from(call.number) {
            libc::SYS_landlock_restrict_self
            | libc::SYS_set_mempolicy
            | libc::SYS_mbind
            | libc::SYS_chroot => self.pin(call.pid),
            // This value asks and changes nothing.
            libc::SYS_personality if call.arguments[0] as u32 != u32::MAX => self.pin(call.pid),
            libc::SYS_shmget => self.keyed(call, key, Thing::Memory),
            libc::SYS_semget => self.keyed(call, key, Thing::Semaphores),
            libc::SYS_msgget => self.keyed(call, key, Thing::Messages),
            libc::SYS_mq_open => {
                if let Ok(name) = TaskMemory::new(call.pid).string(call.arguments[0], MAX_NAME) {
                    self.begin_or_end(call, &Thing::Queue(name));
                }
            }
            libc::SYS_bind => {
                if let Some(thing) = self.address(call, Side::Serve) {
                    self.begin(&thing);
                }
            }
            libc::SYS_listen => {
                if let Some(thing) = listening(call) {
                    self.begin(&thing);
                }
            }
            libc::SYS_connect => {
                if let Some(thing) = self.address(call, Side::Seek) {
                    self.end_if_elsewhere(call, &thing);
                }
            }
            _ => {}
        }
        let _ = self.listener.proceed(call.id);
    }

    /// A file-system hook: a program here holds a FIFO open for others or used `/dev/shm`.
    pub fn shares_by_tree(&self) {
        self.begin(&Thing::Unnamed);
    }

    /// Another node tells that something is shared there.
    pub(crate) fn shared_elsewhere(&self, node: u16, thing: Thing) {
        self.sharing.lock().unwrap().begins(node, thing);
    }

    fn begin(&self, thing: &Thing) {
        let new = self.sharing.lock().unwrap().begins(self.config.node, thing.clone());
        if new {
            let others: Vec<u16> = self.placement.lock().unwrap().nodes().collect();
            for node in others.into_iter().filter(|node| *node != self.config.node) {
                self.post(node, &Note::Shares(thing.clone()));
            }
        }
    }

    fn keyed(&self, call: &Notification, key: i32, thing: fn(i32) -> Thing) {
        if key == libc::IPC_PRIVATE {
            self.begin(&Thing::Unnamed);
        } else {
            self.begin_or_end(call, &thing(key));
        }
    }

    fn begin_or_end(&self, call: &Notification, thing: &Thing) {
        if !self.end_if_elsewhere(call, thing) {
            self.begin(thing);
        }
    }

    /// Ends a program that reaches for something of another node, with one line on its stderr.
    fn end_if_elsewhere(&self, call: &Notification, thing: &Thing) -> bool {
        let found = self.sharing.lock().unwrap().find(thing);
        let Found::Elsewhere(node) = found else { return false };
        let Ok(status) = TaskStatus::read(call.pid) else { return true };
        let Ok(process) = pidfd_open(status.process) else { return true };
        if self.listener.is_valid(call.id) {
            let line = format!(
                "dvs: {}: {thing} is on node {node}, this program runs on node {}; \
                 run with --place home\n",
                String::from_utf8_lossy(&status.name),
                self.config.node
            );
            if let Ok(stderr) = duplicate_descriptor(&process, 2) {
                write_if_room(stderr, line.as_bytes());
            }
            let _ = pidfd_send_signal(process.as_fd(), libc::SIGKILL);
        }
        true
    }

    fn address(&self, call: &Notification, side: Side) -> Option<Thing> {
        let [descriptor, address, length, ..] = call.arguments;
        let mut memory = TaskMemory::new(call.pid);
        let length = usize::try_from(length.min(MAX_ADDRESS)).ok()?;
        let bytes = memory.bytes(address, length).ok()?;
        let thing = parse_address(&bytes)?;
        let Thing::Tcp(port) = thing else { return Some(thing) };
        // Which kind of socket it is, the address does not say.
        let status = TaskStatus::read(call.pid).ok()?;
        let process = pidfd_open(status.process).ok()?;
        let socket = duplicate_descriptor(&process, i32::try_from(descriptor).ok()?).ok()?;
        let stream = is_stream_socket(&socket);
        let thing = if stream { Thing::Tcp(port) } else { Thing::Udp(port) };
        // A stream socket can be found only once it listens.
        (side == Side::Seek || !stream).then_some(thing)
    }

    pub(crate) fn pin(&self, thread: u32) {
        let mut pinned = self.pinned.lock().unwrap();
        let identity = TaskStatus::read(thread)
            .and_then(|status| Ok((status.process, TaskStat::read(status.process)?.started)));
        match identity {
            Ok(identity) if pinned.processes.len() < MAX_PINNED => {
                pinned.processes.insert(identity);
            }
            Ok(_) => pinned.everything = true,
            Err(_) => {}
        }
    }

    /// Whether a process is pinned or descends from one that is, or may do so.
    pub(crate) fn is_pinned(&self, process: u32) -> bool {
        let pinned = self.pinned.lock().unwrap();
        if pinned.everything {
            return true;
        }
        if pinned.processes.is_empty() {
            return false;
        }
        let mut process = process;
        for _ in 0..MAX_GENERATIONS {
            let Ok(stat) = TaskStat::read(process) else { return true };
            if pinned.processes.contains(&(process, stat.started)) {
                return true;
            }
            // An orphan's parents are not known any more.
            if process == self.init {
                return true;
            }
            if self.launcher.process() == stat.parent {
                return false;
            }
            process = stat.parent;
        }
        true
    }
}

/// The thing that a socket begins to serve with `listen`.
fn listening(call: &Notification) -> Option<Thing> {
    let status = TaskStatus::read(call.pid).ok()?;
    let process = pidfd_open(status.process).ok()?;
    let socket = duplicate_descriptor(&process, i32::try_from(call.arguments[0]).ok()?).ok()?;
    let again = socket.try_clone().ok()?;
    if let Ok(address) = TcpListener::from(socket).local_addr() {
        return Some(Thing::Tcp(address.port()));
    }
    let address = UnixListener::from(again).local_addr().ok()?;
    if let Some(path) = address.as_pathname() {
        return Some(Thing::Unix(path.as_os_str().as_bytes().to_vec()));
    }
    let name = address.as_abstract_name()?;
    Some(Thing::Unix([b"\0", name].concat()))
}

/// A `sockaddr` of a loopback, wildcard or unix address; internet ones as TCP.
fn parse_address(bytes: &[u8]) -> Option<Thing> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_UNIX => {
            let name = match rest.first()? {
                0 => rest,
                _ => rest.split(|byte| *byte == 0).next()?,
            };
            (name.len() > 1).then(|| Thing::Unix(name.to_vec()))
        }
        libc::AF_INET => {
            let port = u16::from_be_bytes(*rest.first_chunk::<2>()?);
            let address: [u8; 4] = rest.get(2..6)?.try_into().ok()?;
            let local = address[0] == 127 || address == [0; 4];
            (local && port != 0).then_some(Thing::Tcp(port))
        }
        libc::AF_INET6 => {
            let port = u16::from_be_bytes(*rest.first_chunk::<2>()?);
            let address: [u8; 16] = rest.get(6..22)?.try_into().ok()?;
            let address = std::net::Ipv6Addr::from(address);
            let local = address.is_loopback()
                || address.is_unspecified()
                || address.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback());
            (local && port != 0).then_some(Thing::Tcp(port))
        }
        _ => None,
    }
}

/// Writes a line if that does not have to wait.
pub(super) fn write_if_room(to: OwnedFd, line: &[u8]) {
    let mut wait = [Poll { fd: to.as_fd(), wanted: libc::POLLOUT, ready: 0 }];
    let ready = poll(&mut wait, Some(0)).is_ok() && wait[0].ready & libc::POLLOUT != 0;
    if ready {
        let _ = std::fs::File::from(to).write(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(family: i32, rest: &[u8]) -> Vec<u8> {
        [&(family as u16).to_ne_bytes(), rest].concat()
    }

    #[test]
    fn addresses_are_understood() {
        let v4 = |ip: [u8; 4], port: u16| {
            address(libc::AF_INET, &[&port.to_be_bytes()[..], &ip, &[0; 8]].concat())
        };
        assert_eq!(parse_address(&v4([127, 0, 0, 1], 80)), Some(Thing::Tcp(80)));
        assert_eq!(parse_address(&v4([0; 4], 80)), Some(Thing::Tcp(80)));
        assert_eq!(parse_address(&v4([10, 0, 0, 1], 80)), None);
        assert_eq!(parse_address(&v4([127, 0, 0, 1], 0)), None);
        let mut v6 = vec![0_u8; 26];
        v6[..2].copy_from_slice(&443_u16.to_be_bytes());
        v6[21] = 1;
        assert_eq!(parse_address(&address(libc::AF_INET6, &v6)), Some(Thing::Tcp(443)));
        assert_eq!(
            parse_address(&address(libc::AF_UNIX, b"/run/s\0junk")),
            Some(Thing::Unix(b"/run/s".to_vec()))
        );
        assert_eq!(
            parse_address(&address(libc::AF_UNIX, b"\0name")),
            Some(Thing::Unix(b"\0name".to_vec()))
        );
        for short in 0..8 {
            let _ = parse_address(&v4([127, 0, 0, 1], 80)[..short]);
            assert_eq!(parse_address(&address(libc::AF_UNIX, &[])), None);
        }
        assert_eq!(parse_address(&address(libc::AF_NETLINK, &[0; 10])), None);
    }
}
