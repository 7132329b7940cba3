//! The seccomp filter that every program of a container carries: what is denied for good, what is
//! reported to the daemon, and nothing else.
//!
//! Denials are protection; traps are semantics. A call that is both is denied. The program is a
//! binary search over ranges of numbers, so that the kernel finds "always allowed" for the many calls
//! that are and remembers it in its bitmap: these calls then run no filter at all.

use dvs_sys::seccomp::{self, Action, Filter, Label, Program};

/// One denied call.
#[derive(Debug, Clone, Copy)]
pub struct Denial {
    /// Number of the call on x86-64.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// What it fails with: `ENOSYS` where programs have a way without it, else `EPERM`.
    pub errno: u16,
    /// Why.
    pub reason: &'static str,
}

const fn deny(number: i64, name: &'static str, errno: i32, reason: &'static str) -> Denial {
    Denial { number: number as u32, name, errno: errno as u16, reason }
}

const KEYS: &str = "kernel keyrings are not confined by namespaces";
const URING: &str = "its requests walk around every trap and filter";
const MODULES: &str = "loads code into the host's kernel";
const CLOCK: &str = "sets the host's clock";
const MACHINE: &str = "acts on the whole machine";
const OLD: &str = "obsolete, and a needless part of the kernel's surface";
const NODES: &str = "moves pages of other processes between the host's memory nodes";

/// Every denied call, ascending by number.
pub const DENIALS: &[Denial] = &[
    deny(libc::SYS_syslog, "syslog", libc::EPERM, "reads the host's kernel log"),
    deny(libc::SYS_uselib, "uselib", libc::ENOSYS, OLD),
    deny(libc::SYS_sysfs, "sysfs", libc::ENOSYS, OLD),
    deny(libc::SYS_vhangup, "vhangup", libc::EPERM, MACHINE),
    deny(libc::SYS__sysctl, "_sysctl", libc::ENOSYS, OLD),
    deny(libc::SYS_adjtimex, "adjtimex", libc::EPERM, CLOCK),
    deny(libc::SYS_acct, "acct", libc::EPERM, MACHINE),
    deny(libc::SYS_settimeofday, "settimeofday", libc::EPERM, CLOCK),
    deny(libc::SYS_swapon, "swapon", libc::EPERM, MACHINE),
    deny(libc::SYS_swapoff, "swapoff", libc::EPERM, MACHINE),
    deny(libc::SYS_reboot, "reboot", libc::EPERM, MACHINE),
    deny(libc::SYS_iopl, "iopl", libc::EPERM, "gives access to the host's ports"),
    deny(libc::SYS_ioperm, "ioperm", libc::EPERM, "gives access to the host's ports"),
    deny(174, "create_module", libc::ENOSYS, OLD),
    deny(libc::SYS_init_module, "init_module", libc::EPERM, MODULES),
    deny(libc::SYS_delete_module, "delete_module", libc::EPERM, MODULES),
    deny(libc::SYS_quotactl, "quotactl", libc::EPERM, "changes quotas of the host's file systems"),
    deny(libc::SYS_nfsservctl, "nfsservctl", libc::ENOSYS, OLD),
    deny(libc::SYS_lookup_dcookie, "lookup_dcookie", libc::EPERM, "finds the host's paths"),
    deny(libc::SYS_clock_settime, "clock_settime", libc::EPERM, CLOCK),
    deny(libc::SYS_kexec_load, "kexec_load", libc::EPERM, MACHINE),
    deny(libc::SYS_add_key, "add_key", libc::ENOSYS, KEYS),
    deny(libc::SYS_request_key, "request_key", libc::ENOSYS, KEYS),
    deny(libc::SYS_keyctl, "keyctl", libc::ENOSYS, KEYS),
    deny(libc::SYS_migrate_pages, "migrate_pages", libc::ENOSYS, NODES),
    deny(libc::SYS_move_pages, "move_pages", libc::ENOSYS, NODES),
    deny(libc::SYS_perf_event_open, "perf_event_open", libc::EPERM, "observes the host's kernel"),
    deny(
        libc::SYS_open_by_handle_at,
        "open_by_handle_at",
        libc::EPERM,
        "opens files by number, past every path and mount",
    ),
    deny(libc::SYS_clock_adjtime, "clock_adjtime", libc::EPERM, CLOCK),
    deny(libc::SYS_finit_module, "finit_module", libc::EPERM, MODULES),
    deny(libc::SYS_kexec_file_load, "kexec_file_load", libc::EPERM, MACHINE),
    deny(libc::SYS_bpf, "bpf", libc::EPERM, "runs code in the host's kernel"),
    deny(
        libc::SYS_userfaultfd,
        "userfaultfd",
        libc::EPERM,
        "stalls the kernel in the middle of its work on memory of the guest",
    ),
    deny(libc::SYS_io_uring_setup, "io_uring_setup", libc::ENOSYS, URING),
    deny(libc::SYS_io_uring_enter, "io_uring_enter", libc::ENOSYS, URING),
    deny(libc::SYS_io_uring_register, "io_uring_register", libc::ENOSYS, URING),
    deny(443, "quotactl_fd", libc::EPERM, "changes quotas of the host's file systems"),
];

/// `ioctl` requests that are denied with `EPERM`: they put characters into a terminal's input, which
/// another program outside the container may read (`TIOCSTI`, `TIOCLINUX`).
pub const DENIED_TERMINAL_REQUESTS: &[u32] = &[0x5412, 0x541c];

/// Operations of `prctl` that are trapped where `prctl` is; the others never are, because programs
/// name their threads and memory with it all the time.
pub const TRAPPED_OPERATIONS: &[u32] =
    &[libc::PR_SET_PDEATHSIG as u32, libc::PR_SET_SECUREBITS as u32];

/// Calls that are trapped, where they are, only if they name another process than the caller: the
/// argument that does, which is 0 for the caller itself.
pub const TRAPPED_FOR_OTHERS: &[(i64, u32)] =
    &[(libc::SYS_prlimit64, 0), (libc::SYS_setpriority, 1), (libc::SYS_getpriority, 1)];

/// What the filter of one container lets pass without a trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookies {
    /// Calls of our own code have this in their sixth argument; 0: none.
    pub ours: u64,
    /// An `execveat` with this in the upper half of its flags is a conversion; 0: none.
    pub exec: u32,
}

/// What happens to calls with one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Allow,
    Fail(u16),
    Trap,
    TrapExecveat,
    TrapPrctl,
    /// An entry of [`TRAPPED_FOR_OTHERS`].
    TrapOthers(usize),
    TrapChildrenUsage,
    Ioctl,
}

/// The filter for these trapped calls.
///
/// # Errors
/// `EINVAL`, `E2BIG` when it does not fit into BPF; not with as many traps as a spec may have.
pub fn build(traps: &[u32], cookies: Cookies) -> dvs_sys::error::Result<Filter> {
    let mut rules: Vec<(u32, Rule)> = traps
        .iter()
        .filter(|number| DENIALS.iter().all(|denial| denial.number != **number))
        .map(|number| {
            let rule = match i64::from(*number) {
                libc::SYS_execveat if cookies.exec != 0 => Rule::TrapExecveat,
                libc::SYS_prctl => Rule::TrapPrctl,
                libc::SYS_getrusage => Rule::TrapChildrenUsage,
                number => TRAPPED_FOR_OTHERS
                    .iter()
                    .position(|(other, _)| *other == number)
                    .map_or(Rule::Trap, Rule::TrapOthers),
            };
            (*number, rule)
        })
        .chain(DENIALS.iter().map(|denial| (denial.number, Rule::Fail(denial.errno))))
        .collect();
    let ioctl = libc::SYS_ioctl as u32;
    rules.retain(|(number, _)| *number != ioctl);
    rules.push((ioctl, Rule::Ioctl));
    rules.sort_by_key(|(number, _)| *number);
    rules.dedup_by_key(|(number, _)| *number);
    let ranges = ranges(&rules);

    let mut program = Program::new();
    let labels = Labels {
        allow: program.label(),
        no_call: program.label(),
        not_permitted: program.label(),
        notify: program.label(),
        trap: program.label(),
        execveat: program.label(),
        prctl: program.label(),
        others: [program.label(), program.label(), program.label()],
        usage: program.label(),
        ioctl: program.label(),
        native: program.label(),
    };
    program.load(seccomp::ARCHITECTURE);
    // 32-bit calls have other numbers, which no trap knows. Answered here: over the search a
    // conditional jump would not reach.
    program.if_equal(seccomp::X86_64, labels.native);
    program.answer(Action::Fail(libc::ENOSYS as u16));
    program.place(labels.native);
    program.load(seccomp::NUMBER);
    search(&mut program, &ranges, labels);
    program.place(labels.ioctl);
    program.load(seccomp::argument_low(1));
    for request in DENIED_TERMINAL_REQUESTS {
        program.if_equal(*request, labels.not_permitted);
    }
    program.answer(Action::Allow);
    program.place(labels.prctl);
    program.load(seccomp::argument_low(0));
    for operation in TRAPPED_OPERATIONS {
        program.if_equal(*operation, labels.trap);
    }
    program.answer(Action::Allow);
    for ((_, argument), label) in TRAPPED_FOR_OTHERS.iter().zip(labels.others) {
        program.place(label);
        program.load(seccomp::argument_low(*argument));
        program.if_equal(0, labels.allow);
        program.jump(labels.trap);
    }
    program.place(labels.usage);
    program.load(seccomp::argument_low(0));
    program.if_equal(libc::RUSAGE_CHILDREN as u32, labels.trap);
    program.answer(Action::Allow);
    program.place(labels.execveat);
    program.load(seccomp::argument_high(4));
    program.if_equal(cookies.exec, labels.allow);
    program.place(labels.trap);
    if cookies.ours != 0 {
        program.load(seccomp::argument_low(5));
        program.unless_equal(cookies.ours as u32, labels.notify);
        program.load(seccomp::argument_high(5));
        program.if_equal((cookies.ours >> 32) as u32, labels.allow);
    }
    program.place(labels.notify);
    program.answer(Action::Notify);
    program.place(labels.allow);
    program.answer(Action::Allow);
    program.place(labels.no_call);
    program.answer(Action::Fail(libc::ENOSYS as u16));
    program.place(labels.not_permitted);
    program.answer(Action::Fail(libc::EPERM as u16));
    program.assemble()
}

#[derive(Debug, Clone, Copy)]
struct Labels {
    allow: Label,
    no_call: Label,
    not_permitted: Label,
    notify: Label,
    trap: Label,
    execveat: Label,
    prctl: Label,
    others: [Label; TRAPPED_FOR_OTHERS.len()],
    usage: Label,
    ioctl: Label,
    native: Label,
}

impl Labels {
    fn of(self, rule: Rule) -> Label {
        match rule {
            Rule::Allow => self.allow,
            Rule::Fail(errno) if i32::from(errno) == libc::ENOSYS => self.no_call,
            Rule::Fail(_) => self.not_permitted,
            Rule::Trap => self.trap,
            Rule::TrapExecveat => self.execveat,
            Rule::TrapPrctl => self.prctl,
            Rule::TrapOthers(index) => self.others.get(index).copied().unwrap_or(self.trap),
            Rule::TrapChildrenUsage => self.usage,
            Rule::Ioctl => self.ioctl,
        }
    }
}

/// The whole line of numbers as ranges of one rule each: (first number, rule).
fn ranges(rules: &[(u32, Rule)]) -> Vec<(u32, Rule)> {
    let mut ranges = vec![(0, Rule::Allow)];
    let mut push = |first: u32, rule: Rule| match ranges.last_mut() {
        Some(last) if last.1 == rule => {}
        Some(last) if last.0 == first => last.1 = rule,
        _ => ranges.push((first, rule)),
    };
    for (number, rule) in rules.iter().filter(|(number, _)| *number < seccomp::X32) {
        push(*number, *rule);
        push(number + 1, Rule::Allow);
    }
    // x32 calls: other numbers for the same calls.
    push(seccomp::X32, Rule::Fail(libc::ENOSYS as u16));
    ranges
}

/// Emits a binary search; jumps to leaves are long ones, so that no distance is too far.
fn search(program: &mut Program, ranges: &[(u32, Rule)], labels: Labels) {
    let (left, right) = ranges.split_at(ranges.len() / 2);
    match (left.first(), right.first()) {
        (None, Some((_, rule))) => program.jump(labels.of(*rule)),
        (Some(_), Some((first, _))) => {
            let (upper, lower) = (program.label(), program.label());
            // A conditional jump reaches 255 steps only: hop over a long jump.
            program.if_at_least(*first, upper);
            program.jump(lower);
            program.place(upper);
            let above = program.label();
            program.jump(above);
            program.place(lower);
            search(program, left, labels);
            program.place(above);
            search(program, right, labels);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;
    const COOKIES: Cookies = Cookies { ours: 0x1122_3344_5566_7788, exec: 0xdead_beef };

    fn fail(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno as u32
    }

    fn filter() -> Filter {
        let traps = [libc::SYS_execve, libc::SYS_execveat, libc::SYS_kill, libc::SYS_bpf, 8000];
        build(&traps.map(|number| number as u32), COOKIES).unwrap()
    }

    fn run(number: i64, arguments: [u64; 6]) -> u32 {
        filter().simulate(seccomp::X86_64, number as u32, arguments).unwrap()
    }

    #[test]
    fn the_table_is_sorted_and_says_why() {
        assert!(DENIALS.windows(2).all(|pair| pair[0].number < pair[1].number));
        assert!(DENIALS.iter().all(|denial| !denial.reason.is_empty() && !denial.name.is_empty()));
    }

    #[test]
    fn every_number_gets_the_answer_of_its_rule() {
        let filter = filter();
        for number in (0..9000).chain([seccomp::X32 - 1]) {
            let expected = match number {
                59 | 322 | 62 | 8000 => NOTIFY,
                _ => DENIALS
                    .iter()
                    .find(|denial| denial.number == number)
                    .map_or(ALLOW, |denial| fail(i32::from(denial.errno))),
            };
            assert_eq!(
                filter.simulate(seccomp::X86_64, number, [0; 6]),
                Some(expected),
                "{number}"
            );
        }
    }

    #[test]
    fn other_instruction_sets_have_no_calls() {
        let filter = filter();
        for number in [0, 1, 59, 0xffff_ffff] {
            let i386 = 0x4000_0003;
            assert_eq!(filter.simulate(i386, number, [0; 6]), Some(fail(libc::ENOSYS)));
            let x32 = seccomp::X32 | number;
            assert_eq!(filter.simulate(seccomp::X86_64, x32, [0; 6]), Some(fail(libc::ENOSYS)));
        }
    }

    #[test]
    fn cookies_let_trapped_calls_pass_and_nothing_else() {
        let ours = [0, 0, 0, 0, 0, COOKIES.ours];
        assert_eq!(run(libc::SYS_kill, ours), ALLOW);
        assert_eq!(run(libc::SYS_execve, ours), ALLOW);
        assert_eq!(run(libc::SYS_execveat, ours), ALLOW);
        assert_eq!(run(libc::SYS_kill, [0, 0, 0, 0, 0, COOKIES.ours ^ 1]), NOTIFY);
        assert_eq!(run(libc::SYS_kill, [0, 0, 0, 0, 0, COOKIES.ours ^ 1 << 63]), NOTIFY);
        let exec = u64::from(COOKIES.exec) << 32 | libc::AT_EMPTY_PATH as u64;
        assert_eq!(run(libc::SYS_execveat, [0, 0, 0, 0, exec, 0]), ALLOW);
        assert_eq!(run(libc::SYS_execveat, [0, 0, 0, 0, u64::from(COOKIES.exec), 0]), NOTIFY);
        assert_eq!(run(libc::SYS_kill, [0, 0, 0, 0, exec, 0]), NOTIFY);
        // No cookie opens a denied call.
        assert_eq!(run(libc::SYS_bpf, ours), fail(libc::EPERM));
        assert_eq!(run(libc::SYS_io_uring_setup, ours), fail(libc::ENOSYS));
    }

    #[test]
    fn without_cookies_everything_trapped_is_reported() {
        let filter = build(&[322, 62], Cookies { ours: 0, exec: 0 }).unwrap();
        assert_eq!(filter.simulate(seccomp::X86_64, 322, [0; 6]), Some(NOTIFY));
        assert_eq!(filter.simulate(seccomp::X86_64, 62, [0; 6]), Some(NOTIFY));
    }

    #[test]
    fn of_prctl_only_some_operations_are_trapped() {
        let prctl = libc::SYS_prctl as u32;
        let filter = build(&[prctl], COOKIES).unwrap();
        let run = |operation: i32, cookie| {
            filter.simulate(seccomp::X86_64, prctl, [operation as u64, 0, 0, 0, 0, cookie])
        };
        assert_eq!(run(libc::PR_SET_PDEATHSIG, 0), Some(NOTIFY));
        assert_eq!(run(libc::PR_SET_PDEATHSIG, COOKIES.ours), Some(ALLOW));
        assert_eq!(run(libc::PR_SET_NAME, 0), Some(ALLOW));
    }

    #[test]
    fn settings_of_other_processes_are_trapped() {
        let traps = TRAPPED_FOR_OTHERS.iter().map(|(number, _)| *number as u32).collect::<Vec<_>>();
        let filter = build(&traps, COOKIES).unwrap();
        for (number, argument) in TRAPPED_FOR_OTHERS {
            let run = |value, cookie| {
                let mut arguments = [0, 0, 0, 0, 0, cookie];
                arguments[*argument as usize] = value;
                filter.simulate(seccomp::X86_64, *number as u32, arguments)
            };
            assert_eq!(run(0, 0), Some(ALLOW));
            assert_eq!(run(77, 0), Some(NOTIFY));
            assert_eq!(run(77, COOKIES.ours), Some(ALLOW));
        }
    }

    #[test]
    fn only_the_usage_of_children_is_trapped() {
        let number = libc::SYS_getrusage as u32;
        let filter = build(&[number], COOKIES).unwrap();
        let run = |who: i32, cookie| {
            let who = u64::from(who.cast_unsigned());
            filter.simulate(seccomp::X86_64, number, [who, 0, 0, 0, 0, cookie])
        };
        assert_eq!(run(libc::RUSAGE_CHILDREN, 0), Some(NOTIFY));
        assert_eq!(run(libc::RUSAGE_CHILDREN, COOKIES.ours), Some(ALLOW));
        assert_eq!(run(libc::RUSAGE_SELF, 0), Some(ALLOW));
        assert_eq!(run(libc::RUSAGE_THREAD, 0), Some(ALLOW));
    }

    #[test]
    fn terminals_cannot_be_fed() {
        for request in DENIED_TERMINAL_REQUESTS {
            let request = u64::from(*request);
            assert_eq!(run(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]), fail(libc::EPERM));
            // The kernel looks at the lower half alone.
            let high = request | 1 << 40;
            assert_eq!(run(libc::SYS_ioctl, [0, high, 0, 0, 0, 0]), fail(libc::EPERM));
        }
        assert_eq!(run(libc::SYS_ioctl, [0, libc::TCGETS, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn the_hot_path_is_short_and_many_traps_fit() {
        let many: Vec<u32> = (0..crate::spec::MAX_TRAPS as u32).map(|n| 3 * n + 1).collect();
        for filter in [filter(), build(&many, COOKIES).unwrap()] {
            assert!(filter.len() < 2000, "{}", filter.len());
            for number in 0..500 {
                assert!(filter.simulate_steps(number).unwrap() <= 40);
            }
        }
    }
}
