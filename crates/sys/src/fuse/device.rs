//! `/dev/fuse`: open, clone, read, write. ([`crate::mount`] mounts it.)

use super::abi::{REPLY_HEADER, notify};
use super::reply::header;
use crate::error::{Result, SysError, check};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
const CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;

/// One descriptor of `/dev/fuse`. A reply must go to the descriptor its request was read from.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl From<OwnedFd> for Device {
    fn from(fd: OwnedFd) -> Device {
        Device(fd)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Device {
    /// Opens a device that belongs to no mount yet.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, `ENODEV`: there is no FUSE here.
    pub fn open() -> Result<Device> {
        // SAFETY: the path is a constant string that ends with NUL.
        let result = unsafe { libc::open(c"/dev/fuse".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        check("open /dev/fuse", i64::from(result))?;
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        Ok(Device(unsafe { OwnedFd::from_raw_fd(result) }))
    }

    /// Another descriptor of the same mount, with a list of requests in work of its own.
    ///
    /// # Errors
    /// What opening says; `EINVAL`: this one belongs to no mount.
    pub fn duplicate(&self) -> Result<Device> {
        let device = Device::open()?;
        let mut source = self.0.as_raw_fd().cast_unsigned();
        // SAFETY: the kernel reads one number from `source`, which lives across the call.
        let result = unsafe { libc::ioctl(device.0.as_raw_fd(), CLONE, &raw mut source) };
        check("ioctl FUSE_DEV_IOC_CLONE", i64::from(result))?;
        Ok(device)
    }

    /// Reads one request; blocks until there is one. Returns its bytes' number.
    ///
    /// # Errors
    /// `ENOENT`, `EINTR`, `EAGAIN`: read again. `ENODEV`: unmounted. `ECONNABORTED`: aborted.
    /// `EPERM`: not mounted yet.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        // SAFETY: pointer and length describe the live, writable `buffer`.
        let result =
            unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let count = check("read /dev/fuse", i64::try_from(result).unwrap_or(-1))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Answers the request `unique`: with `errno` (positive), or with a body.
    ///
    /// # Errors
    /// `ENOENT`: the request is gone (its caller was killed); nobody waits for the answer.
    pub fn reply(&self, unique: u64, errno: i32, body: &[u8]) -> Result<()> {
        let body = if errno == 0 { body } else { &[] };
        self.send(&header(unique, errno, body.len()), body, &[])
    }

    /// Tells the kernel that attributes, and pages from `offset` on (none where it is negative), are
    /// stale. Waits for reads and writes of these pages that are under way: never call it on a
    /// thread that serves requests.
    ///
    /// # Errors
    /// `ENOENT`: the kernel does not know the node.
    pub fn invalidate_inode(&self, node: u64, offset: i64, length: i64) -> Result<()> {
        let mut body = [0; 24];
        body[..8].copy_from_slice(&node.to_ne_bytes());
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        body[16..].copy_from_slice(&length.to_ne_bytes());
        self.send(&header(0, -notify::INVAL_INODE, body.len()), &body, &[])
    }

    /// Tells the kernel that a name is stale. Waits for the directory's lock, which every
    /// operation in the directory holds until it is answered.
    ///
    /// # Errors
    /// `ENOENT`: the kernel does not know the directory or the name.
    pub fn invalidate_entry(&self, parent: u64, name: &[u8]) -> Result<()> {
        let mut body = Vec::with_capacity(17 + name.len());
        body.extend(parent.to_ne_bytes());
        body.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_ne_bytes());
        body.extend(0u32.to_ne_bytes());
        body.extend(name);
        body.push(0);
        self.send(&header(0, -notify::INVAL_ENTRY, body.len()), &body, &[])
    }

    fn send(&self, head: &[u8; REPLY_HEADER], body: &[u8], rest: &[u8]) -> Result<()> {
        let part = |bytes: &[u8]| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let parts = [part(head), part(body), part(rest)];
        // SAFETY: the three parts describe live slices that the kernel only reads.
        let result = unsafe { libc::writev(self.0.as_raw_fd(), parts.as_ptr(), 3) };
        check("write /dev/fuse", i64::try_from(result).unwrap_or(-1))?;
        Ok(())
    }
}

/// Whether reading the device is over for good after this error.
#[must_use]
pub fn is_over(error: &SysError) -> bool {
    !matches!(error.errno, libc::EINTR | libc::EAGAIN | libc::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_a_mount_gives_nothing() {
        let Ok(device) = Device::open() else {
            println!("SKIPPED: no /dev/fuse here");
            return;
        };
        let mut buffer = vec![0; super::super::abi::MIN_READ_BUFFER];
        assert_eq!(device.read(&mut buffer).unwrap_err().errno, libc::EPERM);
        assert!(device.duplicate().is_err());
        assert!(device.invalidate_inode(1, 0, 0).is_err());
    }
}
