//! What the personality wants to know of the tree's use: programs that begin to share something that
//! works only within one node.

/// Called on the threads that serve the kernel: implementations return at once. `pid` is the
/// caller's thread id in the pid namespace of the mount, 0 where it is outside it.
pub trait Hooks: Send + Sync {
    /// A FIFO's name was looked up.
    fn fifo_seen(&self, pid: u32) {
        let _ = pid;
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
