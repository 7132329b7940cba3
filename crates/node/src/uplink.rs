//! A node whose only way to the others is one byte stream: the standard input and output of `ssh`.
//!
//! The command that has started it is the other end. Everything that the node says to any other node
//! goes through that stream (see [`dvs_dvk::mux`]), and the node lives as long as it does. The home
//! daemon has one stream for each such node and passes on what they say to each other.

use crate::daemon::{self, DaemonConfig, Inherited};
use crate::dc::messages::{Answer, Call};
use crate::folders::{Folders, reason};
use crate::host::Host;
use crate::protocol::{Failure, NodeInfo};
use dvs_container::KeeperProgram;
use dvs_dvk::LinkAddress;
use dvs_dvk::core::mux::MuxEnd;
use dvs_dvk::mux::Mux;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Version of what is said before the stream is shared out.
const VERSION: u16 = 1;
/// Longest message of it.
const MAX_MESSAGE: usize = 64 << 10;
/// How long connecting through the stream may take.
const LINK_PATIENCE: Duration = Duration::from_secs(20);

/// What the command tells the node first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// The cluster: of this one command.
    pub cluster: [u8; 16],
    /// The node of the command.
    pub home: u16,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Begun {
    /// It is up.
    Ready(NodeInfo),
    /// It is not.
    Failed(Failure),
}

/// Writes one message: version, length, body.
///
/// # Errors
/// The stream's.
pub fn say<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    // Plain data into memory: it cannot fail.
    let body = postcard::to_stdvec(message).unwrap_or_default();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let bytes = [&VERSION.to_le_bytes()[..], &length.to_le_bytes(), &body].concat();
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Reads one message.
///
/// # Errors
/// The stream's; `InvalidData` for what is no message.
pub fn hear<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut version = [0; 2];
    stream.read_exact(&mut version)?;
    if u16::from_le_bytes(version) != VERSION {
        return Err(wrong("another version of dvs"));
    }
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(wrong("a message too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    postcard::from_bytes(&body).map_err(|_| wrong("a message that is not understood"))
}

/// The life of such a node, in a process of its own with one thread: until its standard input ends.
/// Nothing is left of it then. Its exit code.
#[must_use]
pub fn run(input: io::Stdin, output: io::Stdout) -> i32 {
    // Unbuffered: what follows the message belongs to the streams of the links.
    let (mut reader, mut writer) = match (duplicate(&input), duplicate(&output)) {
        (Ok(reader), Ok(writer)) => (reader, writer),
        (Err(error), _) | (_, Err(error)) => {
            log::error!("standard input or output: {error}");
            return 1;
        }
    };
    let begin: Begin = match hear(&mut reader) {
        Ok(begin) => begin,
        Err(error) => {
            log::error!("nothing was asked for: {}", reason(&error));
            return 1;
        }
    };
    if let Err(error) = let_go_of_standard() {
        log::error!("/dev/null: {error}");
        return 1;
    }
    let folders = Folders::of_process();
    folders.clean_stale();
    let code = match prepare(&folders, &begin) {
        Ok((config, inherited)) => {
            daemon::run_with(config, inherited, Some(Uplink { reader, writer, home: begin.home }))
        }
        Err(failure) => {
            // Nobody else hears of it.
            let _ = say(&mut writer, &Begun::Failed(failure));
            1
        }
    };
    folders.clean_stale();
    folders.tidy();
    code
}

fn duplicate(stream: &impl AsFd) -> io::Result<std::fs::File> {
    stream.as_fd().try_clone_to_owned().map(std::fs::File::from)
}

/// Nothing that is started here may write to the stream, or keep it open.
fn let_go_of_standard() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    for number in 0..3 {
        dvs_sys::descriptor::replace_standard(number, null.as_fd())?;
    }
    Ok(())
}

fn prepare(folders: &Folders, begin: &Begin) -> Result<(DaemonConfig, Inherited), Failure> {
    crate::names::check("node", &begin.name)?;
    folders.prepare()?;
    let session = folders.new_session();
    let keeper = KeeperProgram::copy()
        .map_err(|error| Failure::new(format!("copying the own program: {}", reason(&error))))?;
    let config = DaemonConfig {
        folder: session.join("nodes").join(&begin.name),
        state: folders.state.clone(),
        name: begin.name.clone(),
        id: begin.id,
        cluster: begin.cluster,
        member: false,
        session: Some(session),
        clock_offset: 0,
    };
    let inherited = Inherited { keeper: Some(keeper), ..Inherited::default() };
    Ok((config, inherited))
}

/// The stream of such a node.
#[derive(Debug)]
pub struct Uplink {
    reader: std::fs::File,
    writer: std::fs::File,
    home: u16,
}

impl Uplink {
    /// Says that the node does not come up.
    pub(crate) fn fail(mut self, failure: &Failure) {
        // Nobody else hears of it.
        let _ = say(&mut self.writer, &Begun::Failed(failure.clone()));
    }

    /// Says that it is up, and serves the stream. The node ends with it.
    ///
    /// # Errors
    /// When there is no thread.
    pub(crate) fn serve(mut self, host: &Arc<Host>) -> io::Result<()> {
        say(&mut self.writer, &Begun::Ready(host.info()))?;
        let weak = Arc::downgrade(host);
        let ended = Arc::downgrade(host);
        let mux = Mux::start(
            MuxEnd::Second,
            Box::new(self.reader),
            Box::new(self.writer),
            Box::new(move |target, stream| {
                if let Some(host) = weak.upgrade().filter(|host| host.node() == target) {
                    host.dvk().adopt(stream);
                }
            }),
            Box::new(move |why| {
                log::info!("the command is gone: {}", why.unwrap_or_default());
                if let Some(host) = ended.upgrade() {
                    host.stop();
                }
            }),
        )?;
        host.streams().lock().up = Some((self.home, mux));
        Ok(())
    }
}

/// The byte streams of a daemon, by the node at the other end. A node at the far end of ssh has one,
/// to its home, by which it reaches every other node; the home has one to each of them.
#[derive(Default)]
pub(crate) struct Streams(Mutex<State>);

#[derive(Default)]
struct State {
    /// At home: to each node at a far end.
    down: BTreeMap<u16, Mux>,
    /// At a far end: to the home, and which node that is.
    up: Option<(u16, Mux)>,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream that leads to a node.
    fn to(&self, node: u16) -> Option<Mux> {
        let state = self.lock();
        state.down.get(&node).or(state.up.as_ref().map(|(_, mux)| mux)).cloned()
    }

    /// Whether a node is the home that everything goes through.
    pub(crate) fn is_uplink(&self, node: u16) -> bool {
        self.lock().up.as_ref().is_some_and(|(home, _)| *home == node)
    }
}

/// The home takes nodes at the far ends of streams in, and has all linked with each other.
///
/// # Errors
/// When one is not linked.
pub(crate) fn take_in_all(
    host: &Arc<Host>,
    nodes: &[(u16, String)],
    streams: Vec<OwnedFd>,
) -> Result<(), Failure> {
    if streams.len() != nodes.len() {
        return Err(Failure::new("every node needs a stream of its own"));
    }
    for ((node, name), stream) in nodes.iter().zip(streams) {
        take_in(host, *node, name, stream.into())?;
    }
    let mut all: Vec<(u16, String)> = Vec::new();
    for (node, mux_name) in nodes {
        // With those before it, so that every pair is linked once.
        for (other, name) in all.iter().chain(known_before(host, nodes).iter()) {
            let call = || Call::Meet { node: *other, name: name.clone() };
            for (_, answer) in host.ask_all(&[*node], LINK_PATIENCE, call).wait() {
                if !matches!(answer, Ok(Answer::Done)) {
                    return Err(host.failure(*node, &answer));
                }
            }
        }
        all.push((*node, mux_name.clone()));
    }
    Ok(())
}

/// Nodes that were taken in by an earlier request.
fn known_before(host: &Host, now: &[(u16, String)]) -> Vec<(u16, String)> {
    let streams = host.streams().lock();
    let earlier = |node: &&u16| !now.iter().any(|(new, _)| new == *node);
    streams.down.keys().filter(earlier).map(|node| (*node, host.name_of(*node))).collect()
}

/// The home takes a node at the far end of a stream in, and links itself to it.
///
/// # Errors
/// When there is no link.
fn take_in(host: &Arc<Host>, node: u16, name: &str, stream: UnixStream) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("node {name}: {error}"));
    let reader = stream.try_clone().map_err(|error| failed(&error))?;
    let (weak, ended) = (Arc::downgrade(host), Arc::downgrade(host));
    let shown = name.to_owned();
    let mux = Mux::start(
        MuxEnd::First,
        Box::new(reader),
        Box::new(stream),
        Box::new(move |target, stream| pass_on(&weak, target, stream)),
        Box::new(move |why| {
            log::info!("the stream to node {shown} has ended: {}", why.unwrap_or_default());
            if let Some(host) = ended.upgrade() {
                host.streams().lock().down.remove(&node);
                host.dvk().give_up(node);
            }
        }),
    )
    .map_err(|error| failed(&error))?;
    host.streams().lock().down.insert(node, mux);
    connect(host, node, name)
}

/// A node at the far end wants to speak to this one, or to another one at a far end.
fn pass_on(host: &Weak<Host>, target: u16, stream: UnixStream) {
    let Some(host) = host.upgrade() else { return };
    if target == host.node() {
        host.dvk().adopt(stream);
        return;
    }
    let down = host.streams().lock().down.get(&target).cloned();
    match down {
        Some(mux) => {
            if let Err(error) = mux.carry(target, stream) {
                log::info!("nothing is passed on to node {target}: {error}");
            }
        }
        None => log::info!("a connection to node {target}, which is not known here"),
    }
}

/// Links to another node through the stream that leads there.
///
/// # Errors
/// When there is no link within a time.
pub(crate) fn connect(host: &Arc<Host>, node: u16, name: &str) -> Result<(), Failure> {
    let weak = Arc::downgrade(host);
    let through = LinkAddress::Through(Arc::new(move || {
        let mux = weak.upgrade().and_then(|host| host.streams().to(node));
        mux.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?.open(node)
    }));
    host.dvk().connect(node, through, LINK_PATIENCE).map_err(|error| {
        Failure::new(format!("node {} cannot reach node {name}: {error}", host.config().name))
    })?;
    host.greet(node, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_bounded_and_of_our_version() {
        let begin = Begin { id: 2, name: "b".into(), cluster: [1; 16], home: 1 };
        let mut bytes = Vec::new();
        say(&mut bytes, &begin).unwrap();
        assert_eq!(hear::<Begin>(&mut bytes.as_slice()).unwrap(), begin);
        for end in 0..bytes.len() {
            assert!(hear::<Begin>(&mut &bytes[..end]).is_err());
        }
        let mut other = bytes.clone();
        other[0] = 9;
        assert!(hear::<Begin>(&mut other.as_slice()).unwrap_err().to_string().contains("version"));
        let mut long = bytes;
        long[2..6].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(hear::<Begin>(&mut long.as_slice()).unwrap_err().to_string().contains("long"));
    }
}
