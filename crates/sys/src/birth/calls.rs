//! The calls that a [`Script`] can hold. What they point to is kept by the script.

use super::{Action, Script, Step};
use crate::untrapped::Sender;
use std::ffi::{CString, c_char};
use std::os::fd::RawFd;

impl Script {
    /// An empty list.
    #[must_use]
    pub fn new(cookie: u64) -> Self {
        Script {
            cookie,
            stage: 0,
            steps: Vec::new(),
            strings: Vec::new(),
            arrays: Vec::new(),
            words: Vec::new(),
            ids: Vec::new(),
        }
    }

    /// What follows fails with this stage.
    pub fn stage(&mut self, stage: u8) {
        self.stage = stage;
    }

    fn push(&mut self, action: Action) {
        self.steps.push(Step { stage: self.stage, action });
    }

    fn call(&mut self, number: i64, arguments: [u64; 5]) {
        self.push(Action::Call { number, arguments });
    }

    /// Keeps a string; its address stays the same, because it lies on the heap.
    fn keep(&mut self, string: CString) -> *const c_char {
        let address = string.as_ptr();
        self.strings.push(string);
        address
    }

    fn keep_all(&mut self, list: Vec<CString>) -> *const *const c_char {
        let mut pointers: Vec<*const c_char> =
            list.into_iter().map(|string| self.keep(string)).collect();
        pointers.push(std::ptr::null());
        let pointers = pointers.into_boxed_slice();
        let address = pointers.as_ptr();
        self.arrays.push(pointers);
        address
    }

    fn keep_words(&mut self, words: &[u64]) -> u64 {
        let words: Box<[u64]> = words.into();
        let address = words.as_ptr() as u64;
        self.words.push(words);
        address
    }

    /// `setsid`.
    pub fn new_session(&mut self) {
        self.call(libc::SYS_setsid, [0; 5]);
    }

    /// `setpgid` of the child itself; group 0: one of its own.
    pub fn set_group(&mut self, group: u32) {
        self.call(libc::SYS_setpgid, [0, u64::from(group), 0, 0, 0]);
    }

    /// `prlimit`.
    pub fn set_limit(&mut self, resource: u32, soft: u64, hard: u64) {
        let new = self.keep_words(&[soft, hard]);
        self.call(libc::SYS_prlimit64, [0, u64::from(resource), new, 0, 0]);
    }

    /// `setpriority`.
    pub fn set_nice(&mut self, nice: i32) {
        self.call(libc::SYS_setpriority, [libc::PRIO_PROCESS as u64, 0, nice as u64, 0, 0]);
    }

    /// `sched_setaffinity`, a mask of the first 64 CPUs.
    pub fn set_affinity(&mut self, mask: u64) {
        let mask = self.keep_words(&[mask]);
        self.call(libc::SYS_sched_setaffinity, [0, 8, mask, 0, 0]);
    }

    /// `setgroups`.
    pub fn set_groups(&mut self, list: &[u32]) {
        let list: Box<[u32]> = list.into();
        let (count, address) = (list.len() as u64, list.as_ptr() as u64);
        self.ids.push(list);
        self.call(libc::SYS_setgroups, [count, address, 0, 0, 0]);
    }

    /// `setresgid`.
    pub fn set_group_ids(&mut self, ids: [u32; 3]) {
        let [r, e, s] = ids.map(u64::from);
        self.call(libc::SYS_setresgid, [r, e, s, 0, 0]);
    }

    /// `setresuid`.
    pub fn set_user_ids(&mut self, ids: [u32; 3]) {
        let [r, e, s] = ids.map(u64::from);
        self.call(libc::SYS_setresuid, [r, e, s, 0, 0]);
    }

    /// `capset`.
    pub fn set_capabilities(&mut self, sets: crate::capability::Sets) {
        let header = self.keep_words(&[u64::from(crate::capability::VERSION_3)]);
        let low = |set: u64| set & 0xffff_ffff;
        let (e, p, i) = (sets.effective, sets.permitted, sets.inheritable);
        // Two times three words: effective, permitted, inheritable; low halves, then high ones.
        let data = self.keep_words(&[
            low(e) | low(p) << 32,
            low(i) | (e >> 32) << 32,
            (p >> 32) | (i >> 32) << 32,
        ]);
        self.call(libc::SYS_capset, [header, data, 0, 0, 0]);
    }

    fn prctl(&mut self, operation: i32, first: u64, second: u64) {
        self.call(libc::SYS_prctl, [operation as u64, first, second, 0, 0]);
    }

    /// Drops a capability from the bounding set.
    pub fn drop_bounding(&mut self, capability: u32) {
        self.prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0);
    }

    /// Keeps the permitted capabilities over the next change of user ids.
    pub fn keep_capabilities(&mut self, keep: bool) {
        self.prctl(libc::PR_SET_KEEPCAPS, u64::from(keep), 0);
    }

    /// Adds a capability to the ambient set.
    pub fn raise_ambient(&mut self, capability: u32) {
        self.prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability));
    }

    /// `PR_SET_NO_NEW_PRIVS`.
    pub fn no_new_privileges(&mut self) {
        self.prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0);
    }

    /// `kill`.
    pub fn kill(&mut self, target: i32, signal: i32) {
        self.call(libc::SYS_kill, [target as u64, signal as u64, 0, 0, 0]);
    }

    /// Queues a signal with a sender of choice (`rt_sigqueueinfo`). The kernel accepts only negative
    /// codes other than `SI_TKILL` for a sender that is not the caller.
    pub fn queue_signal(&mut self, target: u32, signal: i32, sender: &Sender) {
        let info = self.keep_words(&sender.info(signal));
        let arguments = [u64::from(target), signal as u64, info, 0, 0];
        self.call(libc::SYS_rt_sigqueueinfo, arguments);
    }

    /// `umask`.
    pub fn set_umask(&mut self, mask: u32) {
        self.call(libc::SYS_umask, [u64::from(mask), 0, 0, 0, 0]);
    }

    /// `chdir`.
    pub fn change_directory(&mut self, path: CString) {
        let path = self.keep(path) as u64;
        self.call(libc::SYS_chdir, [path, 0, 0, 0, 0]);
    }

    /// Makes `number` refer to what `source`, another number, refers to (`dup2`).
    pub fn place(&mut self, source: RawFd, number: RawFd) {
        if source == number {
            // Not close-on-exec any more.
            self.call(libc::SYS_fcntl, [number as u64, libc::F_SETFD as u64, 0, 0, 0]);
        } else {
            self.call(libc::SYS_dup2, [source as u64, number as u64, 0, 0, 0]);
        }
    }

    /// Opens a file as `number`; never as the controlling terminal.
    pub fn open(&mut self, path: CString, flags: i32, number: RawFd, offset: Option<u64>) {
        let path = self.keep(path);
        self.push(Action::Open { path, flags: flags | libc::O_NOCTTY, number, offset });
    }

    /// Marks descriptors close-on-exec, from `first` to `last`.
    pub fn close_range_on_exec(&mut self, first: u32, last: u32) {
        let flags = u64::from(libc::CLOSE_RANGE_CLOEXEC);
        let arguments = [u64::from(first), u64::from(last), flags, 0, 0];
        self.call(libc::SYS_close_range, arguments);
    }

    /// Makes a terminal the controlling one (`TIOCSCTTY`).
    pub fn control_terminal(&mut self, number: RawFd) {
        self.call(libc::SYS_ioctl, [number as u64, libc::TIOCSCTTY, 0, 0, 0]);
    }

    /// Ignores a signal.
    pub fn ignore_signal(&mut self, signal: i32) {
        // The kernel's struct sigaction: handler, flags, restorer, mask.
        let action = self.keep_words(&[libc::SIG_IGN as u64, 0, 0, 0]);
        self.call(libc::SYS_rt_sigaction, [signal as u64, action, 0, 8, 0]);
    }

    /// Sets the blocked signals.
    pub fn set_signal_mask(&mut self, mask: u64) {
        let mask = self.keep_words(&[mask]);
        self.call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as u64, mask, 0, 8, 0]);
    }

    /// The maker traces the child from now on.
    pub fn trace_me(&mut self) {
        self.call(libc::SYS_ptrace, [u64::from(libc::PTRACE_TRACEME), 0, 0, 0, 0]);
    }

    /// The child sends itself `SIGSTOP`.
    pub fn stop_self(&mut self) {
        self.push(Action::StopSelf);
    }

    /// Executes the first of the files that can be, as `execvp` does: those that do not exist are
    /// passed over, a refused one is reported at the end.
    pub fn execute(
        &mut self,
        candidates: Vec<CString>,
        arguments: Vec<CString>,
        environment: Vec<CString>,
    ) {
        let candidates = self.keep_all(candidates);
        let arguments = self.keep_all(arguments);
        let environment = self.keep_all(environment);
        self.push(Action::Execute { candidates, arguments, environment });
    }
}
