//! One node's share of a DC's network: the same address and the same localhost on every node.
//!
//! The kernel takes one address, and 127.0.0.1, for both ends of a connection between two nodes; all
//! that is needed is that packets for another node leave. So the local table is not looked into
//! first. What a packet's *mark* says comes before: no mark means this node (and the loopback
//! device, at native speed); the mark of another node means that node's own table, whose only routes
//! lead through a device of ours to that node. Programs cannot set marks. Connections get theirs when
//! they are made, and answers that of what they answer: what arrives is marked with its sender.
//!
//! Datagrams can be sent to anybody at any time, so they go by their destination port: each node has
//! its own part of the ephemeral ports, and further rules name the node of a port that was bound.
//!
//! | preference | packets | table |
//! |---|---|---|
//! | 1 | that arrived by the device | local |
//! | 2 | that arrived from the gateway, for anybody | taken for local |
//! | 10 | with the mark of a node | that node's |
//! | 20 | UDP to a port that is bound on a node | that node's |
//! | 30 | UDP to a node's part of the ephemeral ports | that node's |
//! | 100 | all | local |
//!
//! Everything else goes to the *gateway*, which is no node but the daemon's way outside: connections
//! that it gives back are taken by a transparent socket in the name of the address they are for.
//!
//! The namespace belongs to the container's user namespace and ends with it, and so does all of this.

use crate::keeper::{BuildError, Step};
use dvs_sys::inet;
use dvs_sys::netdevice;
use dvs_sys::netlink::route::{self, LOCAL_TABLE, MAIN_TABLE, Mac, Route, Rule};
use dvs_sys::netlink::{Netlink, diag, nft};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The container's device.
pub const DEVICE: &str = "eth0";
/// Its other end where that is a device, too.
const OTHER_END: &str = "dvs0";
/// Largest packet: as much as fits into a frame of 64 KiB, so that little has to be cut.
pub const MTU: u32 = 65_520;
/// Most nodes of a DC with a network.
pub const MAX_NODES: usize = 1024;
/// The address of every DC; nothing passes from one to another.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Ports that the kernel chooses from, as Linux has them.
pub const EPHEMERAL: (u16, u16) = (32_768, 60_999);
/// First preference of the rules for bound UDP ports.
const BOUND_PREFERENCE: u32 = 20;
const TABLES: u32 = 100_000;
/// Takes every address for a local one.
const ALL_LOCAL: u32 = TABLES - 1;
/// Node numbers from here on are not used: the last hardware address is the gateway's.
const NODES_END: u16 = 0xff00;
/// The hardware address of the way outside; its last four bytes are its mark.
pub const GATEWAY_MAC: Mac = [0x02, 0xdc, 0xff, 0xff, 0xff, 0xfe];
const GATEWAY_MARK: u32 = 0xffff_fffe;
/// Stands for it in routes.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 255, 254);
const MARKS: u32 = 0x1_0000;
/// How many descriptors [`Handles`] are.
pub(crate) const HANDLES: usize = 5;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DcNetwork {
    /// This node.
    pub node: u16,
    /// All nodes of the DC, ascending, this one included.
    pub members: Vec<u16>,
}

impl DcNetwork {
    /// Checks what comes from elsewhere.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn validate(&self) -> Result<(), String> {
        if self.members.len() > MAX_NODES {
            return Err(format!(
                "a network over {} nodes, at most {MAX_NODES}",
                self.members.len()
            ));
        }
        if !self.members.is_sorted_by(|one, next| one < next) || !self.members.contains(&self.node)
        {
            return Err("the nodes of the network must be ascending, this one among them".into());
        }
        if self.members.last().is_some_and(|last| *last >= NODES_END) {
            return Err(format!("a network has nodes below {NODES_END} only"));
        }
        Ok(())
    }

    fn peers(&self) -> impl Iterator<Item = u16> + '_ {
        self.members.iter().copied().filter(|member| *member != self.node)
    }

    /// The rules that hold as long as the container does.
    fn rules(&self) -> Vec<Rule> {
        let arrived = Rule { arrived_by: Some(DEVICE.into()), ..Rule::new(1, LOCAL_TABLE) };
        let from_outside = Rule {
            arrived_by: Some(DEVICE.into()),
            mark: Some(GATEWAY_MARK),
            ..Rule::new(2, ALL_LOCAL)
        };
        let mut rules = vec![arrived, from_outside];
        for peer in self.peers() {
            rules.push(Rule { mark: Some(mark_of(peer)), ..Rule::new(10, table_of(peer)) });
            let ports = ephemeral_ports(&self.members, peer);
            rules.extend(datagram_rules(30, table_of(peer), None, ports));
        }
        rules.push(Rule::new(100, LOCAL_TABLE));
        rules
    }

    fn routes(&self, device: u32) -> Vec<Route> {
        let anywhere = (Ipv4Addr::UNSPECIFIED, 0);
        let localhost = (Ipv4Addr::new(127, 0, 0, 0), 8);
        let outside =
            Route { table: MAIN_TABLE, to: anywhere, through: GATEWAY, device, source: ADDRESS };
        self.peers()
            .flat_map(|peer| {
                let route = move |to, source| Route {
                    table: table_of(peer),
                    to,
                    through: neighbour_of(peer),
                    device,
                    source,
                };
                [route(anywhere, ADDRESS), route(localhost, Ipv4Addr::LOCALHOST)]
            })
            .chain([outside])
            .collect()
    }
}

/// A node's part of the ephemeral ports, of all nodes in ascending order: first and last.
#[must_use]
pub fn ephemeral_ports(members: &[u16], node: u16) -> (u16, u16) {
    let all = usize::from(EPHEMERAL.1 - EPHEMERAL.0) + 1;
    let part = all / members.len().max(1);
    let place = members.iter().position(|member| *member == node).unwrap_or(0);
    let first = usize::from(EPHEMERAL.0) + place * part;
    let port = |number: usize| u16::try_from(number).unwrap_or(EPHEMERAL.1);
    (port(first), port(first + part - 1))
}

/// UDP to these ports of the DC's own addresses (or of one of them).
fn datagram_rules(
    preference: u32,
    table: u32,
    only: Option<Ipv4Addr>,
    ports: (u16, u16),
) -> Vec<Rule> {
    let all = [(Ipv4Addr::new(127, 0, 0, 0), 8), (ADDRESS, 32)];
    let rule = |to| Rule {
        to: Some(to),
        protocol: Some(libc::IPPROTO_UDP as u8),
        ports: Some(ports),
        ..Rule::new(preference, table)
    };
    match only {
        Some(address) => vec![rule((address, 32))],
        None => all.into_iter().map(rule).collect(),
    }
}

/// The rules that lead datagrams for a bound port, of all local addresses or of one, to its node, on
/// the node `here`.
#[must_use]
pub fn bound_port_rules(here: u16, node: u16, only: Option<Ipv4Addr>, port: u16) -> Vec<Rule> {
    let table = if node == here { LOCAL_TABLE } else { table_of(node) };
    // One for one address comes before one for all.
    let preference = BOUND_PREFERENCE + u32::from(only.is_none());
    datagram_rules(preference, table, only, (port, port))
}

/// The mark of sockets whose other end is on a node.
#[must_use]
pub fn mark_of(node: u16) -> u32 {
    MARKS | u32::from(node)
}

/// The hardware address of a node's device: its last four bytes are the node's mark.
#[must_use]
pub fn mac_of(node: u16) -> Mac {
    let [a, b, c, d] = mark_of(node).to_be_bytes();
    [0x02, 0xdc, a, b, c, d]
}

fn table_of(node: u16) -> u32 {
    TABLES + u32::from(node)
}

/// Stands for a node in routes; no packet ever has it.
fn neighbour_of(node: u16) -> Ipv4Addr {
    let [high, low] = node.to_be_bytes();
    Ipv4Addr::new(169, 254, high, low)
}

/// What the daemon works with; all of it belongs to the container's network namespace.
#[derive(Debug)]
pub struct Handles {
    /// Frames of the device, see [`netdevice`].
    pub device: OwnedFd,
    /// Routing netlink.
    pub routes: Netlink,
    /// Lists and ends sockets.
    pub sockets: Netlink,
    /// Hears of sockets that have gone.
    pub ends: Netlink,
    /// Takes the connections that the gateway gives back.
    pub outside: OwnedFd,
}

impl Handles {
    pub(crate) fn borrow(&self) -> [BorrowedFd<'_>; HANDLES] {
        [
            self.device.as_fd(),
            self.routes.as_fd(),
            self.sockets.as_fd(),
            self.ends.as_fd(),
            self.outside.as_fd(),
        ]
    }

    /// From as many descriptors as were sent; `None` if that are too few.
    pub(crate) fn from(descriptors: &mut impl Iterator<Item = OwnedFd>) -> Option<Handles> {
        Some(Handles {
            device: descriptors.next()?,
            routes: descriptors.next()?.into(),
            sockets: descriptors.next()?.into(),
            ends: descriptors.next()?.into(),
            outside: descriptors.next()?,
        })
    }
}

/// Sets the own network namespace up, with `CAP_NET_ADMIN` in it and the host's `/proc` in place.
/// `tun` is `/dev/net/tun`, where it could be opened.
pub(crate) fn build(network: &DcNetwork, tun: Option<File>) -> Result<Handles, BuildError> {
    let routes = Netlink::open(libc::NETLINK_ROUTE, 0).step("open netlink")?;
    let (device, index) = make_device(&routes, network.node, tun)?;
    for (name, value) in settings(network) {
        let path = format!("/proc/sys/net/{name}");
        std::fs::write(&path, value).step(&format!("set {path}"))?;
    }
    // Kernels without one of these have no such file: the device carries IPv4 alone, and connections
    // over several ways at once are not followed here (programs that ask for them take TCP then).
    let _ = std::fs::write("/proc/sys/net/mptcp/enabled", "0");
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6"), "1");
    route::set_up(&routes, index, Some(mac_of(network.node)), MTU).step("set the device up")?;
    route::add_address(&routes, index, ADDRESS).step("add the address")?;
    for peer in network.peers() {
        route::add_neighbour(&routes, index, neighbour_of(peer), mac_of(peer))
            .step("add a neighbour")?;
    }
    route::add_neighbour(&routes, index, GATEWAY, GATEWAY_MAC).step("add the gateway")?;
    route::add_all_local(&routes, ALL_LOCAL).step("take all addresses")?;
    for route in network.routes(index) {
        route::add_route(&routes, route).step("add a route")?;
    }
    for rule in network.rules() {
        route::add_rule(&routes, &rule).step("add a rule")?;
    }
    // The kernel's own first rule, which would keep everything here.
    route::remove_rule(&routes, &Rule::new(0, LOCAL_TABLE)).step("remove the local rule")?;
    let filter = Netlink::open(libc::NETLINK_NETFILTER, 0).step("open netfilter")?;
    nft::mark_by_sender(&filter, index).step("mark arriving packets (needs nf_tables)")?;
    let outside = inet::transparent_listener(SocketAddr::from((ADDRESS, 0)))
        .step("listen for connections to the outside")?;
    let port = inet::local_address(&outside).step("listen for connections to the outside")?.port();
    nft::take_connections(&filter, GATEWAY_MARK, port)
        .step("take connections to the outside (needs nft_tproxy)")?;
    Ok(Handles {
        device,
        routes,
        sockets: Netlink::open(libc::NETLINK_SOCK_DIAG, 0).step("open sock_diag")?,
        ends: diag::listen_for_ends().step("hear of closed sockets")?,
        outside,
    })
}

fn make_device(
    netlink: &Netlink,
    node: u16,
    tun: Option<File>,
) -> Result<(OwnedFd, u32), BuildError> {
    if let Some(tun) = tun {
        let device = netdevice::make_tap(tun, DEVICE).step("make the network device")?;
        let index = route::index_of(DEVICE).step("find the network device")?;
        return Ok((device, index));
    }
    route::make_pair(netlink, DEVICE, OTHER_END)
        .step("make a pair of network devices (there is no /dev/net/tun for this user)")?;
    let other = route::index_of(OTHER_END).step("find the network device")?;
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{OTHER_END}/disable_ipv6"), "1");
    // An address that no frame is sent to, so that the kernel takes nothing that passes here.
    let [.., high, low] = mac_of(node);
    route::set_up(netlink, other, Some([0x02, 0xdd, 0, 0, high, low]), MTU)
        .step("set the device's other end up")?;
    let packets = netdevice::open_packets(other).step("open the device's other end")?;
    let index = route::index_of(DEVICE).step("find the network device")?;
    Ok((packets, index))
}

/// Settings below `/proc/sys/net`.
fn settings(network: &DcNetwork) -> Vec<(String, String)> {
    let (first, last) = ephemeral_ports(&network.members, network.node);
    let device = |name: &str| format!("ipv4/conf/{DEVICE}/{name}");
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        text("ipv4/conf/all/rp_filter", "0"),
        (device("rp_filter"), "0".into()),
        // Packets whose source is our own address, and 127.0.0.1, may come from outside.
        (device("accept_local"), "1".into()),
        (device("route_localnet"), "1".into()),
        text("ipv4/tcp_fwmark_accept", "1"),
        text("ipv4/fwmark_reflect", "1"),
        text("ipv4/ip_local_port_range", &format!("{first} {last}")),
        // The ports are the container's own: any user in it may have any of them.
        text("ipv4/ip_unprivileged_port_start", "0"),
        text("ipv4/ping_group_range", "0 0"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(node: u16, members: &[u16]) -> DcNetwork {
        DcNetwork { node, members: members.to_vec() }
    }

    #[test]
    fn ephemeral_ports_are_disjoint_and_within_the_usual_ones() {
        for count in [1, 2, 3, 64, MAX_NODES] {
            let members: Vec<u16> = (1..=count as u16).collect();
            let mut next = EPHEMERAL.0;
            for member in &members {
                let (first, last) = ephemeral_ports(&members, *member);
                assert!(first == next && last >= first, "{count}: {first} {last}");
                next = last + 1;
            }
            assert!(next <= EPHEMERAL.1 + 1);
        }
    }

    #[test]
    fn the_local_table_comes_last_and_every_peer_has_its_own() {
        let network = network(2, &[1, 2, 3]);
        let rules = network.rules();
        assert_eq!(rules.last(), Some(&Rule::new(100, LOCAL_TABLE)));
        assert!(rules.iter().all(|rule| rule.preference <= 100));
        for peer in [1, 3] {
            assert!(rules.iter().any(|rule| rule.mark == Some(mark_of(peer))));
        }
        assert!(rules.iter().all(|rule| rule.mark != Some(mark_of(2)) && rule.mark != Some(0)));
        assert_eq!(network.routes(9).len(), 5);
        assert_eq!(mac_of(0x0102), [2, 0xdc, 0, 1, 1, 2]);
    }

    #[test]
    fn a_bound_port_leads_to_its_node() {
        let elsewhere = bound_port_rules(1, 2, None, 53);
        assert_eq!(elsewhere.len(), 2);
        assert!(elsewhere.iter().all(|rule| rule.table == table_of(2)));
        let one = bound_port_rules(1, 2, Some(Ipv4Addr::LOCALHOST), 53);
        assert_eq!(one.len(), 1);
        assert!(one[0].preference < elsewhere[0].preference);
        assert_eq!(bound_port_rules(1, 1, None, 53)[0].table, LOCAL_TABLE);
    }

    #[test]
    fn what_is_wrong_is_said() {
        network(1, &[1, 2]).validate().unwrap();
        assert!(network(3, &[1, 2]).validate().is_err());
        assert!(network(1, &[2, 1]).validate().is_err());
        assert!(network(1, &[1, 1]).validate().is_err());
        assert!(network(1, &[1, NODES_END]).validate().is_err());
        let [.., a, b, c, d] = GATEWAY_MAC;
        assert_eq!(u32::from_be_bytes([a, b, c, d]), GATEWAY_MARK);
        let many: Vec<u16> = (0..=MAX_NODES as u16).collect();
        assert!(network(1, &many).validate().is_err());
    }
}
