//! Two carriers in one process and real programs between them.
#![allow(dead_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dvs_carry::memory::{Delivery, MemoryNetwork};
use dvs_carry::*;
use dvs_sys::pipe::{self, PipeFlags};

/// Bound of every wait: far beyond what any of it takes, so that a hang is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const HOME: u16 = 1;
pub(crate) const AWAY: u16 = 2;

static PROGRAMS: AtomicU64 = AtomicU64::new(1);

/// Home and away.
pub(crate) struct Pair {
    pub(crate) network: Arc<MemoryNetwork>,
    pub(crate) home: Arc<Carrier>,
    pub(crate) away: Arc<Carrier>,
    pub(crate) attached: Arc<Attached>,
}

/// Keeps what was attached, for the test to use.
#[derive(Default)]
pub(crate) struct Attached {
    pub(crate) requests: Mutex<Vec<AttachRequest>>,
}

impl Attacher for Attached {
    fn attach(&self, request: AttachRequest) -> Result<Vec<u8>, i32> {
        self.requests.lock().unwrap().push(request);
        Ok(b"/attached".to_vec())
    }
}

impl Pair {
    pub(crate) fn new(delivery: Delivery) -> Pair {
        let network = MemoryNetwork::new(delivery);
        let attached = Arc::new(Attached::default());
        let home = network.carrier(HOME);
        let attacher: Arc<dyn Attacher> = Arc::clone(&attached) as Arc<dyn Attacher>;
        let away = Carrier::start(CarrierConfig::new(AWAY), network.port(AWAY), attacher).unwrap();
        let away = Arc::new(away);
        network.join(AWAY, &away);
        Pair { network, home, away, attached }
    }

    pub(crate) fn program() -> ProgramKey {
        ProgramKey { home: HOME, number: PROGRAMS.fetch_add(1, Ordering::Relaxed) }
    }

    /// Exports and imports; the duplicates' originals stay with the caller.
    pub(crate) fn carry(
        &self,
        program: ProgramKey,
        descriptors: Vec<InheritedDescriptor>,
    ) -> Result<Vec<LocalDescriptor>, Refusal> {
        let carried = self.home.exporter().export(AWAY, program, descriptors)?;
        Ok(self.away.importer().import(HOME, program, carried).expect("import"))
    }

    /// Waits for the drain, as the ghost's exit does.
    pub(crate) fn drain(&self, program: ProgramKey) -> Receiver<DrainOutcome> {
        let (sender, receiver) = channel();
        self.home.exporter().drain(program, move |outcome| sender.send(outcome).unwrap());
        receiver
    }

    /// The body has ended: what the personality does then.
    pub(crate) fn end(&self, program: ProgramKey) -> DrainOutcome {
        let drained = self.drain(program);
        let (sender, sent) = channel();
        self.away.importer().body_ended(program, move || sender.send(()).unwrap());
        let outcome = drained.recv_timeout(PATIENCE).expect("drained");
        sent.recv_timeout(PATIENCE).expect("sent before it is drained");
        outcome
    }
}

/// An open descriptor as the personality hands it over.
pub(crate) fn inherited(number: i32, fd: impl Into<OwnedFd>) -> InheritedDescriptor {
    let fd = fd.into();
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    let position = info
        .lines()
        .find_map(|line| line.strip_prefix("pos:"))
        .and_then(|text| text.trim().parse().ok())
        .unwrap();
    InheritedDescriptor {
        number,
        fd,
        flags: 0,
        position,
        path: path.into_os_string().into_encoded_bytes(),
    }
}

/// A program made of local descriptors 0 to 2.
pub(crate) fn spawn(script: &str, locals: Vec<LocalDescriptor>) -> Child {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).env("LC_ALL", "C");
    let mut stdio: Vec<Option<OwnedFd>> = vec![None, None, None];
    for local in locals {
        let slot = usize::try_from(local.number).unwrap();
        stdio[slot] = Some(match local.what {
            Local::Fd(fd) => fd,
            Local::Open { path, flags, .. } => {
                let path = String::from_utf8(path).unwrap();
                let write = flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY;
                File::options().read(!write).write(write).open(path).unwrap().into()
            }
            Local::DuplicateOf(other) => {
                let other = usize::try_from(other).unwrap();
                stdio[other].as_ref().unwrap().try_clone().unwrap()
            }
        });
    }
    let mut next = stdio.into_iter().map(|fd| fd.map_or(Stdio::null(), Stdio::from));
    command.stdin(next.next().unwrap()).stdout(next.next().unwrap()).stderr(next.next().unwrap());
    command.spawn().unwrap()
}

/// Waits for a child with a bound; shows statuses as a shell does.
pub(crate) fn wait(child: &mut Child) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        }
        assert!(start.elapsed() < PATIENCE, "program hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    pipe::pair(PipeFlags::default()).unwrap()
}

/// Reads a pipe to its end in a thread.
pub(crate) fn collect(fd: OwnedFd) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        File::from(fd).read_to_end(&mut all).unwrap();
        let _ = sender.send(all);
    });
    receiver
}

/// Writes into a pipe in a thread; tells the errno that stopped it.
pub(crate) fn produce(fd: OwnedFd, bytes: Vec<u8>) -> Receiver<Option<i32>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut file = File::from(fd);
        let result = file.write_all(&bytes).err().and_then(|error| error.raw_os_error());
        drop(file);
        let _ = sender.send(result);
    });
    receiver
}

pub(crate) fn soon<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(PATIENCE).expect("in time")
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
