//! Checks of single frames, on their way out and in: nothing passes that another node, another DC or
//! a guest could not have had a reason to send. A frame is `struct virtio_net_hdr`, an Ethernet
//! header, and one IPv4 packet.

use dvs_container::network::{ADDRESS, GATEWAY_MAC, mac_of};
use dvs_sys::netdevice::FRAME_HEADER;
use std::net::Ipv4Addr;

const ETHERNET: usize = 14;
const IP_HEADER: usize = 20;
/// Longest frame with its header: an IP packet is at most 65,535 bytes.
pub const MAX_FRAME: usize = FRAME_HEADER + ETHERNET + 65_535;
const IPV4: [u8; 2] = [0x08, 0x00];

/// Why a frame is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Refused {
    /// Too short, too long, or its lengths contradict each other.
    #[error("malformed")]
    Malformed,
    /// Not IPv4: what a device sends on its own, such as neighbour discovery.
    #[error("not IPv4")]
    OtherProtocol,
    /// Its hardware address is not that of the node it comes from.
    #[error("from another hardware address than its node's")]
    Spoofed,
    /// For a node that is not of this network, or to several.
    #[error("for no node of this network")]
    NoNode,
    /// Addresses that are not the DC's.
    #[error("with an address that is not the DC's")]
    Address,
}

/// Whether an address is the DC's own: its one address, or one of localhost.
#[must_use]
pub fn is_own(address: Ipv4Addr) -> bool {
    address == ADDRESS || address.is_loopback()
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// To a node.
    Node(u16),
    /// Out of the DC; its destination address has not been looked at.
    Outside,
}

/// Checks a frame of this node's device; where it goes.
///
/// # Errors
/// Why it is dropped.
pub fn leaving(frame: &[u8], here: u16) -> Result<To, Refused> {
    let to = address_at(frame, 0)?;
    if to == GATEWAY_MAC {
        check(frame, here, |_| true)?;
        return Ok(To::Outside);
    }
    check(frame, here, is_own)?;
    let node = u16::from_be_bytes([to[4], to[5]]);
    if to != mac_of(node) || node == here {
        return Err(Refused::NoNode);
    }
    Ok(To::Node(node))
}

/// Checks a frame that a node has sent, before it is given to this node's device.
///
/// # Errors
/// Why it is dropped.
pub fn arriving(frame: &[u8], from: u16, here: u16) -> Result<(), Refused> {
    check(frame, from, is_own)?;
    if address_at(frame, 0)? != mac_of(here) || from == here {
        return Err(Refused::NoNode);
    }
    Ok(())
}

fn check(frame: &[u8], from: u16, target: fn(Ipv4Addr) -> bool) -> Result<(), Refused> {
    if frame.len() > MAX_FRAME {
        return Err(Refused::Malformed);
    }
    let packet = frame.get(FRAME_HEADER + ETHERNET..).ok_or(Refused::Malformed)?;
    if address_at(frame, 6)? != mac_of(from) {
        return Err(Refused::Spoofed);
    }
    if frame.get(FRAME_HEADER + 12..FRAME_HEADER + ETHERNET) != Some(&IPV4) {
        return Err(Refused::OtherProtocol);
    }
    let header = packet.first_chunk::<IP_HEADER>().ok_or(Refused::Malformed)?;
    let header_length = usize::from(header[0] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // A packet that is still to be segmented may leave its length to who does that.
    let lengths = header[0] >> 4 == 4
        && header_length >= IP_HEADER
        && header_length <= packet.len()
        && (length == 0 || length >= header_length)
        && length <= packet.len();
    if !lengths {
        return Err(Refused::Malformed);
    }
    offload(frame)?;
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    if !is_own(address(12)) || !target(address(16)) {
        return Err(Refused::Address);
    }
    Ok(())
}

/// What the header leaves for later must lie within the frame.
fn offload(frame: &[u8]) -> Result<(), Refused> {
    const NEEDS_CHECKSUM: u8 = 1;
    const SEGMENT_TCP: u8 = 1;
    const SEGMENT_CONGESTED: u8 = 0x80;
    let header = frame.first_chunk::<FRAME_HEADER>().ok_or(Refused::Malformed)?;
    let number = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let body = frame.len() - FRAME_HEADER;
    if header[0] & NEEDS_CHECKSUM != 0 && number(6) + number(8) + 2 > body {
        return Err(Refused::Malformed);
    }
    match header[1] & !SEGMENT_CONGESTED {
        0 => Ok(()),
        SEGMENT_TCP if number(4) > 0 && number(2) <= body => Ok(()),
        _ => Err(Refused::Malformed),
    }
}

fn address_at(frame: &[u8], at: usize) -> Result<[u8; 6], Refused> {
    let rest = frame.get(FRAME_HEADER + at..).ok_or(Refused::Malformed)?;
    rest.first_chunk().copied().ok_or(Refused::Malformed)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A frame of a node for a node, with a few bytes in it.
    pub(crate) fn frame(from: u16, to: u16) -> Vec<u8> {
        let mut packet = vec![0; IP_HEADER + 8];
        packet[0] = 0x45;
        packet[3] = packet.len() as u8;
        packet[12..16].copy_from_slice(&[127, 0, 0, 1]);
        packet[16..20].copy_from_slice(&ADDRESS.octets());
        [&[0; FRAME_HEADER][..], &mac_of(to), &mac_of(from), &IPV4, &packet].concat()
    }

    #[test]
    fn what_is_right_passes() {
        assert_eq!(leaving(&frame(1, 2), 1), Ok(To::Node(2)));
        let mut outside = frame(1, 2);
        outside[FRAME_HEADER..FRAME_HEADER + 6].copy_from_slice(&GATEWAY_MAC);
        outside[FRAME_HEADER + ETHERNET + 16] = 8;
        assert_eq!(leaving(&outside, 1), Ok(To::Outside));
        outside[FRAME_HEADER + ETHERNET + 12] = 8;
        assert_eq!(leaving(&outside, 1), Err(Refused::Address));
        assert_eq!(arriving(&frame(1, 2), 1, 2), Ok(()));
    }

    #[test]
    fn nobody_speaks_for_another() {
        assert_eq!(arriving(&frame(3, 2), 1, 2), Err(Refused::Spoofed));
        assert_eq!(leaving(&frame(3, 2), 1), Err(Refused::Spoofed));
        assert_eq!(leaving(&frame(1, 1), 1), Err(Refused::NoNode));
        assert_eq!(arriving(&frame(1, 3), 1, 2), Err(Refused::NoNode));
        let mut all = frame(1, 2);
        all[FRAME_HEADER..FRAME_HEADER + 6].fill(0xff);
        assert_eq!(leaving(&all, 1), Err(Refused::NoNode));
        for at in [12, 16] {
            let mut foreign = frame(1, 2);
            foreign[FRAME_HEADER + ETHERNET + at] = 8;
            assert_eq!(leaving(&foreign, 1), Err(Refused::Address));
            assert_eq!(arriving(&foreign, 1, 2), Err(Refused::Address));
        }
    }

    #[test]
    fn what_is_no_frame_is_dropped() {
        let right = frame(1, 2);
        for length in 0..right.len() {
            let mut cut = right[..length].to_vec();
            assert!(leaving(&cut, 1).is_err(), "cut to {length}");
            cut.extend(vec![0xff; 80]);
            let _ = leaving(&cut, 1);
        }
        assert_eq!(leaving(&vec![0; MAX_FRAME + 1], 1), Err(Refused::Malformed));
        let changed = |at: usize, value: u8| {
            let mut frame = right.clone();
            frame[at] = value;
            leaving(&frame, 1)
        };
        let ip = FRAME_HEADER + ETHERNET;
        assert_eq!(changed(FRAME_HEADER + 12, 0x86), Err(Refused::OtherProtocol));
        assert_eq!(changed(ip, 0x65), Err(Refused::Malformed));
        assert_eq!(changed(ip, 0x44), Err(Refused::Malformed));
        assert_eq!(changed(ip, 0x4f), Err(Refused::Malformed));
        assert_eq!(changed(ip + 2, 0xff), Err(Refused::Malformed));
        assert_eq!(changed(1, 3), Err(Refused::Malformed), "another way of segmenting");
        assert_eq!(changed(1, 1), Err(Refused::Malformed), "segments of nothing");
        let mut checksum = right.clone();
        (checksum[0], checksum[7]) = (1, 0xff);
        assert_eq!(leaving(&checksum, 1), Err(Refused::Malformed));
    }
}
