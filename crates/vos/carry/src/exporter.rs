//! Home's interface: what becomes of a program's inherited descriptors.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dvs_sys::error::SysError;
use dvs_sys::{pipe, terminal};

use crate::classify::{Class, Examined, access, examine};
use crate::descriptor::{
    Carried, CarriedDescriptor, InheritedDescriptor, Kind, MAX_DESCRIPTORS, Refusal,
};
use crate::engine::{DrainOutcome, Effects, Engine, State, no_reader, terminal_size};
use crate::fifo::FifoEnd;
use crate::messages::{FileAttributes, ProgramKey, TerminalAttributes, TerminalSize};

/// Status flags that a stand-in takes over.
const CARRIED_FLAGS: i32 = libc::O_NONBLOCK;

/// Home's side of a carrier; clones are the same one.
#[derive(Debug, Clone)]
pub struct Exporter {
    engine: Arc<Engine>,
}

impl Exporter {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Exporter { engine }
    }

    /// Takes the descriptors of a program that shall run on node `to`.
    ///
    /// Everything or nothing: with a refusal nothing is kept and the program stays at home. The
    /// duplicates are consumed. Streams begin when the other side has imported them; nothing is taken
    /// out of a pipe before the body reads it.
    pub fn export(
        &self,
        to: u16,
        program: ProgramKey,
        descriptors: Vec<InheritedDescriptor>,
    ) -> Result<Vec<CarriedDescriptor>, Refusal> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(Refusal::TooMany);
        }
        let mut descriptors = descriptors;
        descriptors.sort_by_key(|descriptor| descriptor.number);
        let mut seen = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            let examined = examine(&descriptor.fd, &descriptor.path)
                .map_err(|error| failed(descriptor.number, error))?;
            seen.push(Seen { descriptor, examined, duplicate_of: None });
        }
        find_duplicates(&mut seen);
        // All that may touch a file system is done before the lock, and after it.
        let mut prepared = VecDeque::with_capacity(seen.len());
        for one in seen {
            prepared.push_back((one.descriptor.number, self.prepare(one)?));
        }
        if let Some(number) = may_be_asked(&prepared) {
            return Err(Refusal::TerminalInput { number });
        }
        self.engine.locked(|state, effects| {
            let result = start(state, to, program, &mut prepared);
            if result.is_err() {
                state.home_abort(program, effects);
                effects.close(prepared);
            }
            result
        })
    }

    fn prepare(&self, seen: Seen) -> Result<Prepared, Refusal> {
        if let Some(number) = seen.duplicate_of {
            return Ok(Prepared::Stateless(Carried::DuplicateOf(number)));
        }
        let Seen { descriptor, examined, .. } = seen;
        let Examined { class, flags, attributes, tree_inode } = examined;
        let InheritedDescriptor { number, fd, position, path, .. } = descriptor;
        let kept_flags = (flags & CARRIED_FLAGS).cast_unsigned();
        let attributes = self.engine.config.inside(attributes);
        let owner = (attributes.uid, attributes.gid);
        let failure = |error| failed(number, error);
        let open = |path: Vec<u8>| {
            Prepared::Stateless(Carried::Path { path, flags: flags.cast_unsigned(), offset: None })
        };
        Ok(match class {
            Class::PipeWriter => {
                let own = match own(&fd, libc::O_WRONLY) {
                    Ok(own) => (!no_reader(&own)).then_some(own),
                    // A FIFO that nobody reads.
                    Err(error) if error.errno == libc::ENXIO => None,
                    Err(error) => return Err(failure(error)),
                };
                Prepared::Output { own, flags: kept_flags, owner }
            }
            Class::PipeReader => {
                let own = own(&fd, libc::O_RDONLY).map_err(failure)?;
                if at_end(&own) {
                    let ended = Carried::Input { stream: None, flags: kept_flags, owner };
                    return Ok(Prepared::Stateless(ended));
                }
                if number != 0 {
                    return Err(Refusal::SharedReader { number });
                }
                let pipe = (attributes.device, attributes.inode);
                Prepared::Input { own, pipe, flags: kept_flags, owner }
            }
            Class::FifoWriter => {
                let own = self.fifo(number, tree_inode, FifoEnd::Writers, libc::O_WRONLY)?;
                Prepared::Output { own: Some(own), flags: kept_flags, owner }
            }
            Class::FifoReader if number != 0 => return Err(Refusal::SharedReader { number }),
            Class::FifoReader => {
                let own = self.fifo(number, tree_inode, FifoEnd::Real, libc::O_RDONLY)?;
                let pipe = (attributes.device, attributes.inode);
                Prepared::Input { own, pipe, flags: kept_flags, owner }
            }
            Class::Terminal => {
                let mode = access(flags);
                if mode == libc::O_RDONLY || (number == 0 && mode != libc::O_WRONLY) {
                    return Err(Refusal::TerminalInput { number });
                }
                let settings = terminal::attributes(&fd).map_err(failure)?;
                let size = terminal::window_size(&fd).map_err(failure)?;
                Prepared::Terminal {
                    own: own(&fd, libc::O_WRONLY).map_err(failure)?,
                    flags: flags.cast_unsigned(),
                    owner,
                    attributes: terminal_attributes(&settings),
                    size: terminal_size(size),
                }
            }
            Class::File => {
                let flags = flags.cast_unsigned();
                Prepared::File { fd, flags, position, attributes, inode: tree_inode, path }
            }
            Class::ByPath => open(path),
            Class::Device(device) => open(device.as_bytes().to_vec()),
            Class::Unsupported(kind) => return Err(Refusal::Unsupported { number, kind }),
        })
    }

    /// A description of our own of a FIFO of the tree, which only somebody in the container can open.
    /// One to be written that nobody reads at this moment stays, with its program.
    fn fifo(
        &self,
        number: i32,
        inode: Option<u64>,
        end: FifoEnd,
        mode: i32,
    ) -> Result<OwnedFd, Refusal> {
        let refusal = Refusal::Unsupported { number, kind: Kind::TreeFifo };
        let inode = inode.ok_or(refusal)?;
        self.engine.open_fifo(inode, end, mode | libc::O_NONBLOCK).ok_or(refusal)
    }

    /// The placement did not happen: forgets the program and closes what was kept for it.
    pub fn abort(&self, program: ProgramKey) {
        self.engine.locked(|state, effects| state.home_abort(program, effects));
    }

    /// The body has ended; calls `done` once all that it wrote before is in home's pipes and
    /// terminals (or nobody reads them), and what it read is out of home's pipes. Then its exit may be
    /// shown. `done` may be called before this returns, by whatever thread; it must not block.
    pub fn drain(&self, program: ProgramKey, done: impl FnOnce(DrainOutcome) + Send + 'static) {
        self.engine.locked(|state, effects: &mut Effects| {
            state.home_drain(program, Box::new(done), effects);
        });
    }

    /// Forgets a program that will not be drained. Streams that its children hold go on.
    pub fn finished(&self, program: ProgramKey) {
        self.engine.locked(|state, _| state.home_finished(program));
    }

    /// Holds back what a placed program writes, and its end of file, until [`Exporter::release`] has been
    /// called as often: something else has to be seen first. A terminal or pipe whose reader goes
    /// meanwhile is noticed as ever.
    pub fn hold(&self, program: ProgramKey) {
        self.engine.locked(|state, _| state.home_hold(program));
    }

    /// See [`Exporter::hold`].
    pub fn release(&self, program: ProgramKey) {
        self.engine.locked(|state, effects| state.home_release(program, effects));
    }

    /// The terminal of the program may have another size now (its ghost got SIGWINCH).
    pub fn window_changed(&self, program: ProgramKey) {
        self.engine.locked(|state, effects| state.home_resized(program, effects));
    }
}

struct Seen {
    descriptor: InheritedDescriptor,
    examined: Examined,
    duplicate_of: Option<i32>,
}

/// A descriptor with everything that its stream or description needs.
enum Prepared {
    Stateless(Carried),
    Output {
        own: Option<OwnedFd>,
        flags: u32,
        owner: (u32, u32),
    },
    Input {
        own: OwnedFd,
        pipe: (u64, u64),
        flags: u32,
        owner: (u32, u32),
    },
    Terminal {
        own: OwnedFd,
        flags: u32,
        owner: (u32, u32),
        attributes: TerminalAttributes,
        size: TerminalSize,
    },
    File {
        fd: OwnedFd,
        flags: u32,
        position: u64,
        attributes: FileAttributes,
        inode: Option<u64>,
        path: Vec<u8>,
    },
}

/// A pager reads a pipe and asks its user through the terminal that it writes to. So of the programs
/// whose output is a terminal, those that read a pipe stay at home; a compiler does not, nor do make's
/// jobs, whose pipe is at its end.
fn may_be_asked(prepared: &VecDeque<(i32, Prepared)>) -> Option<i32> {
    if !prepared.iter().any(|(_, one)| matches!(one, Prepared::Input { .. })) {
        return None;
    }
    prepared.iter().find_map(|(number, one)| match one {
        Prepared::Terminal { flags, .. } if access(flags.cast_signed()) != libc::O_WRONLY => {
            Some(*number)
        }
        _ => None,
    })
}

/// Enters what was prepared into the tables. What is left in the list is closed by the caller.
fn start(
    state: &mut State,
    to: u16,
    program: ProgramKey,
    prepared: &mut VecDeque<(i32, Prepared)>,
) -> Result<Vec<CarriedDescriptor>, Refusal> {
    if !state.home_has_room(prepared.len()) {
        return Err(Refusal::TooMany);
    }
    let mut carried = Vec::with_capacity(prepared.len());
    while let Some((number, one)) = prepared.pop_front() {
        let failure = |error| failed(number, error);
        let what = match one {
            Prepared::Stateless(what) => what,
            Prepared::Output { own, flags, owner } => {
                let started = own
                    .map(|own| state.home_output(to, program, own, false))
                    .transpose()
                    .map_err(failure)?;
                let (stream, credit) = started.unzip();
                Carried::Output { stream, flags, credit: credit.unwrap_or(0), owner }
            }
            Prepared::Input { own, pipe, flags, owner } => {
                if state.reads(pipe) {
                    return Err(Refusal::SharedReader { number });
                }
                let stream = state.home_input(to, program, own, pipe).map_err(failure)?;
                Carried::Input { stream: Some(stream), flags, owner }
            }
            Prepared::Terminal { own, flags, owner, attributes, size } => {
                let (stream, credit) =
                    state.home_output(to, program, own, true).map_err(failure)?;
                Carried::Terminal { stream, flags, credit, owner, attributes, size }
            }
            Prepared::File { fd, flags, position, attributes, inode, path } => {
                let description = state.home_description(to, program, fd);
                Carried::Description { description, flags, position, attributes, inode, path }
            }
        };
        carried.push(CarriedDescriptor { number, what });
    }
    Ok(carried)
}

/// Descriptors that share an open file description stay so. The ends of one pipe with the same flags
/// count as shared too: a pipe has no state of its own per description, and one stream keeps the order
/// of what goes through both.
fn find_duplicates(seen: &mut [Seen]) {
    for index in 1..seen.len() {
        let (before, rest) = seen.split_at_mut(index);
        let Some(one) = rest.first_mut() else { continue };
        one.duplicate_of = before
            .iter()
            .filter(|other| other.duplicate_of.is_none())
            .find(|other| same(other, one))
            .map(|other| other.descriptor.number);
    }
}

fn same(left: &Seen, right: &Seen) -> bool {
    const TELLING: i32 = libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND | libc::O_DIRECT;
    let (a, b) = (&left.examined, &right.examined);
    if a.class != b.class
        || (a.flags ^ b.flags) & TELLING != 0
        || (a.attributes.device, a.attributes.inode) != (b.attributes.device, b.attributes.inode)
    {
        return false;
    }
    matches!(a.class, Class::PipeReader | Class::PipeWriter | Class::FifoReader | Class::FifoWriter)
        || pipe::same_description(&left.descriptor.fd, &right.descriptor.fd).unwrap_or(false)
}

/// A description of our own of the same pipe or terminal: its `O_NONBLOCK` is nobody else's.
fn own(fd: &OwnedFd, mode: i32) -> Result<OwnedFd, SysError> {
    pipe::reopen(fd, mode | libc::O_NONBLOCK)
}

/// Whether a pipe is empty and has no writer: then any number of programs may have it.
fn at_end(reader: &OwnedFd) -> bool {
    let events =
        dvs_sys::poll::one(reader, libc::POLLIN, Some(std::time::Duration::ZERO)).unwrap_or(0);
    events & libc::POLLHUP != 0 && events & libc::POLLIN == 0
}

fn failed(number: i32, error: SysError) -> Refusal {
    match error.errno {
        // A pipe of another user, which only its owner may open again.
        libc::EACCES | libc::EPERM => Refusal::Unsupported { number, kind: Kind::Unknown },
        errno => Refusal::Failed { number, errno },
    }
}

fn terminal_attributes(from: &terminal::Attributes) -> TerminalAttributes {
    TerminalAttributes {
        input: from.input,
        output: from.output,
        control: from.control,
        local: from.local,
        line: from.line,
        characters: from.characters,
    }
}
