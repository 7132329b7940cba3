//! Seccomp: filter programs, and notifications of trapped calls (seccomp_unotify(2)).
//!
//! [`Program`] assembles classic BPF with labels, so that jumps need no counting. The layout of the
//! notification structures is the kernel's since Linux 5.5.

use crate::descriptor::own;
use crate::error::{Result, SysError, check};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Offset of the call's number in `struct seccomp_data`.
pub const NUMBER: u32 = 0;
/// Offset of the architecture.
pub const ARCHITECTURE: u32 = 4;
/// `AUDIT_ARCH_X86_64`.
pub const X86_64: u32 = 0xc000_003e;
/// First number of the x32 calls, which an x86-64 filter sees under the same architecture.
pub const X32: u32 = 0x4000_0000;

/// Offset of the lower half of argument `index` (0 to 5).
#[must_use]
pub const fn argument_low(index: u32) -> u32 {
    16 + 8 * index
}

/// Offset of the upper half of argument `index` (0 to 5).
#[must_use]
pub const fn argument_high(index: u32) -> u32 {
    20 + 8 * index
}

/// What a filter answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The call goes on.
    Allow,
    /// It fails with this errno.
    Fail(u16),
    /// A supervisor is asked.
    Notify,
}

impl Action {
    fn value(self) -> u32 {
        match self {
            Action::Allow => libc::SECCOMP_RET_ALLOW,
            Action::Fail(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Action::Notify => libc::SECCOMP_RET_USER_NOTIF,
        }
    }
}

/// A place in a program to which jumps lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

#[derive(Debug, Clone, Copy)]
enum Step {
    Load(u32),
    Return(Action),
    /// Condition, operand, where to go when true and when false (`None`: the next step).
    Branch(u16, u32, Option<Label>, Option<Label>),
    Jump(Label),
}

/// A filter under construction. Jumps go forward only, as BPF wants it.
#[derive(Debug, Default)]
pub struct Program {
    steps: Vec<Step>,
    labels: Vec<Option<usize>>,
}

/// Most steps of a filter (`BPF_MAXINSNS`).
pub const MAX_STEPS: usize = 4096;

impl Program {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A label that is placed later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label before the next step.
    pub fn place(&mut self, label: Label) {
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(self.steps.len());
        }
    }

    /// Loads a word of `struct seccomp_data` into the accumulator.
    pub fn load(&mut self, offset: u32) {
        self.steps.push(Step::Load(offset));
    }

    /// Ends with an action.
    pub fn answer(&mut self, action: Action) {
        self.steps.push(Step::Return(action));
    }

    /// Goes to `equal` when the accumulator has the value, else on.
    pub fn if_equal(&mut self, value: u32, equal: Label) {
        self.steps.push(Step::Branch(libc::BPF_JEQ as u16, value, Some(equal), None));
    }

    /// Goes to `other` unless the accumulator has the value.
    pub fn unless_equal(&mut self, value: u32, other: Label) {
        self.steps.push(Step::Branch(libc::BPF_JEQ as u16, value, None, Some(other)));
    }

    /// Goes to `above` when the accumulator is at least the value, else on.
    pub fn if_at_least(&mut self, value: u32, above: Label) {
        self.steps.push(Step::Branch(libc::BPF_JGE as u16, value, Some(above), None));
    }

    /// Goes to the label.
    pub fn jump(&mut self, label: Label) {
        self.steps.push(Step::Jump(label));
    }

    /// The finished filter.
    ///
    /// # Errors
    /// `EINVAL` for a label that was never placed or lies behind, or a conditional jump over more
    /// than 255 steps; `E2BIG` for more than [`MAX_STEPS`].
    pub fn assemble(&self) -> Result<Filter> {
        if self.steps.len() > MAX_STEPS {
            return Err(SysError::new("seccomp", libc::E2BIG));
        }
        let distance = |from: usize, label: Option<Label>| -> Result<u32> {
            let Some(label) = label else { return Ok(0) };
            let place = self.labels.get(label.0).copied().flatten();
            place
                .and_then(|place| place.checked_sub(from + 1))
                .and_then(|steps| u32::try_from(steps).ok())
                .ok_or(SysError::new("seccomp", libc::EINVAL))
        };
        let short =
            |steps: u32| u8::try_from(steps).map_err(|_| SysError::new("seccomp", libc::EINVAL));
        let code = |class: u32, rest: u32| (class | rest) as u16;
        let mut steps = Vec::with_capacity(self.steps.len());
        for (index, step) in self.steps.iter().enumerate() {
            steps.push(match *step {
                Step::Load(offset) => libc::sock_filter {
                    code: code(libc::BPF_LD, libc::BPF_W | libc::BPF_ABS),
                    jt: 0,
                    jf: 0,
                    k: offset,
                },
                Step::Return(action) => libc::sock_filter {
                    code: code(libc::BPF_RET, libc::BPF_K),
                    jt: 0,
                    jf: 0,
                    k: action.value(),
                },
                Step::Branch(condition, value, yes, no) => libc::sock_filter {
                    code: code(libc::BPF_JMP, u32::from(condition) | libc::BPF_K),
                    jt: short(distance(index, yes)?)?,
                    jf: short(distance(index, no)?)?,
                    k: value,
                },
                Step::Jump(label) => libc::sock_filter {
                    code: code(libc::BPF_JMP, libc::BPF_JA),
                    jt: 0,
                    jf: 0,
                    k: distance(index, Some(label))?,
                },
            });
        }
        Ok(Filter { steps })
    }
}

/// A finished filter.
pub struct Filter {
    steps: Vec<libc::sock_filter>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").field("steps", &self.steps.len()).finish()
    }
}

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19): once received, a notification is only
/// cancelled by a fatal signal.
pub const WAIT_KILLABLE_RECV: u64 = 1 << 5;
const NEW_LISTENER: u64 = 1 << 3;

impl Filter {
    /// Number of BPF steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether it has no steps (and so cannot be installed).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Runs the filter on a call, as the kernel would; for tests. `None`: it runs off its end.
    #[must_use]
    pub fn simulate(&self, architecture: u32, number: u32, arguments: [u64; 6]) -> Option<u32> {
        self.trace(architecture, number, arguments).map(|(answer, _)| answer)
    }

    /// How many steps the kernel runs for a call; for tests of the hot path.
    #[must_use]
    pub fn simulate_steps(&self, number: u32) -> Option<usize> {
        self.trace(X86_64, number, [0; 6]).map(|(_, steps)| steps)
    }

    fn trace(&self, architecture: u32, number: u32, arguments: [u64; 6]) -> Option<(u32, usize)> {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            offset => {
                let argument = arguments.get(((offset - 16) / 8) as usize).copied().unwrap_or(0);
                if offset % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
            }
        };
        let (mut accumulator, mut next, mut steps) = (0, 0, 0);
        loop {
            let step = self.steps.get(next)?;
            let code = u32::from(step.code);
            next += 1;
            steps += 1;
            if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                accumulator = word(step.k);
            } else if code == libc::BPF_RET | libc::BPF_K {
                return Some((step.k, steps));
            } else if code == libc::BPF_JMP | libc::BPF_JA {
                next += step.k as usize;
            } else {
                let yes = match code & 0xf0 {
                    libc::BPF_JEQ => accumulator == step.k,
                    libc::BPF_JGE => accumulator >= step.k,
                    _ => return None,
                };
                next += usize::from(if yes { step.jt } else { step.jf });
            }
        }
    }

    /// Installs the filter for the calling thread and its children, for ever. Needs `CAP_SYS_ADMIN`
    /// in the own user namespace, or no_new_privs.
    ///
    /// # Errors
    /// `EACCES` without either, `EINVAL` for an unknown flag or a broken program.
    pub fn install(&self) -> Result<()> {
        self.seccomp(0)?;
        Ok(())
    }

    /// Installs the filter and returns the descriptor on which trapped calls are reported. Other
    /// flags: [`WAIT_KILLABLE_RECV`].
    ///
    /// # Errors
    /// As [`Filter::install`]; `EBUSY` when the thread has a listener already.
    pub fn install_with_listener(&self, flags: u64) -> Result<Listener> {
        Ok(Listener { fd: own(self.seccomp(flags | NEW_LISTENER)?) })
    }

    fn seccomp(&self, flags: u64) -> Result<i64> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.steps.len()).unwrap_or(u16::MAX),
            filter: self.steps.as_ptr().cast_mut(),
        };
        // SAFETY: the program points to `len` live steps, which the kernel copies.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        check("seccomp", fd)
    }
}

/// A trapped call (`struct seccomp_notif`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Notification {
    /// Names the call until it is answered or its thread is gone.
    pub id: u64,
    /// Thread id of the caller in the listener's pid namespace, 0 if not visible there.
    pub pid: u32,
    /// Always 0.
    pub flags: u32,
    /// Number of the call.
    pub number: i32,
    /// Architecture.
    pub architecture: u32,
    /// Address of the instruction.
    pub instruction: u64,
    /// Arguments.
    pub arguments: [u64; 6],
}

#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct AddDescriptor {
    id: u64,
    flags: u32,
    source: u32,
    target: u32,
    new_flags: u32,
}

const fn ioctl_number(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number
}
const IOCTL_RECEIVE: u64 = ioctl_number(3, 0, size_of::<Notification>());
const IOCTL_SEND: u64 = ioctl_number(3, 1, size_of::<Response>());
const IOCTL_VALID: u64 = ioctl_number(1, 2, 8);
const IOCTL_ADD: u64 = ioctl_number(1, 3, size_of::<AddDescriptor>());
const IOCTL_FLAGS: u64 = ioctl_number(1, 4, 8);

/// Where trapped calls are reported and answered. A descriptor: it can be polled, duplicated and
/// passed on. When its last duplicate is closed every trapped call fails with `ENOSYS`.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

/// What [`Listener::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reception {
    /// A call waits for an answer.
    Call(Notification),
    /// The call was cancelled before it was received, or no thread uses the filter any more; poll
    /// for `POLLHUP` to tell them apart.
    Nothing,
}

impl From<OwnedFd> for Listener {
    fn from(fd: OwnedFd) -> Self {
        Listener { fd }
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.fd
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener {
    /// Waits for the next trapped call.
    ///
    /// # Errors
    /// What the ioctl says, except `ENOENT` (see [`Reception::Nothing`]); `EINTR` is retried.
    pub fn receive(&self) -> Result<Reception> {
        loop {
            let mut call = Notification::default();
            // SAFETY: the structure has the kernel's layout and is zeroed, as the call wants it.
            let done =
                unsafe { libc::ioctl(self.fd.as_raw_fd(), IOCTL_RECEIVE as _, &raw mut call) };
            match check("ioctl(SECCOMP_IOCTL_NOTIF_RECV)", i64::from(done)) {
                Ok(_) => return Ok(Reception::Call(call)),
                Err(error) if error.errno == libc::ENOENT => return Ok(Reception::Nothing),
                Err(error) if error.errno == libc::EINTR => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the next trapped call and writes it into memory of the caller's choice, which may be
    /// shared with a successor.
    ///
    /// # Errors
    /// As [`Listener::receive`], without retries, `ENOENT` included.
    pub fn receive_into(&self, slot: &mut Notification) -> Result<()> {
        *slot = Notification::default();
        // SAFETY: the structure has the kernel's layout and is zeroed, as the call wants it.
        let done = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), IOCTL_RECEIVE as _, std::ptr::from_mut(slot))
        };
        check("ioctl(SECCOMP_IOCTL_NOTIF_RECV)", i64::from(done))?;
        Ok(())
    }

    fn respond(&self, response: &Response) -> Result<()> {
        // SAFETY: the structure has the kernel's layout and lives through the call.
        let done = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), IOCTL_SEND as _, std::ptr::from_ref(response))
        };
        check("ioctl(SECCOMP_IOCTL_NOTIF_SEND)", i64::from(done))?;
        Ok(())
    }

    /// The call returns this value.
    ///
    /// # Errors
    /// `ENOENT` when the caller is gone, `EINPROGRESS` when it was answered already.
    pub fn answer(&self, id: u64, value: i64) -> Result<()> {
        self.respond(&Response { id, value, error: 0, flags: 0 })
    }

    /// The call fails with this errno (positive). Restart codes (512 and up) work, too.
    ///
    /// # Errors
    /// As [`Listener::answer`].
    pub fn fail(&self, id: u64, errno: i32) -> Result<()> {
        self.respond(&Response { id, value: 0, error: -errno, flags: 0 })
    }

    /// The call is executed by the kernel as if it had not been trapped.
    ///
    /// # Errors
    /// As [`Listener::answer`].
    pub fn proceed(&self, id: u64) -> Result<()> {
        self.respond(&Response { id, value: 0, error: 0, flags: 1 })
    }

    /// Whether the call still waits (the thread lives and has not been interrupted). Check it after
    /// reading anything of the caller by its pid.
    #[must_use]
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: the kernel reads the eight bytes of the id.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), IOCTL_VALID as _, &raw const id) };
        done == 0
    }

    /// Installs a descriptor in the caller: the lowest free number, or `number`; returns it. With
    /// `close_on_exec` it does not survive exec.
    ///
    /// # Errors
    /// `ENOENT` when the caller is gone, `EMFILE`, `EBADF` for a number over its limit.
    pub fn add_descriptor(
        &self,
        id: u64,
        source: BorrowedFd<'_>,
        number: Option<RawFd>,
        close_on_exec: bool,
    ) -> Result<RawFd> {
        self.add(id, source, number, close_on_exec, 0)
    }

    /// Installs a descriptor and answers the call with its number in one step (Linux 5.14).
    ///
    /// # Errors
    /// As [`Listener::add_descriptor`].
    pub fn answer_with_descriptor(
        &self,
        id: u64,
        source: BorrowedFd<'_>,
        close_on_exec: bool,
    ) -> Result<RawFd> {
        self.add(id, source, None, close_on_exec, 2)
    }

    fn add(
        &self,
        id: u64,
        source: BorrowedFd<'_>,
        number: Option<RawFd>,
        close_on_exec: bool,
        flags: u32,
    ) -> Result<RawFd> {
        let request = AddDescriptor {
            id,
            // SECCOMP_ADDFD_FLAG_SETFD, SECCOMP_ADDFD_FLAG_SEND.
            flags: flags | u32::from(number.is_some()),
            source: source.as_raw_fd() as u32,
            target: number.map_or(0, |number| number as u32),
            new_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: the structure has the kernel's layout and lives through the call.
        let fd = unsafe { libc::ioctl(self.fd.as_raw_fd(), IOCTL_ADD as _, &raw const request) };
        Ok(check("ioctl(SECCOMP_IOCTL_NOTIF_ADDFD)", i64::from(fd))? as RawFd)
    }

    /// Wake-ups by this listener stay on the CPU of the waker (`SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`,
    /// Linux 6.6): an answer then costs 5 µs instead of 35 to 130.
    ///
    /// # Errors
    /// `EINVAL` or `ENOTTY` before Linux 6.6.
    pub fn set_sync_wake_up(&self) -> Result<()> {
        // SAFETY: the flags are the argument itself, not a pointer.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), IOCTL_FLAGS as _, 1_u64) };
        check("ioctl(SECCOMP_IOCTL_NOTIF_SET_FLAGS)", i64::from(done))?;
        Ok(())
    }
}

/// Whether the kernel knows a filter flag, found without installing anything: an unknown flag is
/// `EINVAL`, a known one with a null program `EFAULT`.
#[must_use]
pub fn knows_flag(flag: u64) -> bool {
    // WAIT_KILLABLE_RECV is only valid together with NEW_LISTENER.
    let flags = if flag == WAIT_KILLABLE_RECV { flag | NEW_LISTENER } else { flag };
    // SAFETY: a null program can never be installed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    done < 0 && SysError::last("seccomp").errno == libc::EFAULT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_size() {
        assert_eq!(size_of::<Notification>(), 80);
        assert_eq!(size_of::<Response>(), 24);
        assert_eq!(size_of::<AddDescriptor>(), 24);
        assert_eq!(IOCTL_RECEIVE, 0xc050_2100);
        assert_eq!(IOCTL_SEND, 0xc018_2101);
        assert_eq!(IOCTL_VALID, 0x4008_2102);
        assert_eq!(IOCTL_ADD, 0x4018_2103);
        assert_eq!(IOCTL_FLAGS, 0x4008_2104);
    }

    #[test]
    fn programs_are_assembled_with_forward_jumps() {
        let mut program = Program::new();
        let deny = program.label();
        program.load(NUMBER);
        program.if_equal(39, deny);
        program.answer(Action::Allow);
        program.place(deny);
        program.answer(Action::Fail(1));
        let filter = program.assemble().unwrap();
        let run = |number| filter.simulate(X86_64, number, [0; 6]);
        assert_eq!(run(39), Some(Action::Fail(1).value()));
        assert_eq!(run(40), Some(Action::Allow.value()));
        assert_eq!(filter.simulate_steps(40), Some(3));

        let mut back = Program::new();
        let label = back.label();
        back.place(label);
        back.load(NUMBER);
        back.if_equal(1, label);
        assert_eq!(back.assemble().unwrap_err().errno, libc::EINVAL);
        let mut unplaced = Program::new();
        let label = unplaced.label();
        unplaced.jump(label);
        assert!(unplaced.assemble().is_err());
        let mut far = Program::new();
        let label = far.label();
        far.if_equal(1, label);
        for _ in 0..256 {
            far.load(NUMBER);
        }
        far.place(label);
        far.answer(Action::Allow);
        assert!(far.assemble().is_err());
    }

    #[test]
    fn flags_are_probed_without_a_filter() {
        assert!(knows_flag(NEW_LISTENER));
        assert!(!knows_flag(1 << 20));
    }
}
