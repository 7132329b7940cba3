//! Which system calls of a guest come to the supervisor. Everything else runs natively: fork, clone,
//! wait, exit, read, write, mmap, futex are never seen here.

/// Numbers for the container's filter, each with what it is trapped for.
pub const TRAPS: [(i64, &str); 29] = [
    (libc::SYS_execve, "placement"),
    (libc::SYS_execveat, "placement"),
    (libc::SYS_kill, "signals across nodes"),
    (libc::SYS_rt_sigqueueinfo, "signals across nodes"),
    (libc::SYS_getppid, "parents of placed programs"),
    (libc::SYS_getpgid, "process groups of placed programs"),
    (libc::SYS_getpgrp, "process groups of placed programs"),
    (libc::SYS_getsid, "sessions of placed programs"),
    (libc::SYS_setpgid, "process groups of placed programs"),
    (libc::SYS_setsid, "sessions of placed programs"),
    (dvs_sys::ghost::REPORT_CALL as i64, "reports of ghosts"),
    // Of these three the container's filter traps those that name another process.
    (libc::SYS_prlimit64, "limits of placed programs"),
    (libc::SYS_setpriority, "priorities of placed programs"),
    (libc::SYS_getpriority, "priorities of programs of other nodes"),
    (libc::SYS_landlock_restrict_self, "leaves no trace that could be carried"),
    (libc::SYS_set_mempolicy, "leaves no trace that could be carried"),
    (libc::SYS_mbind, "leaves no trace that could be carried"),
    // The container's filter traps two of its operations only.
    (libc::SYS_prctl, "signals at a parent's end; secure bits, which leave no trace"),
    // The container's filter traps the usage of children only.
    (libc::SYS_getrusage, "what placed children used"),
    (libc::SYS_times, "what placed children used"),
    (libc::SYS_chroot, "another root directory"),
    (libc::SYS_personality, "leaves no trace that is cheap to look for"),
    (libc::SYS_shmget, "shared memory"),
    (libc::SYS_semget, "shared semaphores"),
    (libc::SYS_msgget, "shared message queues"),
    (libc::SYS_mq_open, "shared message queues"),
    (libc::SYS_bind, "ports of the DC; sockets that others connect to"),
    (libc::SYS_listen, "sockets that others connect to"),
    (libc::SYS_connect, "sockets of other programs"),
];

/// The numbers alone, for `ContainerSpec::traps`.
#[must_use]
pub fn numbers() -> Vec<u32> {
    TRAPS.iter().filter_map(|(number, _)| u32::try_from(*number).ok()).collect()
}
