//! Packets of IPv4 with TCP, UDP or ICMP in them: read, and made, as frames of the container's device
//! (RFC 791, RFC 768, RFC 792, RFC 9293).

use dvs_container::network::{ADDRESS, GATEWAY_MAC, mac_of};
use dvs_sys::netdevice::FRAME_HEADER;
use std::net::{Ipv4Addr, SocketAddrV4};

const START: usize = FRAME_HEADER + 14;
const IP_HEADER: usize = 20;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
/// Longest content of a datagram.
pub const MAX_DATAGRAM: usize = 65_507;

/// A packet that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Of a connection.
    Tcp {
        /// Its port here.
        port: u16,
        /// Where to.
        to: SocketAddrV4,
        /// It asks for a connection.
        begins: bool,
        /// Its sequence number.
        sequence: u32,
    },
    /// A datagram.
    Udp {
        /// Its port here.
        port: u16,
        /// Where to.
        to: SocketAddrV4,
        /// Content.
        data: &'a [u8],
    },
}

/// Whether an address may be reached outside: one host, not this one's loopback, not a group.
#[must_use]
pub fn is_outside(address: Ipv4Addr) -> bool {
    !(address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address == ADDRESS
        || address.octets()[0] == 0
        || address.octets()[0] >= 240)
}

/// Reads a frame that was checked to be a whole packet of IPv4 from this container. `None`: other
/// protocols, fragments, and what is malformed.
#[must_use]
pub fn read(frame: &[u8]) -> Option<Packet<'_>> {
    let packet = frame.get(START..)?;
    let header = packet.first_chunk::<IP_HEADER>()?;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let target = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    if fragment != 0 || source != ADDRESS || !is_outside(target) {
        return None;
    }
    let body = packet.get(usize::from(header[0] & 15) * 4..)?;
    let number = |at: usize| Some(u16::from_be_bytes(*body.get(at..)?.first_chunk()?));
    let (port, to) = (number(0)?, SocketAddrV4::new(target, number(2)?));
    match header[9] {
        TCP => {
            const SYN: u8 = 2;
            const ACK: u8 = 16;
            let flags = *body.get(13)?;
            let sequence = u32::from_be_bytes(*body.get(4..)?.first_chunk()?);
            Some(Packet::Tcp { port, to, begins: flags & (SYN | ACK) == SYN, sequence })
        }
        UDP => {
            let length = usize::from(number(4)?);
            Some(Packet::Udp { port, to, data: body.get(8..length)? })
        }
        _ => None,
    }
}

/// Turns a frame that left around: it comes from the gateway, for this node's device.
pub fn turn_around(frame: &mut [u8], here: u16) {
    if let Some(addresses) = frame.get_mut(FRAME_HEADER..FRAME_HEADER + 12) {
        let (to, from) = addresses.split_at_mut(6);
        to.copy_from_slice(&mac_of(here));
        from.copy_from_slice(&GATEWAY_MAC);
    }
}

/// A datagram from outside.
#[must_use]
pub fn datagram(here: u16, from: SocketAddrV4, port: u16, data: &[u8]) -> Option<Vec<u8>> {
    if data.len() > MAX_DATAGRAM {
        return None;
    }
    let length = u16::try_from(data.len() + 8).ok()?;
    let mut body = Vec::with_capacity(data.len() + 8);
    for number in [from.port(), port, length, 0] {
        body.extend_from_slice(&number.to_be_bytes());
    }
    body.extend_from_slice(data);
    let sum = match transport_sum(*from.ip(), UDP, &body) {
        // 0 would mean that there is none.
        0 => 0xffff,
        sum => sum,
    };
    body.get_mut(6..8)?.copy_from_slice(&sum.to_be_bytes());
    Some(frame(here, *from.ip(), UDP, &body))
}

/// The refusal of a connection: a reset that answers its SYN.
#[must_use]
pub fn refusal(here: u16, from: SocketAddrV4, port: u16, sequence: u32) -> Vec<u8> {
    const RST_ACK: u8 = 0x14;
    let mut body = Vec::with_capacity(20);
    body.extend_from_slice(&from.port().to_be_bytes());
    body.extend_from_slice(&port.to_be_bytes());
    body.extend_from_slice(&0_u32.to_be_bytes());
    body.extend_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    body.extend_from_slice(&[5 << 4, RST_ACK, 0, 0, 0, 0, 0, 0]);
    let sum = transport_sum(*from.ip(), TCP, &body);
    body[16..18].copy_from_slice(&sum.to_be_bytes());
    frame(here, *from.ip(), TCP, &body)
}

/// What cannot be reached, about a frame that left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// The network.
    Network = 0,
    /// The host.
    Host = 1,
    /// The port.
    Port = 3,
}

/// Tells that a frame's destination cannot be reached (ICMP, type 3).
#[must_use]
pub fn unreachable(here: u16, what: Unreachable, left: &[u8]) -> Option<Vec<u8>> {
    let packet = left.get(START..)?;
    let header = packet.first_chunk::<IP_HEADER>()?;
    let about = usize::from(header[0] & 15) * 4 + 8;
    let target = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let mut body = vec![3, what as u8, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(packet.get(..about)?);
    let sum = !fold(sum_of(&body));
    body.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
    Some(frame(here, target, ICMP, &body))
}

/// A whole frame from the gateway for the container's address.
fn frame(here: u16, from: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(IP_HEADER + body.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let mut header =
        [0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&ADDRESS.octets());
    let sum = !fold(sum_of(&header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[0; FRAME_HEADER][..], &mac_of(here), &GATEWAY_MAC, &[8, 0], &header, body].concat()
}

/// The checksum of a TCP segment or UDP datagram to the container.
fn transport_sum(from: Ipv4Addr, protocol: u8, body: &[u8]) -> u16 {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let pseudo = sum_of(&from.octets()) + sum_of(&ADDRESS.octets()) + u32::from(protocol) + length;
    !fold(pseudo + sum_of(body))
}

/// Sum of 16-bit words; of at most 64 KiB, so that it cannot overflow.
fn sum_of(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|word| match word {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    words.sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside() -> SocketAddrV4 {
        "192.0.2.9:53".parse().unwrap()
    }

    /// The same packet, leaving instead of arriving.
    fn reversed(frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        let (source, target) = (START + 12, START + 16);
        for byte in 0..4 {
            frame.swap(source + byte, target + byte);
        }
        let ports = START + IP_HEADER;
        frame.swap(ports, ports + 2);
        frame.swap(ports + 1, ports + 3);
        frame
    }

    #[test]
    fn datagrams_are_read_as_they_are_made() {
        for length in [0, 1, 2, 1500, MAX_DATAGRAM] {
            let data = vec![7; length];
            let made = datagram(3, outside(), 40_000, &data).unwrap();
            // Every checksum is right: the sums are all ones.
            assert_eq!(fold(sum_of(&made[START..START + IP_HEADER])), 0xffff);
            let pseudo = sum_of(&made[START + 12..START + 20]) + u32::from(UDP);
            let body = &made[START + IP_HEADER..];
            assert_eq!(fold(pseudo + body.len() as u32 + sum_of(body)), 0xffff);
            let left = reversed(&made);
            let expected = Packet::Udp { port: 40_000, to: outside(), data: &data };
            assert_eq!(read(&left), Some(expected));
        }
        assert_eq!(datagram(3, outside(), 1, &vec![0; MAX_DATAGRAM + 1]), None);
    }

    #[test]
    fn refusals_answer_what_was_asked() {
        let made = refusal(1, outside(), 40_000, u32::MAX);
        let body = &made[START + IP_HEADER..];
        assert_eq!(&body[8..12], [0; 4], "one after the asked number");
        let pseudo = sum_of(&made[START + 12..START + 20]) + u32::from(TCP) + body.len() as u32;
        assert_eq!(fold(pseudo + sum_of(body)), 0xffff);
        let left = reversed(&made);
        let expected = Packet::Tcp { port: 40_000, to: outside(), begins: false, sequence: 0 };
        assert_eq!(read(&left), Some(expected));
        let told = unreachable(1, Unreachable::Host, &left).unwrap();
        assert_eq!(&told[START + IP_HEADER..START + IP_HEADER + 2], [3, 1]);
        assert_eq!(fold(sum_of(&told[START + IP_HEADER..])), 0xffff);
    }

    #[test]
    fn what_is_no_packet_for_outside_is_none() {
        let left = reversed(&datagram(3, outside(), 40_000, b"data").unwrap());
        for length in 0..left.len() {
            assert_eq!(read(&left[..length]), None, "cut to {length}");
        }
        let changed = |at: usize, value: u8| {
            let mut frame = left.clone();
            frame[START + at] = value;
            read(&frame).is_some()
        };
        assert!(!changed(6, 0x20), "a fragment");
        assert!(!changed(9, 47), "another protocol");
        assert!(!changed(12, 11), "another source");
        assert!(!changed(16, 127), "localhost");
        assert!(!changed(16, 224), "a group");
        assert!(!changed(16, 255), "all");
        assert!(!changed(24, 0xff), "longer than it is");
        for address in ["127.0.0.1", "0.0.0.0", "0.1.2.3", "10.77.0.1", "255.255.255.255"] {
            assert!(!is_outside(address.parse().unwrap()), "{address}");
        }
        assert!(is_outside(Ipv4Addr::new(1, 1, 1, 1)));
    }
}
