//! Sockets of other programs, as a supervisor holds them: what they are, and binding, listening and
//! connecting them in their owner's place.

use crate::error::{Result, SysError, check};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Room for every socket address (`struct sockaddr_storage`).
pub const MAX_ADDRESS: usize = 128;

/// What a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketInfo {
    /// `AF_*`.
    pub family: i32,
    /// `SOCK_*`.
    pub kind: i32,
    /// `IPPROTO_*`.
    pub protocol: i32,
    /// Its number, never given twice while the machine runs.
    pub cookie: u64,
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// `IPV6_V6ONLY`; false for IPv4.
    pub only_v6: bool,
}

impl SocketInfo {
    /// Looks at a socket.
    ///
    /// # Errors
    /// `ENOTSOCK`.
    pub fn of(socket: &impl AsFd) -> Result<SocketInfo> {
        let number = |level, option| get::<i32>(socket, level, option);
        let family = number(libc::SOL_SOCKET, libc::SO_DOMAIN)?;
        let only_v6 = family == libc::AF_INET6
            && number(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).unwrap_or(0) != 0;
        Ok(SocketInfo {
            family,
            kind: number(libc::SOL_SOCKET, libc::SO_TYPE)?,
            protocol: number(libc::SOL_SOCKET, libc::SO_PROTOCOL)?,
            cookie: get::<u64>(socket, libc::SOL_SOCKET, libc::SO_COOKIE)?,
            reuse_address: number(libc::SOL_SOCKET, libc::SO_REUSEADDR)? != 0,
            reuse_port: number(libc::SOL_SOCKET, libc::SO_REUSEPORT)? != 0,
            only_v6,
        })
    }
}

/// A type whose every bit pattern is a value, for socket options.
trait Plain: Copy + Default {}
impl Plain for i32 {}
impl Plain for u64 {}

fn get<T: Plain>(socket: &impl AsFd, level: i32, option: i32) -> Result<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the value, which is plain data.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    check("getsockopt", i64::from(done))?;
    Ok(value)
}

/// The mark by which a socket's packets are routed.
///
/// # Errors
/// `ENOTSOCK`.
pub fn mark(socket: &impl AsFd) -> Result<u32> {
    Ok(get::<i32>(socket, libc::SOL_SOCKET, libc::SO_MARK)? as u32)
}

/// Whether a TCP socket is in no connection, and not about to be in one.
#[must_use]
pub fn is_unconnected(socket: &impl AsFd) -> bool {
    const CLOSED: u8 = 7;
    // The first byte of struct tcp_info is the state.
    let mut info = [0_u8; 8];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the live buffer.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    done == 0 && info[0] == CLOSED
}

/// Sets a socket's mark.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in the user namespace of the socket's network.
pub fn set_mark(socket: &impl AsFd, mark: u32) -> Result<()> {
    // SAFETY: the option's value is an int that lives across the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw const mark).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    check("setsockopt(SO_MARK)", i64::from(done))?;
    Ok(())
}

/// The address that an IP socket is bound to.
///
/// # Errors
/// `EAFNOSUPPORT` for a socket of another kind.
pub fn local_address(socket: &impl AsFd) -> Result<SocketAddr> {
    let mut bytes = [0; MAX_ADDRESS];
    let mut length = bytes.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the live buffer.
    let done = unsafe {
        libc::getsockname(socket.as_fd().as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut length)
    };
    check("getsockname", i64::from(done))?;
    parse(&bytes).ok_or(SysError::new("getsockname", libc::EAFNOSUPPORT))
}

/// Binds a socket to an address given as the caller's bytes.
///
/// # Errors
/// As bind(2).
pub fn bind(socket: &impl AsFd, address: &[u8]) -> Result<()> {
    let length = address.len().min(MAX_ADDRESS) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of the live slice.
    let done = unsafe { libc::bind(socket.as_fd().as_raw_fd(), address.as_ptr().cast(), length) };
    check("bind", i64::from(done))?;
    Ok(())
}

/// A listening socket of the own network namespace that may take connections for addresses that are
/// not this host's (`IP_TRANSPARENT`); accepting from it does not wait.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in the namespace, `EADDRINUSE`.
pub fn transparent_listener(address: SocketAddr) -> Result<OwnedFd> {
    const BACKLOG: i32 = 512;
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: integers only.
    let socket = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    let socket = crate::descriptor::own(check("socket", i64::from(socket))?);
    let on: i32 = 1;
    // SAFETY: the option's value is an int that lives across the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_TRANSPARENT,
            (&raw const on).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    check("setsockopt(IP_TRANSPARENT)", i64::from(done))?;
    bind(&socket, &encode(address))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Lets a socket listen.
///
/// # Errors
/// As listen(2).
pub fn listen(socket: &impl AsFd, backlog: i32) -> Result<()> {
    // SAFETY: integers only.
    check("listen", i64::from(unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) }))?;
    Ok(())
}

/// Begins to connect a socket to an address given as bytes, without waiting even if the socket
/// would: true when it is connected already. Afterwards a `connect` by its owner waits (or not) for
/// what has begun here, whatever its address says (`__inet_stream_connect` in the state
/// `SS_CONNECTING`).
///
/// # Errors
/// As connect(2), except `EINPROGRESS`.
pub fn begin_connect(socket: &impl AsFd, address: &[u8]) -> Result<bool> {
    let fd = socket.as_fd();
    let waits = crate::descriptor::status_flags(fd)? & libc::O_NONBLOCK == 0;
    if waits {
        // The flag is the owner's, too, for the moment that the kernel takes to send a packet.
        crate::descriptor::set_nonblocking(fd, true)?;
    }
    let length = address.len().min(MAX_ADDRESS) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of the live slice.
    let done = unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), length) };
    let result = check("connect", i64::from(done));
    if waits {
        crate::descriptor::set_nonblocking(fd, false)?;
    }
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.errno == libc::EINPROGRESS => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes a socket out of its association (`connect` to `AF_UNSPEC`); a port that the kernel chose is
/// given back.
///
/// # Errors
/// As connect(2).
pub fn dissolve(socket: &impl AsFd) -> Result<()> {
    let unspecified = [0_u8; 16];
    // SAFETY: the kernel reads the sixteen bytes.
    let done = unsafe {
        libc::connect(
            socket.as_fd().as_raw_fd(),
            unspecified.as_ptr().cast(),
            unspecified.len() as libc::socklen_t,
        )
    };
    check("connect(AF_UNSPEC)", i64::from(done))?;
    Ok(())
}

/// An IP socket address from its bytes; `None` for another family or too few bytes.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*rest.first_chunk::<2>()?);
    let address = match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let octets: [u8; 4] = *rest.get(2..)?.first_chunk()?;
            // The kernel wants the whole structure.
            rest.get(13)?;
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = *rest.get(6..)?.first_chunk()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// The bytes of a socket address, as the kernel wants them.
#[must_use]
pub fn encode(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.extend_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            bytes.extend_from_slice(&address.port().to_be_bytes());
            bytes.extend_from_slice(&ip.octets());
            bytes.resize(16, 0);
        }
        IpAddr::V6(ip) => {
            bytes.extend_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend_from_slice(&address.port().to_be_bytes());
            bytes.resize(8, 0);
            bytes.extend_from_slice(&ip.octets());
            bytes.resize(28, 0);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["127.0.0.1:80", "0.0.0.0:65535", "[::1]:443", "[::ffff:10.0.0.1]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let bytes = encode(address);
            assert_eq!(parse(&bytes), Some(address));
            let whole = if address.is_ipv4() { 16 } else { 24 };
            for length in 0..whole {
                assert_eq!(parse(&bytes[..length]), None, "{text} cut to {length}");
            }
        }
        assert_eq!(parse(&[1, 0, b'/', b'x', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn sockets_tell_what_they_are() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let info = SocketInfo::of(&listener).unwrap();
        assert_eq!((info.family, info.kind), (libc::AF_INET, libc::SOCK_STREAM));
        assert_eq!(info.protocol, libc::IPPROTO_TCP);
        assert!(info.reuse_address && !info.reuse_port && !info.only_v6);
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_ne!(SocketInfo::of(&datagrams).unwrap().cookie, info.cookie);
        assert_eq!(local_address(&listener).unwrap(), listener.local_addr().unwrap());
        let (pipe, _other) = crate::descriptor::pipe().unwrap();
        assert_eq!(SocketInfo::of(&pipe).unwrap_err().errno, libc::ENOTSOCK);
    }

    #[test]
    fn a_port_that_the_kernel_chose_is_given_back() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let first = local_address(&socket).unwrap().port();
        dissolve(&socket).unwrap();
        assert_eq!(local_address(&socket).unwrap().port(), 0);
        bind(&socket, &encode("127.0.0.1:0".parse().unwrap())).unwrap();
        assert_ne!((first, local_address(&socket).unwrap().port()), (0, 0));
    }

    #[test]
    fn a_connection_is_begun_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_unconnected(&listener));
        let port = listener.local_addr().unwrap().port();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let error = begin_connect(&stream, &encode(listener.local_addr().unwrap())).unwrap_err();
        assert_eq!(error.errno, libc::EISCONN);
        assert_eq!(crate::descriptor::status_flags(stream.as_fd()).unwrap() & libc::O_NONBLOCK, 0);
    }
}
