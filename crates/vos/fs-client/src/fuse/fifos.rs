//! FIFOs in the mount: see [`crate::fifo`].

use super::convert;
use super::serve::{Answer, Served, Session};
use crate::hooks::Opening;
use dvs_fs::messages::{Attributes, InodeId};
use dvs_sys::fuse::reply::{Body, Entry};
use dvs_sys::fuse::{Device, Header};
use std::sync::Arc;
use std::time::Duration;

/// Whether a mode is a FIFO's.
pub(super) fn is_fifo(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFIFO
}

impl Session {
    /// Whether the caller looks a FIFO up to open it for writing alone.
    pub(super) fn wants_writers_end(&self, h: &Header, attributes: &Attributes) -> bool {
        is_fifo(attributes.mode)
            && self.hooks.bridges_fifos()
            && self.hooks.opening(h.pid).is_some_and(|opening| opening.only_writes())
    }

    /// What the caller is opening, if this is a FIFO and the end of it that is concerned.
    pub(super) fn fifo_opened(
        &self,
        h: &Header,
        attributes: &Attributes,
        writers: bool,
    ) -> Option<Opening> {
        if h.pid == 0 || !is_fifo(attributes.mode) || !self.hooks.bridges_fifos() {
            return None;
        }
        self.hooks.opening(h.pid).filter(|opening| opening.only_writes() == writers)
    }

    /// Answers the attributes that are asked for before an open when that may go on.
    pub(super) fn before_fifo_opens(
        self: &Arc<Self>,
        device: &Arc<Device>,
        h: &Header,
        (fifo, writers): (InodeId, bool),
        opening: Opening,
        attributes: &Attributes,
    ) -> Served {
        let session = Arc::clone(self);
        let attr = convert::attr(attributes);
        self.later(device, h, libc::EAGAIN, move || {
            session.hooks.fifo_opening(fifo, writers, opening)?;
            let mut body = Body::new();
            body.attr_out(Duration::ZERO, &attr);
            Ok(body.bytes().to_vec())
        })
    }

    /// LOOKUP of a name that was given to the bridge.
    pub(super) fn lookup_fifo(&self, h: &Header, name: &[u8], body: &mut Body) -> Served {
        let (fifo, writers) = self.client.take_fifo(name).ok_or(libc::ENOENT)?;
        let attributes = self.client.attributes(convert::credentials(h), fifo)?.0;
        let node = {
            let mut nodes = self.nodes.lock().unwrap();
            let place = super::nodes::Place::Elsewhere;
            if writers { nodes.enter_writers(fifo, false) } else { nodes.enter(fifo, place, false) }
        };
        let node = node.ok_or(libc::ENOENT)?;
        body.entry(&Entry { node, attr: convert::attr(&attributes), ..Entry::default() });
        Ok(Answer::Body)
    }
}
