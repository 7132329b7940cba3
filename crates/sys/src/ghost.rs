//! The ghost's binary and the numbers that it and its supervisor share (see `ghost/ghost.rs`).

use crate::error::{Result, SysError, check};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The program, an ELF executable.
pub const BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ghost"));
/// Number of the system call by which a ghost reports; none of Linux's own.
pub const REPORT_CALL: i32 = 8000;
/// Signal by which a supervisor asks a ghost to report at once.
pub const DOORBELL: i32 = 64;

/// What a ghost reports: the sixth argument of its call, decoded with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It is there; `name` is the address of 16 bytes for the name it shall show.
    Hello {
        /// Address in the ghost.
        name: u64,
    },
    /// It took a signal.
    Taken {
        /// Number.
        signal: i32,
        /// `si_code`.
        code: i32,
        /// `si_pid`, in the container's pids; 0 from outside the container.
        pid: u32,
        /// `si_uid`, in the container's ids.
        uid: u32,
        /// `si_value`.
        value: u64,
    },
    /// A stop signal of terminals is pending, not taken.
    StopPending {
        /// Number.
        signal: i32,
    },
    /// It goes on after a stop that it was told to make, or that the kernel did not make (the process
    /// group is orphaned).
    BackFromStop {
        /// A `SIGCONT` is pending, which is reported next.
        continued: bool,
    },
    /// What an order gave: 0 or a value, or a negative errno.
    Result(i64),
}

impl Report {
    /// Reads the arguments of a report call; `None` for one that no ghost makes.
    #[must_use]
    pub fn decode(arguments: [u64; 6]) -> Option<Report> {
        let signal = i32::try_from(arguments[0]).unwrap_or(0);
        Some(match arguments[5] {
            0 if (1..=64).contains(&signal) => Report::Taken {
                signal,
                code: arguments[1] as u32 as i32,
                pid: arguments[2] as u32,
                uid: arguments[3] as u32,
                value: arguments[4],
            },
            1 => Report::Hello { name: arguments[0] },
            2 if (20..=22).contains(&signal) => Report::StopPending { signal },
            3 => Report::BackFromStop { continued: arguments[0] != 0 },
            4 => Report::Result(arguments[0] as i64),
            _ => return None,
        })
    }
}

/// The answer to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Go on waiting.
    Wait,
    /// Stop as the pending signal says.
    Stop,
    /// Exit.
    Exit(u8),
    /// Die by a signal.
    Die(u8),
    /// `setpgid(0, group)`, then report the result.
    SetGroup(u32),
    /// `setsid()`, then report the result.
    NewSession,
    /// `prctl(PR_SET_PDEATHSIG)`, then report the result.
    DeathSignal(u8),
    /// Stop by this terminal stop signal, unless `SIGCONT` is pending; then report as after every stop.
    StopBy(u8),
    /// `kill(target, signal)`, then report the result: the ghost is the sender that the program is.
    Kill {
        /// Process or, negative, process group; less than 2^24 either way.
        target: i32,
        /// Signal.
        signal: u8,
    },
    /// First answer: close FIFOs, sockets and terminals below this descriptor number.
    Begin(u32),
}

impl Order {
    /// The value of the report call.
    #[must_use]
    pub fn encode(self) -> i64 {
        let (order, argument) = match self {
            Order::Wait => (0, 0),
            Order::Stop => (1, 0),
            Order::Exit(status) => (2, u32::from(status)),
            Order::Die(signal) => (3, u32::from(signal)),
            Order::SetGroup(group) => (4, group),
            Order::NewSession => (5, 0),
            Order::Begin(end) => (6, end),
            Order::DeathSignal(signal) => (7, u32::from(signal)),
            Order::StopBy(signal) => (8, u32::from(signal)),
            Order::Kill { target, signal } => {
                let group = u32::from(target < 0) << 31;
                (9, group | u32::from(signal & 0x7f) << 24 | (target.unsigned_abs() & 0x00ff_ffff))
            }
        };
        i64::from(order) << 32 | i64::from(argument)
    }
}

/// The binary in a sealed memfd: nobody can change it, whoever gets a descriptor of it.
///
/// # Errors
/// What `memfd_create`, `write` and `F_ADD_SEALS` say.
pub fn sealed() -> Result<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags| {
        // SAFETY: the name is a NUL-terminated constant.
        check("memfd_create", i64::from(unsafe { libc::memfd_create(c"ghost".as_ptr(), flags) }))
    };
    // Before Linux 6.3 there is no MFD_EXEC and every memfd is executable.
    let number = create(flags | MFD_EXEC).or_else(|_| create(flags))?;
    // SAFETY: the call above has just made this descriptor and nobody else knows it.
    let mut file = unsafe { File::from_raw_fd(number as i32) };
    file.write_all(BINARY)
        .map_err(|error| SysError::new("write", error.raw_os_error().unwrap_or(libc::EIO)))?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: fcntl with an integer argument on a descriptor of ours.
    check("fcntl", i64::from(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }))?;
    // The kernel refuses to execute a file that is open for writing, sealed or not: reopen it.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let read_only = File::open(path)
        .map_err(|error| SysError::new("open", error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(read_only.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_a_small_static_executable() {
        assert_eq!(&BINARY[..4], b"\x7fELF");
        assert!(BINARY.len() < 8192, "{} bytes", BINARY.len());
    }

    #[test]
    fn the_memfd_cannot_be_changed() {
        let file = File::from(sealed().unwrap());
        let again = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .unwrap();
        assert!((&again).write_all(b"x").is_err());
        assert!(again.set_len(1).is_err());
    }

    #[test]
    fn reports_decode_and_nonsense_does_not() {
        assert_eq!(Report::decode([9, 0, 0, 0, 0, 1]), Some(Report::Hello { name: 9 }));
        assert_eq!(
            Report::decode([15, u64::from(u32::MAX - 5), 7, 1000, 3, 0]),
            Some(Report::Taken { signal: 15, code: -6, pid: 7, uid: 1000, value: 3 })
        );
        assert_eq!(Report::decode([65, 0, 0, 0, 0, 0]), None);
        assert_eq!(Report::decode([19, 0, 0, 0, 0, 2]), None);
        assert_eq!(Report::decode([0, 0, 0, 0, 0, 9]), None);
        assert_eq!(Report::decode([u64::MAX, 0, 0, 0, 0, 4]), Some(Report::Result(-1)));
    }
}
