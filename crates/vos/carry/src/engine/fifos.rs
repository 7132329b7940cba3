//! Streams from the writers' end of a FIFO, on this or another node, into the FIFO (see
//! [`crate::fifo`]). They belong to no program: nothing is drained at a program's end.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use dvs_sys::descriptor::set_nonblocking;

use super::{Engine, State};
use crate::fifo::bridge::Bridge;
use crate::fifo::{FifoEnd, FifoHost, FifoId, FifoRefusal, Opener};
use crate::messages::{CarryMessage, ProgramKey, StreamId};

/// Called when a stream is over. Under the engine's lock: it must not wait.
pub(super) type Over = Box<dyn FnOnce() + Send>;

/// The bridge of FIFOs, where there is one.
#[derive(Default)]
pub(crate) struct Fifos(OnceLock<Arc<Bridge>>);

impl Fifos {
    pub(crate) fn get(&self) -> Option<&Arc<Bridge>> {
        self.0.get()
    }
}

/// No program has this number.
fn nobody(home: u16) -> ProgramKey {
    ProgramKey { home, number: u64::MAX }
}

impl Engine {
    /// From now on FIFOs reach over nodes.
    pub(crate) fn bridge_fifos(&self, registrar: u16, host: Arc<dyn FifoHost>) {
        let bridge = Bridge::new(self.config.node, registrar, host, self.weak());
        let _ = self.fifos.0.set(bridge);
    }

    /// See [`crate::Carrier::fifo_opening`].
    pub(crate) fn fifo_opening(
        &self,
        fifo: FifoId,
        end: FifoEnd,
        opener: Opener,
    ) -> Result<(), FifoRefusal> {
        self.fifos.get().map_or(Ok(()), |bridge| bridge.opening(fifo, end, opener))
    }

    /// Opens an end of a FIFO of the tree; `None`: not possible, or FIFOs are not bridged.
    pub(crate) fn open_fifo(&self, inode: u64, end: FifoEnd, flags: i32) -> Option<OwnedFd> {
        // Numbers of the tree are never used twice, so the generation is always this.
        let fifo = FifoId { number: inode, generation: 0 };
        self.fifos.get()?.open(fifo, end, flags).ok()
    }

    /// Sends one message, perhaps to this node.
    pub(crate) fn send(&self, to: u16, message: CarryMessage) {
        self.locked(|state, effects| {
            if !state.stopped {
                effects.post(to, message);
            }
        });
    }

    /// Where the FIFO is read: begins a stream into it from the writers of a node.
    pub(crate) fn fifo_output(&self, writer: u16, fifo: OwnedFd) -> Option<(StreamId, u64)> {
        let program = nobody(self.config.node);
        self.locked(|state, _| {
            if !state.home_has_room(1) {
                return None;
            }
            let started = state.home_output(writer, program, fifo, false).ok();
            state.home_finished(program);
            started
        })
    }

    /// Where the writers are: begins to empty their end.
    pub(crate) fn fifo_input(
        &self,
        (reader, stream): (u16, StreamId),
        end: OwnedFd,
        credit: u64,
        over: Over,
    ) -> bool {
        use std::os::fd::AsFd;
        if set_nonblocking(end.as_fd(), true).is_err() {
            return false;
        }
        self.locked(|state, _| {
            state.away_has_room(1)
                && state.away_fifo(reader, nobody(reader), stream, end, credit, over).is_ok()
        })
    }
}

impl State {
    /// Takes one record out of a writers' end: one buffer of its pipe. The kernel never divides a
    /// write of at most a page among two, so what must stay together does.
    pub(super) fn take_buffer(&mut self, from: &OwnedFd) -> dvs_sys::error::Result<usize> {
        let length = dvs_sys::pipe::splice(from, &self.single.1, crate::messages::MAX_RECORD)?;
        let space = self.buffer.get_mut(..length).unwrap_or_default();
        if length == 0 { Ok(0) } else { dvs_sys::pipe::read(&self.single.0, space) }
    }
}
