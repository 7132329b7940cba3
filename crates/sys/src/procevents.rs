//! Fork, exec and exit of every process of the machine, as the kernel reports them over netlink
//! (`CN_PROC`, `linux/cn_proc.h`).
//!
//! Tests use it to count from outside what ran where. Root in the initial namespaces only.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::{Result, SysError, check};

/// Receive buffer asked for: a storm of forks must not be lost while the reader is not running.
pub const BUFFER_BYTES: i32 = 64 << 20;
/// Largest datagram that is read.
const MAX_DATAGRAM: usize = 8192;

const NETLINK_HEADER: usize = 16;
const CONNECTOR_HEADER: usize = 20;
const CONNECTOR_INDEX: u32 = 1; // CN_IDX_PROC
const CONNECTOR_VALUE: u32 = 1; // CN_VAL_PROC
const LISTEN: u32 = 1; // PROC_CN_MCAST_LISTEN
const WHAT_FORK: u32 = 0x1;
const WHAT_EXEC: u32 = 0x2;
const WHAT_EXIT: u32 = 0x8000_0000;

/// One event. Numbers are thread-group ids of the initial pid namespace; threads are not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEvent {
    /// A process was made.
    Fork {
        /// Its parent.
        parent: u32,
        /// The new process.
        child: u32,
    },
    /// A process executed an image.
    Exec {
        /// Which.
        process: u32,
    },
    /// A process ended.
    Exit {
        /// Which.
        process: u32,
        /// Its wait status.
        status: u32,
    },
}

/// A subscription.
#[derive(Debug)]
pub struct ProcessEvents {
    socket: OwnedFd,
}

impl ProcessEvents {
    /// Subscribes. Fails with EPERM without CAP_NET_ADMIN in the initial namespaces.
    pub fn subscribe() -> Result<ProcessEvents> {
        // SAFETY: takes plain numbers.
        let result = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
                libc::NETLINK_CONNECTOR,
            )
        };
        check("socket", i64::from(result))?;
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        let size = BUFFER_BYTES;
        // SAFETY: the option's value is an int that lives across the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        check("setsockopt", i64::from(result))?;
        // SAFETY: sockaddr_nl is plain old data; zero is a valid value of every field.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = CONNECTOR_INDEX;
        // SAFETY: the address lives across the call and its length is given.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        check("bind", i64::from(result))?;
        let message = subscription();
        let mut file = std::fs::File::from(socket);
        file.write_all(&message).map_err(|error| {
            SysError::new("send(NETLINK_CONNECTOR)", error.raw_os_error().unwrap_or(libc::EIO))
        })?;
        Ok(ProcessEvents { socket: file.into() })
    }

    /// The next event, waiting for it. `ENOBUFS` means that events were lost.
    pub fn next(&self) -> Result<ProcessEvent> {
        let mut buffer = [0u8; MAX_DATAGRAM];
        loop {
            // SAFETY: the buffer lives across the call and its length is given.
            let result = unsafe {
                libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
            };
            match check("recv", result as i64) {
                Ok(length) => {
                    let bytes = buffer.get(..length as usize).unwrap_or_default();
                    if let Some(event) = parse(bytes) {
                        return Ok(event);
                    }
                }
                Err(error) if error.errno == libc::EINTR => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for ProcessEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The message that asks for events.
fn subscription() -> Vec<u8> {
    let length = (NETLINK_HEADER + CONNECTOR_HEADER + 4) as u32;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend((libc::NLMSG_DONE as u16).to_ne_bytes());
    message.extend([0u8; 2 + 4 + 4]); // flags, sequence, port
    message.extend(CONNECTOR_INDEX.to_ne_bytes());
    message.extend(CONNECTOR_VALUE.to_ne_bytes());
    message.extend([0u8; 4 + 4]); // sequence, acknowledgement
    message.extend(4u16.to_ne_bytes());
    message.extend([0u8; 2]); // flags
    message.extend(LISTEN.to_ne_bytes());
    message
}

/// Reads one datagram; `None` for events that are not told on.
fn parse(bytes: &[u8]) -> Option<ProcessEvent> {
    let event = bytes.get(NETLINK_HEADER + CONNECTOR_HEADER..)?;
    let word = |index: usize| -> Option<u32> {
        let bytes = event.get(index * 4..index * 4 + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    // struct proc_event: what, cpu, timestamp (two words), then the event's own fields.
    match word(0)? {
        WHAT_FORK => {
            let (parent, child, group) = (word(5)?, word(6)?, word(7)?);
            (child == group).then_some(ProcessEvent::Fork { parent, child })
        }
        WHAT_EXEC => Some(ProcessEvent::Exec { process: word(5)? }),
        WHAT_EXIT => {
            let (task, group) = (word(4)?, word(5)?);
            let status = word(6)?;
            (task == group).then_some(ProcessEvent::Exit { process: group, status })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(words: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0u8; NETLINK_HEADER + CONNECTOR_HEADER];
        for word in words {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn events_are_read_and_threads_left_out() {
        let fork = datagram(&[WHAT_FORK, 0, 0, 0, 70, 7, 80, 80]);
        assert_eq!(parse(&fork), Some(ProcessEvent::Fork { parent: 7, child: 80 }));
        assert_eq!(parse(&datagram(&[WHAT_FORK, 0, 0, 0, 70, 7, 81, 80])), None);
        let exit = datagram(&[WHAT_EXIT, 0, 0, 0, 80, 80, 256, 17]);
        assert_eq!(parse(&exit), Some(ProcessEvent::Exit { process: 80, status: 256 }));
        assert_eq!(parse(&exit[..exit.len() - 9]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn own_children_are_reported() {
        let events = match ProcessEvents::subscribe() {
            Ok(events) => events,
            Err(error) => {
                println!("SKIPPED: process events need root: {error}");
                return;
            }
        };
        let mut child = std::process::Command::new("/bin/true").spawn().expect("spawn");
        let id = child.id();
        let mut seen = (false, false);
        for _ in 0..100_000 {
            match events.next().expect("an event") {
                ProcessEvent::Fork { child, .. } if child == id => seen.0 = true,
                ProcessEvent::Exec { process } if process == id => seen.1 = true,
                ProcessEvent::Exit { process, status } if process == id => {
                    assert_eq!(status, 0);
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(seen, (true, true));
        child.wait().expect("wait");
    }
}
