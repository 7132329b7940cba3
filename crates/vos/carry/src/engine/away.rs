//! Away's side: the local pipes and terminals that stand in for those at home.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use dvs_sys::error::SysError;
use dvs_sys::pipe::{self, PAGE};
use dvs_sys::terminal;

use super::fifos::Over;
use super::offsets::OpenFile;
use super::{Effects, IN, ONCE, OUT, State, Watched, no_reader};
use crate::core::{InputFeeder, MAX_SLOTS, OutputSender, layout};
use crate::messages::{
    CarryMessage, MAX_RECORD, MAX_RECORDS, MAX_STREAM_DATA, ProgramKey, StreamId, TerminalSize,
};

enum Kind {
    Output {
        core: OutputSender,
        source: Source,
        /// Slots of the local pipe now.
        slots: usize,
        /// How far the stream must be sent before its program counts as drained.
        mark: Option<u64>,
    },
    Input {
        core: InputFeeder,
        /// Slots of the local pipe now.
        slots: usize,
    },
}

/// What an output stream is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A pipe of ours in packet mode: each write is a record.
    Pipe,
    /// The master of a terminal.
    Terminal,
    /// The writers' end of a FIFO: a pipe whose size is its writers' affair, and whose buffers are
    /// the records.
    Fifo,
}

pub(super) struct Stream {
    program: ProgramKey,
    fd: OwnedFd,
    key: u64,
    kind: Kind,
    over: Option<Over>,
}

/// The number of a stream among all homes.
type Name = (u16, StreamId);

/// Called when all that a body wrote is on its way.
pub(crate) type Sent = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Body {
    streams: Vec<Name>,
    /// Its shared files.
    pub(super) files: Vec<OpenFile>,
    /// The body has ended; whom to tell that what it wrote has been sent.
    ended: Option<Sent>,
}

/// Tables of away's side.
#[derive(Default)]
pub(super) struct Away {
    pub(super) streams: HashMap<Name, Stream>,
    pub(super) bodies: HashMap<ProgramKey, Body>,
}

impl State {
    /// Whether the node's tables have room for one program's descriptors.
    pub(crate) fn away_has_room(&self, descriptors: usize) -> bool {
        !self.stopped && self.streams() + descriptors <= super::MAX_STREAMS
    }

    /// Starts to empty a local pipe or terminal's master, non-blocking.
    pub(crate) fn away_output(
        &mut self,
        home: u16,
        program: ProgramKey,
        stream: StreamId,
        fd: OwnedFd,
        credit: u64,
        terminal: bool,
    ) -> Result<(), SysError> {
        let core = OutputSender::new(credit);
        let slots = core.slots();
        if !terminal {
            pipe::set_capacity(&fd, slots * PAGE)?;
        }
        let key = self.watch(&fd, IN | ONCE, Watched::Away(home, stream))?;
        let source = if terminal { Source::Terminal } else { Source::Pipe };
        let kind = Kind::Output { core, source, slots, mark: None };
        self.away_insert((home, stream), Stream { program, fd, key, kind, over: None });
        Ok(())
    }

    /// Starts to empty the writers' end of a FIFO, non-blocking; `over` is called when that ends.
    pub(super) fn away_fifo(
        &mut self,
        home: u16,
        program: ProgramKey,
        stream: StreamId,
        fd: OwnedFd,
        credit: u64,
        over: Over,
    ) -> Result<(), SysError> {
        let key = self.watch(&fd, IN | ONCE, Watched::Away(home, stream))?;
        let (core, source) = (OutputSender::new(credit), Source::Fifo);
        let kind = Kind::Output { core, source, slots: MAX_SLOTS, mark: None };
        let over = Some(over);
        self.away_remove((home, stream));
        self.away.streams.insert((home, stream), Stream { program, fd, key, kind, over });
        Ok(())
    }

    /// Starts to fill a local pipe, non-blocking.
    pub(crate) fn away_input(
        &mut self,
        home: u16,
        program: ProgramKey,
        stream: StreamId,
        fd: OwnedFd,
        effects: &mut Effects,
    ) -> Result<(), SysError> {
        let key = self.watch(&fd, 0, Watched::Away(home, stream))?;
        let slots = pipe::capacity(&fd)? / PAGE;
        let kind = Kind::Input { core: InputFeeder::new(), slots };
        self.away_insert((home, stream), Stream { program, fd, key, kind, over: None });
        effects.post(home, CarryMessage::StreamReady { stream });
        Ok(())
    }

    fn away_insert(&mut self, name: Name, stream: Stream) {
        self.away_remove(name);
        self.away.bodies.entry(stream.program).or_default().streams.push(name);
        self.away.streams.insert(name, stream);
    }

    fn away_remove(&mut self, name: Name) {
        if let Some(removed) = self.away.streams.remove(&name) {
            self.watched.remove(&removed.key);
            let _ = self.epoll.remove(&removed.fd);
            // Closed before anybody hears of it.
            drop(removed.fd);
            if let Some(over) = removed.over {
                over();
            }
        }
    }

    pub(super) fn away_data(
        &mut self,
        from: u16,
        stream: StreamId,
        bytes: &[u8],
        effects: &mut Effects,
    ) {
        let name = (from, stream);
        let Some(Stream { kind: Kind::Input { core, .. }, .. }) = self.away.streams.get_mut(&name)
        else {
            return;
        };
        if core.data(bytes).is_ok() {
            self.away_pump(from, stream, effects);
        } else {
            self.away_remove(name);
        }
    }

    pub(super) fn away_end(&mut self, from: u16, stream: StreamId, effects: &mut Effects) {
        let name = (from, stream);
        if let Some(Stream { kind: Kind::Input { core, .. }, .. }) =
            self.away.streams.get_mut(&name)
        {
            core.end();
            self.away_pump(from, stream, effects);
        }
    }

    pub(super) fn away_credit(
        &mut self,
        from: u16,
        stream: StreamId,
        total: u64,
        effects: &mut Effects,
    ) {
        let name = (from, stream);
        let Some(Stream { kind: Kind::Output { core, .. }, .. }) = self.away.streams.get_mut(&name)
        else {
            return;
        };
        if core.credit(total).is_ok() {
            self.away_pump(from, stream, effects);
        } else {
            self.away_broken(from, stream, effects);
        }
    }

    /// Nobody reads at home: closing the local read end gives the body SIGPIPE or EPIPE.
    pub(super) fn away_broken(&mut self, from: u16, stream: StreamId, effects: &mut Effects) {
        if let Some(found) = self.away.streams.get(&(from, stream)) {
            let program = found.program;
            self.away_remove((from, stream));
            self.away_check_drain(program, effects);
        }
    }

    pub(super) fn away_resized(&mut self, from: u16, stream: StreamId, size: TerminalSize) {
        if let Some(Stream { kind: Kind::Output { source: Source::Terminal, .. }, fd, .. }) =
            self.away.streams.get(&(from, stream))
        {
            // A terminal that is being closed has no size.
            let _ = terminal::set_window_size(fd, window_size(size));
        }
    }

    /// Moves what can be moved for one stream.
    pub(super) fn away_pump(&mut self, home: u16, stream: StreamId, effects: &mut Effects) {
        let name = (home, stream);
        match self.away.streams.get(&name).map(|found| &found.kind) {
            Some(Kind::Output { .. }) => self.away_pump_output(name, effects),
            Some(Kind::Input { .. }) => self.away_pump_input(name, effects),
            None => {}
        }
    }

    fn away_pump_output(&mut self, name: Name, effects: &mut Effects) {
        let (home, stream) = name;
        // Taken out of the table for the time, since the engine's buffers are needed with it.
        let Some(mut found) = self.away.streams.remove(&name) else { return };
        let Kind::Output { core, source, slots, mark } = &mut found.kind else {
            self.away.streams.insert(name, found);
            return;
        };
        let source = *source;
        let structured = source != Source::Terminal;
        let mut batch = Batch { home, stream, structured, ..Batch::default() };
        let (mut ended, mut emptied) = (false, false);
        while core.may_take() {
            // All at once: the pipe has to shrink before its writer can fill it again.
            let whole = source == Source::Pipe && *slots * PAGE <= core.most();
            let taken = if whole {
                pipe::splice(&found.fd, &self.scratch.1, core.most())
            } else if source == Source::Fifo {
                self.take_buffer(&found.fd)
            } else {
                let Some(space) = self.buffer.get_mut(..MAX_RECORD) else { break };
                pipe::read(&found.fd, space)
            };
            match taken {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(length) if whole => {
                    resize(&found.fd, slots, core.after(length));
                    let mut left = length;
                    while left > 0 {
                        let Some(space) = self.buffer.get_mut(..MAX_RECORD) else { break };
                        let Ok(record) = pipe::read(&self.scratch.0, space) else { break };
                        core.took(record);
                        batch.add(self.buffer.get(..record).unwrap_or_default(), effects);
                        left = left.saturating_sub(record.max(1));
                    }
                }
                Ok(length) => {
                    core.took(length);
                    batch.add(self.buffer.get(..length).unwrap_or_default(), effects);
                }
                Err(error) if error.errno == libc::EINTR => {}
                Err(error) if error.errno == libc::EAGAIN => {
                    emptied = true;
                    break;
                }
                // EIO: the last slave of the terminal is closed.
                Err(_) => {
                    ended = true;
                    break;
                }
            }
        }
        batch.post(effects);
        if source == Source::Pipe {
            resize(&found.fd, slots, core.slots());
        }
        if emptied && source == Source::Terminal && mark.is_some() {
            // A terminal cannot say how much waits in it, but when it has nothing it has nothing.
            *mark = Some(0);
        }
        let program = found.program;
        if ended {
            core.end();
            effects.post(home, CarryMessage::StreamEnd { stream });
        } else if core.may_take() {
            let _ = self.epoll.modify(&found.fd, IN | ONCE, found.key);
        }
        self.away.streams.insert(name, found);
        if ended {
            self.away_remove(name);
        }
        self.away_check_drain(program, effects);
    }

    fn away_pump_input(&mut self, name: Name, effects: &mut Effects) {
        let (home, stream) = name;
        let Some(found) = self.away.streams.get_mut(&name) else { return };
        let Kind::Input { core, slots } = &mut found.kind else { return };
        let broken = no_reader(&found.fd);
        let writable = dvs_sys::poll::one(&found.fd, libc::POLLOUT, Some(Duration::ZERO))
            .is_ok_and(|events| events & libc::POLLOUT != 0);
        // A pipe that is writable is not full: a slot was read, or nothing is in it.
        if !broken && writable {
            if pipe::available(&found.fd).is_ok_and(|left| left > 0)
                && let Ok(reader) = pipe::reopen(&found.fd, libc::O_RDONLY | libc::O_NONBLOCK)
                && let Ok(length) = pipe::read(&reader, &mut self.buffer)
            {
                core.taken_back(self.buffer.get(..length).unwrap_or_default());
            }
            fill(&found.fd, &self.scratch, core, slots);
        }
        let available = pipe::available(&found.fd).unwrap_or(0);
        if let Some(total) = core.look(available)
            && !broken
        {
            effects.post(home, CarryMessage::Consumed { stream, total });
        }
        if broken {
            let consumed = core.total_consumed();
            effects.post(home, CarryMessage::StreamBroken { stream, consumed });
            self.away_remove(name);
        } else if core.finished() {
            self.away_remove(name);
        } else {
            let events = if core.wants_writable() { OUT } else { 0 };
            let _ = self.epoll.modify(&found.fd, events, found.key);
        }
    }

    /// The body has ended (its descriptors are closed): sends all that it wrote, says what it read,
    /// then `Drained`. Children that still hold descriptors keep their streams.
    pub(crate) fn away_body_ended(
        &mut self,
        program: ProgramKey,
        sent: Sent,
        effects: &mut Effects,
    ) {
        let Some(body) = self.away.bodies.get_mut(&program) else {
            effects.callbacks.push(sent);
            return;
        };
        body.ended = Some(sent);
        for name in body.streams.clone() {
            let Some(found) = self.away.streams.get_mut(&name) else { continue };
            match &mut found.kind {
                Kind::Output { core, source, mark, .. } => {
                    let waiting = if *source == Source::Terminal {
                        // Not known: until it is seen empty, or a full terminal's worth has passed.
                        MAX_STREAM_DATA
                    } else {
                        pipe::available(&found.fd).unwrap_or(0)
                    };
                    *mark = Some(core.mark(waiting));
                }
                Kind::Input { .. } => {}
            }
            self.away_pump(name.0, name.1, effects);
            if let Some(Stream { kind: Kind::Input { core, .. }, .. }) =
                self.away.streams.get_mut(&name)
                && let Some(total) = core.report()
            {
                effects.post(name.0, CarryMessage::Consumed { stream: name.1, total });
            }
        }
        self.away_check_drain(program, effects);
    }

    fn away_check_drain(&mut self, program: ProgramKey, effects: &mut Effects) {
        let Some(body) = self.away.bodies.get(&program) else { return };
        if body.ended.is_none() {
            return;
        }
        let drained = body.streams.iter().all(|name| {
            match self.away.streams.get(name).map(|found| &found.kind) {
                Some(Kind::Output { core, mark, .. }) => mark.is_some_and(|mark| core.passed(mark)),
                _ => true,
            }
        });
        if drained {
            effects.post(program.home, CarryMessage::Drained { program });
            let ended = self.away.bodies.remove(&program).and_then(|body| body.ended);
            effects.callbacks.extend(ended);
        }
    }

    pub(super) fn away_stop(&mut self, effects: &mut Effects) {
        for body in std::mem::take(&mut self.away).bodies.into_values() {
            effects.callbacks.extend(body.ended);
            effects.close(body.files);
        }
    }

    /// The program never ran here.
    pub(crate) fn away_abort(&mut self, program: ProgramKey, effects: &mut Effects) {
        if let Some(body) = self.away.bodies.remove(&program) {
            effects.close(body.files);
            for name in body.streams {
                self.away_remove(name);
            }
        }
    }

    pub(super) fn away_node_gone(&mut self, node: u16, effects: &mut Effects) {
        self.away.bodies.retain(|program, body| {
            if program.home == node {
                effects.callbacks.extend(body.ended.take());
                effects.close(std::mem::take(&mut body.files));
            }
            program.home != node
        });
        let names: Vec<Name> =
            self.away.streams.keys().filter(|name| name.0 == node).copied().collect();
        for name in names {
            self.away_remove(name);
        }
    }
}

/// Records on their way into messages.
#[derive(Default)]
struct Batch {
    home: u16,
    stream: StreamId,
    /// Whether the lengths of the records mean anything.
    structured: bool,
    records: Vec<u16>,
    bytes: Vec<u8>,
}

impl Batch {
    fn add(&mut self, record: &[u8], effects: &mut Effects) {
        if self.bytes.len() + record.len() > MAX_STREAM_DATA || self.records.len() >= MAX_RECORDS {
            self.post(effects);
        }
        self.bytes.extend_from_slice(record);
        if self.structured {
            self.records.push(u16::try_from(record.len()).unwrap_or(u16::MAX));
        }
    }

    fn post(&mut self, effects: &mut Effects) {
        if !self.bytes.is_empty() {
            let (stream, records) = (self.stream, std::mem::take(&mut self.records));
            let bytes = std::mem::take(&mut self.bytes);
            effects.post(self.home, CarryMessage::StreamData { stream, records, bytes });
        }
    }
}

/// Gives a local pipe another size, if that is possible now.
fn resize(fd: &OwnedFd, slots: &mut usize, wanted: usize) {
    if *slots != wanted && pipe::set_capacity(fd, wanted * PAGE).is_ok() {
        *slots = wanted;
    }
}

/// Puts as much as possible into an empty local pipe, in one step and so that it is full.
fn fill(fd: &OwnedFd, scratch: &(OwnedFd, OwnedFd), core: &mut InputFeeder, slots: &mut usize) {
    let wanted = layout(core.unfed().len(), MAX_SLOTS).len();
    if wanted == 0 {
        return;
    }
    resize(fd, slots, wanted);
    let writes = layout(core.unfed().len(), *slots);
    if writes.len() < *slots {
        // Could not be made smaller: no event would come from a part of it.
        return;
    }
    let mut length = 0;
    for write in writes {
        let Some(bytes) = core.unfed().get(length..length + write) else { break };
        match pipe::write(&scratch.1, bytes) {
            Ok(count) if count == write => length += write,
            _ => break,
        }
    }
    let moved = pipe::splice(&scratch.0, fd, length).unwrap_or(0);
    core.fed(moved);
    // Nothing is left, unless the kernel moved less; what was not fed stays unfed.
    let mut rest = [0; PAGE];
    while moved < length && pipe::read(&scratch.0, &mut rest).is_ok_and(|count| count > 0) {}
}

pub(crate) fn window_size(size: TerminalSize) -> terminal::WindowSize {
    terminal::WindowSize {
        rows: size.rows,
        columns: size.columns,
        width: size.width,
        height: size.height,
    }
}
