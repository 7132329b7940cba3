//! Following one program: its terminal or standard streams, signals to it, its end.

use crate::failure::{Failure, print_warning};
use crate::stdio::{self, Stdio, Target};
use crate::terminal::{self, Raw};
use dvs_node::client::Client;
use dvs_node::protocol::{Ended, EndedHow, Request, Response, WindowSize};
use dvs_sys::descriptor::{self, Poll};
use dvs_sys::signals::{self, SignalFd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Signals that this command does not act on itself but hands to the program.
const FORWARDED: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
/// Signals about this command's own terminal.
const OWN: [i32; 3] = [libc::SIGWINCH, libc::SIGTSTP, libc::SIGCONT];
/// A second ^C within this time ends the program by force.
const INSISTING: Duration = Duration::from_secs(1);
/// How long a program that is being started may take to come and hear of a signal that ends it.
const STARTING: Duration = Duration::from_secs(1);
/// How long copied output may still come after the container is gone. All its writers are dead, so
/// only a stopped terminal of ours can hold it up.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// The signals that this command takes, held back until they are read. To be made while the process
/// has one thread, so that no thread is interrupted by them.
pub(crate) struct Signals {
    fd: SignalFd,
    /// Those that the caller ignores (`nohup`): the program shall, too.
    ignored: u64,
}

impl Signals {
    /// Holds them back from now on.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(crate) fn take() -> Result<Signals, Failure> {
        let failed = |error: dvs_sys::error::SysError| Failure::new(format!("signals: {error}"));
        let mut taken = OWN.to_vec();
        let mut ignored = 0;
        for signal in FORWARDED {
            if signals::is_ignored(signal).map_err(failed)? {
                ignored |= 1 << (signal - 1);
            } else {
                taken.push(signal);
            }
        }
        signals::block(&taken).map_err(failed)?;
        Ok(Signals { fd: SignalFd::new(&taken).map_err(failed)?, ignored })
    }

    /// Those that have come, in order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn taken(&self) -> Result<Vec<signals::Taken>, Failure> {
        let mut all = Vec::new();
        loop {
            match self.fd.take() {
                Ok(Some(taken)) => all.push(taken),
                Ok(None) => return Ok(all),
                Err(error) => return Err(Failure::new(format!("signals: {error}"))),
            }
        }
    }

    /// Bit n-1 for every ignored signal n.
    pub(crate) fn ignored(&self) -> u64 {
        self.ignored
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a program gets as standard streams.
pub(crate) enum Streams {
    /// Descriptors.
    Plain(Stdio),
    /// A terminal of its own, connected to ours or only shown.
    Terminal {
        /// Our input goes to it.
        interactive: bool,
    },
}

impl Streams {
    /// As the command line asks for.
    ///
    /// # Errors
    /// Where they cannot be had.
    pub(crate) fn arrange(interactive: bool, tty: bool) -> Result<Streams, Failure> {
        if tty {
            Ok(Streams::Terminal { interactive })
        } else {
            stdio::arrange(interactive).map(Streams::Plain)
        }
    }

    /// Size of the program's terminal, if it has one.
    pub(crate) fn terminal(&self) -> Option<WindowSize> {
        match self {
            Streams::Plain(_) => None,
            Streams::Terminal { .. } => {
                Some(terminal::size().unwrap_or(WindowSize { rows: 24, columns: 80 }))
            }
        }
    }

    /// The descriptors that go with the request.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Streams::Plain(stdio) => stdio.program.iter().map(AsFd::as_fd).collect(),
            Streams::Terminal { .. } => Vec::new(),
        }
    }
}

/// Sends the request and follows the program to its end.
///
/// # Errors
/// When it did not start, or its daemon is gone.
pub(crate) fn follow(
    client: &Client,
    request: &Request,
    streams: Streams,
    signals: &Signals,
) -> Result<Ended, Failure> {
    client.be_patient()?;
    client.send(request, &streams.descriptors())?;
    let mut following = Following {
        client,
        signals: &signals.fd,
        streams: Some(streams),
        started: false,
        copiers: Vec::new(),
        terminal: None,
        raw: None,
        interrupted: None,
        early: None,
    };
    let result = following.follow();
    following.finish();
    result
}

struct Following<'a> {
    client: &'a Client,
    signals: &'a SignalFd,
    streams: Option<Streams>,
    started: bool,
    copiers: Vec<JoinHandle<()>>,
    terminal: Option<OwnedFd>,
    raw: Option<Raw>,
    /// When ^C came last.
    interrupted: Option<Instant>,
    /// A signal that ends programs came before the program was known to run, and when.
    early: Option<(i32, Instant)>,
}

impl Following<'_> {
    fn follow(&mut self) -> Result<Ended, Failure> {
        loop {
            let mut limit = None;
            if let Some((signal, came)) = self.early.filter(|_| !self.started) {
                let rest = STARTING.saturating_sub(came.elapsed());
                if rest.is_zero() {
                    let signal = u8::try_from(signal).unwrap_or(0);
                    return Ok(Ended { how: EndedHow::Signalled(signal), statistics: None });
                }
                limit = Some(u32::try_from(rest.as_millis()).unwrap_or(u32::MAX).max(1));
            }
            let mut waits =
                [Poll::readable(self.client.as_fd()), Poll::readable(self.signals.as_fd())];
            descriptor::poll(&mut waits, limit)
                .map_err(|error| Failure::new(format!("waiting for the program: {error}")))?;
            let [answer, signal] = waits.map(|wait| wait.ready != 0);
            if signal {
                self.take_signals()?;
            }
            if answer {
                let (response, descriptors) = self.client.receive()?;
                match response {
                    Response::Started { container, pid, warnings } => {
                        log::debug!("pid {pid} runs in {container}");
                        for warning in &warnings {
                            print_warning(warning);
                        }
                        self.start(descriptors)?;
                    }
                    Response::Notice(text) => print_warning(&text),
                    Response::Ended(ended) => return Ok(ended),
                    other => return Err(self.client.unexpected(&other)),
                }
            }
        }
    }

    /// The program runs: its streams are connected.
    fn start(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
        self.started = true;
        match self.streams.take() {
            Some(Streams::Plain(stdio)) => {
                // Our copies of the program's ends go, or its readers would never see an end.
                drop(stdio.program);
                for (from, target) in stdio.outputs {
                    self.copiers.push(copier("output", move || match target {
                        Target::Output => terminal::copy(from, std::io::stdout()),
                        Target::Error => terminal::copy(from, std::io::stderr()),
                    })?);
                }
                if let Some(to) = stdio.input {
                    input_copier(to)?;
                }
            }
            Some(Streams::Terminal { interactive }) => {
                let master = descriptors.into_iter().next().ok_or_else(|| {
                    Failure::new("the node gave no terminal; are both of the same version of dvs?")
                })?;
                let duplicate = |fd: &OwnedFd| {
                    fd.try_clone().map_err(|error| Failure::new(format!("the terminal: {error}")))
                };
                terminal::follow_size(&master);
                let from = duplicate(&master)?;
                self.copiers
                    .push(copier("output", move || terminal::copy(from, std::io::stdout()))?);
                if interactive {
                    self.raw = Some(Raw::enter()?);
                    input_copier(duplicate(&master)?)?;
                }
                self.terminal = Some(master);
            }
            None => return Err(Failure::new("the node started the program twice")),
        }
        Ok(())
    }

    /// Hands on what arrived. The node reads it when the program runs, which may be so before this
    /// command has heard of it.
    fn take_signals(&mut self) -> Result<(), Failure> {
        let failed = |error| Failure::new(format!("signals: {error}"));
        while let Some(taken) = self.signals.take().map_err(failed)? {
            log::debug!("signal {} (code {:#x}) from {}", taken.signal, taken.code, taken.pid);
            match taken.signal {
                libc::SIGWINCH => {
                    if let Some(master) = &self.terminal {
                        terminal::follow_size(master);
                    }
                }
                libc::SIGTSTP => {
                    // In a session of its own the program's group is an orphaned one, which the
                    // kernel does not stop by SIGTSTP.
                    self.send(libc::SIGSTOP, true)?;
                    dvs_sys::process::kill(own_pid(), libc::SIGSTOP).map_err(failed)?;
                }
                libc::SIGCONT => self.send(libc::SIGCONT, true)?,
                signal if !self.started => {
                    if !matches!(signal, libc::SIGUSR1 | libc::SIGUSR2) {
                        self.early.get_or_insert((signal, Instant::now()));
                    }
                    self.send(signal, taken.code == SI_KERNEL)?;
                }
                libc::SIGINT if self.insists() => self.client.send(&Request::EndNow, &[])?,
                // The terminal sends to the whole group in the foreground, people to one process.
                signal => self.send(signal, taken.code == SI_KERNEL)?,
            }
        }
        Ok(())
    }

    fn send(&self, signal: i32, group: bool) -> Result<(), Failure> {
        self.client.send(&Request::Signal { signal, group }, &[])
    }

    /// Whether this ^C is the second one in a short time.
    fn insists(&mut self) -> bool {
        let now = Instant::now();
        let before = self.interrupted.replace(now);
        before.is_some_and(|before| now.duration_since(before) < INSISTING)
    }

    /// Waits for the last output and puts the terminal back.
    fn finish(mut self) {
        // Without programs the other side of the terminal says EIO, so copying ends.
        self.terminal.take();
        self.streams.take();
        let (done, all) = std::sync::mpsc::channel();
        let copiers = std::mem::take(&mut self.copiers);
        if !copiers.is_empty() {
            let waiting = std::thread::Builder::new().spawn(move || {
                let ended = copiers.into_iter().all(|copier| copier.join().is_ok());
                // Nobody listens any more when the time was over.
                let _ = done.send(ended);
            });
            if waiting.is_ok() && all.recv_timeout(DRAIN_PATIENCE).is_err() {
                log::warn!("output is still held up; it is left");
            }
        }
        self.raw.take();
    }
}

/// `si_code` of signals that the kernel sends, such as a terminal's.
const SI_KERNEL: i32 = 0x80;

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

fn copier(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|error| Failure::new(format!("no thread for the program's {name}: {error}")))
}

/// Copies our standard input. The thread is left alone at the end: it waits in a read.
fn input_copier(to: OwnedFd) -> Result<(), Failure> {
    copier("input", move || {
        let input = std::io::stdin().as_fd().try_clone_to_owned();
        match input {
            Ok(input) => terminal::copy(input, std::fs::File::from(to)),
            Err(error) => log::debug!("standard input: {error}"),
        }
    })
    .map(|_| ())
}
