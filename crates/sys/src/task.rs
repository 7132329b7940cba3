//! What another task is: its memory, and what `/proc` says of it (`proc(5)`).
//!
//! Everything read here is text and bytes that the task itself may have chosen; the parsers take any
//! input and answer `None` or an error for what they do not understand.

use crate::error::{Result, SysError, check};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

const PAGE: usize = 4096;
/// Most descriptors that [`descriptors`] lists.
pub const MAX_DESCRIPTORS: usize = 1024;
/// Most threads whose children are looked for.
pub const MAX_THREADS: usize = 4096;
/// Number of resource limits of Linux.
pub const LIMITS: u32 = 16;

/// Memory of a task, read page by page; the last page is kept, because strings lie side by side.
#[derive(Debug)]
pub struct TaskMemory {
    task: u32,
    page_address: u64,
    page: Box<[u8; PAGE]>,
    filled: bool,
}

impl TaskMemory {
    /// Memory of the task with this number (a thread's is its process's).
    #[must_use]
    pub fn new(task: u32) -> Self {
        TaskMemory { task, page_address: 0, page: Box::new([0; PAGE]), filled: false }
    }

    fn page_of(&mut self, address: u64) -> Result<&[u8; PAGE]> {
        let start = address & !(PAGE as u64 - 1);
        if !self.filled || self.page_address != start {
            self.filled = false;
            let local = libc::iovec { iov_base: self.page.as_mut_ptr().cast(), iov_len: PAGE };
            let remote = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: PAGE };
            // SAFETY: the local vector is our own buffer of PAGE bytes; the remote address is only
            // interpreted by the kernel, in the other task.
            let count = check("process_vm_readv", unsafe {
                libc::process_vm_readv(
                    self.task as i32,
                    &raw const local,
                    1,
                    &raw const remote,
                    1,
                    0,
                )
            } as i64)?;
            if count as usize != PAGE {
                return Err(SysError::new("process_vm_readv", libc::EFAULT));
            }
            self.page_address = start;
            self.filled = true;
        }
        Ok(&self.page)
    }

    /// A string up to its NUL, of at most `limit` bytes.
    ///
    /// # Errors
    /// `EFAULT` for memory that is not there, `E2BIG` over the limit.
    pub fn string(&mut self, address: u64, limit: usize) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut at = address;
        loop {
            let offset = (at % PAGE as u64) as usize;
            let page = self.page_of(at)?;
            let rest = &page[offset..];
            match rest.iter().position(|byte| *byte == 0) {
                Some(end) => text.extend_from_slice(&rest[..end]),
                None => text.extend_from_slice(rest),
            }
            if text.len() > limit {
                return Err(SysError::new("process_vm_readv", libc::E2BIG));
            }
            if rest.contains(&0) {
                return Ok(text);
            }
            at = at
                .checked_add((PAGE - offset) as u64)
                .ok_or(SysError::new("process_vm_readv", libc::EFAULT))?;
        }
    }

    /// A vector of strings that ends with a null pointer, as `execve` takes it; together (with eight
    /// bytes a pointer) at most `limit` bytes. A null vector is an empty one, as Linux has it.
    ///
    /// # Errors
    /// As [`TaskMemory::string`].
    pub fn strings(&mut self, address: u64, limit: usize) -> Result<Vec<Vec<u8>>> {
        let mut pointers = Vec::new();
        let mut left = limit;
        if address == 0 {
            return Ok(Vec::new());
        }
        let mut at = address;
        loop {
            let pointer = self.pointer(at)?;
            if pointer == 0 {
                break;
            }
            left = left.checked_sub(9).ok_or(SysError::new("process_vm_readv", libc::E2BIG))?;
            pointers.push(pointer);
            at = at.checked_add(8).ok_or(SysError::new("process_vm_readv", libc::EFAULT))?;
        }
        let mut strings = Vec::with_capacity(pointers.len());
        for pointer in pointers {
            let string = self.string(pointer, left)?;
            left = left.saturating_sub(string.len());
            strings.push(string);
        }
        Ok(strings)
    }

    /// `length` bytes.
    ///
    /// # Errors
    /// `EFAULT` for memory that is not there.
    pub fn bytes(&mut self, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        let mut at = address;
        while bytes.len() < length {
            let offset = (at % PAGE as u64) as usize;
            let count = (PAGE - offset).min(length - bytes.len());
            bytes.extend_from_slice(&self.page_of(at)?[offset..offset + count]);
            at = at
                .checked_add(count as u64)
                .ok_or(SysError::new("process_vm_readv", libc::EFAULT))?;
        }
        Ok(bytes)
    }

    fn pointer(&mut self, address: u64) -> Result<u64> {
        let offset = (address % PAGE as u64) as usize;
        if let Some(bytes) = self.page_of(address)?[offset..].first_chunk() {
            return Ok(u64::from_ne_bytes(*bytes));
        }
        // It lies across the end of the page.
        let bytes = self.bytes(address, 8)?;
        Ok(bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)))
    }
}

/// Writes into the memory of a task: where it has asked a call of its own to write.
///
/// # Errors
/// `EFAULT` where the memory is not there or not writable, `ESRCH`, `EPERM`.
pub fn write_memory(task: u32, address: u64, bytes: &[u8]) -> Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr() as *mut libc::c_void, iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the local vector is only read, within its length; the remote one lies in another task.
    let count = check("process_vm_writev", unsafe {
        libc::process_vm_writev(task as i32, &raw const local, 1, &raw const remote, 1, 0)
    } as i64)?;
    if count as usize == bytes.len() {
        Ok(())
    } else {
        Err(SysError::new("process_vm_writev", libc::EFAULT))
    }
}

/// What `/proc/PID/status` says, in the pids and ids of the reader's namespaces unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskStatus {
    /// Name (`comm`), with the kernel's escapes.
    pub name: Vec<u8>,
    /// State letter.
    pub state: u8,
    /// Process.
    pub process: u32,
    /// Parent.
    pub parent: u32,
    /// Who traces it, 0: nobody.
    pub tracer: u32,
    /// Real, effective, saved, file-system user id.
    pub uids: [u32; 4],
    /// The same for groups.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File creation mask.
    pub umask: u32,
    /// Number of threads.
    pub threads: u32,
    /// Thread's number in every pid namespace from the reader's inwards.
    pub ns_thread: Vec<u32>,
    /// Process's number likewise.
    pub ns_process: Vec<u32>,
    /// Process group likewise.
    pub ns_group: Vec<u32>,
    /// Session likewise.
    pub ns_session: Vec<u32>,
    /// Blocked signals, bit n-1 for signal n.
    pub blocked: u64,
    /// Pending signals, the process's and the thread's.
    pub pending: u64,
    /// Ignored signals.
    pub ignored: u64,
    /// Signals with a handler.
    pub caught: u64,
    /// Inheritable, permitted, effective, bounding, ambient capabilities.
    pub capabilities: [u64; 5],
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Number of seccomp filters.
    pub filters: u32,
    /// CPUs allowed, the lowest 64.
    pub cpus: u64,
}

impl TaskStatus {
    /// Reads it for a task.
    ///
    /// # Errors
    /// `ESRCH` when it is gone.
    pub fn read(task: u32) -> Result<TaskStatus> {
        TaskStatus::parse(&read_small(&format!("/proc/{task}/status"))?)
            .ok_or(SysError::new("/proc/PID/status", libc::EIO))
    }

    /// Parses the file's text; `None` if a line that every kernel since 5.19 writes is missing.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<TaskStatus> {
        let mut status = TaskStatus::default();
        let mut seen = 0_u32;
        for line in text.split(|byte| *byte == b'\n') {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (key, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            let text = || std::str::from_utf8(value).ok();
            let number = || text()?.split_whitespace().next()?.parse::<u32>().ok();
            let numbers = || -> Option<Vec<u32>> {
                text()?.split_whitespace().map(|word| word.parse().ok()).collect()
            };
            let hex = || u64::from_str_radix(text()?, 16).ok();
            let four = || <[u32; 4]>::try_from(numbers()?).ok();
            seen += 1;
            match key {
                b"Name" => status.name = value.to_vec(),
                b"State" => status.state = *value.first()?,
                b"Tgid" => status.process = number()?,
                b"PPid" => status.parent = number()?,
                b"TracerPid" => status.tracer = number()?,
                b"Uid" => status.uids = four()?,
                b"Gid" => status.gids = four()?,
                b"Groups" => status.groups = numbers()?,
                b"Umask" => status.umask = u32::from_str_radix(text()?, 8).ok()?,
                b"Threads" => status.threads = number()?,
                b"NSpid" => status.ns_thread = numbers()?,
                b"NStgid" => status.ns_process = numbers()?,
                b"NSpgid" => status.ns_group = numbers()?,
                b"NSsid" => status.ns_session = numbers()?,
                b"SigPnd" | b"ShdPnd" => status.pending |= hex()?,
                b"SigBlk" => status.blocked = hex()?,
                b"SigIgn" => status.ignored = hex()?,
                b"SigCgt" => status.caught = hex()?,
                b"CapInh" => status.capabilities[0] = hex()?,
                b"CapPrm" => status.capabilities[1] = hex()?,
                b"CapEff" => status.capabilities[2] = hex()?,
                b"CapBnd" => status.capabilities[3] = hex()?,
                b"CapAmb" => status.capabilities[4] = hex()?,
                b"NoNewPrivs" => status.no_new_privileges = number()? != 0,
                b"Seccomp_filters" => status.filters = number()?,
                b"Cpus_allowed" => {
                    // Groups of 32 bits, highest first, with commas.
                    let digits: String = text()?.chars().filter(|c| *c != ',').collect();
                    let low = digits.get(digits.len().saturating_sub(16)..)?;
                    status.cpus = u64::from_str_radix(low, 16).ok()?;
                }
                _ => seen -= 1,
            }
        }
        (seen >= 26).then_some(status)
    }

    /// The process's number inside the innermost pid namespace.
    #[must_use]
    pub fn inner_process(&self) -> u32 {
        self.ns_process.last().copied().unwrap_or(0)
    }
}

/// What `/proc/PID/stat` says that `status` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskStat {
    /// State letter.
    pub state: u8,
    /// Parent.
    pub parent: u32,
    /// It is on its way out (`PF_EXITING` or `PF_SIGNALED`).
    pub exiting: bool,
    /// Device number of the controlling terminal, 0: none.
    pub terminal: u32,
    /// Nice value.
    pub nice: i32,
    /// Start time in clock ticks since boot: with the pid, an identity.
    pub started: u64,
    /// Scheduling policy (`SCHED_OTHER` is 0).
    pub policy: u32,
    /// CPU time in clock ticks of [`TICKS_PER_SECOND`]: user, system.
    pub cpu: (u64, u64),
    /// The same of its waited-for children.
    pub children_cpu: (u64, u64),
    /// Page faults of its waited-for children: minor, major.
    pub children_faults: (u64, u64),
}

/// Clock ticks of `/proc` and times(2) in a second (`USER_HZ`, the same on every x86-64).
pub const TICKS_PER_SECOND: u64 = 100;

/// What times(2) returns: clock ticks since some moment in the past.
#[must_use]
pub fn ticks_now() -> i64 {
    let mut times = libc::tms { tms_utime: 0, tms_stime: 0, tms_cutime: 0, tms_cstime: 0 };
    // SAFETY: the call writes into our variable alone.
    unsafe { libc::times(&raw mut times) }
}

impl TaskStat {
    /// Reads it for a task.
    ///
    /// # Errors
    /// `ESRCH` when it is gone.
    pub fn read(task: u32) -> Result<TaskStat> {
        TaskStat::parse(&read_small(&format!("/proc/{task}/stat"))?)
            .ok_or(SysError::new("/proc/PID/stat", libc::EIO))
    }

    /// Parses the line; the name in it may contain anything, so fields are counted from its last `)`.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<TaskStat> {
        let after = line.iter().rposition(|byte| *byte == b')')?;
        let text = std::str::from_utf8(line.get(after + 1..)?).ok()?;
        let fields: Vec<&str> = text.split_whitespace().collect();
        // Field n of proc(5) is index n - 3.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(TaskStat {
            state: *field(3)?.as_bytes().first()?,
            parent: field(4)?.parse().ok()?,
            exiting: field(9)?.parse::<u64>().ok()? & 0x404 != 0,
            terminal: field(7)?.parse::<i64>().ok()? as u32,
            nice: field(19)?.parse().ok()?,
            started: field(22)?.parse().ok()?,
            policy: field(41)?.parse().ok()?,
            cpu: (field(14)?.parse().ok()?, field(15)?.parse().ok()?),
            children_cpu: (field(16)?.parse().ok()?, field(17)?.parse().ok()?),
            children_faults: (field(11)?.parse().ok()?, field(13)?.parse().ok()?),
        })
    }
}

/// One open descriptor of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDescriptor {
    /// Number.
    pub number: i32,
    /// `O_*` flags, `O_CLOEXEC` among them.
    pub flags: u32,
    /// Offset.
    pub position: u64,
}

/// Descriptors of a task that an exec would keep, in rising order, and one above the highest of all.
///
/// # Errors
/// `ESRCH` when it is gone, `EMFILE` where it has more than [`MAX_DESCRIPTORS`].
pub fn descriptors(task: u32) -> Result<(Vec<OpenDescriptor>, u32)> {
    let folder = format!("/proc/{task}/fd");
    let entries = std::fs::read_dir(&folder).map_err(|error| gone("/proc/PID/fd", &error))?;
    let mut list = Vec::new();
    let mut end = 0;
    for (count, entry) in entries.enumerate() {
        if count >= MAX_DESCRIPTORS {
            return Err(SysError::new("/proc/PID/fd", libc::EMFILE));
        }
        let entry = entry.map_err(|error| gone("/proc/PID/fd", &error))?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        end = end.max(number as u32 + 1);
        // A thread may close one between listing and reading: then it is not there.
        let Ok(info) = read_small(&format!("/proc/{task}/fdinfo/{number}")) else { continue };
        let Some((position, flags)) = parse_fdinfo(&info) else { continue };
        if flags & libc::O_CLOEXEC as u32 != 0 {
            continue;
        }
        list.push(OpenDescriptor { number, flags, position });
    }
    list.sort_unstable_by_key(|descriptor| descriptor.number);
    Ok((list, end))
}

/// What a descriptor of our own is open on: a path, or `pipe:[…]` and the like.
///
/// # Errors
/// `ENOENT` for a closed one.
pub fn target(descriptor: &impl AsFd) -> Result<Vec<u8>> {
    let number = descriptor.as_fd().as_raw_fd();
    std::fs::read_link(format!("/proc/self/fd/{number}"))
        .map(|path| path.into_os_string().into_vec())
        .map_err(|error| gone("/proc/self/fd", &error))
}

/// Offset and flags of `/proc/PID/fdinfo/N`.
#[must_use]
pub fn parse_fdinfo(text: &[u8]) -> Option<(u64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let position = value("pos:")?.parse::<i64>().ok()? as u64;
    Some((position, u32::from_str_radix(value("flags:")?, 8).ok()?))
}

/// A descriptor of another process, duplicated (`pidfd_getfd`).
///
/// # Errors
/// `EBADF` if it has no such descriptor, `EPERM`, `ESRCH`.
pub fn duplicate_descriptor(process: &impl AsFd, number: i32) -> Result<OwnedFd> {
    let process = process.as_fd().as_raw_fd();
    // SAFETY: three integers.
    let copy =
        check("pidfd_getfd", unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) })?;
    // SAFETY: the call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as i32) })
}

/// Whether a socket is one of streams (`SO_TYPE`).
#[must_use]
pub fn is_stream_socket(socket: &impl AsFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is an int, and the length says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    result == 0 && kind == libc::SOCK_STREAM
}

/// Resource limits of a process: (`RLIMIT_*`, soft, hard).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn limits(process: u32) -> Result<Vec<(u32, u64, u64)>> {
    (0..LIMITS)
        .map(|resource| {
            let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: no new limit is given; the old one goes into our variable.
            check("prlimit", unsafe {
                i64::from(libc::prlimit64(
                    process as i32,
                    resource,
                    std::ptr::null(),
                    &raw mut limit,
                ))
            })?;
            Ok((resource, limit.rlim_cur, limit.rlim_max))
        })
        .collect()
}

/// Nice value and scheduling policy (`SCHED_OTHER` is 0) of a task.
///
/// # Errors
/// `ESRCH`.
pub fn scheduling(task: u32) -> Result<(i32, i32)> {
    // SAFETY: takes and returns numbers; the raw call returns 20 - nice, so no value is an error.
    let priority = check("getpriority", unsafe {
        libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, task)
    })?;
    // SAFETY: takes and returns numbers.
    let policy =
        check("sched_getscheduler", unsafe { libc::syscall(libc::SYS_sched_getscheduler, task) })?;
    Ok((20 - priority as i32, policy as i32))
}

/// Whether a process with `threads` threads has children that it could wait for (needs
/// `CONFIG_PROC_CHILDREN`).
///
/// # Errors
/// `ESRCH` when it is gone, `ENOENT` on a kernel without that file, `EMFILE` for too many threads.
pub fn has_children(process: u32, threads: u32) -> Result<bool> {
    if threads == 1 {
        let children = read_small(&format!("/proc/{process}/task/{process}/children"))?;
        return Ok(!children.trim_ascii().is_empty());
    }
    let threads = std::fs::read_dir(format!("/proc/{process}/task"))
        .map_err(|error| gone("/proc/PID/task", &error))?;
    for (count, thread) in threads.enumerate() {
        if count >= MAX_THREADS {
            return Err(SysError::new("/proc/PID/task", libc::EMFILE));
        }
        let thread = thread.map_err(|error| gone("/proc/PID/task", &error))?;
        let thread = thread.file_name().into_vec();
        let thread = String::from_utf8_lossy(&thread).into_owned();
        match read_small(&format!("/proc/{process}/task/{thread}/children")) {
            Ok(children) if !children.trim_ascii().is_empty() => return Ok(true),
            Ok(_) => {}
            // That thread has ended since.
            Err(error) if error.errno == libc::ESRCH => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Where one of the links `cwd`, `root`, `exe`, `ns/…` of a task points, as the kernel spells it.
///
/// # Errors
/// `ESRCH`, `EACCES`.
pub fn link(task: u32, name: &str) -> Result<Vec<u8>> {
    std::fs::read_link(format!("/proc/{task}/{name}"))
        .map(|path| path.into_os_string().into_vec())
        .map_err(|error| gone("/proc/PID", &error))
}

/// A small file of a task below `/proc/PID`, at most 64 KiB of it.
///
/// # Errors
/// `ESRCH`, `EACCES`.
pub fn text(task: u32, name: &str) -> Result<Vec<u8>> {
    read_small(&format!("/proc/{task}/{name}"))
}

fn read_small(path: &str) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(|error| gone("/proc/PID", &error))?;
    let mut buffer = vec![0; PAGE];
    let mut length = 0;
    // Most of these files come whole with the first read; a second one sees the end.
    while length < 16 * PAGE {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(gone("/proc/PID", &error)),
        }
        if length == buffer.len() {
            buffer.resize(length * 2, 0);
        }
    }
    buffer.truncate(length);
    Ok(buffer)
}

fn gone(call: &'static str, error: &std::io::Error) -> SysError {
    let errno = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) | None => libc::ESRCH,
        Some(errno) => errno,
    };
    SysError::new(call, errno)
}

/// Number, for the caller, of the process that has the given number in another pid namespace
/// (`NS_GET_TGID_FROM_PIDNS` of `ioctl_nsfs(2)`, Linux 6.11).
///
/// # Errors
/// `ESRCH` if there is none; `ENOTTY` on older kernels.
pub fn process_from(namespace: &impl AsFd, number: u32) -> Result<u32> {
    const NS_GET_TGID_FROM_PIDNS: libc::c_ulong = 0x8004_b707;
    let namespace = namespace.as_fd().as_raw_fd();
    // SAFETY: an ioctl that takes and returns plain numbers.
    let process = check("NS_GET_TGID_FROM_PIDNS", unsafe {
        i64::from(libc::ioctl(namespace, NS_GET_TGID_FROM_PIDNS, libc::c_ulong::from(number)))
    })?;
    if process == 0 {
        return Err(SysError::new("NS_GET_TGID_FROM_PIDNS", libc::ESRCH));
    }
    Ok(process as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_read_across_pages() {
        let long = std::ffi::CString::new(vec![b'x'; 3 * PAGE]).unwrap();
        let short = c"short";
        let vector = [short.as_ptr(), long.as_ptr(), std::ptr::null()];
        let mut memory = TaskMemory::new(std::process::id());
        let strings = memory.strings(vector.as_ptr() as u64, 1 << 20).unwrap();
        assert_eq!(strings, vec![b"short".to_vec(), vec![b'x'; 3 * PAGE]]);
        assert_eq!(memory.strings(vector.as_ptr() as u64, 100).unwrap_err().errno, libc::E2BIG);
        assert_eq!(memory.strings(0, 100).unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(memory.string(8, 100).unwrap_err().errno, libc::EFAULT);
        assert_eq!(memory.strings(u64::MAX - 3, 100).unwrap_err().errno, libc::EFAULT);
    }

    #[test]
    fn own_status_is_understood() {
        let status = TaskStatus::read(std::process::id()).unwrap();
        assert_eq!(status.process, std::process::id());
        assert_eq!(status.inner_process(), std::process::id());
        assert!(status.threads >= 1);
        assert_ne!(status.cpus, 0);
        let stat = TaskStat::read(std::process::id()).unwrap();
        assert_eq!(stat.parent, status.parent);
        assert!(stat.started > 0);
        assert!(ticks_now() > 0);
        assert_eq!(TaskStatus::parse(b"Name:\tx\nTgid:\tnot a number\n"), None);
        assert_eq!(TaskStatus::parse(b""), None);
        assert_eq!(TaskStat::parse(b"1 (a) b) S 1"), None);
        assert_eq!(TaskStatus::read(u32::MAX >> 2).unwrap_err().errno, libc::ESRCH);
    }

    #[test]
    fn descriptors_that_exec_keeps_are_listed() {
        let file = File::open("/dev/null").unwrap();
        // SAFETY: clears the close-on-exec flag of a descriptor of ours.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
        let kept = File::open("/dev/null").unwrap();
        let (list, end) = descriptors(std::process::id()).unwrap();
        assert!(list.iter().any(|open| open.number == file.as_raw_fd()));
        assert_eq!(target(&file).unwrap(), b"/dev/null");
        assert!(list.iter().all(|open| open.number != kept.as_raw_fd()));
        assert!(end > file.as_raw_fd() as u32);
        assert_eq!(parse_fdinfo(b"pos:\t12\nflags:\t0100001\n"), Some((12, 0o100_001)));
        assert_eq!(parse_fdinfo(b"pos:\t12\n"), None);
    }

    #[test]
    fn own_limits_and_namespace() {
        assert_eq!(scheduling(std::process::id()).unwrap().1, 0);
        let all = limits(std::process::id()).unwrap();
        assert_eq!(all.len(), LIMITS as usize);
        let namespace = File::open("/proc/self/ns/pid").unwrap();
        match process_from(&namespace, std::process::id()) {
            Ok(process) => assert_eq!(process, std::process::id()),
            Err(error) if error.errno == libc::ENOTTY => println!("SKIPPED: kernel before 6.11"),
            Err(error) => panic!("{error}"),
        }
        assert!(process_from(&namespace, 4_000_000).is_err());
    }
}
