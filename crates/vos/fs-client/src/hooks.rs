//! What the personality wants to know of the tree's use: programs that begin to share something that
//! works only within one node.

use dvs_fs::messages::InodeId;

/// What a thread is opening, seen while it waits for the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The thread, for this process.
    pub thread: u32,
    /// What tells the call from its other calls.
    pub call: String,
    /// `O_*` flags.
    pub flags: i32,
}

impl Opening {
    /// Whether it is for writing alone.
    #[must_use]
    pub fn only_writes(&self) -> bool {
        self.flags & libc::O_ACCMODE == libc::O_WRONLY
    }
}

/// Called on the threads that serve the kernel: implementations return at once. `pid` is the
/// caller's thread id in the pid namespace of who mounted (a container's keeper), 0 where it is
/// outside it.
pub trait Hooks: Send + Sync {
    /// A FIFO's name was looked up.
    fn fifo_seen(&self, pid: u32) {
        let _ = pid;
    }

    /// Whether FIFOs reach over nodes: then writers get an end of their own (see
    /// [`crate::fifo`]), and [`Hooks::fifo_opening`] is called.
    fn bridges_fifos(&self) -> bool {
        false
    }

    /// What the caller is opening; `None`: nothing, it only looks.
    fn opening(&self, pid: u32) -> Option<Opening> {
        let _ = pid;
        None
    }

    /// A thread is about to open a FIFO: its writers' end for writing, or itself for anything else.
    /// Called on a thread that may wait; the open goes on when this returns.
    ///
    /// # Errors
    /// errno of the open.
    fn fifo_opening(&self, fifo: InodeId, writers: bool, opening: Opening) -> Result<(), i32> {
        let _ = (fifo, writers, opening);
        Ok(())
    }

    /// A socket's name was looked up.
    fn socket_seen(&self, pid: u32) {
        let _ = pid;
    }

    /// A file below `/dev/shm` was opened or made.
    fn shared_memory_seen(&self, pid: u32, writable: bool) {
        let _ = (pid, writable);
    }
}

/// Hooks that do nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoHooks;

impl Hooks for NoHooks {}
