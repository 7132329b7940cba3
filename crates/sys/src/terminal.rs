//! Pseudo terminals: making a pair, attributes (`termios`), window size.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Result, SysError, check};

/// The usual multiplexer device.
pub const PTMX: &str = "/dev/ptmx";

/// Terminal attributes as plain data (`struct termios`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`, with the speed.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// Line discipline.
    pub line: u8,
    /// `c_cc`.
    pub characters: [u8; 32],
}

/// Window size (`struct winsize`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Rows of characters.
    pub rows: u16,
    /// Columns of characters.
    pub columns: u16,
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
}

/// Makes a pseudo terminal from a multiplexer device (which says in whose `devpts` it lives):
/// (master, slave), both close-on-exec, none of them anybody's controlling terminal.
pub fn open_pair(multiplexer: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let path = CString::new(multiplexer.as_os_str().as_bytes())
        .map_err(|_| SysError::new("open", libc::EINVAL))?;
    // SAFETY: `path` is a live C string.
    let result =
        unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    check("open", i64::from(result))?;
    // SAFETY: open succeeded, so this is a new descriptor that nothing else owns.
    let master = unsafe { OwnedFd::from_raw_fd(result) };
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) };
    check("TIOCSPTLCK", i64::from(result))?;
    let slave = open_peer(&master)?;
    Ok((master, slave))
}

/// Opens the slave of a master once more (`TIOCGPTPEER`, which needs no path).
pub fn open_peer(master: impl AsFd) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags as a plain number and returns a descriptor.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    check("TIOCGPTPEER", i64::from(result))?;
    // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Attributes of a terminal; `ENOTTY` for everything else.
pub fn attributes(fd: impl AsFd) -> Result<Attributes> {
    let raw = get(fd)?;
    Ok(Attributes {
        input: raw.c_iflag,
        output: raw.c_oflag,
        control: raw.c_cflag,
        local: raw.c_lflag,
        line: raw.c_line,
        characters: raw.c_cc,
    })
}

/// Sets the attributes at once (`TCSANOW`).
pub fn set_attributes(fd: impl AsFd, attributes: &Attributes) -> Result<()> {
    let fd = fd.as_fd();
    // Read first: speeds live in fields that plain data does not carry.
    let mut raw = get(fd)?;
    raw.c_iflag = attributes.input;
    raw.c_oflag = attributes.output;
    raw.c_cflag = attributes.control;
    raw.c_lflag = attributes.local;
    raw.c_line = attributes.line;
    raw.c_cc = attributes.characters;
    // SAFETY: `raw` is a complete termios that the kernel only reads.
    let result = unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw const raw) };
    check("tcsetattr", i64::from(result))?;
    Ok(())
}

/// The same attributes without any processing of input or output (as `cfmakeraw(3)`).
#[must_use]
pub fn raw(attributes: &Attributes) -> Attributes {
    Attributes {
        input: attributes.input
            & !(libc::IGNBRK
                | libc::BRKINT
                | libc::PARMRK
                | libc::ISTRIP
                | libc::INLCR
                | libc::IGNCR
                | libc::ICRNL
                | libc::IXON),
        output: attributes.output & !libc::OPOST,
        local: attributes.local
            & !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN),
        control: (attributes.control & !(libc::CSIZE | libc::PARENB)) | libc::CS8,
        ..*attributes
    }
}

/// Window size of a terminal.
pub fn window_size(fd: impl AsFd) -> Result<WindowSize> {
    let mut raw = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut raw) };
    check("TIOCGWINSZ", i64::from(result))?;
    Ok(WindowSize {
        rows: raw.ws_row,
        columns: raw.ws_col,
        width: raw.ws_xpixel,
        height: raw.ws_ypixel,
    })
}

/// Sets the window size; the terminal's foreground group gets SIGWINCH when it changes.
pub fn set_window_size(fd: impl AsFd, size: WindowSize) -> Result<()> {
    let raw = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: size.width,
        ws_ypixel: size.height,
    };
    // SAFETY: TIOCSWINSZ reads one winsize.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const raw) };
    check("TIOCSWINSZ", i64::from(result))?;
    Ok(())
}

fn get(fd: impl AsFd) -> Result<libc::termios> {
    // SAFETY: all-zero bytes are a valid termios (plain integers).
    let mut raw: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: tcgetattr writes one termios.
    let result = unsafe { libc::tcgetattr(fd.as_fd().as_raw_fd(), &raw mut raw) };
    check("tcgetattr", i64::from(result))?;
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_carries_bytes_attributes_and_size() {
        let (master, slave) = open_pair(Path::new(PTMX)).unwrap();
        let before = attributes(&slave).unwrap();
        assert_ne!(before.output & libc::OPOST, 0);
        set_attributes(&slave, &raw(&before)).unwrap();
        assert_eq!(attributes(&slave).unwrap(), raw(&before));
        let size = WindowSize { rows: 31, columns: 77, width: 0, height: 0 };
        set_window_size(&master, size).unwrap();
        assert_eq!(window_size(&slave).unwrap(), size);
        crate::pipe::write(&slave, b"a\nb").unwrap();
        let mut buffer = [0; 16];
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let count = crate::pipe::read(&master, &mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(seen, b"a\nb", "raw: no carriage return");
        let again = open_peer(&master).unwrap();
        drop((slave, again));
        assert_eq!(crate::pipe::read(&master, &mut buffer).unwrap_err().errno, libc::EIO);
    }

    #[test]
    fn a_pipe_is_no_terminal() {
        let (reader, _writer) = crate::pipe::pair(crate::pipe::PipeFlags::default()).unwrap();
        assert_eq!(attributes(&reader).unwrap_err().errno, libc::ENOTTY);
    }
}
