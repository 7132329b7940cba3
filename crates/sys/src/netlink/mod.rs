//! Netlink: requests with their answers, dumps, and events (netlink(7)).
//!
//! Requests are built and answers taken apart as bytes by the modules below, each for one family:
//! [`route`] devices, addresses, routes and rules, [`nft`] the one packet filter that marks what
//! arrives, [`diag`] sockets.

pub mod diag;
pub mod nft;
pub mod route;

use crate::descriptor::{own, wait_readable};
use crate::error::{Result, SysError, check};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Largest datagram that is read: the kernel fills dumps up to 32 KiB.
const MAX_DATAGRAM: usize = 64 << 10;
/// Longest wait for an answer, milliseconds; the kernel answers while the request is sent.
const ANSWER_TIMEOUT: u32 = 10_000;
/// Most datagrams of one dump.
pub const MAX_DUMP: usize = 65_536;
/// Bytes of events that may wait to be read.
const EVENT_BUFFER: i32 = 8 << 20;
const HEADER: usize = 16;

const DONE: u16 = 3;
const ERROR: u16 = 2;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;

/// One message to the kernel: a header, then a family's own header, then attributes.
#[derive(Debug, Clone)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of a type, with flags besides the usual ones, that begins with a family's header.
    #[must_use]
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(header);
        Request { bytes }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(&mut self.bytes, kind, value);
        self
    }

    /// Adds a number in the host's order.
    #[must_use]
    pub fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    fn seal(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Appends an attribute, padded to four bytes.
pub(crate) fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// A netlink socket. It belongs to the network namespace it was made in, and its requests have the
/// rights of the process that made it together with those of the one that sends.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
}

impl From<OwnedFd> for Netlink {
    fn from(socket: OwnedFd) -> Self {
        Netlink { socket }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// A socket of a protocol (`NETLINK_*`) that hears the groups in a bit mask.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` where the kernel lacks the protocol, `EMFILE`, `ENFILE`.
    pub fn open(protocol: i32, groups: u32) -> Result<Netlink> {
        // SAFETY: integers only.
        let socket = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol)
        };
        let socket = own(check("socket(AF_NETLINK)", i64::from(socket))?);
        if groups != 0 {
            // Without the right to go over the system's limit the usual limit must do.
            let forced = set_int(socket.as_fd(), libc::SO_RCVBUFFORCE, EVENT_BUFFER);
            if forced.is_err() {
                set_int(socket.as_fd(), libc::SO_RCVBUF, EVENT_BUFFER)?;
            }
        }
        // SAFETY: sockaddr_nl is plain old data; zero is a valid value of every field.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = groups;
        // SAFETY: the address lives across the call and its length is given.
        let done = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        check("bind(AF_NETLINK)", i64::from(done))?;
        Ok(Netlink { socket })
    }

    /// Has a request carried out.
    ///
    /// # Errors
    /// What the kernel answers; `call` names the request.
    pub fn ask(&self, call: &'static str, request: Request) -> Result<()> {
        self.ask_all(call, vec![request])
    }

    /// Has several requests carried out, sent as one datagram (which some families take as one
    /// transaction); the first error among their answers.
    ///
    /// # Errors
    /// As [`Netlink::ask`].
    pub fn ask_all(&self, call: &'static str, requests: Vec<Request>) -> Result<()> {
        let mut waits = 0_usize;
        let mut datagram = Vec::new();
        for (sequence, request) in (1_u32..).zip(requests) {
            let bytes = request.seal(sequence);
            if bytes[6] & ACKNOWLEDGE as u8 != 0 {
                waits += 1;
            }
            datagram.extend_from_slice(&bytes);
        }
        self.send(call, &datagram)?;
        let mut result = Ok(());
        while waits > 0 {
            let answer = self.receive(call)?;
            for (kind, body) in Messages(&answer) {
                if kind == ERROR {
                    waits = waits.saturating_sub(1);
                    let errno = first_i32(body).unwrap_or(-libc::EPROTO);
                    if errno != 0 && result.is_ok() {
                        result = Err(SysError::new(call, -errno));
                        // A transaction that failed may answer for its parts no more.
                        waits = waits.min(1);
                    }
                }
            }
            if result.is_err() && !wait_readable(self.socket.as_fd(), Some(0))? {
                break;
            }
        }
        result
    }

    /// Has a list given: calls back with each entry's type and body.
    ///
    /// # Errors
    /// What the kernel answers; `E2BIG` after [`MAX_DUMP`] datagrams.
    pub fn dump(
        &self,
        call: &'static str,
        request: Request,
        mut entry: impl FnMut(u16, &[u8]),
    ) -> Result<()> {
        let mut request = request;
        request.bytes[6..8].copy_from_slice(&(REQUEST | DUMP).to_ne_bytes());
        self.send(call, &request.seal(1))?;
        for _ in 0..MAX_DUMP {
            let answer = self.receive(call)?;
            for (kind, body) in Messages(&answer) {
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let errno = first_i32(body).unwrap_or(-libc::EPROTO);
                        return Err(SysError::new(call, -errno));
                    }
                    kind => entry(kind, body),
                }
            }
        }
        Err(SysError::new(call, libc::E2BIG))
    }

    /// Takes the events that wait, without waiting for more; calls back with each one's type and
    /// body. False when there were none.
    ///
    /// # Errors
    /// `ENOBUFS`: events were lost.
    pub fn events(&self, mut event: impl FnMut(u16, &[u8])) -> Result<bool> {
        let mut any = false;
        while wait_readable(self.socket.as_fd(), Some(0))? {
            any = true;
            let datagram = self.receive("recv(AF_NETLINK)")?;
            Messages(&datagram).for_each(|(kind, body)| event(kind, body));
        }
        Ok(any)
    }

    fn send(&self, call: &'static str, bytes: &[u8]) -> Result<()> {
        // SAFETY: pointer and length describe the live slice, which the kernel copies.
        let sent =
            unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        check(call, sent as i64)?;
        Ok(())
    }

    fn receive(&self, call: &'static str) -> Result<Vec<u8>> {
        if !wait_readable(self.socket.as_fd(), Some(ANSWER_TIMEOUT))? {
            return Err(SysError::new(call, libc::ETIMEDOUT));
        }
        let mut buffer = vec![0; MAX_DATAGRAM];
        // SAFETY: pointer and length describe the live buffer.
        let length = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let length = check(call, length as i64)?;
        buffer.truncate(usize::try_from(length).unwrap_or(0));
        Ok(buffer)
    }
}

fn set_int(socket: BorrowedFd<'_>, option: i32, value: i32) -> Result<()> {
    // SAFETY: the option's value is an int that lives across the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    check("setsockopt", i64::from(done))?;
    Ok(())
}

fn first_i32(body: &[u8]) -> Option<i32> {
    body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

/// The messages of a datagram: type and body. Ends at what is no whole message.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*self.0.get(4..6)?.first_chunk()?);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    }
}

/// Whether a request wants an answer of its own.
pub(crate) const ANSWERED: u16 = ACKNOWLEDGE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart_and_nonsense_ends_them() {
        let one = Request::new(20, 0, &[1, 2, 3, 4]).with(7, b"abc").seal(9);
        assert_eq!(one.len(), 16 + 4 + 8);
        let two = [one.clone(), one.clone()].concat();
        let all: Vec<(u16, usize)> =
            Messages(&two).map(|(kind, body)| (kind, body.len())).collect();
        assert_eq!(all, [(20, 12), (20, 12)]);
        for length in 0..one.len() {
            assert_eq!(Messages(&one[..length]).count(), 0);
        }
        let mut wrong = one;
        wrong[0] = 3;
        assert_eq!(Messages(&wrong).count(), 0);
    }

    #[test]
    fn the_kernel_answers() {
        let netlink = Netlink::open(libc::NETLINK_ROUTE, 0).unwrap();
        let mut names = 0;
        let list = Request::new(libc::RTM_GETLINK, 0, &[0; 16]);
        netlink
            .dump("RTM_GETLINK", list, |kind, _| {
                assert_eq!(kind, libc::RTM_NEWLINK);
                names += 1;
            })
            .unwrap();
        assert!(names > 0, "every namespace has a loopback device");
        let nonsense = Request::new(libc::RTM_NEWROUTE, ACKNOWLEDGE, &[0; 12]);
        assert!(netlink.ask("RTM_NEWROUTE", nonsense).is_err());
    }
}
