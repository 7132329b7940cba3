//! What the file tree says of a program before anybody is asked to run it.

/// An execve as it is about to happen.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// Working directory, in the container's tree.
    pub directory: &'a [u8],
    /// Path, absolute or relative to the working directory.
    pub path: &'a [u8],
    /// Effective user and group, in the container's ids.
    pub user: (u32, u32),
}

/// What is known of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the node that runs it will see.
    Unknown,
    /// There is no such file, or it is not executable: the call fails wherever it is made.
    Absent,
    /// Set-user-id, set-group-id or file capabilities.
    Privileged,
    /// An ordinary program.
    Ordinary,
}

/// Looks programs up in the container's tree. It must not wait for anything that a guest can hold
/// up; answering [`Verdict::Unknown`] is always right.
pub trait Files: Send + Sync {
    /// What the tree says of this program.
    fn probe(&self, probe: Probe<'_>) -> Verdict;
}

/// Knows nothing: every missing program costs a question to the other node.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFiles;

impl Files for NoFiles {
    fn probe(&self, _probe: Probe<'_>) -> Verdict {
        Verdict::Unknown
    }
}
