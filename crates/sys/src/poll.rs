//! Waiting for descriptors: `poll`, `epoll`, and `eventfd` to wake a waiting thread.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::error::{Result, SysError, check};

/// Most events taken by one [`Epoll::wait`].
pub const MAX_EVENTS: usize = 256;

/// An event of an [`Epoll`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The number given when the descriptor was added.
    pub key: u64,
    /// `EPOLL*` bits.
    pub events: u32,
}

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    /// A new, empty one.
    pub fn new() -> Result<Epoll> {
        // SAFETY: takes plain flags.
        let result = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check("epoll_create1", i64::from(result))?;
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        Ok(Epoll { fd: unsafe { OwnedFd::from_raw_fd(result) } })
    }

    /// Watches a descriptor. With no bits at all `EPOLLERR` and `EPOLLHUP` are still reported.
    pub fn add(&self, fd: impl AsFd, events: u32, key: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, key)
    }

    /// Changes what a watched descriptor is watched for; also arms a one-shot one again.
    pub fn modify(&self, fd: impl AsFd, events: u32, key: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, key)
    }

    /// Stops watching a descriptor.
    pub fn remove(&self, fd: impl AsFd) -> Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, operation: i32, fd: impl AsFd, events: u32, key: u64) -> Result<()> {
        let mut event = libc::epoll_event { events, u64: key };
        // SAFETY: `event` lives across the call; both descriptors are live.
        let result = unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_fd().as_raw_fd(), &raw mut event)
        };
        check("epoll_ctl", i64::from(result))?;
        Ok(())
    }

    /// Waits until something happens, or until `timeout` is over, and appends what happened to
    /// `into` (at most [`MAX_EVENTS`]). An interrupting signal counts as nothing.
    pub fn wait(&self, into: &mut Vec<Event>, timeout: Option<Duration>) -> Result<()> {
        let mut buffer = [libc::epoll_event { events: 0, u64: 0 }; MAX_EVENTS];
        // SAFETY: pointer and length describe the live `buffer`.
        let result = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr(),
                i32::try_from(MAX_EVENTS).unwrap_or(i32::MAX),
                milliseconds(timeout),
            )
        };
        let count = match check("epoll_wait", i64::from(result)) {
            Ok(count) => usize::try_from(count).unwrap_or(0),
            Err(error) if error.errno == libc::EINTR => 0,
            Err(error) => return Err(error),
        };
        into.extend(
            buffer.iter().take(count).map(|event| Event { key: event.u64, events: event.events }),
        );
        Ok(())
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A counter that wakes whoever waits for it.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// A non-blocking one at zero.
    pub fn new() -> Result<EventFd> {
        // SAFETY: takes plain numbers.
        let result = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        check("eventfd", i64::from(result))?;
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        Ok(EventFd { fd: unsafe { OwnedFd::from_raw_fd(result) } })
    }

    /// Makes it readable.
    pub fn signal(&self) -> Result<()> {
        match crate::pipe::write(&self.fd, &1u64.to_ne_bytes()) {
            Ok(_) => Ok(()),
            // The counter is at its top: it is readable, which is all that was wanted.
            Err(error) if error.errno == libc::EAGAIN => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes it unreadable again; returns how often it was signalled.
    pub fn clear(&self) -> Result<u64> {
        let mut bytes = [0; 8];
        match crate::pipe::read(&self.fd, &mut bytes) {
            Ok(8) => Ok(u64::from_ne_bytes(bytes)),
            Ok(_) => Err(SysError::new("read", libc::EIO)),
            Err(error) if error.errno == libc::EAGAIN => Ok(0),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `poll(2)` of one descriptor: the `POLL*` bits that are set, 0 when the time is over.
pub fn one(fd: impl AsFd, events: i16, timeout: Option<Duration>) -> Result<i16> {
    let mut entry = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: pointer and count describe the one live `entry`.
    let result = unsafe { libc::poll(&raw mut entry, 1, milliseconds(timeout)) };
    match check("poll", i64::from(result)) {
        Ok(_) => Ok(entry.revents),
        Err(error) if error.errno == libc::EINTR => Ok(0),
        Err(error) => Err(error),
    }
}

/// Rounded up, so that a short wait does not become a busy one.
fn milliseconds(timeout: Option<Duration>) -> i32 {
    match timeout {
        None => -1,
        Some(time) => i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_wakes_and_is_cleared() {
        let epoll = Epoll::new().unwrap();
        let event = EventFd::new().unwrap();
        epoll.add(&event, libc::EPOLLIN as u32, 7).unwrap();
        let mut seen = Vec::new();
        epoll.wait(&mut seen, Some(Duration::ZERO)).unwrap();
        assert!(seen.is_empty());
        event.signal().unwrap();
        event.signal().unwrap();
        epoll.wait(&mut seen, None).unwrap();
        assert_eq!(seen, [Event { key: 7, events: libc::EPOLLIN as u32 }]);
        assert_eq!(event.clear().unwrap(), 2);
        assert_eq!(one(&event, libc::POLLIN, Some(Duration::ZERO)).unwrap(), 0);
        epoll.remove(&event).unwrap();
    }
}
