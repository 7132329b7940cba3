//! Devices, addresses, neighbours, routes and rules (rtnetlink(7)), as far as a container's network
//! needs them. IPv4 only.

use super::{ANSWERED, Netlink, Request, attribute};
use crate::error::{Result, SysError, check};
use std::ffi::CString;
use std::net::Ipv4Addr;

const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const ANY_FAMILY: u8 = 0;
const IPV4: u8 = libc::AF_INET as u8;
/// The table of the addresses of this host.
pub const LOCAL_TABLE: u32 = 255;
/// The table of ordinary routes.
pub const MAIN_TABLE: u32 = 254;

/// A hardware address.
pub type Mac = [u8; 6];

/// Index of a device of the own network namespace.
///
/// # Errors
/// `ENODEV`.
pub fn index_of(name: &str) -> Result<u32> {
    let name = CString::new(name).map_err(|_| SysError::new("if_nametoindex", libc::EINVAL))?;
    // SAFETY: the name is NUL-terminated and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        check("if_nametoindex", -1)?;
    }
    Ok(index)
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

/// Makes a pair of devices: what leaves through one arrives at the other.
///
/// # Errors
/// `EPERM`, `EEXIST`, `EOPNOTSUPP` where the kernel has no `veth`.
pub fn make_pair(netlink: &Netlink, name: &str, other: &str) -> Result<()> {
    let text = |name: &str| [name.as_bytes(), b"\0"].concat();
    let mut peer = link_header(0, 0, 0).to_vec();
    attribute(&mut peer, IFLA_IFNAME, &text(other));
    let mut data = Vec::new();
    attribute(&mut data, VETH_INFO_PEER, &peer);
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"veth");
    attribute(&mut info, IFLA_INFO_DATA, &data);
    let request =
        Request::new(libc::RTM_NEWLINK, ANSWERED | CREATE | EXCLUSIVE, &link_header(0, 0, 0))
            .with(IFLA_IFNAME, &text(name))
            .with(IFLA_LINKINFO, &info);
    netlink.ask("RTM_NEWLINK(veth)", request)
}

/// Sets hardware address and largest packet of a device, and switches it on.
///
/// # Errors
/// `EPERM`, `ENODEV`, `EINVAL`.
pub fn set_up(netlink: &Netlink, index: u32, mac: Option<Mac>, mtu: u32) -> Result<()> {
    let change =
        |flags: u32| Request::new(libc::RTM_NEWLINK, ANSWERED, &link_header(index, flags, flags));
    let mut settings = change(0).with_u32(IFLA_MTU, mtu);
    if let Some(mac) = mac {
        settings = settings.with(IFLA_ADDRESS, &mac);
    }
    netlink.ask("RTM_NEWLINK(settings)", settings)?;
    netlink.ask("RTM_NEWLINK(up)", change(libc::IFF_UP as u32))
}

/// Gives a device an address that has no network around it.
///
/// # Errors
/// `EPERM`, `ENODEV`, `EEXIST`.
pub fn add_address(netlink: &Netlink, index: u32, address: Ipv4Addr) -> Result<()> {
    let mut header = [IPV4, 32, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let request = Request::new(libc::RTM_NEWADDR, ANSWERED | CREATE | EXCLUSIVE, &header)
        .with(libc::IFA_LOCAL, &address.octets())
        .with(libc::IFA_ADDRESS, &address.octets());
    netlink.ask("RTM_NEWADDR", request)
}

/// Says for good which hardware address a neighbour has.
///
/// # Errors
/// `EPERM`, `ENODEV`, `EEXIST`.
pub fn add_neighbour(netlink: &Netlink, index: u32, address: Ipv4Addr, mac: Mac) -> Result<()> {
    const PERMANENT: u16 = 0x80;
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let mut header = [0; 12];
    header[0] = IPV4;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    let request = Request::new(libc::RTM_NEWNEIGH, ANSWERED | CREATE | EXCLUSIVE, &header)
        .with(NDA_DST, &address.octets())
        .with(NDA_LLADDR, &mac);
    netlink.ask("RTM_NEWNEIGH", request)
}

/// A route through a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The table that it stands in.
    pub table: u32,
    /// Destinations: address and prefix length.
    pub to: (Ipv4Addr, u8),
    /// The neighbour.
    pub through: Ipv4Addr,
    /// Device.
    pub device: u32,
    /// Source address of sockets that have not chosen one.
    pub source: Ipv4Addr,
}

/// Adds a route.
///
/// # Errors
/// `EPERM`, `ENODEV`, `EEXIST`, `EINVAL` for a source that is no address of this host.
pub fn add_route(netlink: &Netlink, route: Route) -> Result<()> {
    const ONLINK: u32 = 4;
    const STATIC: u8 = 4;
    const UNICAST: u8 = 1;
    let mut header = [IPV4, route.to.1, 0, 0, 0, STATIC, 0, UNICAST, 0, 0, 0, 0];
    header[8..12].copy_from_slice(&ONLINK.to_ne_bytes());
    let mut request = Request::new(libc::RTM_NEWROUTE, ANSWERED | CREATE | EXCLUSIVE, &header)
        .with_u32(libc::RTA_TABLE, route.table)
        .with_u32(libc::RTA_OIF, route.device)
        .with(libc::RTA_GATEWAY, &route.through.octets())
        .with(libc::RTA_PREFSRC, &route.source.octets());
    if route.to.1 > 0 {
        request = request.with(libc::RTA_DST, &route.to.0.octets());
    }
    netlink.ask("RTM_NEWROUTE", request)
}

/// Has a table take every address for one of this host.
///
/// # Errors
/// `EPERM`, `EEXIST`.
pub fn add_all_local(netlink: &Netlink, table: u32) -> Result<()> {
    const STATIC: u8 = 4;
    const HOST: u8 = 254;
    const LOCAL: u8 = 2;
    let header = [IPV4, 0, 0, 0, 0, STATIC, HOST, LOCAL, 0, 0, 0, 0];
    let request = Request::new(libc::RTM_NEWROUTE, ANSWERED | CREATE | EXCLUSIVE, &header)
        .with_u32(libc::RTA_TABLE, table)
        .with_u32(libc::RTA_OIF, index_of("lo")?);
    netlink.ask("RTM_NEWROUTE(local)", request)
}

/// A rule: which packets look into which table (ip-rule(8)). What is `None` is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Rules are tried from the lowest on.
    pub preference: u32,
    /// The table.
    pub table: u32,
    /// The device that the packet came from.
    pub arrived_by: Option<String>,
    /// Its mark.
    pub mark: Option<u32>,
    /// Where it goes: address and prefix length.
    pub to: Option<(Ipv4Addr, u8)>,
    /// Its protocol (`IPPROTO_*`).
    pub protocol: Option<u8>,
    /// Its destination port: first and last.
    pub ports: Option<(u16, u16)>,
}

impl Rule {
    /// A rule for every packet.
    #[must_use]
    pub fn new(preference: u32, table: u32) -> Self {
        Rule {
            preference,
            table,
            arrived_by: None,
            mark: None,
            to: None,
            protocol: None,
            ports: None,
        }
    }

    fn request(&self, kind: u16, flags: u16) -> Request {
        const TO_TABLE: u8 = 1;
        const FRA_DST: u16 = 1;
        const FRA_IIFNAME: u16 = 3;
        const FRA_PRIORITY: u16 = 6;
        const FRA_FWMARK: u16 = 10;
        const FRA_TABLE: u16 = 15;
        const FRA_FWMASK: u16 = 16;
        const FRA_IP_PROTO: u16 = 22;
        const FRA_DPORT_RANGE: u16 = 24;
        let length = self.to.map_or(0, |to| to.1);
        let header = [IPV4, length, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
        let mut request = Request::new(kind, ANSWERED | flags, &header)
            .with_u32(FRA_PRIORITY, self.preference)
            .with_u32(FRA_TABLE, self.table);
        if let Some(name) = &self.arrived_by {
            request = request.with(FRA_IIFNAME, &[name.as_bytes(), b"\0"].concat());
        }
        if let Some(mark) = self.mark {
            request = request.with_u32(FRA_FWMARK, mark).with_u32(FRA_FWMASK, u32::MAX);
        }
        if let Some((address, _)) = self.to {
            request = request.with(FRA_DST, &address.octets());
        }
        if let Some(protocol) = self.protocol {
            request = request.with(FRA_IP_PROTO, &[protocol]);
        }
        if let Some((first, last)) = self.ports {
            let range = [first.to_ne_bytes(), last.to_ne_bytes()].concat();
            request = request.with(FRA_DPORT_RANGE, &range);
        }
        request
    }
}

/// Adds a rule.
///
/// # Errors
/// `EPERM`, `EEXIST`, `EINVAL`.
pub fn add_rule(netlink: &Netlink, rule: &Rule) -> Result<()> {
    netlink.ask("RTM_NEWRULE", rule.request(libc::RTM_NEWRULE, CREATE | EXCLUSIVE))
}

/// Removes a rule.
///
/// # Errors
/// `EPERM`, `ENOENT`.
pub fn remove_rule(netlink: &Netlink, rule: &Rule) -> Result<()> {
    netlink.ask("RTM_DELRULE", rule.request(libc::RTM_DELRULE, 0))
}

/// Counts the devices of the socket's namespace; for tests.
///
/// # Errors
/// What the kernel answers.
pub fn count_devices(netlink: &Netlink) -> Result<usize> {
    let mut count = 0;
    let header = [ANY_FAMILY; 16];
    netlink.dump("RTM_GETLINK", Request::new(libc::RTM_GETLINK, 0, &header), |_, _| count += 1)?;
    Ok(count)
}
