//! Forwarded connections: unix sockets on both sides of one byte stream (see [`crate::core::mux`]).
//!
//! One thread reads the stream and never waits for anything else; every channel has two, one for
//! each direction, which wait for its window and its socket.

use crate::core::mux::{MUX_BODY, Mux as Core, MuxEnd, MuxEvent};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Takes a connection that the other side opened, for a target. It must not wait.
pub type Acceptor = Box<dyn Fn(u16, UnixStream) + Send + Sync>;
/// What is called when the stream has ended, with the reason if it was not just its end.
pub type Ended = Box<dyn FnOnce(Option<String>) + Send>;

/// One side of the stream. When the last handle goes nothing happens: the stream's end ends it.
#[derive(Clone)]
pub struct Mux {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    room: Condvar,
    writer: Mutex<Box<dyn Write + Send>>,
}

struct State {
    core: Core,
    /// Where the bytes of each channel go.
    channels: HashMap<u32, Local>,
    ended: bool,
}

struct Local {
    bytes: Sender<Vec<u8>>,
    /// To wake the thread that reads from it.
    stream: UnixStream,
}

impl Mux {
    /// Begins to forward. `end` must differ on the two sides.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn start(
        end: MuxEnd,
        reader: Box<dyn Read + Send>,
        writer: Box<dyn Write + Send>,
        accept: Acceptor,
        ended: Ended,
    ) -> io::Result<Mux> {
        let state = State { core: Core::new(end), channels: HashMap::new(), ended: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            room: Condvar::new(),
            writer: Mutex::new(writer),
        });
        let reading = Arc::clone(&shared);
        std::thread::Builder::new().name("mux-read".into()).spawn(move || {
            let reason = reading.read(reader, &accept);
            reading.end();
            ended(reason);
        })?;
        Ok(Mux { shared })
    }

    /// A new connection to a target on the other side.
    ///
    /// # Errors
    /// When the stream has ended, or there are too many.
    pub fn open(&self, target: u16) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.carry(target, theirs)?;
        Ok(ours)
    }

    /// Forwards an existing connection to a target on the other side.
    ///
    /// # Errors
    /// As [`Mux::open`].
    pub fn carry(&self, target: u16, stream: UnixStream) -> io::Result<()> {
        let mut state = self.shared.lock();
        if state.ended {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let (channel, frame) = state.core.open(target).map_err(io::Error::other)?;
        let begun = Begun::new(&mut state, channel, stream)?;
        // Writing may wait, and the reader must not wait for it.
        drop(state);
        self.shared.write(&frame)?;
        self.shared.forward(begun)
    }
}

/// A channel whose threads do not run yet, so that no byte of it is written before it is open.
struct Begun {
    channel: u32,
    from: UnixStream,
    to: UnixStream,
    queue: Receiver<Vec<u8>>,
}

impl Begun {
    fn new(state: &mut State, channel: u32, stream: UnixStream) -> io::Result<Begun> {
        let (bytes, queue) = std::sync::mpsc::channel();
        let (from, to) = (stream.try_clone()?, stream.try_clone()?);
        state.channels.insert(channel, Local { bytes, stream });
        Ok(Begun { channel, from, to, queue })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, frame: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(frame)?;
        writer.flush()
    }

    /// The stream is of no use any more: so are all channels.
    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        for (_, local) in state.channels.drain() {
            let _ = local.stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.room.notify_all();
    }

    fn forward(self: &Arc<Self>, begun: Begun) -> io::Result<()> {
        let Begun { channel, from, to, queue } = begun;
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(body).map(drop)
        };
        let shared = Arc::clone(self);
        spawn("mux-out", Box::new(move || shared.send_all(channel, from)))?;
        let shared = Arc::clone(self);
        spawn("mux-in", Box::new(move || shared.deliver_all(channel, to, &queue)))
    }

    fn read(
        self: &Arc<Self>,
        mut reader: Box<dyn Read + Send>,
        accept: &Acceptor,
    ) -> Option<String> {
        let mut buffer = vec![0; MUX_BODY * 2];
        loop {
            let length = match reader.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Some(error.to_string()),
            };
            let mut opened = Vec::new();
            let mut state = self.lock();
            let events = match state.core.received(buffer.get(..length).unwrap_or_default()) {
                Ok(events) => events,
                Err(error) => return Some(error.to_string()),
            };
            for event in events {
                match event {
                    MuxEvent::Opened { channel, target } => {
                        let made = UnixStream::pair().and_then(|(ours, theirs)| {
                            Ok((target, ours, Begun::new(&mut state, channel, theirs)?))
                        });
                        match made {
                            Ok(made) => opened.push(made),
                            Err(error) => return Some(error.to_string()),
                        }
                    }
                    MuxEvent::Data { channel, bytes } => {
                        if let Some(local) = state.channels.get(&channel) {
                            // Its thread ends only after the channel does; then they are void.
                            let _ = local.bytes.send(bytes);
                        }
                    }
                    MuxEvent::Room => self.room.notify_all(),
                    MuxEvent::Closed { channel } => {
                        // What is queued is still delivered; then its socket ends.
                        if let Some(local) = state.channels.remove(&channel) {
                            let _ = local.stream.shutdown(Shutdown::Read);
                        }
                        self.room.notify_all();
                    }
                }
            }
            // The acceptor may hand it to another stream of this kind, which has its own lock.
            drop(state);
            for (target, stream, begun) in opened {
                if let Err(error) = self.forward(begun) {
                    return Some(error.to_string());
                }
                accept(target, stream);
            }
        }
    }

    /// From a channel's socket to the stream.
    fn send_all(&self, channel: u32, mut from: UnixStream) {
        let mut buffer = vec![0; MUX_BODY];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let Some((frame, taken)) = self.take(channel, rest) else { return };
                if self.write(&frame).is_err() {
                    return;
                }
                rest = rest.get(taken..).unwrap_or_default();
            }
        }
        self.close(channel);
    }

    /// Waits for room; `None` when the channel has ended.
    fn take(&self, channel: u32, bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
        let mut state = self.lock();
        while !state.ended && state.core.room(channel)? == 0 {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended {
            return None;
        }
        state.core.send(channel, bytes)
    }

    fn close(&self, channel: u32) {
        let mut state = self.lock();
        let local = state.channels.remove(&channel);
        let frame = state.core.close(channel);
        drop(state);
        self.room.notify_all();
        if let Some(frame) = frame {
            // The stream's end is noticed by its reader.
            let _ = self.write(&frame);
        }
        if let Some(local) = local {
            let _ = local.stream.shutdown(Shutdown::Both);
        }
    }

    /// From the stream to a channel's socket.
    fn deliver_all(&self, channel: u32, mut to: UnixStream, queue: &Receiver<Vec<u8>>) {
        while let Ok(bytes) = queue.recv() {
            if to.write_all(&bytes).is_err() {
                self.close(channel);
                return;
            }
            let window = self.lock().core.consumed(channel, bytes.len());
            if window.is_some_and(|frame| self.write(&frame).is_err()) {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}
