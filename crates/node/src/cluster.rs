//! Starting daemons from the command line: for one command (a session), or to stay.
//!
//! The daemons are forked, not executed, so that nothing is loaded twice, and all at once. Each one
//! holds one end of a socket to the command from its birth: the first answer over it says that the
//! daemon is up, and its end says that it is not; nobody polls for sockets to appear.

use crate::client::Client;
use crate::daemon::{self, DaemonConfig, Inherited};
use crate::folders::{Folders, MAX_NODES, leave_session, reason};
use crate::membership::store::Identity;
use crate::protocol::{Failure, NodeInfo, Peer, Request};
use dvs_container::KeeperProgram;
use dvs_sys::descriptor::{self, SocketKind};
use dvs_sys::{fork, process};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a daemon of a session may take to end what it runs, in milliseconds, before it is killed.
const END_PATIENCE: u32 = 15_000;
/// How long a new member is waited for until it is linked to the cluster.
const MEMBER_PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Daemons that live as long as one command.
#[derive(Debug)]
pub struct Ephemeral {
    /// Folder of the session, which its daemons make.
    session: PathBuf,
    /// Its other end is held by every daemon: when it is closed, however that comes, they end.
    lifeline: Option<OwnedFd>,
    daemons: Vec<Daemon>,
}

#[derive(Debug)]
struct Daemon {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
}

impl Ephemeral {
    /// Starts `count` daemons in a new session, linked to each other. Returns the connection to the
    /// first one. Clock offsets (seconds) are given to the daemons in turn.
    ///
    /// # Errors
    /// When one of them does not come up; then none is left.
    pub fn start(
        folders: &Folders,
        count: u16,
        clock_offsets: &[i64],
    ) -> Result<(Ephemeral, Client), Failure> {
        folders.prepare()?;
        let session = folders.new_session();
        let (held, lifeline) = descriptor::pipe().map_err(no_descriptors)?;
        let mut started = Ephemeral { session, lifeline: Some(lifeline), daemons: Vec::new() };
        match started.start_all(folders, count, clock_offsets, &held) {
            Ok(home) => Ok((started, home)),
            Err(failure) => {
                started.end();
                Err(failure)
            }
        }
    }

    fn start_all(
        &mut self,
        folders: &Folders,
        count: u16,
        clock_offsets: &[i64],
        held: &OwnedFd,
    ) -> Result<Client, Failure> {
        let keeper = keeper_program()?;
        let cluster = self.cluster();
        let mut sockets = Vec::new();
        for id in 1..=count {
            let name = format!("n{id}");
            let config = DaemonConfig {
                folder: self.session.join("nodes").join(&name),
                state: folders.state.clone(),
                name: name.clone(),
                id,
                cluster,
                member: false,
                session: Some(self.session.clone()),
                clock_offset: clock_offsets.get(usize::from(id) - 1).copied().unwrap_or(0),
            };
            let lifeline = held.try_clone().map_err(|error| no_more(&error))?;
            let (daemon, socket) = start_daemon(config, &keeper, Some(lifeline))?;
            self.daemons.push(daemon);
            sockets.push((name, socket));
        }
        let clients = connect_all(sockets)?;
        link_all(&clients)?;
        let home = clients.into_iter().next();
        home.map(|(client, _)| client).ok_or_else(|| Failure::new("no node was started"))
    }

    /// The cluster of the session's nodes.
    #[must_use]
    pub fn cluster(&self) -> [u8; 16] {
        let number = self.session.file_name().and_then(|name| name.to_str());
        padded(number.and_then(|name| u64::from_str_radix(name, 16).ok()).unwrap_or(1))
    }

    /// Ends all daemons with all that they run, waits for it, and removes the session's folder.
    pub fn end(mut self) {
        self.lifeline.take();
        for daemon in &self.daemons {
            if !matches!(
                descriptor::wait_readable(daemon.pidfd.as_fd(), Some(END_PATIENCE)),
                Ok(true)
            ) {
                log::warn!("node {} does not end; it is killed", daemon.name);
                if let Err(error) = process::pidfd_send_signal(daemon.pidfd.as_fd(), libc::SIGKILL)
                {
                    log::debug!("killing {}: {error}", daemon.pid);
                }
            }
            if let Err(error) = process::wait(i32::try_from(daemon.pid).unwrap_or(-1), 0, 0) {
                log::debug!("waiting for {}: {error}", daemon.pid);
            }
        }
        leave_session(&self.session);
    }
}

/// Starts daemons that stay. `names` are free ones; linked to each other and to those that run.
///
/// # Errors
/// When one does not come up. Those that did stay.
pub fn start_staying(
    folders: &Folders,
    names: &[(String, u16)],
    running: &[NodeInfo],
    clock_offset: i64,
) -> Result<Vec<NodeInfo>, Failure> {
    folders.prepare()?;
    let keeper = keeper_program()?;
    let mut sockets = Vec::new();
    for (name, id) in names {
        let config = DaemonConfig {
            folder: folders.nodes().join(name),
            state: folders.state.clone(),
            name: name.clone(),
            id: *id,
            cluster: padded(cluster_of(&folders.run)),
            member: false,
            session: None,
            clock_offset,
        };
        let (_, socket) = start_daemon(config, &keeper, None)?;
        sockets.push((name.clone(), socket));
    }
    let clients = connect_all(sockets)?;
    let mut known: Vec<NodeInfo> = running.to_vec();
    for (client, info) in &clients {
        let peers: Vec<Peer> = known.iter().map(peer).collect();
        if !peers.is_empty() {
            client.ask(&Request::Link(peers))?;
        }
        known.push(info.clone());
    }
    clients.iter().map(|(client, _)| client.node()).collect()
}

/// Starts the daemon that takes this host's place in a cluster of hosts, and waits until it is linked
/// to the one that decides there, if that can be reached.
///
/// # Errors
/// When it does not come up.
pub fn start_member(
    folders: &Folders,
    identity: &Identity,
    clock_offset: i64,
) -> Result<NodeInfo, Failure> {
    folders.prepare()?;
    let keeper = keeper_program()?;
    let config = DaemonConfig {
        folder: folders.nodes().join(&identity.name),
        state: folders.state.clone(),
        name: identity.name.clone(),
        id: identity.node,
        cluster: identity.cluster,
        member: true,
        session: None,
        clock_offset,
    };
    let (_, socket) = start_daemon(config, &keeper, None)?;
    let clients = connect_all(vec![(identity.name.clone(), socket)])?;
    let (client, mut info) = clients.into_iter().next().ok_or_else(|| Failure::new("no node"))?;
    let start = std::time::Instant::now();
    let alone = |info: &NodeInfo| {
        identity.node != identity.registrar
            && info.warning.is_none()
            && !info.linked.contains(&identity.registrar)
    };
    while alone(&info) && start.elapsed() < MEMBER_PATIENCE {
        std::thread::sleep(LOOK_AGAIN);
        info = client.node()?;
    }
    Ok(info)
}

/// Free names and numbers for daemons that stay.
///
/// # Errors
/// When the wanted name is taken, or there are too many.
pub fn free_names(
    running: &[NodeInfo],
    count: u16,
    wanted: Option<&str>,
) -> Result<Vec<(String, u16)>, Failure> {
    if usize::from(count) + running.len() > MAX_NODES {
        return Err(Failure::new(format!(
            "{} nodes run already and {MAX_NODES} is the limit; stop some: dvs node stop NODE",
            running.len()
        )));
    }
    if let Some(wanted) = wanted {
        crate::names::check("node", wanted)?;
        if running.iter().any(|node| node.name == wanted) {
            return Err(Failure::new(format!(
                "a node called {wanted} runs already; choose another name, or stop it: dvs node stop {wanted}"
            )));
        }
    }
    let free = (1..=u16::MAX).filter(|id| {
        let name = format!("n{id}");
        running.iter().all(|node| node.id != *id && (wanted.is_some() || node.name != name))
    });
    Ok(free
        .take(usize::from(count))
        .map(|id| (wanted.map_or_else(|| format!("n{id}"), str::to_owned), id))
        .collect())
}

/// All daemons that stay run in one cluster per folder; its number keeps links of another one out.
fn cluster_of(run: &Path) -> u64 {
    // FNV-1a (Fowler, Noll, Vo); any stable number would do.
    run.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn padded(number: u64) -> [u8; 16] {
    let mut cluster = [0; 16];
    if let Some(head) = cluster.first_chunk_mut::<8>() {
        *head = number.to_le_bytes();
    }
    cluster
}

/// What the keepers of all daemons of one start run.
fn keeper_program() -> Result<OwnedFd, Failure> {
    KeeperProgram::copy()
        .map_err(|error| Failure::new(format!("copying the own program: {}", reason(&error))))
}

fn start_daemon(
    config: DaemonConfig,
    keeper: &OwnedFd,
    lifeline: Option<OwnedFd>,
) -> Result<(Daemon, UnixStream), Failure> {
    let name = config.name.clone();
    let (ours, theirs) = descriptor::socket_pair(SocketKind::Stream).map_err(no_descriptors)?;
    let keeper = keeper.try_clone().map_err(|error| no_more(&error))?;
    let keep: Vec<OwnedFd> = [Some(theirs), Some(keeper), lifeline].into_iter().flatten().collect();
    let pid = fork::fork_daemon(keep, move |kept| {
        let mut kept = kept.into_iter();
        let (control, keeper) = (kept.next(), kept.next());
        daemon::run(config, Inherited { control, keeper, lifeline: kept.next() })
    });
    let pid =
        pid.map_err(|error| Failure::new(format!("node {name} cannot be started: {error}")))?;
    let pidfd = process::pidfd_open(pid)
        .map_err(|error| Failure::new(format!("node {name} ended at once: {error}")))?;
    Ok((Daemon { name, pid, pidfd }, UnixStream::from(ours)))
}

fn connect_all(sockets: Vec<(String, UnixStream)>) -> Result<Vec<(Client, NodeInfo)>, Failure> {
    let mut clients = Vec::new();
    for (name, socket) in sockets {
        let client = Client::over(socket, format!("node {name}"))?;
        let info = client.node()?;
        clients.push((client, info));
    }
    Ok(clients)
}

/// Every daemon connects to those before it.
fn link_all(clients: &[(Client, NodeInfo)]) -> Result<(), Failure> {
    let peers: Vec<Peer> = clients.iter().map(|(_, info)| peer(info)).collect();
    let later = || clients.iter().enumerate().skip(1);
    for (index, (client, _)) in later() {
        let before = peers.get(..index).unwrap_or_default().to_vec();
        client.send(&Request::Link(before), &[])?;
    }
    for (_, (client, _)) in later() {
        client.receive()?;
    }
    Ok(())
}

fn peer(info: &NodeInfo) -> Peer {
    Peer { id: info.id, name: info.name.clone(), link: info.link.clone() }
}

fn no_descriptors(error: dvs_sys::error::SysError) -> Failure {
    no_more(&error.into())
}

fn no_more(error: &std::io::Error) -> Failure {
    Failure::new(format!("no descriptor for a node's socket: {}; raise: ulimit -n", reason(error)))
}

/// Connects to every live daemon of a list of folders; those that do not answer are named.
#[must_use]
pub fn connect_folders(folders: &[PathBuf]) -> (Vec<(Client, NodeInfo)>, Vec<Failure>) {
    let mut reached = Vec::new();
    let mut failed = Vec::new();
    for folder in folders {
        let asked = Client::connect(folder).and_then(|client| {
            let info = client.node()?;
            Ok((client, info))
        });
        match asked {
            Ok(pair) => reached.push(pair),
            Err(failure) => failed.push(failure),
        }
    }
    reached.sort_by_key(|(_, info)| info.id);
    (reached, failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, id: u16) -> NodeInfo {
        NodeInfo {
            name: name.into(),
            id,
            pid: 1,
            version: String::new(),
            kernel: String::new(),
            millicpus: 1000,
            memory: 0,
            started: 0,
            containers: 0,
            linked: Vec::new(),
            ephemeral: false,
            link: PathBuf::new(),
            address: None,
            links: Vec::new(),
            down: false,
            refused: 0,
            warning: None,
        }
    }

    #[test]
    fn free_names_avoid_what_runs() {
        let running = [node("n1", 1), node("n3", 3), node("n2", 7)];
        let free = free_names(&running, 2, None).unwrap();
        assert_eq!(free, [("n4".to_owned(), 4), ("n5".to_owned(), 5)]);
        assert_eq!(free_names(&running, 1, Some("b")).unwrap(), [("b".to_owned(), 2)]);
        let taken = free_names(&running, 1, Some("n3")).unwrap_err();
        assert!(taken.message.contains("n3") && taken.message.contains("dvs node stop"));
        assert!(free_names(&running, 1, Some("a/b")).is_err());
    }

    #[test]
    fn clusters_of_different_folders_differ() {
        assert_ne!(cluster_of(Path::new("/run/dvs")), cluster_of(Path::new("/tmp/dvs-1")));
    }
}
