//! Where a program leaves the offsets of its shared files.
//!
//! Reads and writes are done at home, so the shared offset follows them. A seek that no read or write
//! follows is seen by nobody: a program that reads ahead seeks back before it ends (`head`, a shell's
//! `read`), and whoever shares the offset goes on from there. The kernel away keeps an offset of its
//! own for the program's file, which is where the program means to be. So a copy of the descriptor is
//! kept, and when the program has ended and that offset is not the one that its last read or write
//! led to, home sets the shared one to it before the exit may be shown.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use dvs_sys::pipe;

use super::away::Sent;
use super::{Effects, Engine, State};
use crate::description::{SharedDescription, seek_to};
use crate::messages::{CarryMessage, DescriptionId, Position, ProgramKey};

/// How often an offset is looked at anew because another program moves it meanwhile; then it is that
/// program's affair.
const MAX_LOOKS: usize = 8;

/// A shared file of a program that runs here.
pub(crate) struct OpenFile {
    /// Its number in the program.
    number: i32,
    description: DescriptionId,
    /// Not kept alive: whoever closes the last descriptor closes it at home.
    shared: Weak<SharedDescription>,
    /// The program's own open file.
    open: Option<OwnedFd>,
}

impl OpenFile {
    pub(crate) fn new(number: i32, shared: &Arc<SharedDescription>) -> Self {
        let description = shared.description;
        OpenFile { number, description, shared: Arc::downgrade(shared), open: None }
    }

    /// Whether the offset is where the last read or write led to. Waits for nothing.
    fn is_in_place(&self) -> bool {
        let (Some(open), Some(shared)) = (&self.open, self.shared.upgrade()) else { return true };
        let Ok(text) = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", open.as_raw_fd()))
        else {
            return true;
        };
        let position = text.lines().find_map(|line| line.strip_prefix("pos:"));
        position.and_then(|text| text.trim().parse().ok()) == Some(shared.local_offset())
    }

    /// Where it was left, if not where the last read or write led to. The kernel's lock of the offset
    /// is waited for, so that a read of another program (a child) is either over or not begun.
    fn sought(&self) -> Option<u64> {
        let (open, shared) = (self.open.as_ref()?, self.shared.upgrade()?);
        for _ in 0..MAX_LOOKS {
            let before = shared.local_offset();
            let position = pipe::seek(open, 0, libc::SEEK_CUR).ok()?;
            if shared.local_offset() == before {
                return (position != before).then_some(position);
            }
        }
        None
    }
}

impl Engine {
    /// The body has ended: its offsets are settled, then its streams.
    pub(crate) fn body_ended(&self, program: ProgramKey, sent: Sent) {
        let files = self.locked(|state, _| state.away_take_files(program));
        if files.iter().all(OpenFile::is_in_place) {
            self.locked(|state, effects| {
                effects.close(files);
                state.away_body_ended(program, sent, effects);
            });
            return;
        }
        let engine = self.weak();
        self.locked(|_, effects| {
            effects.closing.push(Box::new(move || {
                let moved: Vec<(DescriptionId, u64)> = files
                    .iter()
                    .filter_map(|file| Some((file.description, file.sought()?)))
                    .collect();
                let Some(engine) = engine.upgrade() else { return };
                engine.locked(|state, effects| {
                    for (description, position) in moved {
                        let message =
                            CarryMessage::DescriptionMoved { program, description, position };
                        effects.post(program.home, message);
                    }
                    effects.close(files);
                    state.away_body_ended(program, sent, effects);
                });
            }));
        });
    }
}

impl State {
    /// Notes the shared files of a program.
    pub(crate) fn away_files(&mut self, program: ProgramKey, files: Vec<OpenFile>) {
        if !files.is_empty() {
            self.away.bodies.entry(program).or_default().files = files;
        }
    }

    /// Their numbers in the program.
    pub(crate) fn away_file_numbers(&self, program: ProgramKey) -> Vec<i32> {
        let body = self.away.bodies.get(&program);
        body.map_or_else(Vec::new, |body| body.files.iter().map(|file| file.number).collect())
    }

    /// Keeps the program's own open file.
    pub(crate) fn away_file_open(
        &mut self,
        program: ProgramKey,
        number: i32,
        open: OwnedFd,
        effects: &mut Effects,
    ) {
        let body = self.away.bodies.get_mut(&program);
        let file = body.and_then(|body| body.files.iter_mut().find(|file| file.number == number));
        match file {
            Some(file) => effects.close(file.open.replace(open)),
            None => effects.close(open),
        }
    }

    fn away_take_files(&mut self, program: ProgramKey) -> Vec<OpenFile> {
        let body = self.away.bodies.get_mut(&program);
        body.map_or_else(Vec::new, |body| std::mem::take(&mut body.files))
    }

    /// Home: a program has left a description at another offset.
    pub(super) fn home_description_moved(
        &mut self,
        from: u16,
        program: ProgramKey,
        number: DescriptionId,
        position: u64,
        engine: Weak<Engine>,
        effects: &mut Effects,
    ) {
        let Some(found) = self.home.descriptions.get(&number).filter(|found| found.to == from)
        else {
            return;
        };
        let placed = self.home.programs.get_mut(&program);
        let placed =
            placed.filter(|placed| placed.to == from && placed.descriptions.contains(&number));
        let Some(placed) = placed else { return };
        placed.moving += 1;
        let moving = Moving { engine, program };
        let file = Arc::clone(&found.file);
        effects.closing.push(Box::new(move || {
            // An offset that the file does not allow is not one that the program can have had.
            let _ = seek_to(&file, Position::At(position));
            drop(file);
            drop(moving);
        }));
    }
}

/// An offset that is being set: the program's drain waits for it.
struct Moving {
    engine: Weak<Engine>,
    program: ProgramKey,
}

impl Drop for Moving {
    fn drop(&mut self) {
        let Some(engine) = self.engine.upgrade() else { return };
        engine.locked(|state, effects| {
            if let Some(placed) = state.home.programs.get_mut(&self.program) {
                placed.moving = placed.moving.saturating_sub(1);
            }
            state.home_check_drain(self.program, effects);
        });
    }
}
