//! What a detached container's first program has written, kept in its folder: two files, the older one
//! dropped when the newer one is full, so that at most [`MAX_FILE`] twice is kept of the latest.
//!
//! A file is a row of pieces as they were read: stream (1 byte), time (8), length (4), bytes. Followers
//! read from it with a place of their own, so that a slow one holds up nobody; one that is more than a
//! file behind misses what was dropped.

use crate::managing::OutputPiece;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most bytes of one file.
pub(crate) const MAX_FILE: u64 = 4 << 20;
/// Most bytes of one piece.
pub(crate) const MAX_PIECE: usize = 16 << 10;
/// Most bytes read for a follower at a time.
const MAX_READ: u64 = 256 << 10;
/// Stream, time, length.
const HEADER: usize = 13;

/// See the module.
#[derive(Debug)]
pub(crate) struct Output {
    folder: PathBuf,
    state: Mutex<Files>,
    grown: Condvar,
}

#[derive(Debug)]
struct Files {
    current: File,
    length: u64,
    previous: Option<(File, u64)>,
    /// How many files were begun.
    generation: u64,
    /// Bytes that could not be written.
    lost: u64,
    /// How often followers were woken without new output.
    woken: u64,
}

/// A follower's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    generation: u64,
    at: u64,
}

impl Output {
    /// Opens what is in a folder, or begins.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn open(folder: &Path) -> io::Result<Arc<Output>> {
        let current = open(&folder.join("output"))?;
        let length = whole(&current)?;
        // What a crash left half written.
        current.set_len(length)?;
        let previous = match File::open(folder.join("output.1")) {
            Ok(file) => {
                let length = whole(&file)?;
                Some((file, length))
            }
            Err(_) => None,
        };
        let state = Files { current, length, previous, generation: 1, lost: 0, woken: 0 };
        Ok(Arc::new(Output {
            folder: folder.to_owned(),
            state: Mutex::new(state),
            grown: Condvar::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was read. A full disk loses output; it never stops the program.
    pub(crate) fn append(&self, stream: u8, time: i64, bytes: &[u8]) {
        let mut files = self.lock();
        for bytes in bytes.chunks(MAX_PIECE) {
            let mut record = Vec::with_capacity(HEADER + bytes.len());
            record.push(stream);
            record.extend_from_slice(&time.to_le_bytes());
            record.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
            record.extend_from_slice(bytes);
            let written = files.make_room(&self.folder, record.len() as u64).and_then(|()| {
                let at = files.length;
                files.current.write_all_at(&record, at)
            });
            match written {
                Ok(()) => files.length += record.len() as u64,
                Err(error) => {
                    if files.lost == 0 {
                        log::warn!("output is lost: {}: {error}", self.folder.display());
                    }
                    files.lost += bytes.len() as u64;
                }
            }
        }
        drop(files);
        self.grown.notify_all();
    }

    /// Wakes the followers: something about the container has changed.
    pub(crate) fn wake(&self) {
        self.lock().woken += 1;
        self.grown.notify_all();
    }

    /// Where the oldest piece is.
    pub(crate) fn beginning(&self) -> Place {
        let files = self.lock();
        let older = u64::from(files.previous.is_some());
        Place { generation: files.generation - older, at: 0 }
    }

    /// Where the next piece will be.
    pub(crate) fn end(&self) -> Place {
        let files = self.lock();
        Place { generation: files.generation, at: files.length }
    }

    /// Pieces from a place on, as many as are read at a time; moves the place behind them. Waits up to
    /// `patience` for the first; none: none came.
    pub(crate) fn read(&self, place: &mut Place, patience: Duration) -> Vec<OutputPiece> {
        let files = self.lock();
        let before = files.woken;
        let waited = self.grown.wait_timeout_while(files, patience, |files| {
            let nothing = place.generation == files.generation && place.at >= files.length;
            nothing && files.woken == before
        });
        let files = waited.unwrap_or_else(PoisonError::into_inner).0;
        files.read(place)
    }

    /// Everything that is kept, nothing older than `since`, of that the last `tail` lines; and the place
    /// behind it.
    pub(crate) fn all(&self, since: Option<i64>, tail: Option<u64>) -> (Vec<OutputPiece>, Place) {
        let mut place = self.beginning();
        let mut pieces: Vec<OutputPiece> = Vec::new();
        loop {
            let before = place;
            pieces.extend(self.lock().read(&mut place));
            // A program that writes faster than this reads must not hold it for ever.
            if place == before || pieces.len() as u64 > 2 * MAX_FILE / HEADER as u64 {
                break;
            }
        }
        pieces.retain(|piece| since.is_none_or(|since| piece.time >= since));
        if let Some(tail) = tail {
            keep_last(&mut pieces, tail);
        }
        (pieces, place)
    }
}

impl Files {
    /// Begins a new file where the current one is full.
    fn make_room(&mut self, folder: &Path, wanted: u64) -> io::Result<()> {
        if self.length + wanted <= MAX_FILE {
            return Ok(());
        }
        let (name, older) = (folder.join("output"), folder.join("output.1"));
        std::fs::rename(&name, &older)?;
        let full = std::mem::replace(&mut self.current, open(&name)?);
        self.previous = Some((full, self.length));
        self.length = 0;
        self.generation += 1;
        Ok(())
    }

    fn read(&self, place: &mut Place) -> Vec<OutputPiece> {
        loop {
            let older = self.previous.as_ref().filter(|_| place.generation + 1 == self.generation);
            if place.generation != self.generation && older.is_none() {
                // Too far behind.
                let back = u64::from(self.previous.is_some());
                *place = Place { generation: self.generation - back, at: 0 };
                continue;
            }
            let (file, length) =
                older.map_or((&self.current, self.length), |(file, length)| (file, *length));
            let (pieces, end) = pieces(file, place.at, length).unwrap_or_else(|error| {
                log::warn!("reading output: {error}");
                (Vec::new(), length)
            });
            place.at = end;
            if pieces.is_empty() && older.is_some() {
                *place = Place { generation: self.generation, at: 0 };
                continue;
            }
            return pieces;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(path)
}

/// How much of a file is whole pieces.
fn whole(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len().min(MAX_FILE);
    let mut at = 0;
    loop {
        let (found, end) = pieces(file, at, length)?;
        if found.is_empty() {
            return Ok(at);
        }
        at = end;
    }
}

/// Whole pieces of a file from a place on, and the place behind them.
fn pieces(file: &File, at: u64, length: u64) -> io::Result<(Vec<OutputPiece>, u64)> {
    let size = length.saturating_sub(at).min(MAX_READ);
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact_at(&mut buffer, at)?;
    let mut rest = buffer.as_slice();
    let mut found = Vec::new();
    while let Some((piece, behind)) = first_piece(rest) {
        found.push(piece);
        rest = behind;
    }
    Ok((found, at + size - rest.len() as u64))
}

fn first_piece(bytes: &[u8]) -> Option<(OutputPiece, &[u8])> {
    let (stream, rest) = bytes.split_first()?;
    let (time, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let body = rest.get(..length).filter(|_| length <= MAX_PIECE && matches!(stream, 1 | 2))?;
    let piece =
        OutputPiece { stream: *stream, time: i64::from_le_bytes(*time), bytes: body.to_vec() };
    Some((piece, rest.get(length..)?))
}

/// Cuts all but the last lines. An unfinished last line is one, too.
fn keep_last(pieces: &mut Vec<OutputPiece>, lines: u64) {
    let ends_open = pieces.last().is_some_and(|piece| piece.bytes.last() != Some(&b'\n'));
    // So many line ends may be kept; the one before them is where the kept part begins.
    let mut left = lines + u64::from(!ends_open && lines > 0);
    for index in (0..pieces.len()).rev() {
        let Some(piece) = pieces.get_mut(index) else { return };
        for at in (0..piece.bytes.len()).rev() {
            if piece.bytes.get(at) != Some(&b'\n') {
                continue;
            }
            left = left.saturating_sub(1);
            if left == 0 {
                piece.bytes.drain(..=at);
                pieces.drain(..index);
                return;
            }
        }
    }
    if lines == 0 {
        pieces.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn text(pieces: &[OutputPiece]) -> String {
        pieces.iter().map(|piece| String::from_utf8_lossy(&piece.bytes).into_owned()).collect()
    }

    #[test]
    fn output_is_kept_over_a_restart() {
        let folder = scratch();
        let output = Output::open(folder.path()).unwrap();
        output.append(1, 5, b"one\n");
        output.append(2, 6, b"two\n");
        drop(output);
        // Half a piece, as a crash leaves it.
        let path = folder.path().join("output");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&[1, 0, 0]);
        std::fs::write(&path, &bytes).unwrap();
        let output = Output::open(folder.path()).unwrap();
        output.append(1, 7, b"three\n");
        let (all, _) = output.all(None, None);
        assert_eq!(text(&all), "one\ntwo\nthree\n");
        assert_eq!((all[1].stream, all[1].time), (2, 6));
        assert_eq!(text(&output.all(Some(6), None).0), "two\nthree\n");
    }

    #[test]
    fn the_last_lines_are_found() {
        let folder = scratch();
        let output = Output::open(folder.path()).unwrap();
        output.append(1, 1, b"a\nb\nc");
        output.append(1, 2, b"c\nd\n");
        let tail = |lines| text(&output.all(None, Some(lines)).0);
        assert_eq!((tail(0), tail(1), tail(2)), (String::new(), "d\n".into(), "cc\nd\n".into()));
        assert_eq!((tail(4), tail(99)), ("a\nb\ncc\nd\n".into(), "a\nb\ncc\nd\n".into()));
        output.append(1, 3, b"open");
        assert_eq!(text(&output.all(None, Some(2)).0), "d\nopen");
        assert_eq!(text(&output.all(None, Some(1)).0), "open");
    }

    #[test]
    fn what_is_kept_is_bounded_and_followers_are_not_lost() {
        let folder = scratch();
        let output = Output::open(folder.path()).unwrap();
        let mut slow = output.beginning();
        let mut quick = output.beginning();
        let mut followed = 0;
        let line = [b'x'; 1000];
        let count = 3 * MAX_FILE / 1000;
        for number in 0..count {
            output.append(1, i64::try_from(number).unwrap(), &line);
            followed += output.read(&mut quick, Duration::ZERO).len() as u64;
        }
        assert_eq!(followed, count, "one that keeps up misses nothing");
        let size = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size("output") <= MAX_FILE && size("output.1") <= MAX_FILE);
        let first = output.read(&mut slow, Duration::ZERO);
        assert!(first[0].time > 0, "the oldest are dropped");
        let mut last = first.last().unwrap().time;
        loop {
            let more = output.read(&mut slow, Duration::ZERO);
            let Some(piece) = more.last() else { break };
            assert_eq!(more[0].time, last + 1, "no gap");
            last = piece.time;
        }
        assert_eq!(last, i64::try_from(count).unwrap() - 1);
        assert_eq!(slow, output.end());
    }

    #[test]
    fn a_follower_waits() {
        let folder = scratch();
        let output = Output::open(folder.path()).unwrap();
        let mut place = output.end();
        assert!(output.read(&mut place, Duration::from_millis(1)).is_empty());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| text(&output.read(&mut place, Duration::from_secs(60))));
            output.append(1, 1, b"late");
            assert_eq!(reader.join().unwrap(), "late");
        });
    }

    #[test]
    fn long_pieces_are_cut() {
        let folder = scratch();
        let output = Output::open(folder.path()).unwrap();
        output.append(1, 1, &vec![b'y'; 3 * MAX_PIECE + 1]);
        let (all, _) = output.all(None, None);
        assert_eq!(all.len(), 4);
        assert_eq!(text(&all).len(), 3 * MAX_PIECE + 1);
    }
}
