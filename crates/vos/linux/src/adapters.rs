//! The container's launcher and the carrier as the ports that the personality works with.

use crate::ports::{Carry, Done, Launch, LaunchDone, LaunchFailure, Launched, SignalDone};
use dvs_carry::{
    CarriedDescriptor, Carrier, InheritedDescriptor, LocalDescriptor, ProgramKey, Refusal,
};
use dvs_container::Launcher;
use dvs_container::launch::{LaunchId, LaunchSpec, SignalSender};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The launcher of a container, and where its processes are.
#[derive(Debug, Clone)]
pub struct ContainerLauncher {
    /// The launcher.
    pub launcher: Launcher,
    /// Pid 1 of the container, outside.
    pub init: u32,
    /// Pid of the launcher itself.
    pub launcher_pid: u32,
}

impl Launch for ContainerLauncher {
    fn next_id(&self) -> LaunchId {
        self.launcher.next_id()
    }

    fn launch(
        &self,
        id: LaunchId,
        spec: LaunchSpec,
        passed: Vec<OwnedFd>,
    ) -> Result<Launched, LaunchFailure> {
        let borrowed: Vec<BorrowedFd<'_>> = passed.iter().map(AsFd::as_fd).collect();
        match self.launcher.launch_as(id, spec, &borrowed) {
            Ok(launched) => Ok(Launched { pid: launched.pid, host_pid: launched.host_pid }),
            Err(error) => Err(LaunchFailure { errno: error.errno, step: error.step }),
        }
    }

    fn launch_then(&self, id: LaunchId, spec: LaunchSpec, passed: Vec<OwnedFd>, done: LaunchDone) {
        let borrowed: Vec<BorrowedFd<'_>> = passed.iter().map(AsFd::as_fd).collect();
        self.launcher.launch_then(id, spec, &borrowed, move |result| {
            done(match result {
                Ok(launched) => Ok(Launched { pid: launched.pid, host_pid: launched.host_pid }),
                Err(error) => Err(LaunchFailure { errno: error.errno, step: error.step }),
            });
        });
    }

    fn release(&self, id: LaunchId) {
        self.launcher.release(id);
    }

    fn abort(&self, id: LaunchId) {
        self.launcher.abort(id);
    }

    fn signal(&self, target: i32, signal: i32, sender: Option<SignalSender>) -> Result<(), i32> {
        self.launcher.signal(target, signal, sender)
    }

    fn signal_then(
        &self,
        target: i32,
        signal: i32,
        sender: Option<SignalSender>,
        done: SignalDone,
    ) {
        self.launcher.signal_then(target, signal, sender, done);
    }

    fn order(&self, id: LaunchId, number: u32, signal: i32, sender: SignalSender) {
        self.launcher.order(id, number, signal, sender);
    }

    fn aim_pids(&self, next: u32) -> Result<(), i32> {
        self.launcher.aim_pids(next).map(|_| ())
    }

    fn process(&self) -> u32 {
        self.launcher_pid
    }

    fn processes(&self) -> Vec<(u32, u32)> {
        dvs_container::pids::of_container(self.init, self.launcher_pid).unwrap_or_default()
    }
}

impl Carry for Carrier {
    fn export(
        &self,
        to: u16,
        program: ProgramKey,
        descriptors: Vec<InheritedDescriptor>,
    ) -> Result<Vec<CarriedDescriptor>, Refusal> {
        self.exporter().export(to, program, descriptors)
    }

    fn withdraw(&self, program: ProgramKey) {
        self.exporter().abort(program);
    }

    fn drain(&self, program: ProgramKey, done: Done) {
        self.exporter().drain(program, move |_| done());
    }

    fn hold(&self, program: ProgramKey) {
        self.exporter().hold(program);
    }

    fn release(&self, program: ProgramKey) {
        self.exporter().release(program);
    }

    fn finished(&self, program: ProgramKey) {
        self.exporter().finished(program);
    }

    fn window_changed(&self, program: ProgramKey) {
        self.exporter().window_changed(program);
    }

    fn import(
        &self,
        from: u16,
        program: ProgramKey,
        descriptors: Vec<CarriedDescriptor>,
    ) -> Result<Vec<LocalDescriptor>, i32> {
        self.importer().import(from, program, descriptors).map_err(|error| match error {
            dvs_carry::ImportError::Failed { error, .. } => error.errno,
            _ => libc::EPROTO,
        })
    }

    fn body_ready(&self, program: ProgramKey, duplicate: &dyn Fn(i32) -> Option<OwnedFd>) -> bool {
        self.importer().body_ready(program, duplicate)
    }

    fn discard(&self, program: ProgramKey) {
        self.importer().abort(program);
    }

    fn body_ended(&self, program: ProgramKey) {
        self.importer().body_ended(program, || ());
    }

    fn node_gone(&self, node: u16) {
        Carrier::node_gone(self, node);
    }
}
