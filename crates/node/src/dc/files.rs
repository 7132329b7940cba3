//! The file-system server of a container, at its home; and what its programs begin with.

use super::links::Clients;
use crate::folders::{Folders, private_folder, reason};
use crate::protocol::{ContainerOptions, Failure, ImageOption, ShareMode, WindowSize};
use dvs_dvk::{Endpoint, Message};
use dvs_fs::decode::decode_request;
use dvs_fs::messages::{ClientId, Notice, Reply, Request};
use dvs_fs::{FileServer, IdMap, Image, Notifier, Share, SystemClock, TreeConfig};
use dvs_fs_client::{FsTransport, TransportError};
use dvs_sys::{pipe, process, terminal};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

/// The server of one container.
pub(crate) struct FileService {
    /// None after the end.
    server: Mutex<Option<Arc<FileServer>>>,
    clients: Arc<Clients>,
}

struct Notices(Arc<Clients>);

impl Notifier for Notices {
    fn notify(&self, client: ClientId, notice: Notice) {
        self.0.notify(client, notice);
    }

    fn fenced(&self, client: ClientId) {
        self.0.fenced(client);
    }
}

impl FileService {
    /// Starts it over the container's folder. `single`: the one id of an ordinary user's container.
    ///
    /// # Errors
    /// When a folder cannot be used.
    pub(crate) fn start(
        options: &ContainerOptions,
        folder: &Path,
        single: (u32, u32),
        hostname: &str,
        clients: Arc<Clients>,
    ) -> Result<Self, Failure> {
        let upper = folder.join("upper");
        private_folder(&upper)?;
        let config = tree_config(options, upper, single, hostname);
        let notifier = Arc::new(Notices(Arc::clone(&clients)));
        let server = FileServer::new(&config, Arc::new(SystemClock), notifier)
            .map_err(|error| Failure::new(format!("the container's files: {error}")))?;
        Ok(FileService { server: Mutex::new(Some(Arc::new(server))), clients })
    }

    /// The container has one node.
    pub(crate) fn one_client(&self) {
        if let Some(server) = self.server() {
            server.one_client();
        }
    }

    fn server(&self) -> Option<Arc<FileServer>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers the clients on other nodes.
    pub(crate) fn serve(self: &Arc<Self>, endpoint: &Endpoint) {
        let service = Arc::downgrade(self);
        endpoint.set_handler(move |message| {
            if let Some(service) = service.upgrade() {
                service.answer(message);
            }
        });
    }

    fn answer(&self, mut message: Message) {
        let Some(server) = self.server() else { return };
        let source = message.source;
        let request = match decode_request(&message.body) {
            Ok(request) => request,
            Err(error) => {
                log::error!("a file-system request of node {}: {error}", source.node);
                return;
            }
        };
        if !self.clients.heard(request.client, source) {
            log::error!("node {} speaks for {:?}", source.node, request.client);
            return;
        }
        let reply = message.take_reply();
        server.handle(
            request,
            Box::new(move |answer: Reply| {
                if let Some(reply) = reply {
                    reply.reply(postcard::to_stdvec(&answer).unwrap_or_default());
                }
            }),
        );
    }

    /// The way of this node's client: no message, no copy.
    pub(crate) fn local(&self) -> Arc<dyn FsTransport> {
        Arc::new(LocalFiles(self.server()))
    }

    /// A client's node is gone.
    pub(crate) fn client_gone(&self, client: ClientId) {
        if let Some(server) = self.server() {
            server.client_gone(client);
        }
    }

    /// Ends the server once its last request is done.
    pub(crate) fn stop(&self) {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// To the server in the same process.
struct LocalFiles(Option<Arc<FileServer>>);

impl FsTransport for LocalFiles {
    fn call(&self, request: Request) -> Result<Reply, TransportError> {
        let server = self.0.as_ref().ok_or(TransportError::Gone)?;
        let (sender, receiver) = sync_channel(1);
        server.handle(
            request,
            Box::new(move |reply| {
                // The receiver waits below.
                let _ = sender.send(reply);
            }),
        );
        // Dropped unanswered when the client's session has ended.
        receiver.recv().map_err(|_| TransportError::Gone)
    }

    fn post(&self, request: Request) {
        if let Some(server) = &self.0 {
            server.handle(request, Box::new(|_| {}));
        }
    }
}

fn tree_config(
    options: &ContainerOptions,
    upper: PathBuf,
    single: (u32, u32),
    hostname: &str,
) -> TreeConfig {
    let (host_uid, host_gid) = process::effective_ids();
    let ids = if host_uid == 0 {
        IdMap::Identity
    } else {
        IdMap::Single { host_uid, host_gid, uid: single.0, gid: single.1 }
    };
    let folders = Folders::of_process();
    TreeConfig {
        image: match &options.image {
            ImageOption::Host => Image::Host,
            ImageOption::Directory(path) => Image::Directory(path.clone()),
        },
        upper,
        // A container ends with its daemon: nothing of it is found again.
        kept: false,
        shares: options
            .shares
            .iter()
            .map(|share| Share {
                host: share.host.clone(),
                path: share.path.clone(),
                mode: match share.mode {
                    ShareMode::ReadWrite => dvs_fs::ShareMode::ReadWrite,
                    ShareMode::ReadOnly => dvs_fs::ShareMode::ReadOnly,
                    ShareMode::CopyOnWrite => dvs_fs::ShareMode::CopyOnWrite,
                },
            })
            .collect(),
        ids,
        hidden: vec![folders.run, folders.state],
        hostname: hostname.to_owned(),
    }
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
    multiplexer: &Path,
    size: WindowSize,
    owner: (u32, u32),
) -> Result<(OwnedFd, Vec<OwnedFd>), Failure> {
    let failed = |error: dvs_sys::error::SysError| Failure::new(format!("a terminal: {error}"));
    let (master, slave) = terminal::open_pair(multiplexer).map_err(failed)?;
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
