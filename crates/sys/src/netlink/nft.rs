//! The packet filter that a container's network needs, for nf_tables (`linux/netfilter/nf_tables.h`):
//! it marks what arrives with the node that sent it, and gives connections to the outside to a socket.
//!
//! Accepted connections and answers inherit the mark of what they answer (`tcp_fwmark_accept`,
//! `fwmark_reflect`), and so find their way back.

use super::{ANSWERED, Netlink, Request, attribute};
use crate::error::Result;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const LIST_ELEMENT: u16 = 1;
/// The register that holds four bytes between the steps of the rule.
const REGISTER: u32 = 1;

const TABLE: &str = "dvs";
const CHAIN: &str = "arriving";

fn header(family: i32, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family as u8, 0, high, low]
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// Attributes with a big-endian number each.
fn numbers(pairs: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, number) in pairs {
        attribute(&mut bytes, *kind, &number.to_be_bytes());
    }
    bytes
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    let mut inner = Vec::new();
    attribute(&mut inner, 1, &text(name));
    attribute(&mut inner, 2 | NESTED, data);
    let mut element = Vec::new();
    attribute(&mut element, LIST_ELEMENT | NESTED, &inner);
    element
}

/// From now on IPv4 packets that arrive by a device carry as mark the number in the last four bytes
/// (big-endian) of the hardware address that sent them.
///
/// # Errors
/// `EPERM`; `EOPNOTSUPP`, `ENOENT` where the kernel has no nf_tables.
pub fn mark_by_sender(netlink: &Netlink, device: u32) -> Result<()> {
    let hook = numbers(&[(1, 0), (2, (-300_i32) as u32)]); // NF_INET_PRE_ROUTING, before all else
    let iif = meta_is(4, &device.to_ne_bytes()); // NFT_META_IIF
    // Bytes 8 to 11 of the Ethernet header end the sender's address.
    let sender = expression("payload", &numbers(&[(1, REGISTER), (2, 0), (3, 8), (4, 4)]));
    let order =
        expression("byteorder", &numbers(&[(1, REGISTER), (2, REGISTER), (3, 0), (4, 4), (5, 4)]));
    let mark = expression("meta", &numbers(&[(2, 3), (3, REGISTER)])); // NFT_META_MARK
    let expressions = [iif, sender, order, mark].concat();

    let ip = header(libc::AF_INET, 0);
    let batch = |kind| Request::new(kind, 0, &header(libc::AF_UNSPEC, SUBSYSTEM));
    netlink.ask_all(
        "nf_tables",
        vec![
            batch(BATCH_BEGIN),
            Request::new(NEW_TABLE, ANSWERED | CREATE, &ip).with(1, &text(TABLE)),
            Request::new(NEW_CHAIN, ANSWERED | CREATE, &ip)
                .with(1, &text(TABLE))
                .with(3, &text(CHAIN))
                .with(4 | NESTED, &hook)
                .with(7, &text("filter")),
            rule(&expressions),
            batch(BATCH_END),
        ],
    )
}

/// From now on connections in packets with a mark are taken by the transparent socket that listens on
/// this port, whatever address they are for (`IP_TRANSPARENT`, ip(7)). After [`mark_by_sender`].
///
/// # Errors
/// As there.
pub fn take_connections(netlink: &Netlink, mark: u32, port: u16) -> Result<()> {
    let marked = meta_is(3, &mark.to_ne_bytes()); // NFT_META_MARK
    let tcp = meta_is(16, &[libc::IPPROTO_TCP as u8]); // NFT_META_L4PROTO
    let mut value = Vec::new();
    attribute(&mut value, 1, &port.to_be_bytes());
    let mut immediate = numbers(&[(1, REGISTER)]);
    attribute(&mut immediate, 2 | NESTED, &value);
    let immediate = expression("immediate", &immediate);
    let ipv4 = libc::AF_INET as u32; // NFPROTO_IPV4
    let take = expression("tproxy", &numbers(&[(1, ipv4), (3, REGISTER)]));
    let expressions = [marked, tcp, immediate, take].concat();
    let batch = |kind| Request::new(kind, 0, &header(libc::AF_UNSPEC, SUBSYSTEM));
    netlink.ask_all(
        "nf_tables(tproxy)",
        vec![batch(BATCH_BEGIN), rule(&expressions), batch(BATCH_END)],
    )
}

/// Ends the rule unless this property of the packet is so.
fn meta_is(key: u32, wanted: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    attribute(&mut value, 1, wanted);
    let mut equal = numbers(&[(1, REGISTER), (2, 0)]);
    attribute(&mut equal, 3 | NESTED, &value);
    let load = expression("meta", &numbers(&[(1, REGISTER), (2, key)]));
    [load, expression("cmp", &equal)].concat()
}

fn rule(expressions: &[u8]) -> Request {
    Request::new(NEW_RULE, ANSWERED | CREATE | APPEND, &header(libc::AF_INET, 0))
        .with(1, &text(TABLE))
        .with(2, &text(CHAIN))
        .with(4 | NESTED, expressions)
}
