//! The FUSE mount: the kernel's requests, done by a [`Client`].
//!
//! `readers` are the threads that read the device; each request is decoded, done and answered on the
//! thread that read it, except those that may wait without bound (`pool`). `names` and `files` are
//! the operations, `locks` and `attached` those that wait, `kernel` is the way back: invalidation.

mod attached;
mod convert;
mod fifos;
mod files;
mod interrupts;
mod kernel;
mod locks;
mod names;
mod nodes;
mod pool;
mod readers;
mod releases;
mod serve;

use crate::client::Client;
use crate::hooks::Hooks;
use dvs_sys::fuse::Device;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

pub use interrupts::MAX_EARLY;
pub use pool::MAX_WAITERS;
pub use readers::{MAX_READERS, MOUNT_WAIT};

/// How a mount is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountOptions {
    /// Threads that always read the device; more are started while these are busy.
    pub readers: usize,
    /// No other node has a part in the container, now or later: nothing can be recalled between an
    /// answer and the kernel's taking it, so the kernel may keep more.
    pub alone: bool,
}

impl Default for MountOptions {
    /// One thread per core.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        MountOptions { readers: cores, alone: false }
    }
}

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread that serves /dev/fuse: {0}; raise the limit of threads")]
pub struct ServeError(#[from] std::io::Error);

/// A mount, served by threads of its own.
#[derive(Debug)]
pub struct Mount;

impl Mount {
    /// Serves a descriptor of `/dev/fuse` that is mounted, or will be within [`MOUNT_WAIT`]. The
    /// threads end when the file system is unmounted or aborted.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn serve(
        fd: OwnedFd,
        client: Arc<Client>,
        hooks: Arc<dyn Hooks>,
        options: MountOptions,
    ) -> Result<MountHandle, ServeError> {
        let session = Arc::new(serve::Session::new(client, hooks, options.alone));
        let readers = readers::Readers::start(session, Device::from(fd), options.readers)?;
        Ok(MountHandle { readers })
    }
}

/// A mount that is being served. Dropping it changes nothing.
pub struct MountHandle {
    readers: Arc<readers::Readers>,
}

impl MountHandle {
    /// Whether INIT was answered: the tree can be used.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readers.is_ready()
    }

    /// Whether the mount is gone and no thread reads the device any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.readers.threads() == 0
    }

    /// Waits until that is so. False: it still is not after `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        self.readers.wait(timeout)
    }

    /// Threads now: those that read the device, and those that wait for locks and attached files.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.readers.threads() + self.readers.session().waiters.threads()
    }
}

impl std::fmt::Debug for MountHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountHandle").field("threads", &self.threads()).finish_non_exhaustive()
    }
}
