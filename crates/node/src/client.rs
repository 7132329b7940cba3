//! The command line's end of a control socket.

use crate::folders::{control_socket, reason};
use crate::protocol::{
    ContainerInfo, EXIT_DVS, Failure, Hello, MAGIC, NodeInfo, PROTOCOL, Request, Response,
};
use crate::wire::{self, WireError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a daemon may take to answer a plain question.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to one daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Whom it leads to, for messages.
    whom: String,
}

impl Client {
    /// Connects to the daemon whose folder is given.
    ///
    /// # Errors
    /// When nobody listens, or another version.
    pub fn connect(node: &Path) -> Result<Self, Failure> {
        let path = control_socket(node);
        let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stream = UnixStream::connect(&path).map_err(|error| {
            Failure::new(format!(
                "node {name} does not answer at {}: {}; stop it with: dvs node stop --force {name}",
                path.display(),
                reason(&error)
            ))
        })?;
        Client::over(stream, format!("node {name}"))
    }

    /// Speaks over a socket that leads to a daemon already.
    ///
    /// # Errors
    /// When it is gone, or of another version.
    pub fn over(stream: UnixStream, whom: String) -> Result<Self, Failure> {
        let client = Client { stream, whom };
        client.set_patience(Some(PATIENCE))?;
        client.send_any(&Hello::ours(), &[])?;
        let (theirs, _): (Hello, _) =
            wire::receive(&client.stream).map_err(|error| client.lost(&error))?;
        check_hello(&theirs, &client.whom)?;
        Ok(client)
    }

    /// Asks and takes the answer; a [`Response::Failed`] is an error.
    ///
    /// # Errors
    /// The daemon's failure, or that it is gone.
    pub fn ask(&self, request: &Request) -> Result<Response, Failure> {
        self.send(request, &[])?;
        Ok(self.receive()?.0)
    }

    /// Sends a request with descriptors.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.send_any(request, descriptors)
    }

    /// Takes the next answer.
    ///
    /// # Errors
    /// The daemon's failure, or that it is gone.
    pub fn receive(&self) -> Result<(Response, Vec<OwnedFd>), Failure> {
        match wire::receive(&self.stream) {
            Ok((Response::Failed(failure), _)) => Err(failure),
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// From now on answers may take as long as they want: a program runs.
    ///
    /// # Errors
    /// Never in practice.
    pub fn be_patient(&self) -> Result<(), Failure> {
        self.set_patience(None)
    }

    /// About the daemon.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn node(&self) -> Result<NodeInfo, Failure> {
        match self.ask(&Request::Node)? {
            Response::Node(info) => Ok(info),
            other => Err(self.unexpected(&other)),
        }
    }

    /// All nodes of its cluster, as it knows them.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn cluster(&self) -> Result<Vec<NodeInfo>, Failure> {
        match self.ask(&Request::Cluster)? {
            Response::Nodes(list) => Ok(list),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The containers whose home it is.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn containers(&self) -> Result<Vec<ContainerInfo>, Failure> {
        match self.ask(&Request::Containers)? {
            Response::Containers(list) => Ok(list),
            other => Err(self.unexpected(&other)),
        }
    }

    /// A failure for an answer that does not fit the question.
    #[must_use]
    pub fn unexpected(&self, response: &Response) -> Failure {
        log::debug!("unexpected answer: {response:?}");
        Failure::new(format!(
            "{} gave an answer that does not fit; are both of the same version of dvs?",
            self.whom
        ))
    }

    fn set_patience(&self, patience: Option<Duration>) -> Result<(), Failure> {
        self.stream
            .set_read_timeout(patience)
            .map_err(|error| Failure::new(format!("{}: {}", self.whom, reason(&error))))
    }

    fn send_any<T: serde::Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        wire::send(&self.stream, message, descriptors).map_err(|error| self.lost(&error))
    }

    fn lost(&self, error: &WireError) -> Failure {
        let timed_out = matches!(error, WireError::Io(error)
            if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
        let message = match error {
            WireError::Closed => format!(
                "{} ended unexpectedly; its part of the container is gone (set DVS_LOG=debug to see more)",
                self.whom
            ),
            _ if timed_out => format!(
                "{} has not answered for {} s; stop it with: dvs node stop --force",
                self.whom,
                PATIENCE.as_secs()
            ),
            other => format!("{}: {other}", self.whom),
        };
        Failure { exit: EXIT_DVS, message }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Refuses another protocol with a sentence.
///
/// # Errors
/// When it is not ours.
pub fn check_hello(theirs: &Hello, whom: &str) -> Result<(), Failure> {
    if theirs.magic == MAGIC && theirs.protocol == PROTOCOL {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{whom} is of dvs {} (protocol {}), this one of {} (protocol {PROTOCOL}); restart the nodes with one version: dvs node stop --all && dvs node start",
        theirs.version,
        theirs.protocol,
        env!("CARGO_PKG_VERSION")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that answers a script.
    fn daemon(hello: Hello, answers: Vec<Response>) -> Result<Client, Failure> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            wire::send(&theirs, &hello, &[]).unwrap();
            let _: (Hello, _) = wire::receive(&theirs).unwrap();
            for answer in answers {
                let Ok((_, _)) = wire::receive::<Request>(&theirs) else { return };
                wire::send(&theirs, &answer, &[]).unwrap();
            }
        });
        Client::over(ours, "node n1".into())
    }

    #[test]
    fn questions_are_answered_and_failures_are_errors() {
        let failure = Failure { exit: 127, message: "no such thing".into() };
        let answers = vec![
            Response::Containers(Vec::new()),
            Response::Failed(failure.clone()),
            Response::Done,
        ];
        let client = daemon(Hello::ours(), answers).unwrap();
        assert_eq!(client.containers().unwrap(), Vec::new());
        assert_eq!(client.ask(&Request::Remove("x".into())).unwrap_err(), failure);
        assert!(client.node().unwrap_err().message.contains("does not fit"));
        let gone = client.node().unwrap_err();
        assert!(gone.message.starts_with("node n1 ended unexpectedly"), "{gone}");
        assert_eq!(gone.exit, 125);
    }

    #[test]
    fn other_versions_are_refused() {
        let other = Hello { protocol: PROTOCOL + 1, version: "9.9".into(), ..Hello::ours() };
        let message = daemon(other, Vec::new()).unwrap_err().message;
        assert!(message.contains("9.9") && message.contains("dvs node stop"), "{message}");
    }

    #[test]
    fn nobody_listening_is_a_clear_error() {
        let message = Client::connect(Path::new("/no/such/n7")).unwrap_err().message;
        assert!(message.contains("n7") && message.contains("No such file"), "{message}");
    }
}
