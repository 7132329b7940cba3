//! The caller's terminal while a program has a terminal of its own (`-t`): raw with `-i`, its size
//! followed, and put back however this command ends.

use crate::failure::Failure;
use dvs_node::protocol::WindowSize;
use dvs_sys::terminal::{self, Attributes};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes moved at a time.
const CHUNK: usize = 16 << 10;

/// The caller's terminal in raw mode; put back when dropped.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Attributes,
}

impl Raw {
    /// Switches standard input to raw mode.
    ///
    /// # Errors
    /// When it is no terminal.
    pub(crate) fn enter() -> Result<Raw, Failure> {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Err(Failure::new(
                "-i with -t needs a terminal as standard input; leave -t away for a pipe or file",
            ));
        }
        let failed =
            |error: dvs_sys::error::SysError| Failure::new(format!("the terminal: {error}"));
        let before = terminal::attributes(input.as_fd()).map_err(failed)?;
        let raw = Raw { before };
        terminal::set_attributes(input.as_fd(), &terminal::raw(&raw.before)).map_err(failed)?;
        Ok(raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has hung up has nothing to be put back.
        let _ = terminal::set_attributes(std::io::stdin().as_fd(), &self.before);
    }
}

/// Size of the caller's terminal, wherever it is one.
pub(crate) fn size() -> Option<WindowSize> {
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let fds = [output.as_fd(), input.as_fd(), error.as_fd()];
    let found = fds.into_iter().find_map(|fd| terminal::window_size(fd).ok())?;
    Some(WindowSize { rows: found.rows, columns: found.columns })
}

/// Gives the program's terminal the size of the caller's.
pub(crate) fn follow_size(master: &OwnedFd) {
    let Some(size) = size() else { return };
    let size = terminal::WindowSize { rows: size.rows, columns: size.columns, width: 0, height: 0 };
    if let Err(error) = terminal::set_window_size(master.as_fd(), size) {
        log::debug!("window size: {error}");
    }
}

/// Copies until the end of input. A write error ends it as well: nobody reads any more.
pub(crate) fn copy(from: OwnedFd, mut to: impl Write) {
    let mut from = File::from(from);
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            // A terminal whose last program is gone says EIO.
            Ok(0) => break,
            Ok(got) => {
                let bytes = buffer.get(..got).unwrap_or_default();
                if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_ends_with_the_input() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut copied = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(&[7; 3 * CHUNK + 5]).unwrap());
            copy(reader.into(), &mut copied);
        });
        assert_eq!(copied.len(), 3 * CHUNK + 5);
    }
}
