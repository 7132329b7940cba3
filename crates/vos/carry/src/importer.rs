//! Away's interface: the local stand-ins for the descriptors of a placed program.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dvs_sys::error::SysError;
use dvs_sys::pipe::{self, PipeFlags};
use dvs_sys::{descriptor, terminal};

use crate::core::MAX_WINDOW;
use crate::description::SharedDescription;
use crate::descriptor::{Carried, CarriedDescriptor, Local, LocalDescriptor, MAX_DESCRIPTORS};
use crate::engine::{Engine, OpenFile, window_size};
use crate::messages::{ProgramKey, StreamId, TerminalAttributes, TerminalSize};
use crate::transport::AttachRequest;

/// Status flags that a home may ask for.
const ALLOWED_FLAGS: i32 = libc::O_NONBLOCK;

/// A program's descriptors could not be made here; it goes on at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// More than the limits allow, here or in the message.
    #[error("too many descriptors or streams")]
    TooMany,
    /// The message contradicts itself.
    #[error("descriptor {0} makes no sense")]
    Malformed(i32),
    /// A system call failed.
    #[error("descriptor {number} could not be made: {error}")]
    Failed {
        /// Its number in the program.
        number: i32,
        /// What failed.
        error: SysError,
    },
}

impl ImportError {
    /// The errno that says the same.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            ImportError::TooMany => libc::EMFILE,
            ImportError::Malformed(_) => libc::EPROTO,
            ImportError::Failed { error, .. } => error.errno,
        }
    }
}

/// Away's side of a carrier; clones are the same one.
#[derive(Debug, Clone)]
pub struct Importer {
    engine: Arc<Engine>,
}

/// One end for the program, the other for the engine.
enum Made {
    Ready(Local),
    File { local: Local, shared: Arc<SharedDescription> },
    Output { stream: StreamId, ours: OwnedFd, theirs: OwnedFd, credit: u64, terminal: bool },
    Input { stream: StreamId, ours: OwnedFd, theirs: OwnedFd },
}

impl Importer {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Importer { engine }
    }

    /// Makes the descriptors of a program of node `from`, which must be its home.
    ///
    /// The caller gives them to the launcher and closes its own copies as soon as the program has
    /// them. Everything or nothing.
    pub fn import(
        &self,
        from: u16,
        program: ProgramKey,
        descriptors: Vec<CarriedDescriptor>,
    ) -> Result<Vec<LocalDescriptor>, ImportError> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(ImportError::TooMany);
        }
        if program.home != from {
            return Err(ImportError::Malformed(-1));
        }
        let mut made: Vec<(i32, Made)> = Vec::with_capacity(descriptors.len());
        let mut files = Vec::new();
        for CarriedDescriptor { number, what } in descriptors {
            let known = |wanted: i32| made.iter().any(|(number, _)| *number == wanted);
            if number < 0 || known(number) {
                return Err(ImportError::Malformed(number));
            }
            let one = match what {
                Carried::DuplicateOf(other) if known(other) => {
                    Made::Ready(Local::DuplicateOf(other))
                }
                Carried::DuplicateOf(_) => return Err(ImportError::Malformed(number)),
                what => {
                    self.make(from, what).map_err(|error| ImportError::Failed { number, error })?
                }
            };
            let one = match one {
                Made::File { local, shared } => {
                    files.push(OpenFile::new(number, &shared));
                    Made::Ready(local)
                }
                one => one,
            };
            made.push((number, one));
        }
        self.start(from, program, made, files)
    }

    /// Makes one, without anything that outlives an error.
    fn make(&self, from: u16, what: Carried) -> Result<Made, SysError> {
        match what {
            // Taken care of by the caller.
            Carried::DuplicateOf(_) => Err(SysError::new("import", libc::EINVAL)),
            Carried::Output { stream, flags, credit, owner } => {
                let (ours, theirs) = pipe::pair(PipeFlags { nonblocking: false, packet: true })?;
                self.prepare(&ours, &theirs, flags, owner)?;
                Ok(match stream {
                    Some(stream) => {
                        let credit = credit.min(MAX_WINDOW);
                        Made::Output { stream, ours, theirs, credit, terminal: false }
                    }
                    // Nobody reads at home: the read end is closed here.
                    None => Made::Ready(Local::Fd(theirs)),
                })
            }
            Carried::Input { stream, flags, owner } => {
                let (theirs, ours) = pipe::pair(PipeFlags::default())?;
                self.prepare(&ours, &theirs, flags, owner)?;
                Ok(match stream {
                    Some(stream) => Made::Input { stream, ours, theirs },
                    None => Made::Ready(Local::Fd(theirs)),
                })
            }
            Carried::Terminal { stream, flags, credit, owner, attributes, size } => {
                let (ours, theirs) = self.make_terminal(&attributes, size, flags)?;
                self.prepare(&ours, &theirs, flags, owner)?;
                let credit = credit.min(MAX_WINDOW);
                Ok(Made::Output { stream, ours, theirs, credit, terminal: true })
            }
            Carried::Description { description, flags, position, attributes, inode, path } => {
                let engine = self.engine.weak();
                let shared = Arc::new(SharedDescription::new(engine, from, description, position));
                let description = Arc::clone(&shared);
                let path = self
                    .engine
                    .attacher
                    .attach(AttachRequest { description, attributes, inode, flags, position, path })
                    .map_err(|errno| SysError::new("attach", errno))?;
                let flags = reopened(flags);
                Ok(Made::File {
                    local: Local::Open { path, flags, offset: Some(position) },
                    shared,
                })
            }
            Carried::Path { path, flags, offset } => {
                Ok(Made::Ready(Local::Open { path, flags: reopened(flags), offset }))
            }
        }
    }

    /// A terminal that hands output through unchanged (the one at home processes it) and looks, in
    /// everything that does not change output, like the one at home.
    fn make_terminal(
        &self,
        attributes: &TerminalAttributes,
        size: TerminalSize,
        flags: u32,
    ) -> Result<(OwnedFd, OwnedFd), SysError> {
        let (master, slave) = terminal::open_pair(&self.engine.config.multiplexer)?;
        let wanted = terminal::Attributes {
            input: attributes.input,
            output: attributes.output & !libc::OPOST,
            control: attributes.control,
            local: attributes.local & !(libc::ECHO | libc::ECHONL | libc::ISIG),
            line: 0,
            characters: attributes.characters,
        };
        terminal::set_attributes(&slave, &wanted)?;
        terminal::set_window_size(&slave, window_size(size))?;
        let access = flags.cast_signed() & libc::O_ACCMODE;
        let slave = if access == libc::O_RDWR { slave } else { pipe::reopen(&slave, access)? };
        Ok((master, slave))
    }

    fn prepare(
        &self,
        ours: &OwnedFd,
        theirs: &OwnedFd,
        flags: u32,
        owner: (u32, u32),
    ) -> Result<(), SysError> {
        descriptor::set_nonblocking(ours.as_fd(), true)?;
        if flags.cast_signed() & ALLOWED_FLAGS != 0 {
            descriptor::set_nonblocking(theirs.as_fd(), true)?;
        }
        let config = &self.engine.config;
        if let (Some(uid), Some(gid)) = (config.uids.outside(owner.0), config.gids.outside(owner.1))
        {
            // So that `/dev/stdout` opens. Without the right to do it the owner is this node's user,
            // which is the only one that a container without subordinate ids has.
            let _ = pipe::change_owner(theirs, uid, gid);
        }
        Ok(())
    }

    fn start(
        &self,
        from: u16,
        program: ProgramKey,
        made: Vec<(i32, Made)>,
        files: Vec<OpenFile>,
    ) -> Result<Vec<LocalDescriptor>, ImportError> {
        let mut files = files;
        self.engine.locked(|state, effects| {
            if !state.away_has_room(made.len()) {
                return Err(ImportError::TooMany);
            }
            let mut locals = Vec::with_capacity(made.len());
            for (number, one) in made {
                let result = match one {
                    Made::Ready(what) | Made::File { local: what, .. } => Ok(what),
                    Made::Output { stream, ours, theirs, credit, terminal } => state
                        .away_output(from, program, stream, ours, credit, terminal)
                        .map(|()| Local::Fd(theirs)),
                    Made::Input { stream, ours, theirs } => state
                        .away_input(from, program, stream, ours, effects)
                        .map(|()| Local::Fd(theirs)),
                };
                match result {
                    Ok(what) => locals.push(LocalDescriptor { number, what }),
                    Err(error) => {
                        state.away_abort(program, effects);
                        return Err(ImportError::Failed { number, error });
                    }
                }
            }
            state.away_files(program, std::mem::take(&mut files));
            Ok(locals)
        })
    }

    /// The program exists and has its descriptors, but does not run yet: `duplicate` gives a copy of
    /// one by its number. Copies of shared files are kept until the program's end, which shows where
    /// it left their offsets. False: one could not be had, and the program should not run here.
    #[must_use]
    pub fn body_ready(
        &self,
        program: ProgramKey,
        duplicate: impl Fn(i32) -> Option<OwnedFd>,
    ) -> bool {
        let numbers = self.engine.locked(|state, _| state.away_file_numbers(program));
        numbers.into_iter().all(|number| {
            duplicate(number).is_some_and(|open| {
                self.engine.locked(|state, effects| {
                    state.away_file_open(program, number, open, effects);
                });
                true
            })
        })
    }

    /// The body has ended and its descriptors are closed (its exit was reported): sends what it wrote
    /// and says what it read. Home's drain ends with it. `sent` is called, by whatever thread and
    /// perhaps before this returns, when all of it is on its way (or the home is gone); it must not
    /// block. A body whose output nobody takes waits here, as it would have waited in its last write.
    pub fn body_ended(&self, program: ProgramKey, sent: impl FnOnce() + Send + 'static) {
        self.engine.body_ended(program, Box::new(sent));
    }

    /// The program never ran here: closes everything made for it.
    pub fn abort(&self, program: ProgramKey) {
        self.engine.locked(|state, effects| state.away_abort(program, effects));
    }
}

/// Flags for opening anew: what opening does once must not be done twice.
fn reopened(flags: u32) -> u32 {
    let once = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY;
    (flags & !once.cast_unsigned()) | libc::O_NOCTTY.cast_unsigned()
}
