//! Finishing a prepared container: what depends on the one that asks for it. Done by the launcher.
//!
//! This is all that a start waits for, so everything else belongs into the preparation. The root is
//! looked into for the first time here; with a FUSE root somebody must serve it by now.

use super::root;
use super::{BuildError, Step};
use crate::launcher::script::Base;
use crate::launcher::{Launcher, inside};
use crate::messages::Finish;
use dvs_sys::error::SysError;
use dvs_sys::namespace::{self, TimeOffsets};
use dvs_sys::process::SingleThreaded;
use std::fs::File;
use std::os::fd::OwnedFd;

/// What the preparation leaves to the launcher, whose working directory is the stage.
pub(super) struct Unfinished {
    pub(super) base: Base,
    /// `ns_last_pid` of the container.
    pub(super) last_pid: File,
    /// Opened while the process was dumpable.
    pub(super) clocks: Result<TimeOffsets, SysError>,
    /// The first pid that was prepared for.
    pub(super) aimed: Option<u32>,
    /// The root's own `/dev/shm` is shown.
    pub(super) from_tree: bool,
}

impl Unfinished {
    /// Makes it a container, up to [`root::drop_stage`]; warnings.
    pub(super) fn finish(
        &self,
        alone: SingleThreaded,
        wanted: &Finish,
    ) -> Result<Vec<String>, BuildError> {
        let mut warnings = Vec::new();
        if let Err(error) = self.set_clocks(wanted) {
            warnings.push(format!("the container has the clocks of the host: {error}"));
        }
        namespace::set_host_name(wanted.hostname.as_bytes()).step("set the host name")?;
        root::assemble(self.from_tree)?;
        if let Some(first) = wanted.first_pid.filter(|_| wanted.first_pid != self.aimed) {
            inside::aim_pids(alone, self.base.calls, &self.last_pid, Some(first))
                .map_err(|errno| BuildError::new("choose the first pid", errno))?;
        }
        Ok(warnings)
    }

    /// The launcher that takes requests from a socket.
    pub(super) fn launcher(
        self,
        alone: SingleThreaded,
        socket: OwnedFd,
    ) -> Result<Launcher, BuildError> {
        Launcher::new(alone, self.base, socket, self.last_pid).step("watch children")
    }

    /// A time namespace for all programs of the container and for this process. Pid 1 was there
    /// before; it looks at no clock.
    fn set_clocks(&self, wanted: &Finish) -> Result<(), SysError> {
        let own = self.clocks.as_ref().map_err(|error| *error)?;
        namespace::unshare(namespace::CLONE_NEWTIME)?;
        let clocks = wanted.clocks;
        if clocks.monotonic != 0 || clocks.boot != 0 {
            own.write(clocks.monotonic, clocks.boot)?;
        }
        own.enter()
    }
}
