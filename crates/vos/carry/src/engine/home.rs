//! Home's side: real pipes, terminals and files.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dvs_sys::error::SysError;
use dvs_sys::{pipe, terminal};

use super::files::{Description, Waiting};
use super::{Effects, IN, ONCE, OUT, State, Watched, room};
use crate::core::{InputSender, OutputReceiver};
use crate::messages::{
    CarryMessage, DescriptionId, MAX_STREAM_DATA, ProgramKey, StreamId, TerminalSize,
};

/// Bytes that a terminal is trusted to take soon once it is writable.
const TERMINAL_ROOM: usize = 16 << 10;

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainOutcome {
    /// All that the body wrote is in home's pipes and terminals, or nobody reads it.
    Drained,
    /// The other node is gone: what had arrived is written.
    Lost,
}

/// Called when a drain ends.
pub(crate) type Done = Box<dyn FnOnce(DrainOutcome) + Send>;

enum Kind {
    Output { core: OutputReceiver, terminal: bool },
    Input { core: InputSender, pipe: (u64, u64) },
}

pub(crate) struct Stream {
    to: u16,
    program: ProgramKey,
    fd: OwnedFd,
    key: u64,
    /// What `fd` is watched for.
    events: u32,
    kind: Kind,
}

#[derive(Default)]
pub(super) struct Placed {
    pub(super) to: u16,
    streams: Vec<StreamId>,
    pub(super) descriptions: Vec<DescriptionId>,
    /// The other side has sent everything; how far each stream must be written.
    marks: Option<Vec<(StreamId, u64)>>,
    /// Offsets that are being set (see `offsets`).
    pub(super) moving: usize,
    lost: bool,
    done: Option<Done>,
}

/// Tables of home's side.
#[derive(Default)]
pub(super) struct Home {
    pub(super) streams: HashMap<StreamId, Stream>,
    pub(super) descriptions: HashMap<DescriptionId, Description>,
    /// Pipes whose read end is carried, by device and inode.
    readers: HashSet<(u64, u64)>,
    pub(super) programs: HashMap<ProgramKey, Placed>,
    /// Programs whose output is held back, and how many times.
    held: HashMap<ProgramKey, u32>,
    /// Locks that a thread waits for, by asker and request.
    pub(super) waiting_locks: HashMap<(u16, u64), Waiting>,
    next: u64,
}

impl Home {
    /// Numbers of this node alone: of two nodes that place programs on each other each numbers its own
    /// streams, and a message about one must not be taken for one about the other's.
    pub(super) fn new(node: u16) -> Self {
        Home { next: u64::from(node) << 48, ..Home::default() }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn placed(&mut self, program: ProgramKey, to: u16) -> &mut Placed {
        let placed = self.programs.entry(program).or_default();
        placed.to = to;
        placed
    }
}

impl State {
    /// Whether the read end of this pipe is carried already.
    pub(crate) fn reads(&self, pipe: (u64, u64)) -> bool {
        self.home.readers.contains(&pipe)
    }

    /// Whether the node's tables have room for one program's descriptors.
    pub(crate) fn home_has_room(&self, descriptors: usize) -> bool {
        !self.stopped
            && self.streams() + descriptors <= super::MAX_STREAMS
            && self.home.descriptions.len() + descriptors <= super::MAX_DESCRIPTIONS
    }

    /// Starts an output stream into `fd`, non-blocking and our own: its number and first credit.
    pub(crate) fn home_output(
        &mut self,
        to: u16,
        program: ProgramKey,
        fd: OwnedFd,
        terminal: bool,
    ) -> Result<(StreamId, u64), SysError> {
        let free = if terminal { TERMINAL_ROOM } else { room(&fd).unwrap_or(0) };
        let core = OutputReceiver::new(free);
        let credit = core.granted();
        let events = if core.wants_writable() { OUT } else { 0 };
        let stream = StreamId(self.home.number());
        let key = self.watch(&fd, events, Watched::Home(stream))?;
        let kind = Kind::Output { core, terminal };
        self.home.streams.insert(stream, Stream { to, program, fd, key, events, kind });
        self.home.placed(program, to).streams.push(stream);
        Ok((stream, credit))
    }

    /// Starts an input stream from `fd`, non-blocking and our own.
    pub(crate) fn home_input(
        &mut self,
        to: u16,
        program: ProgramKey,
        fd: OwnedFd,
        pipe: (u64, u64),
    ) -> Result<StreamId, SysError> {
        let stream = StreamId(self.home.number());
        let key = self.watch(&fd, ONCE, Watched::Home(stream))?;
        let kind = Kind::Input { core: InputSender::new(), pipe };
        self.home.readers.insert(pipe);
        self.home.streams.insert(stream, Stream { to, program, fd, key, events: ONCE, kind });
        self.home.placed(program, to).streams.push(stream);
        Ok(stream)
    }

    /// Keeps a description for the other side.
    pub(crate) fn home_description(
        &mut self,
        to: u16,
        program: ProgramKey,
        fd: OwnedFd,
    ) -> DescriptionId {
        let number = DescriptionId(self.home.number());
        self.home.descriptions.insert(
            number,
            Description { to, file: Arc::new(File::from(fd)), lock: Arc::default() },
        );
        self.home.placed(program, to).descriptions.push(number);
        number
    }

    pub(super) fn home_knows_output(&self, from: u16, stream: StreamId) -> bool {
        self.home
            .streams
            .get(&stream)
            .is_some_and(|found| found.to == from && matches!(found.kind, Kind::Output { .. }))
    }

    pub(super) fn home_knows_input(&self, from: u16, stream: StreamId) -> bool {
        self.home
            .streams
            .get(&stream)
            .is_some_and(|found| found.to == from && matches!(found.kind, Kind::Input { .. }))
    }

    fn own(&mut self, from: u16, stream: StreamId) -> Option<&mut Stream> {
        self.home.streams.get_mut(&stream).filter(|found| found.to == from)
    }

    fn home_remove(&mut self, stream: StreamId) {
        if let Some(removed) = self.home.streams.remove(&stream) {
            self.watched.remove(&removed.key);
            let _ = self.epoll.remove(&removed.fd);
            if let Kind::Input { pipe, .. } = removed.kind {
                self.home.readers.remove(&pipe);
            }
        }
    }

    pub(super) fn home_ready(&mut self, from: u16, stream: StreamId, effects: &mut Effects) {
        if let Some(Stream { kind: Kind::Input { core, .. }, .. }) = self.own(from, stream) {
            core.ready();
            self.home_pump(stream, effects);
        }
    }

    pub(super) fn home_data(
        &mut self,
        from: u16,
        stream: StreamId,
        records: Vec<u16>,
        bytes: Vec<u8>,
        effects: &mut Effects,
    ) {
        let Some(Stream { kind: Kind::Output { core, .. }, .. }) = self.own(from, stream) else {
            return;
        };
        if core.data(records, bytes).is_err() {
            self.home_output_broken(stream, effects);
        } else {
            self.home_pump(stream, effects);
        }
    }

    pub(super) fn home_end(&mut self, from: u16, stream: StreamId, effects: &mut Effects) {
        if let Some(Stream { kind: Kind::Output { core, .. }, .. }) = self.own(from, stream) {
            core.end();
            self.home_pump(stream, effects);
        }
    }

    /// The body's side has no reader any more: so has the pipe here, and its writer gets EPIPE.
    pub(super) fn home_broken(&mut self, from: u16, stream: StreamId, consumed: u64) {
        if let Some(Stream { kind: Kind::Input { core, .. }, fd, .. }) = self.own(from, stream) {
            if let Ok(more) = core.consumed(consumed) {
                discard(fd, more);
            }
            self.home_remove(stream);
        }
    }

    pub(super) fn home_consumed(
        &mut self,
        from: u16,
        stream: StreamId,
        total: u64,
        effects: &mut Effects,
    ) {
        let Some(Stream { kind: Kind::Input { core, .. }, fd, .. }) = self.own(from, stream) else {
            return;
        };
        if let Ok(more) = core.consumed(total) {
            discard(fd, more);
            self.home_pump(stream, effects);
        } else {
            self.home_remove(stream);
        }
    }

    /// A watched descriptor has something to say.
    pub(super) fn home_happened(&mut self, stream: StreamId, events: u32, effects: &mut Effects) {
        let ends = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        if self
            .home
            .streams
            .get(&stream)
            .is_some_and(|found| events & ends != 0 && matches!(found.kind, Kind::Output { .. }))
        {
            self.home_output_broken(stream, effects);
        } else {
            self.home_pump(stream, effects);
        }
    }

    /// Moves what can be moved for one stream.
    fn home_pump(&mut self, stream: StreamId, effects: &mut Effects) {
        match self.home.streams.get(&stream).map(|found| &found.kind) {
            Some(Kind::Output { .. }) => self.home_pump_output(stream, effects),
            Some(Kind::Input { .. }) => self.home_pump_input(stream, effects),
            None => {}
        }
    }

    fn home_pump_output(&mut self, stream: StreamId, effects: &mut Effects) {
        let Some(found) = self.home.streams.get_mut(&stream) else { return };
        if self.home.held.contains_key(&found.program) {
            if found.events != 0 {
                found.events = 0;
                let _ = self.epoll.modify(&found.fd, 0, found.key);
            }
            return;
        }
        let Kind::Output { core, terminal } = &mut found.kind else { return };
        let mut broken = false;
        loop {
            // Looked at only where it matters: what seems to be one large write.
            let free = if core.is_large() && !*terminal { room(&found.fd).unwrap_or(0) } else { 0 };
            let Some(bytes) = core.next(free) else { break };
            match pipe::write(&found.fd, bytes) {
                Ok(length) => core.wrote(length),
                Err(error) if error.errno == libc::EAGAIN => break,
                Err(error) if error.errno == libc::EINTR => {}
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        let free = if !core.wants_room() {
            Some(0)
        } else if *terminal {
            Some(if core.next(0).is_none() { TERMINAL_ROOM } else { 0 })
        } else {
            room(&found.fd)
        };
        let Some(free) = free.filter(|_| !broken) else {
            self.home_output_broken(stream, effects);
            return;
        };
        if free > 0
            && let Some(total) = core.room(free)
        {
            effects.post(found.to, CarryMessage::StreamCredit { stream, total });
        }
        let program = found.program;
        let events = if core.wants_writable() { OUT } else { 0 };
        if core.finished() {
            self.home_remove(stream);
        } else if events != found.events {
            found.events = events;
            let _ = self.epoll.modify(&found.fd, events, found.key);
        }
        self.home_check_drain(program, effects);
    }

    /// Nothing that the program writes, nor its end, gets into a pipe here until the same number of
    /// [`State::home_release`].
    pub(crate) fn home_hold(&mut self, program: ProgramKey) {
        *self.home.held.entry(program).or_default() += 1;
    }

    pub(crate) fn home_release(&mut self, program: ProgramKey, effects: &mut Effects) {
        let Some(count) = self.home.held.get_mut(&program) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.home.held.remove(&program);
        let streams: Vec<StreamId> = self
            .home
            .streams
            .iter()
            .filter(|(_, found)| found.program == program)
            .map(|(stream, _)| *stream)
            .collect();
        for stream in streams {
            if let Some(Kind::Output { .. }) =
                self.home.streams.get(&stream).map(|found| &found.kind)
            {
                self.home_pump_output(stream, effects);
            }
        }
    }

    /// Nobody reads the real pipe any more.
    fn home_output_broken(&mut self, stream: StreamId, effects: &mut Effects) {
        let Some(found) = self.home.streams.get(&stream) else { return };
        let (to, program) = (found.to, found.program);
        effects.post(to, CarryMessage::StreamBroken { stream, consumed: 0 });
        self.home_remove(stream);
        self.home_check_drain(program, effects);
    }

    fn home_pump_input(&mut self, stream: StreamId, effects: &mut Effects) {
        let Some(found) = self.home.streams.get_mut(&stream) else { return };
        let Kind::Input { core, .. } = &mut found.kind else { return };
        let skip = core.outstanding();
        let wanted = core.wanted();
        if wanted == 0 {
            return;
        }
        match pipe::tee(&found.fd, &self.scratch.1, skip + wanted) {
            Ok(0) => {
                if core.end() {
                    effects.post(found.to, CarryMessage::StreamEnd { stream });
                    self.home_remove(stream);
                    return;
                }
            }
            Ok(length) => {
                let mut filled = 0;
                while filled < length {
                    let Some(space) = self.buffer.get_mut(filled..length) else { break };
                    match pipe::read(&self.scratch.0, space) {
                        Ok(0) | Err(_) => break,
                        Ok(count) => filled += count,
                    }
                }
                // Nothing behind what is outstanding: the next report of the body looks again.
                let fresh = self.buffer.get(skip..filled).unwrap_or_default();
                for bytes in fresh.chunks(MAX_STREAM_DATA) {
                    core.sent(bytes.len());
                    let (records, bytes) = (Vec::new(), bytes.to_vec());
                    effects.post(found.to, CarryMessage::StreamData { stream, records, bytes });
                }
            }
            // EAGAIN: empty.
            Err(_) => {}
        }
        if core.wants_readable() {
            let _ = self.epoll.modify(&found.fd, IN | ONCE, found.key);
        }
    }

    /// The other side has sent all that the body wrote.
    pub(super) fn home_drained(&mut self, from: u16, program: ProgramKey, effects: &mut Effects) {
        let Some(placed) = self.home.programs.get_mut(&program) else { return };
        if placed.to != from || placed.marks.is_some() {
            return;
        }
        let marks = placed
            .streams
            .iter()
            .filter_map(|id| match &self.home.streams.get(id)?.kind {
                Kind::Output { core, .. } => Some((*id, core.mark())),
                Kind::Input { .. } => None,
            })
            .collect();
        placed.marks = Some(marks);
        self.home_check_drain(program, effects);
    }

    pub(super) fn home_check_drain(&mut self, program: ProgramKey, effects: &mut Effects) {
        let Some(placed) = self.home.programs.get_mut(&program) else { return };
        let Some(marks) = &mut placed.marks else { return };
        marks.retain(|(id, mark)| match self.home.streams.get(id).map(|found| &found.kind) {
            Some(Kind::Output { core, .. }) => !core.passed(*mark),
            _ => false,
        });
        if marks.is_empty()
            && placed.moving == 0
            && let Some(done) = placed.done.take()
        {
            let outcome = if placed.lost { DrainOutcome::Lost } else { DrainOutcome::Drained };
            self.home.programs.remove(&program);
            effects.callbacks.push(Box::new(move || done(outcome)));
        }
    }

    /// Calls `done` once all output of the ended body is written.
    pub(crate) fn home_drain(&mut self, program: ProgramKey, done: Done, effects: &mut Effects) {
        match self.home.programs.get_mut(&program) {
            Some(placed) if !placed.streams.is_empty() || !placed.descriptions.is_empty() => {
                placed.done = Some(done);
                self.home_check_drain(program, effects);
            }
            _ => {
                self.home.programs.remove(&program);
                effects.callbacks.push(Box::new(move || done(DrainOutcome::Drained)));
            }
        }
    }

    /// The placement did not happen: nothing of it stays.
    pub(crate) fn home_abort(&mut self, program: ProgramKey, effects: &mut Effects) {
        if let Some(placed) = self.home.programs.remove(&program) {
            for stream in placed.streams {
                self.home_remove(stream);
            }
            for description in placed.descriptions {
                effects.close(self.home.descriptions.remove(&description));
            }
        }
    }

    /// Nobody will drain this program; its streams live as long as somebody away uses them.
    pub(crate) fn home_finished(&mut self, program: ProgramKey) {
        self.home.programs.remove(&program);
    }

    /// Tells the other side the size of the program's terminals.
    pub(crate) fn home_resized(&mut self, program: ProgramKey, effects: &mut Effects) {
        let Some(placed) = self.home.programs.get(&program) else { return };
        for stream in &placed.streams {
            let Some(found) = self.home.streams.get(stream) else { continue };
            if let Kind::Output { terminal: true, .. } = found.kind
                && let Ok(size) = terminal::window_size(&found.fd)
            {
                let size = terminal_size(size);
                effects.post(found.to, CarryMessage::TerminalResized { stream: *stream, size });
            }
        }
    }

    pub(super) fn home_node_gone(&mut self, node: u16, effects: &mut Effects) {
        let (gone, kept) = std::mem::take(&mut self.home.descriptions)
            .into_iter()
            .partition(|(_, description)| description.to == node);
        self.home.descriptions = kept;
        effects.close::<HashMap<_, _>>(gone);
        let streams: Vec<StreamId> = self
            .home
            .streams
            .iter()
            .filter(|(_, found)| found.to == node)
            .map(|(stream, _)| *stream)
            .collect();
        let programs: Vec<ProgramKey> = self
            .home
            .programs
            .iter()
            .filter(|(_, placed)| placed.to == node)
            .map(|(program, _)| *program)
            .collect();
        for program in programs {
            if let Some(placed) = self.home.programs.get_mut(&program) {
                placed.lost = true;
            }
            self.home_drained(node, program, effects);
        }
        for stream in streams {
            match self.home.streams.get_mut(&stream).map(|found| &mut found.kind) {
                Some(Kind::Output { core, .. }) => {
                    core.end();
                    self.home_pump(stream, effects);
                }
                // What the body had not read is still in the pipe.
                _ => self.home_remove(stream),
            }
        }
    }

    pub(super) fn home_stop(&mut self, effects: &mut Effects) {
        let Home { programs, descriptions, .. } = std::mem::take(&mut self.home);
        effects.close(descriptions);
        for placed in programs.into_values() {
            if let Some(done) = placed.done {
                effects.callbacks.push(Box::new(move || done(DrainOutcome::Lost)));
            }
        }
    }
}

pub(crate) fn terminal_size(size: terminal::WindowSize) -> TerminalSize {
    TerminalSize { rows: size.rows, columns: size.columns, width: size.width, height: size.height }
}

/// Takes bytes out of a pipe: those that the body has read.
fn discard(fd: &OwnedFd, mut length: usize) {
    let mut buffer = [0; 16384];
    while length > 0 {
        let most = length.min(buffer.len());
        let Some(space) = buffer.get_mut(..most) else { return };
        match pipe::read(fd, space) {
            Err(error) if error.errno == libc::EINTR => {}
            // Less than what was copied: another reader at home took it.
            Ok(0) | Err(_) => return,
            Ok(count) => length -= count,
        }
    }
}
