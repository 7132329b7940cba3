//! The file-system server of a container, at its home; and what its programs begin with.

use super::links::Clients;
use crate::folders::reason;
use crate::protocol::{ContainerOptions, Failure, WindowSize};
use dvs_dvk::Endpoint;
use dvs_fs::messages::{
    Attributes, ClientId, Entry, Lease, Operation, Outcome, ROOT, Reply, Request, Time,
};
use dvs_fs_client::{FsTransport, TransportError};
use dvs_sys::{pipe, terminal};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) struct FileService {
    server: Arc<Stub>,
}

struct Stub;

impl Stub {
    fn answer(&self, request: Request) -> Reply {
        let attributes = Attributes {
            inode: ROOT,
            mode: 0o40755,
            links: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            accessed: Time::default(),
            modified: Time::default(),
            changed: Time::default(),
        };
        let result = match request.operation {
            Operation::Hello { .. } => Ok(Outcome::Welcome {
                root: Entry {
                    attributes: Some(attributes),
                    name_lease: Lease::NONE,
                    attributes_lease: Lease::NONE,
                },
                server_incarnation: 1,
            }),
            _ => Err(libc::EIO),
        };
        Reply { sequence: request.sequence, result }
    }
}

impl FsTransport for Stub {
    fn call(&self, request: Request) -> Result<Reply, TransportError> {
        Ok(self.answer(request))
    }
    fn post(&self, _: Request) {}
}

impl FileService {
    pub(crate) fn start(
        _options: &ContainerOptions,
        _folder: &Path,
        _single: (u32, u32),
        _name: &str,
        _clients: Arc<Clients>,
    ) -> Result<Self, Failure> {
        Ok(FileService { server: Arc::new(Stub) })
    }

    pub(crate) fn serve(&self, endpoint: &Endpoint) {
        let server = Arc::clone(&self.server);
        endpoint.set_handler(move |message| {
            if let Ok(request) = super::messages::decode(&message.body) {
                message.reply(super::messages::encode(&server.answer(request)));
            }
        });
    }

    pub(crate) fn local(&self) -> Arc<dyn FsTransport> {
        Arc::clone(&self.server) as Arc<dyn FsTransport>
    }

    pub(crate) fn client_gone(&self, _client: ClientId) {}
    pub(crate) fn stop(&self) {}
}

/// Gives pipes to the program's user, as OCI runtimes do: a program that opens `/dev/stdout` anew
/// needs the right to, and the pipe of another user would refuse it.
///
/// # Errors
/// When there are not three.
pub(crate) fn fit_standard(
    descriptors: Vec<OwnedFd>,
    owner: (u32, u32),
) -> Result<Vec<OwnedFd>, Failure> {
    if descriptors.len() != super::program::STANDARD {
        return Err(Failure::new("the command did not pass three standard descriptors"));
    }
    for fd in &descriptors {
        let fifo = fd.try_clone().map(File::from).and_then(|file| file.metadata());
        if fifo.is_ok_and(|metadata| metadata.file_type().is_fifo())
            && let Err(error) = pipe::change_owner(fd, owner.0, owner.1)
        {
            // An ordinary user's pipe is its own already.
            log::debug!("giving a pipe to {owner:?}: {error}");
        }
    }
    Ok(descriptors)
}

/// A terminal of the container: our end, and the program's three descriptors.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn open_terminal(
    init: u32,
    size: WindowSize,
    owner: (u32, u32),
) -> Result<(OwnedFd, Vec<OwnedFd>), Failure> {
    let failed = |error: dvs_sys::error::SysError| Failure::new(format!("a terminal: {error}"));
    let multiplexer = PathBuf::from(format!("/proc/{init}/root/dev/pts/ptmx"));
    let (master, slave) = terminal::open_pair(&multiplexer).map_err(failed)?;
    let size = terminal::WindowSize { rows: size.rows, columns: size.columns, width: 0, height: 0 };
    terminal::set_window_size(master.as_fd(), size).map_err(failed)?;
    if let Err(error) = pipe::change_owner(&slave, owner.0, owner.1) {
        log::debug!("giving the terminal to {owner:?}: {error}");
    }
    let copies: Result<Vec<OwnedFd>, std::io::Error> =
        (0..super::program::STANDARD).map(|_| slave.try_clone()).collect();
    let copies = copies.map_err(|error| Failure::new(format!("a terminal: {}", reason(&error))))?;
    Ok((master, copies))
}
