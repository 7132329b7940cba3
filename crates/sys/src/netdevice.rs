//! The two ends of a container's network device: the kernel's, an Ethernet device of a network
//! namespace, and ours, a descriptor from which its frames are read and to which frames for it are
//! written. In both directions a frame has a `virtio_net_hdr` of ten bytes before it, so that
//! checksums and segmentation may be left for later (`linux/virtio_net.h`).

use crate::descriptor::own;
use crate::error::{Result, SysError, check};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Bytes before each frame.
pub const FRAME_HEADER: usize = 10;
/// Longest name of a device.
const MAX_NAME: usize = 15;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
/// `TUN_F_CSUM`, `TSO4`, `TSO6`, `TSO_ECN`.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x08;

/// Makes a TAP device in the network namespace in which `/dev/net/tun` was opened; it lives as long
/// as the descriptor. Reads and writes do not wait.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in the namespace, `EBUSY` for a name that is taken.
pub fn make_tap(tun: File, name: &str) -> Result<OwnedFd> {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(SysError::new("ioctl(TUNSETIFF)", libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives through the call.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) };
    check("ioctl(TUNSETIFF)", i64::from(done))?;
    let size = FRAME_HEADER as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int, which lives through the call.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) };
    check("ioctl(TUNSETVNETHDRSZ)", i64::from(done))?;
    // SAFETY: the argument is a number.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) };
    check("ioctl(TUNSETOFFLOAD)", i64::from(done))?;
    let device = OwnedFd::from(tun);
    crate::descriptor::set_nonblocking(device.as_fd(), true)?;
    Ok(device)
}

/// Reads and writes the frames of a device of the own network namespace, by its index. Where there is
/// no `/dev/net/tun` this, at the other device of a pair, does what a TAP does. Reads and writes do
/// not wait.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW` in the namespace, `ENODEV`.
pub fn open_packets(index: u32) -> Result<OwnedFd> {
    const IGNORE_OUTGOING: i32 = 23;
    const BUFFER: i32 = 8 << 20;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: integers only. Protocol 0: nothing is received until it is bound.
    let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    let socket = own(check("socket(AF_PACKET)", i64::from(socket))?);
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set(&socket, libc::SOL_PACKET, IGNORE_OUTGOING, 1)?;
    // More than the usual limit is nice to have, and not always allowed.
    let _ = set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER);
    let _ = set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER);
    // SAFETY: sockaddr_ll is plain old data; zero is a valid value of every field.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: the address lives across the call and its length is given.
    let done = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    check("bind(AF_PACKET)", i64::from(done))?;
    Ok(socket)
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: i32) -> Result<()> {
    // SAFETY: the option's value is an int that lives across the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    check("setsockopt(AF_PACKET)", i64::from(done))?;
    Ok(())
}

/// Reads one frame with its header; its length. `EAGAIN`: none waits.
///
/// # Errors
/// `EAGAIN`; `EBADFD`, `EIO` or `ENETDOWN` when the device is gone or not up.
pub fn read_frame(device: impl AsFd, buffer: &mut [u8]) -> Result<usize> {
    crate::pipe::read(device, buffer)
}

/// Writes one frame with its header.
///
/// # Errors
/// `EAGAIN`, `ENOBUFS`: no room; `EINVAL`: no frame; `EIO`: the device is not up.
pub fn write_frame(device: impl AsFd, frame: &[u8]) -> Result<()> {
    crate::pipe::write(device, frame).map(|_| ())
}
