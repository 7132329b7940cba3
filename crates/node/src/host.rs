//! What a daemon has: its identity, its links, the containers that have a part on it.

use crate::control::Started;
use crate::daemon::DaemonConfig;
use crate::folders::link_socket;
use crate::machine::Machine;
use crate::protocol::{
    ContainerInfo, ContainerOptions, Ended, Failure, NodeInfo, Peer, ProcessInfo, ProgramOptions,
};
use dvs_sys::poll::EventFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

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

/// See the module.
pub(crate) struct Host {
    config: DaemonConfig,
    stop: EventFd,
    machine: Machine,
}

impl Host {
    /// Makes it and listens for other daemons.
    pub(crate) fn make(config: DaemonConfig) -> Result<Arc<Host>, Failure> {
        let stop = EventFd::new().map_err(|error| Failure::new(error.to_string()))?;
        Ok(Arc::new(Host { config, stop, machine: Machine::look() }))
    }

    /// Who it is.
    pub(crate) fn config(&self) -> &DaemonConfig {
        &self.config
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

    /// Ends everything that runs on it.
    pub(crate) fn end(&self) {}

    /// Facts.
    pub(crate) fn info(&self) -> NodeInfo {
        NodeInfo {
            name: self.config.name.clone(),
            id: self.config.id,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.machine.kernel.clone(),
            millicpus: self.machine.millicpus,
            memory: self.machine.memory,
            started: u64::try_from(dvs_sys::clock::real() / 1_000_000_000).unwrap_or(0),
            containers: 0,
            linked: Vec::new(),
            ephemeral: self.config.session.is_some(),
            link: link_socket(&self.config.folder),
        }
    }

    /// Links to other daemons.
    pub(crate) fn link(&self, _peers: &[Peer]) -> Result<(), Failure> {
        Ok(())
    }

    /// Makes a container and runs its first program.
    pub(crate) fn run(
        self: &Arc<Self>,
        _options: ContainerOptions,
        _program: ProgramOptions,
        _descriptors: Vec<OwnedFd>,
        _notify: Box<dyn Fn(String) + Send + Sync>,
    ) -> Result<Started, Failure> {
        Err(Failure::new("not yet"))
    }

    /// Runs one more program in a container.
    pub(crate) fn exec(
        self: &Arc<Self>,
        _container: &str,
        _program: ProgramOptions,
        _descriptors: Vec<OwnedFd>,
    ) -> Result<Started, Failure> {
        Err(Failure::new("not yet"))
    }

    /// Whether the daemon may be ended.
    pub(crate) fn may_stop(&self, _force: bool) -> Result<(), Failure> {
        Ok(())
    }

    /// Processes of one or all containers whose home this is.
    pub(crate) fn processes(&self, _of: Option<&str>) -> Result<Vec<ProcessInfo>, Failure> {
        Ok(Vec::new())
    }

    /// Containers whose home this is.
    pub(crate) fn containers(&self) -> Vec<ContainerInfo> {
        Vec::new()
    }

    /// Ends a container.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        Err(Failure::new(format!("no container is called {name}")))
    }
}
