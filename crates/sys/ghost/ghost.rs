//! The ghost: stands at home for a program that runs on another node.
//!
//! It keeps the program's pid, parent, process group, terminal and its open files (so that locks
//! stay). It blocks every signal, waits for one, and reports it by one system call that the
//! container's filter hands to the supervisor; the call's value is the supervisor's order. Nothing is
//! ever read from this process's memory, and it needs none but its stack.
//!
//! Built alone by `build.rs`: no standard library, static, started from a sealed memfd.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

/// System call number (none of Linux's own) by which the ghost reports.
const REPORT: usize = 8000;

/// What a report says (its sixth argument).
const TAKEN: usize = 0;
const HELLO: usize = 1;
const STOP_PENDING: usize = 2;
const BACK_FROM_STOP: usize = 3;
const RESULT: usize = 4;

/// Orders (bits 32 to 39 of the answer); the argument is in bits 0 to 31.
const STOP: usize = 1;
const EXIT: usize = 2;
const DIE: usize = 3;
const SET_GROUP: usize = 4;
const NEW_SESSION: usize = 5;
const BEGIN: usize = 6;
const DEATH_SIGNAL: usize = 7;
const STOP_BY: usize = 8;
const SEND: usize = 9;

const CLOSE: usize = 3;
const POLL: usize = 7;
const SIGACTION: usize = 13;
const SIGPROCMASK: usize = 14;
const GETPID: usize = 39;
const KILL: usize = 62;
const SETPGID: usize = 109;
const SETSID: usize = 112;
const SIGPENDING: usize = 127;
const SIGTIMEDWAIT: usize = 128;
const PRCTL: usize = 157;
const SETRLIMIT: usize = 160;
const EXIT_GROUP: usize = 231;
const TGKILL: usize = 234;
const SIGNALFD4: usize = 289;
const STATX: usize = 332;

const SIG_UNBLOCK: usize = 1;
const SIG_SETMASK: usize = 2;
const PR_SET_PDEATHSIG: usize = 1;
const PR_SET_NAME: usize = 15;
const CLOEXEC: usize = 0o2_000_000;
const RLIMIT_CORE: usize = 4;

const SIGCONT: usize = 18;
const SIGTSTP: usize = 20;
const SIGTTOU: usize = 22;
/// SIGTSTP, SIGTTIN, SIGTTOU: looked at, not taken, because taking one would lose the SIGCONT that
/// cancels it.
const TERMINAL_STOPS: u64 = 1 << 19 | 1 << 20 | 1 << 21;
const ALL: u64 = !0;

// The kernel enters with rsp 16-byte aligned and no return address; a function wants it as after a call.
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "call {main}", "ud2", main = sym main, options(att_syntax));

fn call(number: usize, arguments: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: every caller passes numbers and addresses of its own live, large enough variables.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") arguments[0], in("rsi") arguments[1], in("rdx") arguments[2],
            in("r10") arguments[3], in("r8") arguments[4], in("r9") arguments[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

fn mask(how: usize, set: u64) {
    call(SIGPROCMASK, [how, &raw const set as usize, 0, 8, 0, 0]);
}

/// The beginning of the kernel's `siginfo_t`.
#[repr(C, align(8))]
struct SignalInfo {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    pid: u32,
    uid: u32,
    value: u64,
    rest: [u64; 12],
}

/// Takes one pending signal of `set`, if there is one.
fn take(set: u64) -> Option<SignalInfo> {
    let mut info = SignalInfo {
        signal: 0,
        errno: 0,
        code: 0,
        padding: 0,
        pid: 0,
        uid: 0,
        value: 0,
        rest: [0; 12],
    };
    let at_once = [0_u64; 2];
    let result = call(
        SIGTIMEDWAIT,
        [&raw const set as usize, &raw mut info as usize, &raw const at_once as usize, 8, 0, 0],
    );
    (result > 0).then_some(info)
}

fn report(what: usize, signal: usize) -> isize {
    call(REPORT, [signal, 0, 0, 0, 0, what])
}

/// Carries out an order and those that its result brings.
fn obey(mut answer: isize) {
    while answer > 0 {
        let argument = answer as usize & 0xffff_ffff;
        match answer as usize >> 32 {
            EXIT => exit(argument),
            DIE => die(argument),
            SET_GROUP => {
                let result = call(SETPGID, [0, argument, 0, 0, 0, 0]);
                answer = report(RESULT, result as usize);
            }
            NEW_SESSION => {
                let result = call(SETSID, [0; 6]);
                answer = report(RESULT, result as usize);
            }
            STOP_BY => answer = stop_by(argument),
            SEND => {
                // Bit 31: a process group.
                let (number, signal) = (argument & 0x00ff_ffff, argument >> 24 & 0x7f);
                let target = if argument >> 31 == 0 { number } else { number.wrapping_neg() };
                let result = call(KILL, [target, signal, 0, 0, 0, 0]);
                answer = report(RESULT, result as usize);
            }
            DEATH_SIGNAL => {
                let result = call(PRCTL, [PR_SET_PDEATHSIG, argument, 0, 0, 0, 0]);
                answer = report(RESULT, result as usize);
            }
            _ => return,
        }
    }
}

fn exit(status: usize) -> ! {
    loop {
        call(EXIT_GROUP, [status, 0, 0, 0, 0, 0]);
    }
}

/// Ends by a signal, without a core file: the memory here is not the program's.
fn die(signal: usize) -> ! {
    let none = [0_u64; 2];
    call(SETRLIMIT, [RLIMIT_CORE, &raw const none as usize, 0, 0, 0, 0]);
    default_action(signal);
    let pid = call(GETPID, [0; 6]) as usize;
    call(KILL, [pid, signal, 0, 0, 0, 0]);
    mask(SIG_UNBLOCK, 1 << (signal.wrapping_sub(1) & 63));
    exit(128 + signal)
}

fn default_action(signal: usize) {
    let default = [0_u64; 4];
    call(SIGACTION, [signal, &raw const default as usize, 0, 8, 0, 0]);
}

/// Closes what must not have two holders: FIFOs, sockets, terminals. Regular files stay open: closing
/// one would release the POSIX locks that exec keeps.
fn close_streams(end: usize) {
    for descriptor in 0..end {
        // `struct statx`: mode at 28, device number of the file at 128.
        let mut status = [0_u32; 64];
        let empty = 0_u8;
        const AT_EMPTY_PATH: usize = 0x1000;
        const AT_STATX_DONT_SYNC: usize = 0x4000;
        const STATX_TYPE: usize = 1;
        let result = call(
            STATX,
            [
                descriptor,
                &raw const empty as usize,
                AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
                STATX_TYPE,
                &raw mut status as usize,
                0,
            ],
        );
        let kind = status[7] & 0o170_000;
        let major = status[32];
        let terminal =
            kind == 0o020_000 && (major == 5 || major == 4 || (136..=143).contains(&major));
        if result == 0 && (kind == 0o010_000 || kind == 0o140_000 || terminal) {
            call(CLOSE, [descriptor, 0, 0, 0, 0, 0]);
        }
    }
}

extern "C" fn main() -> ! {
    mask(SIG_SETMASK, ALL);
    for signal in SIGTSTP..=SIGTTOU {
        default_action(signal);
    }
    let mut name = [0_u8; 16];
    let answer = call(REPORT, [&raw mut name as usize, 0, 0, 0, 0, HELLO]);
    if answer < 0 {
        exit(126);
    }
    if name[0] != 0 {
        call(PRCTL, [PR_SET_NAME, &raw const name as usize, 0, 0, 0, 0]);
    }
    if answer as usize >> 32 == BEGIN {
        close_streams(answer as usize & 0xffff_ffff);
    } else {
        obey(answer);
    }
    let all = ALL;
    let signals = call(SIGNALFD4, [usize::MAX, &raw const all as usize, 8, CLOEXEC, 0, 0]);
    loop {
        // `struct pollfd`: descriptor, then events (POLLIN) and returned events.
        let mut waited = [signals as u32, 1];
        call(POLL, [&raw mut waited as usize, 1, usize::MAX, 0, 0, 0]);
        if let Some(info) = take(!TERMINAL_STOPS) {
            obey(call(
                REPORT,
                [
                    info.signal as usize,
                    info.code as usize,
                    info.pid as usize,
                    info.uid as usize,
                    info.value as usize,
                    TAKEN,
                ],
            ));
        } else {
            terminal_stops();
        }
    }
}

fn pending_signals() -> u64 {
    let mut pending = 0_u64;
    call(SIGPENDING, [&raw mut pending as usize, 8, 0, 0, 0, 0]);
    pending
}

fn is_continued() -> bool {
    pending_signals() >> (SIGCONT - 1) & 1 == 1
}

/// Stops as the program has, and says when it goes on. A pending SIGCONT came later than the
/// program's stop, and raising a stop signal would discard it.
fn stop_by(signal: usize) -> isize {
    if (SIGTSTP..=SIGTTOU).contains(&signal) && !is_continued() {
        let pid = call(GETPID, [0; 6]) as usize;
        call(TGKILL, [pid, pid, signal, 0, 0, 0]);
        mask(SIG_UNBLOCK, 1 << (signal - 1));
        mask(SIG_SETMASK, ALL);
    }
    report(BACK_FROM_STOP, is_continued() as usize)
}

fn terminal_stops() {
    let pending = pending_signals();
    for signal in SIGTSTP..=SIGTTOU {
        let set = 1_u64 << (signal - 1);
        if pending & set == 0 {
            continue;
        }
        let answer = report(STOP_PENDING, signal);
        if answer > 0 && answer as usize >> 32 == STOP {
            // The kernel's own default action stops us here, unless SIGCONT has come meanwhile.
            mask(SIG_UNBLOCK, set);
            mask(SIG_SETMASK, ALL);
            // SIGCONT is blocked here: what continued us is still pending and will be reported itself.
            obey(report(BACK_FROM_STOP, is_continued() as usize));
        } else {
            take(set);
            obey(answer);
        }
    }
}

/// The compiler may call it for the zeroed arrays above.
///
/// # Safety
/// `to` must be valid for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") byte as u8, options(nostack));
    }
    to
}

/// As [`memset`].
///
/// # Safety
/// Both must be valid for `length` bytes and not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack));
    }
    to
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(126)
}
