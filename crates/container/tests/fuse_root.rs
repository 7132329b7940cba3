//! A container whose root is a FUSE file system: built while it is served, with set-user-id programs,
//! and ended even when its server does not answer.

#[path = "support/file_server.rs"]
mod file_server;
mod support;

use dvs_container::launch::{DescriptorSource, DescriptorSpec, LaunchSpec, LaunchStep};
use dvs_container::{Container, RootSpec, StartError};
use file_server::Seen;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use support::{Running, eventually, keeper, possible, spec_with};

fn possible_with_fuse() -> bool {
    if !dvs_sys::features::Features::get().fuse {
        println!("SKIPPED: /dev/fuse cannot be opened here");
        return false;
    }
    possible()
}

fn start(name: &str) -> (Running, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let server = Arc::clone(&seen);
    let (sender, events) = mpsc::channel();
    let spec = spec_with(name, RootSpec::Fuse { max_read: Some(1 << 17) });
    let serve = move |device| file_server::serve(device, server);
    let sink = Box::new(move |event| {
        let _ = sender.send(event);
    });
    let container = Container::start(&spec, &keeper(), serve, sink).expect("a container");
    (Running { container, events: Mutex::new(events) }, seen)
}

fn exit_code(running: &Running, path: &str, uid: u32) -> i32 {
    let mut spec = LaunchSpec::new(path, &[path]);
    spec.credentials.uids = [uid; 3];
    let id = running.container.launcher.next_id();
    running.container.launcher.launch_as(id, spec, &[]).unwrap();
    running.exit_of(id) >> 8
}

#[test]
fn programs_run_from_it_and_set_user_id_counts() {
    if !possible_with_fuse() {
        return;
    }
    let (running, seen) = start("fuse");
    assert_eq!(exit_code(&running, "/program", 0), 0);
    let root = dvs_sys::process::effective_ids().0 == 0;
    if root {
        assert_eq!(exit_code(&running, "/program", 1000), 1000 & 0xff);
        assert_eq!(exit_code(&running, "/set-user-id", 1000), 0, "set-user-id must count");
    }
    let error =
        running.container.launcher.launch(LaunchSpec::new("/no", &["no"]), &[]).unwrap_err();
    assert_eq!((error.step, error.errno), (LaunchStep::Exec, libc::ENOENT));
    running.finish();
    eventually("the end of the file system", || seen.ended.load(Ordering::SeqCst));
}

#[test]
fn a_hanging_file_system_blocks_neither_other_launches_nor_the_end() {
    if !possible_with_fuse() {
        return;
    }
    let (running, seen) = start("hang");
    let mut spec = LaunchSpec::new("/program", &["program"]);
    let open = DescriptorSource::Open { path: "/hang".into(), flags: 0, offset: None };
    spec.descriptors = vec![DescriptorSpec { number: 0, source: open }];
    let launcher = &running.container.launcher;
    let (sender, receiver) = mpsc::channel();
    launcher.launch_then(launcher.next_id(), spec, &[], move |result| {
        sender.send(result).unwrap();
    });
    eventually("an open that is not answered", || seen.hanging.load(Ordering::SeqCst));
    assert_eq!(exit_code(&running, "/program", 0), 0);
    assert!(receiver.try_recv().is_err());
    running.finish();
    assert!(receiver.recv_timeout(support::LIMIT).unwrap().is_err());
    eventually("the end of the file system", || seen.ended.load(Ordering::SeqCst));
}

#[test]
fn a_file_system_that_is_never_served_fails_the_start() {
    if !possible_with_fuse() {
        return;
    }
    let spec = spec_with("unserved", RootSpec::Fuse { max_read: None });
    // Dropping the device ends the file system, so its first lookup fails.
    let error = Container::start(&spec, &keeper(), drop, Box::new(|_| {})).unwrap_err();
    assert!(matches!(error, StartError::Build { .. }), "{error}");
}
