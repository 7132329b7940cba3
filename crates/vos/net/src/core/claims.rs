//! When two claims on a port exclude each other, and which of them takes a packet: the rules of
//! Linux (`inet_csk_get_port`, `udp_lib_get_port`, `ipv6_rcv_saddr_equal`; socket(7), ip(7), ipv6(7)).

use crate::messages::{Binding, Protocol};
use std::net::{IpAddr, Ipv4Addr};

/// The IPv4 address that a socket is bound to, unspecified included; `None` if it takes no IPv4.
fn v4(binding: &Binding) -> Option<Ipv4Addr> {
    match binding.address.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) if binding.only_v6 => None,
        IpAddr::V6(address) if address.is_unspecified() => Some(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    }
}

/// Whether both could be meant by one packet.
fn overlap(one: &Binding, other: &Binding) -> bool {
    if one.protocol != other.protocol || one.address.port() != other.address.port() {
        return false;
    }
    if let (Some(one), Some(other)) = (v4(one), v4(other))
        && (one == other || one.is_unspecified() || other.is_unspecified())
    {
        return true;
    }
    match (one.address.ip(), other.address.ip()) {
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            one == other || one.is_unspecified() || other.is_unspecified()
        }
        _ => false,
    }
}

/// Whether `new` must not be bound (or, with `listens`, listen) beside `old`, which listens or not.
#[must_use]
pub fn exclude(old: &Binding, old_listens: bool, new: &Binding) -> bool {
    if !overlap(old, new) {
        return false;
    }
    if old.reuse_port && new.reuse_port && old.user == new.user {
        return false;
    }
    let reuse = old.reuse_address && new.reuse_address;
    match new.protocol {
        Protocol::Tcp => !reuse || old_listens,
        Protocol::Udp => !reuse,
    }
}

/// How well a socket fits a packet's destination: `None` not at all; one bound to the very address
/// fits better than one bound to all.
#[must_use]
pub fn fits(binding: &Binding, protocol: Protocol, target: std::net::SocketAddr) -> Option<u8> {
    if binding.protocol != protocol || binding.address.port() != target.port() {
        return None;
    }
    let fit = |exact: bool, all: bool| match (exact, all) {
        (true, _) => Some(1),
        (_, true) => Some(0),
        _ => None,
    };
    let target = match target.ip() {
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4),
        address @ IpAddr::V4(_) => address,
    };
    match target {
        IpAddr::V4(target) => {
            let own = v4(binding)?;
            // 0.0.0.0 as a destination is this host: 127.0.0.1.
            let target = if target.is_unspecified() { Ipv4Addr::LOCALHOST } else { target };
            fit(own == target, own.is_unspecified())
        }
        IpAddr::V6(target) => {
            let IpAddr::V6(own) = binding.address.ip() else { return None };
            let exact = own == target || target.is_unspecified() && own.is_loopback();
            fit(exact, own.is_unspecified())
        }
    }
}

/// Whether packets of IPv4 reach it.
#[must_use]
pub fn takes_v4(binding: &Binding) -> bool {
    v4(binding).is_some()
}

/// For which IPv4 addresses it takes datagrams: all, or one. `None` if it takes no IPv4.
#[must_use]
pub fn datagrams_for(binding: &Binding) -> Option<Option<Ipv4Addr>> {
    v4(binding).map(|address| (!address.is_unspecified()).then_some(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(text: &str) -> Binding {
        Binding {
            protocol: Protocol::Tcp,
            address: text.parse().unwrap(),
            only_v6: false,
            reuse_address: false,
            reuse_port: false,
            user: 0,
        }
    }

    #[test]
    fn addresses_overlap_as_in_linux() {
        for (one, other, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "0.0.0.0:2", false),
            ("10.77.0.1:1", "127.0.0.1:1", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::1]:1", "127.0.0.1:1", false),
            ("[::1]:1", "0.0.0.0:1", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
            ("[::ffff:127.0.0.1]:1", "10.77.0.1:1", false),
            ("[::]:1", "[::1]:1", true),
        ] {
            let (one, other) = (claim(one), claim(other));
            assert_eq!(exclude(&one, true, &other), expected, "{one:?} {other:?}");
            assert_eq!(exclude(&other, true, &one), expected, "{other:?} {one:?}");
        }
        let only = Binding { only_v6: true, ..claim("[::]:1") };
        assert!(!exclude(&only, true, &claim("0.0.0.0:1")));
        assert!(exclude(&only, true, &claim("[::1]:1")));
    }

    #[test]
    fn reuse_is_for_those_who_agree() {
        let reuse = Binding { reuse_address: true, ..claim("0.0.0.0:1") };
        assert!(!exclude(&reuse, false, &reuse));
        assert!(exclude(&reuse, true, &reuse), "a listener is not shared");
        assert!(exclude(&reuse, false, &claim("0.0.0.0:1")));
        let port = Binding { reuse_port: true, ..claim("0.0.0.0:1") };
        assert!(!exclude(&port, true, &port));
        assert!(exclude(&port, true, &Binding { user: 5, ..port }));
        let datagrams = Binding { protocol: Protocol::Udp, ..reuse };
        assert!(!exclude(&datagrams, false, &datagrams));
        assert!(!exclude(&datagrams, false, &reuse), "another protocol");
    }

    #[test]
    fn the_best_fit_is_told() {
        let fit = |claim_: &str, target: &str| {
            fits(&claim(claim_), Protocol::Tcp, target.parse().unwrap())
        };
        assert_eq!(fit("0.0.0.0:1", "127.0.0.1:1"), Some(0));
        assert_eq!(fit("127.0.0.1:1", "127.0.0.1:1"), Some(1));
        assert_eq!(fit("127.0.0.1:1", "0.0.0.0:1"), Some(1));
        assert_eq!(fit("127.0.0.1:1", "10.77.0.1:1"), None);
        assert_eq!(fit("127.0.0.1:1", "127.0.0.1:2"), None);
        assert_eq!(fit("[::]:1", "127.0.0.1:1"), Some(0));
        assert_eq!(fit("[::]:1", "[::1]:1"), Some(0));
        assert_eq!(fit("[::1]:1", "[::]:1"), Some(1));
        assert_eq!(fit("[::1]:1", "127.0.0.1:1"), None);
        assert_eq!(fit("0.0.0.0:1", "[::1]:1"), None);
        assert_eq!(fit("0.0.0.0:1", "[::ffff:127.0.0.1]:1"), Some(0));
        assert_eq!(datagrams_for(&claim("[::]:1")), Some(None));
        assert_eq!(datagrams_for(&claim("127.0.0.1:1")), Some(Some(Ipv4Addr::LOCALHOST)));
        assert_eq!(datagrams_for(&claim("[::1]:1")), None);
    }
}
