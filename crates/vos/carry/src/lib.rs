//! What an inherited descriptor of a placed program becomes on the other node.
//!
//! A [`Carrier`] serves one (node, DC). Its [`Exporter`] takes the descriptors of a program that goes
//! to another node; the [`CarriedDescriptor`]s travel in the linux personality's own messages; the
//! [`Importer`] of the other node makes [`LocalDescriptor`]s of them. From then on the two carriers
//! talk to each other in [`CarryMessage`]s:
//!
//! | at home | away |
//! |---|---|
//! | write end of a pipe | a local pipe, emptied into home's as there is room in it |
//! | read end of a pipe | a local pipe, filled with copies; home's is emptied as the body reads |
//! | terminal, for output | a local pseudo terminal, emptied into home's |
//! | regular file | kept open at home, read and written there ([`SharedDescription`]) |
//! | FIFO of the tree | as a pipe |
//! | `/dev/null` and the like, directories, `O_PATH` | opened anew by path |
//! | everything else | refused: the program stays at home ([`Refusal`]) |
//!
//! Life of a program: `export` at home, `import` away, the body runs; then `body_ended` away and
//! `drain` at home, whose callback says that the exit may be shown. If it does not come to run: `abort`
//! on both sides. Nothing polls: every wait is for an event of a descriptor or a message.
//!
//! Known limits: a process at home that reads from a pipe at the same time as a placed program may see
//! bytes that the program sees too; status flags changed after the placement are not carried; a
//! terminal is carried for output only (a program that reads a pipe and could ask its user through a
//! terminal stays at home); `splice`, `F_SETPIPE_SZ` and the like act on the local pipe.

#![forbid(unsafe_code)]

mod classify;
pub mod core;
mod description;
pub mod descriptor;
mod engine;
mod exporter;
pub mod fifo;
mod identity;
mod importer;
pub mod memory;
pub mod messages;
#[cfg(test)]
mod test_random;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;

pub use classify::FOREIGN_INODE;
pub use description::{MAX_LOCK_WAITERS, MAX_QUEUE, MAX_WORKERS, SharedDescription};
pub use descriptor::{
    Carried, CarriedDescriptor, InheritedDescriptor, Kind, Local, LocalDescriptor, MAX_DESCRIPTORS,
    Refusal,
};
pub use engine::{DrainOutcome, MAX_DESCRIPTIONS, MAX_REQUESTS, MAX_STREAMS};
pub use exporter::Exporter;
pub use fifo::{FifoEnd, FifoHost, FifoId, FifoMessage, FifoRefusal, MAX_FIFOS, Opener};
pub use identity::{IdMap, IdRange, OVERFLOW_ID};
pub use importer::{ImportError, Importer};
pub use messages::{
    CarryMessage, DescriptionId, DescriptionOperation, DescriptionOutcome, FileAttributes,
    MAX_MESSAGE, MAX_PAYLOAD, MAX_RECORD, MAX_RECORDS, MAX_STREAM_DATA, MessageError, PROTOCOL,
    Position, ProgramKey, StreamId, TerminalAttributes, TerminalSize,
};
pub use transport::{AttachRequest, Attacher, CarryTransport, NoAttacher, NodeGone};

use dvs_sys::error::SysError;

/// Settings of a carrier.
#[derive(Debug, Clone)]
pub struct CarrierConfig {
    /// This node.
    pub node: u16,
    /// Multiplexer of the container's pseudo terminals (`/proc/PID/root/dev/pts/ptmx`).
    pub multiplexer: PathBuf,
    /// The container's user ids.
    pub uids: IdMap,
    /// The container's group ids.
    pub gids: IdMap,
}

impl CarrierConfig {
    /// For a node whose ids are the container's and whose terminals are the host's.
    #[must_use]
    pub fn new(node: u16) -> Self {
        CarrierConfig {
            node,
            multiplexer: dvs_sys::terminal::PTMX.into(),
            uids: IdMap::default(),
            gids: IdMap::default(),
        }
    }

    /// Makes the calling thread one whose requests the container's mount accepts: those of users whom
    /// its user namespace does not know fail with `EOVERFLOW`. Which user it is does not matter, since
    /// all files are open already.
    fn enter(&self) {
        if let (Some(uid), Some(gid)) = (self.uids.any(), self.gids.any()) {
            // Without the right to do it this node's user is the one that is mapped.
            let _ = dvs_sys::fsids::set_thread_file_ids(uid, gid);
        }
    }

    /// Attributes with the owner as the container has it.
    fn inside(&self, found: FileAttributes) -> FileAttributes {
        FileAttributes {
            uid: self.uids.inside(found.uid),
            gid: self.gids.inside(found.gid),
            ..found
        }
    }
}

/// Counts of what a carrier keeps alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Streams of programs placed elsewhere.
    pub exported: usize,
    /// Streams of bodies that run here.
    pub imported: usize,
    /// Descriptions kept for bodies elsewhere.
    pub descriptions: usize,
}

/// The carrier of one (node, DC). Dropping it ends its streams and threads.
#[derive(Debug)]
pub struct Carrier {
    engine: Arc<engine::Engine>,
}

impl Carrier {
    /// Starts it.
    pub fn start(
        config: CarrierConfig,
        transport: Arc<dyn CarryTransport>,
        attacher: Arc<dyn Attacher>,
    ) -> Result<Carrier, SysError> {
        Ok(Carrier { engine: engine::Engine::start(config, transport, attacher)? })
    }

    /// Home's side.
    #[must_use]
    pub fn exporter(&self) -> Exporter {
        Exporter::new(Arc::clone(&self.engine))
    }

    /// Away's side.
    #[must_use]
    pub fn importer(&self) -> Importer {
        Importer::new(Arc::clone(&self.engine))
    }

    /// From now on FIFOs of the tree reach over nodes. `registrar` is the container's home.
    pub fn bridge_fifos(&self, registrar: u16, host: Arc<dyn FifoHost>) {
        self.engine.bridge_fifos(registrar, host);
    }

    /// A thread is about to open an end of a FIFO: for reading (and perhaps writing too) the FIFO
    /// itself, for writing the writers' end. Returns when it may go on, after at most a message or
    /// two; it waits for its other end in the kernel, and so does an open without `O_NONBLOCK`.
    ///
    /// # Errors
    /// [`FifoRefusal`]: the open is to fail.
    pub fn fifo_opening(
        &self,
        fifo: FifoId,
        end: FifoEnd,
        opener: Opener,
    ) -> Result<(), FifoRefusal> {
        self.engine.fifo_opening(fifo, end, opener)
    }

    /// A message from another node, in the order in which they were posted. Never waits; posts what
    /// follows from it in the calling thread.
    pub fn deliver(&self, from: u16, message: CarryMessage) {
        self.engine.deliver(from, message);
    }

    /// Another node is gone. Output that had arrived is written, then its pipes are closed; what its
    /// bodies had not read stays in the pipes; drains end with [`DrainOutcome::Lost`].
    pub fn node_gone(&self, node: u16) {
        self.engine.node_gone(node);
    }

    /// What is alive.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (exported, imported, descriptions) = self.engine.counts();
        Counts { exported, imported, descriptions }
    }

    /// Ends all streams and threads; everything later does nothing.
    pub fn stop(&self) {
        self.engine.stop();
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.engine.stop();
    }
}
