//! Making a process that shares the memory of its maker until it execs, and does a prepared list of
//! system calls until then.
//!
//! A fork copies page tables and then copies pages one by one as they are written; sharing costs half
//! as much. Unlike `vfork` the maker goes on at once, so a new process that waits (for a file, for its
//! tracer) blocks nobody. The price is that the child may do nothing that could touch memory in use:
//! it runs one function without allocation, thread-local data or library calls, over a list that the
//! maker has prepared and does not change.
//!
//! When the child leaves the shared memory, by exec or by its end, the kernel clears a word in it
//! (`CLONE_CHILD_CLEARTID`, set_tid_address(2)); only then is what the child works with freed.

mod calls;

use crate::error::{Result, SysError};
use std::ffi::{CString, c_char};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Bytes of a child's stack; its one function needs less than a page when optimized.
const STACK: usize = 32 << 10;

/// A list of system calls for a child. Every call carries the cookie in its sixth argument (see
/// [`crate::untrapped`]). The first that fails ends the child.
#[derive(Debug)]
pub struct Script {
    cookie: u64,
    stage: u8,
    steps: Vec<Step>,
    // What the steps point to.
    strings: Vec<CString>,
    arrays: Vec<Box<[*const c_char]>>,
    words: Vec<Box<[u64]>>,
    ids: Vec<Box<[u32]>>,
}

#[derive(Debug)]
struct Step {
    stage: u8,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Call {
        number: i64,
        arguments: [u64; 5],
    },
    Open {
        path: *const c_char,
        flags: i32,
        number: RawFd,
        offset: Option<u64>,
    },
    StopSelf,
    Execute {
        candidates: *const *const c_char,
        arguments: *const *const c_char,
        environment: *const *const c_char,
    },
}

impl Script {
    /// Makes the child, in the maker's pid namespace for children, with a pid of choice. Its exit
    /// signal is `SIGCHLD`; it begins with the maker's blocked signals.
    ///
    /// All signals of the maker should be blocked, and none of them have a handler: a handler would
    /// run in the child, too.
    ///
    /// # Errors
    /// What `clone3` says: `EEXIST` when the pid is taken, `EAGAIN` at a limit, ...
    pub fn run(self, pid: Option<u32>) -> Result<Birth> {
        let mut birth = Birth {
            child: 0,
            shared: Box::new(Shared {
                cookie: self.cookie,
                steps: self.steps.as_ptr(),
                count: self.steps.len(),
                // Not zero: zero means that the child has left.
                presence: AtomicI32::new(-1),
                pid: AtomicI32::new(0),
                failure: AtomicU64::new(0),
            }),
            script: self,
            stack: Vec::with_capacity(STACK),
        };
        let wanted = pid.map(|pid| pid as libc::pid_t);
        // SAFETY: all fields of clone_args are integers, for which zero is valid ("not used").
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags =
            (libc::CLONE_VM | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as u64;
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.child_tid = birth.shared.presence.as_ptr() as u64;
        arguments.stack = birth.stack.as_mut_ptr() as u64 & !15;
        arguments.stack_size = (STACK - 16) as u64;
        if let Some(pid) = &wanted {
            arguments.set_tid = std::ptr::from_ref(pid) as u64;
            arguments.set_tid_size = 1;
        }
        let shared: *const Shared = std::ptr::from_ref(&*birth.shared);
        // SAFETY: the child starts on its own stack (32 KiB of our heap, 16-aligned at its top) in
        // `child`, which never returns. It shares our memory but only reads what `birth` owns and
        // writes the atomics in it and its stack; `birth` frees these only after the kernel has said
        // that the child has left the memory (Drop). The arguments live through the call. The
        // registers that the call clobbers are declared.
        let result = unsafe { clone_and_call(&raw const arguments, shared) };
        if result < 0 {
            // There is no child.
            birth.shared.presence.store(0, Ordering::Release);
            return Err(SysError::new("clone3", -result as i32));
        }
        birth.child = result as u32;
        Ok(birth)
    }
}

/// What the child works with. The maker only reads the atomics.
#[derive(Debug)]
struct Shared {
    cookie: u64,
    steps: *const Step,
    count: usize,
    /// The child's thread id, then 0 when it has left the memory; written by the kernel.
    presence: AtomicI32,
    /// The child's pid in its own namespace.
    pid: AtomicI32,
    /// 0, or bit 63, the stage from bit 32 on, and the errno.
    failure: AtomicU64,
}

/// A process that was made and may still use the memory of its maker.
#[derive(Debug)]
pub struct Birth {
    child: u32,
    shared: Box<Shared>,
    script: Script,
    stack: Vec<u8>,
}

impl Birth {
    /// The child's pid in the maker's namespace.
    #[must_use]
    pub fn child(&self) -> u32 {
        self.child
    }

    /// The child's pid in its own namespace, once it has begun.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        u32::try_from(self.shared.pid.load(Ordering::Acquire)).ok().filter(|pid| *pid != 0)
    }

    /// Where and why it failed: stage, errno.
    #[must_use]
    pub fn failure(&self) -> Option<(u8, i32)> {
        let failure = self.shared.failure.load(Ordering::Acquire);
        (failure >> 63 == 1).then_some(((failure >> 32) as u8, failure as i32))
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        if self.shared.presence.load(Ordering::Acquire) != 0 {
            // The child may still read its list: leave it to it. It ends with the process.
            let script = std::mem::replace(&mut self.script, Script::new(0));
            std::mem::forget(script);
            std::mem::forget(std::mem::take(&mut self.stack));
            let empty = Shared {
                cookie: 0,
                steps: std::ptr::null(),
                count: 0,
                presence: AtomicI32::new(0),
                pid: AtomicI32::new(0),
                failure: AtomicU64::new(0),
            };
            std::mem::forget(std::mem::replace(&mut self.shared, Box::new(empty)));
        }
    }
}

/// `clone3`; the child calls [`child`] with `shared`. Returns the raw result to the maker.
///
/// # Safety
/// The arguments must give the child a stack of its own, and what `shared` points to must stay valid
/// until the child has left the memory.
unsafe fn clone_and_call(arguments: *const libc::clone_args, shared: *const Shared) -> i64 {
    let result: i64;
    // SAFETY: as the caller promises; in the child the stack pointer is the new stack's top, so the
    // call pushes there, and `child` never returns.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") shared,
            in("r13") child as *const () as usize,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// A system call without the library, whose `errno` belongs to the maker. Negative: an errno.
///
/// # Safety
/// As the call itself.
#[inline(always)]
unsafe fn raw(number: i64, a: [u64; 5], cookie: u64) -> i64 {
    let result: i64;
    // SAFETY: the registers of the call's convention; memory may be read and written by the kernel.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a[0],
            in("rsi") a[1],
            in("rdx") a[2],
            in("r10") a[3],
            in("r8") a[4],
            in("r9") cookie,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The child's whole life before its exec. No allocation, no panic, no library.
///
/// # Safety
/// `shared` and all that it points to must stay valid and unchanged until the process has left the
/// memory.
unsafe extern "C" fn child(shared: *const Shared) -> ! {
    // SAFETY: valid, as the caller promises; all steps point to data that lives as long.
    unsafe {
        let cookie = (*shared).cookie;
        let pid = raw(libc::SYS_getpid, [0; 5], 0);
        (*shared).pid.store(pid as i32, Ordering::Release);
        let mut step = (*shared).steps;
        let end = step.wrapping_add((*shared).count);
        while step != end {
            let result = perform(&raw const (*step).action, cookie, pid);
            if result < 0 {
                let stage = u64::from((*step).stage);
                let failure = 1 << 63 | stage << 32 | (result.unsigned_abs() & 0xffff_ffff);
                (*shared).failure.store(failure, Ordering::Release);
                break;
            }
            step = step.wrapping_add(1);
        }
        loop {
            raw(libc::SYS_exit_group, [127, 0, 0, 0, 0], 0);
        }
    }
}

/// One step; negative: an errno.
///
/// # Safety
/// As for [`child`].
unsafe fn perform(action: *const Action, cookie: u64, pid: i64) -> i64 {
    // SAFETY: pointers in actions are valid, as the caller promises.
    unsafe {
        match &*action {
            Action::Call { number, arguments } => raw(*number, *arguments, cookie),
            Action::StopSelf => {
                let arguments = [pid as u64, libc::SIGSTOP as u64, 0, 0, 0];
                raw(libc::SYS_kill, arguments, cookie)
            }
            Action::Open { path, flags, number, offset } => {
                let arguments = [libc::AT_FDCWD as u64, *path as u64, *flags as u64, 0, 0];
                let fd = raw(libc::SYS_openat, arguments, cookie);
                if fd < 0 {
                    return fd;
                }
                if fd != i64::from(*number) {
                    let arguments = [fd as u64, *number as u64, 0, 0, 0];
                    let placed = raw(libc::SYS_dup2, arguments, cookie);
                    if placed < 0 {
                        return placed;
                    }
                    raw(libc::SYS_close, [fd as u64, 0, 0, 0, 0], cookie);
                }
                match offset {
                    Some(offset) => {
                        let arguments = [*number as u64, *offset, libc::SEEK_SET as u64, 0, 0];
                        raw(libc::SYS_lseek, arguments, cookie)
                    }
                    None => 0,
                }
            }
            Action::Execute { candidates, arguments, environment } => {
                let mut candidate = *candidates;
                let mut last = -i64::from(libc::ENOENT);
                let mut denied = false;
                while !(*candidate).is_null() {
                    let words = [*candidate as u64, *arguments as u64, *environment as u64, 0, 0];
                    last = raw(libc::SYS_execve, words, cookie);
                    match (-last) as i32 {
                        libc::EACCES => denied = true,
                        libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV => {}
                        _ => return last,
                    }
                    candidate = candidate.wrapping_add(1);
                }
                if denied { -i64::from(libc::EACCES) } else { last }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor;
    use crate::process::{self, WaitState};
    use std::io::Read;
    use std::os::fd::AsRawFd;

    fn wait(birth: &Birth) -> WaitState {
        process::wait(birth.child() as i32, libc::__WALL, 0).unwrap().unwrap().state
    }

    fn strings(list: &[&str]) -> Vec<CString> {
        list.iter().map(|text| CString::new(*text).unwrap()).collect()
    }

    #[test]
    fn a_child_does_its_list_and_becomes_the_program() {
        let (read, write) = descriptor::pipe().unwrap();
        let mut script = Script::new(0);
        script.set_umask(0o027);
        script.change_directory(c"/usr".into());
        script.place(write.as_raw_fd(), 1);
        script.open(c"/dev/null".into(), libc::O_RDONLY, 0, None);
        script.ignore_signal(libc::SIGUSR1);
        script.set_limit(libc::RLIMIT_CORE, 0, 0);
        script.close_range_on_exec(3, u32::MAX);
        let shell = "echo $A; umask; pwd; ulimit -c; echo $$";
        script.execute(
            strings(&["/no/sh", "/bin/sh"]),
            strings(&["sh", "-c", shell]),
            strings(&["A=b"]),
        );
        let birth = script.run(None).unwrap();
        drop(write);
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(wait(&birth), WaitState::Exited(0));
        assert_eq!(text, format!("b\n0027\n/usr\n0\n{}\n", birth.child()));
        assert_eq!((birth.pid(), birth.failure()), (Some(birth.child()), None));
        // The kernel has said that the child has left.
        assert_eq!(birth.shared.presence.load(Ordering::Acquire), 0);
    }

    #[test]
    fn the_first_failure_ends_it_with_its_stage() {
        let mut script = Script::new(0);
        script.stage(3);
        script.change_directory(c"/".into());
        script.stage(4);
        script.change_directory(c"/no/such/folder".into());
        script.stage(5);
        script.execute(strings(&["/bin/true"]), strings(&["true"]), Vec::new());
        let birth = script.run(None).unwrap();
        assert_eq!(wait(&birth), WaitState::Exited(127));
        assert_eq!(birth.failure(), Some((4, libc::ENOENT)));
    }

    #[test]
    fn a_refused_program_is_reported_when_no_other_is_found() {
        let run = |candidates: &[&str]| {
            let mut script = Script::new(0);
            script.execute(strings(candidates), strings(&["x"]), Vec::new());
            let birth = script.run(None).unwrap();
            wait(&birth);
            birth.failure().map(|(_, errno)| errno)
        };
        assert_eq!(run(&["/etc", "/no/such"]), Some(libc::EACCES));
        assert_eq!(run(&["/no/such", "/nor/this"]), Some(libc::ENOENT));
        assert_eq!(run(&["/etc", "/bin/true"]), None);
    }

    #[test]
    fn many_at_once_while_the_maker_works() {
        let births: Vec<Birth> = (0..100)
            .map(|number| {
                let mut script = Script::new(0);
                let code = format!("exit {}", number % 50);
                script.execute(strings(&["/bin/sh"]), strings(&["sh", "-c", &code]), Vec::new());
                script.run(None).unwrap()
            })
            .collect();
        for (number, birth) in births.iter().enumerate() {
            assert_eq!(wait(birth), WaitState::Exited(number as i32 % 50));
        }
    }

    #[test]
    fn a_pid_that_is_taken_is_no_child() {
        let mut script = Script::new(0);
        script.execute(strings(&["/bin/true"]), strings(&["true"]), Vec::new());
        let error = script.run(Some(std::process::id())).unwrap_err();
        assert!(matches!(error.errno, libc::EEXIST | libc::EPERM), "{error}");
    }
}
