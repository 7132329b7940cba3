//! Sockets of a network namespace: which there are, which have just gone, ending some
//! (sock_diag(7)).

use super::{ANSWERED, Netlink, Request};
use crate::error::Result;

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `SKNLGRP_INET_TCP_DESTROY` and its kin for UDP and IPv6, as a bit mask.
const DESTROY_GROUPS: u32 = 0b1111;
/// Sockets in every state, also those that are only bound (Linux 6.8; ignored before).
const ALL_STATES: u32 = u32::MAX;
const ID: usize = 48;
/// `INET_DIAG_MARK`: comes without being asked for.
const MARK: u16 = 15;

/// A socket as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// Its number, never given twice (`SO_COOKIE`).
    pub cookie: u64,
    /// Own port.
    pub port: u16,
    /// The other end's port, 0 when not connected.
    pub peer_port: u16,
    /// `SO_MARK`, for who has `CAP_NET_ADMIN` over the namespace.
    pub mark: Option<u32>,
    id: [u8; ID],
}

/// A socket that hears of the end of all TCP and UDP sockets of the own network namespace.
///
/// # Errors
/// As [`Netlink::open`].
pub fn listen_for_ends() -> Result<Netlink> {
    Netlink::open(libc::NETLINK_SOCK_DIAG, DESTROY_GROUPS)
}

/// Takes the ends that wait.
///
/// # Errors
/// `ENOBUFS`: some were lost.
pub fn ends(netlink: &Netlink, mut gone: impl FnMut(Found)) -> Result<bool> {
    netlink.events(|kind, body| {
        if let Some(found) = (kind == BY_FAMILY).then(|| parse(body)).flatten() {
            gone(found);
        }
    })
}

/// Lists all sockets of a family (`AF_INET`, `AF_INET6`) and protocol (`IPPROTO_*`).
///
/// # Errors
/// What the kernel answers.
pub fn list(
    netlink: &Netlink,
    family: i32,
    protocol: i32,
    mut each: impl FnMut(Found),
) -> Result<()> {
    let mut header = [0; 8 + ID];
    header[0] = family as u8;
    header[1] = protocol as u8;
    header[4..8].copy_from_slice(&ALL_STATES.to_ne_bytes());
    netlink.dump("SOCK_DIAG_BY_FAMILY", Request::new(BY_FAMILY, 0, &header), |kind, body| {
        if let Some(found) = (kind == BY_FAMILY).then(|| parse(body)).flatten() {
            each(found);
        }
    })
}

/// Ends a TCP or UDP socket: whoever uses it gets an error.
///
/// # Errors
/// `EPERM`, `ENOENT`, `EOPNOTSUPP` where the kernel cannot.
pub fn destroy(netlink: &Netlink, protocol: i32, socket: &Found) -> Result<()> {
    let mut header = [0; 8 + ID];
    header[0] = socket.family;
    header[1] = protocol as u8;
    header[4..8].copy_from_slice(&ALL_STATES.to_ne_bytes());
    header[8..].copy_from_slice(&socket.id);
    netlink.ask("SOCK_DESTROY", Request::new(DESTROY, ANSWERED, &header))
}

/// `struct inet_diag_msg` and its attributes.
fn parse(body: &[u8]) -> Option<Found> {
    let id: [u8; ID] = *body.get(4..)?.first_chunk()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let half = |at: usize| u32::from_ne_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]);
    let mut found = Found {
        family: *body.first()?,
        cookie: u64::from(half(40)) | u64::from(half(44)) << 32,
        port: port(0),
        peer_port: port(2),
        mark: None,
        id,
    };
    let mut rest = body.get(72..)?;
    while let Some(head) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(value) = rest.get(4..length) else { break };
        if u16::from_ne_bytes([head[2], head[3]]) == MARK {
            found.mark = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn sockets_are_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG, 0).unwrap();
        let ports = |protocol| {
            let mut ports = Vec::new();
            list(&netlink, libc::AF_INET, protocol, |found| ports.push(found.port)).unwrap();
            ports
        };
        assert!(ports(libc::IPPROTO_TCP).contains(&listener.local_addr().unwrap().port()));
        assert!(ports(libc::IPPROTO_UDP).contains(&datagrams.local_addr().unwrap().port()));
    }

    #[test]
    fn short_messages_are_no_sockets() {
        assert_eq!(parse(&[2; 71]), None);
        assert!(parse(&[2; 72]).is_some());
    }
}
