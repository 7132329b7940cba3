//! Errors of system calls: the errno and the call that gave it.

/// A system call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {}", std::io::Error::from_raw_os_error(*errno))]
pub struct SysError {
    /// Name of the call, as in its man page.
    pub call: &'static str,
    /// errno, positive.
    pub errno: i32,
}

impl SysError {
    /// The error that the calling thread's last system call left in `errno`.
    #[must_use]
    pub fn last(call: &'static str) -> Self {
        SysError {
            call,
            errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// An error with a given number.
    #[must_use]
    pub fn new(call: &'static str, errno: i32) -> Self {
        SysError { call, errno }
    }
}

impl From<SysError> for std::io::Error {
    fn from(error: SysError) -> Self {
        std::io::Error::from_raw_os_error(error.errno)
    }
}

/// Result of a system call.
pub type Result<T> = std::result::Result<T, SysError>;

/// Turns the classic `-1` convention into a [`Result`].
pub(crate) fn check(call: &'static str, value: i64) -> Result<i64> {
    if value < 0 { Err(SysError::last(call)) } else { Ok(value) }
}
