//! What the personality needs from its surroundings, as traits: the launcher of its container, the
//! carrier of descriptors, the ways to other nodes, and the lease of pid blocks.

use dvs_carry::{CarriedDescriptor, InheritedDescriptor, LocalDescriptor, ProgramKey, Refusal};
use dvs_container::launch::{LaunchId, LaunchSpec, LaunchStep, SignalSender};
use dvs_pm::blocks::Block;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Why a message to another node was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The node is gone.
    #[error("node {0} is gone")]
    Gone(u16),
    /// No answer in time.
    #[error("node {0} did not answer in time")]
    TimedOut(u16),
}

/// The linux personalities of the same DC on other nodes.
pub trait Peers: Send + Sync {
    /// Asks one and waits for its answer, which [`crate::Personality::handle_call`] gives there.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn call(&self, to: u16, message: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, PeerError>;

    /// Tells one something; see [`crate::Personality::handle_post`]. Messages of one pair of nodes
    /// arrive in order. Must not wait for the peer.
    ///
    /// # Errors
    /// See [`PeerError`].
    fn post(&self, to: u16, message: Vec<u8>) -> Result<(), PeerError>;
}

/// A program that exists now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launched {
    /// Pid in the DC.
    pub pid: u32,
    /// Pid outside.
    pub host_pid: u32,
}

/// Why a program was not launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{step:?}: {}", std::io::Error::from_raw_os_error(*.errno))]
pub struct LaunchFailure {
    /// errno.
    pub errno: i32,
    /// What failed.
    pub step: LaunchStep,
}

/// Called when a program exists, is held, or could not be started; once.
pub type LaunchDone = Box<dyn FnOnce(Result<Launched, LaunchFailure>) + Send>;
/// Called when a signal was sent, or with an errno; once.
pub type SignalDone = Box<dyn FnOnce(Result<(), i32>) + Send>;

/// The launcher of the container. Requests of one thread are carried out in their order.
pub trait Launch: Send + Sync {
    /// A number for the next launch.
    fn next_id(&self) -> LaunchId;

    /// Starts or holds a program; waits until it exists. Its end may be reported before this returns.
    ///
    /// # Errors
    /// See [`LaunchFailure`].
    fn launch(
        &self,
        id: LaunchId,
        spec: LaunchSpec,
        passed: Vec<OwnedFd>,
    ) -> Result<Launched, LaunchFailure>;

    /// The same without waiting. `done` is called before any report of the program's end, or (when
    /// nothing can be asked) before this returns; it must not wait.
    fn launch_then(&self, id: LaunchId, spec: LaunchSpec, passed: Vec<OwnedFd>, done: LaunchDone);

    /// The launcher's own pid, outside: parent of what it starts.
    fn process(&self) -> u32;

    /// The processes of the container: pid outside, pid inside.
    fn processes(&self) -> Vec<(u32, u32)>;

    /// Lets a held program go on.
    fn release(&self, id: LaunchId);

    /// Ends a held program; no exit is reported for it.
    fn abort(&self, id: LaunchId);

    /// Sends a signal from inside the container.
    ///
    /// # Errors
    /// errno.
    fn signal(&self, target: i32, signal: i32, sender: Option<SignalSender>) -> Result<(), i32>;

    /// The same without waiting; `done` must not wait either.
    fn signal_then(&self, target: i32, signal: i32, sender: Option<SignalSender>, done: SignalDone);

    /// Has a program stop (`SIGSTOP`) or go on as its ghost does, see
    /// [`dvs_container::launch::LauncherRequest::Order`].
    fn order(&self, id: LaunchId, number: u32, signal: i32, sender: SignalSender);

    /// The next process made in the container gets this pid, or the first free one above.
    ///
    /// # Errors
    /// errno.
    fn aim_pids(&self, next: u32) -> Result<(), i32>;
}

/// Called when something is done, once.
pub type Done = Box<dyn FnOnce() + Send>;

/// The carrier of inherited descriptors, both sides of it.
pub trait Carry: Send + Sync {
    /// At home: prepares a program's descriptors for another node.
    ///
    /// # Errors
    /// Why the program has to stay.
    fn export(
        &self,
        to: u16,
        program: ProgramKey,
        descriptors: Vec<InheritedDescriptor>,
    ) -> Result<Vec<CarriedDescriptor>, Refusal>;
    /// At home: the program was not placed.
    fn withdraw(&self, program: ProgramKey);
    /// At home: calls back when everything that the ended program wrote has been written.
    fn drain(&self, program: ProgramKey, done: Done);
    /// At home: what the program writes, and its end of file, waits for as many releases.
    fn hold(&self, program: ProgramKey);
    /// At home: see `hold`.
    fn release(&self, program: ProgramKey);
    /// At home: the program and its ghost are over.
    fn finished(&self, program: ProgramKey);
    /// Away: what the program gets.
    ///
    /// # Errors
    /// errno.
    fn import(
        &self,
        from: u16,
        program: ProgramKey,
        descriptors: Vec<CarriedDescriptor>,
    ) -> Result<Vec<LocalDescriptor>, i32>;
    /// Away: the program is held, and has its descriptors; `duplicate` gives a copy of one by its
    /// number. False: it should not run here.
    fn body_ready(&self, program: ProgramKey, duplicate: &dyn Fn(i32) -> Option<OwnedFd>) -> bool;
    /// Away: the program was not started.
    fn discard(&self, program: ProgramKey);
    /// At home: the size of the program's terminal may have changed.
    fn window_changed(&self, program: ProgramKey);
    /// Away: the program ended, and what it had open is closed.
    fn body_ended(&self, program: ProgramKey);
    /// A node is gone.
    fn node_gone(&self, node: u16);
}

/// The lease of pid blocks.
pub trait Pids: Send + Sync {
    /// One more block for this node; may wait.
    fn lease(&self) -> Option<Block>;
}
