//! What all container tests need: a container over the host's root, running programs in it, looking at
//! what is left.

#![allow(dead_code, reason = "every test program uses its part")]

use dvs_container::launch::{
    DescriptorSource, DescriptorSpec, LaunchId, LaunchSpec, LauncherEvent,
};
use dvs_container::{
    Container, ContainerEvent, ContainerSpec, KeeperProgram, LaunchError, RootSpec,
};
use dvs_sys::descriptor;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

/// Bound of every wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A running container with its events.
pub(crate) struct Running {
    pub(crate) container: Container,
    pub(crate) events: Mutex<mpsc::Receiver<ContainerEvent>>,
}

/// Path of the helper binary, also when the tests run as a user who cannot read the build folder.
pub(crate) fn helper() -> PathBuf {
    std::env::var_os("DVS_TEST_HELPER")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_container-test-helper")), PathBuf::from)
}

/// The helper as keeper, sealed once.
pub(crate) fn keeper() -> KeeperProgram {
    static BINARY: OnceLock<Arc<OwnedFd>> = OnceLock::new();
    let binary = BINARY.get_or_init(|| {
        let file = File::open(helper()).expect("the helper binary");
        Arc::new(descriptor::sealed_copy(c"keeper", file).expect("copy of the helper"))
    });
    KeeperProgram {
        binary: Arc::clone(binary),
        arguments: vec!["internal".into(), "keeper".into()],
        environment: Vec::new(),
    }
}

/// A spec for the user who runs the tests, with ids of its own for every container of root.
pub(crate) fn spec(name: &str) -> ContainerSpec {
    spec_with(name, RootSpec::Bind { path: "/".into(), writable: false })
}

pub(crate) fn spec_with(name: &str, root: RootSpec) -> ContainerSpec {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let spec = ContainerSpec::new(&format!("test-{name}"), root);
    let (uid, gid) = dvs_sys::process::effective_ids();
    let mut spec = if uid == 0 {
        spec.with_id_range(0x1000_0000 + (std::process::id() % 1000 * 16 + number) * 0x1_0000)
    } else {
        spec.with_single_id((0, 0), (uid, gid))
    };
    spec.first_pid = Some(8192);
    spec
}

/// Whether containers can be made here; says why not.
pub(crate) fn possible() -> bool {
    let features = dvs_sys::features::Features::get();
    for (needed, name) in [
        (features.user_namespaces, "user namespaces"),
        (features.ptrace, "ptrace"),
        (features.whole_proc, "an uncovered /proc"),
    ] {
        if !needed {
            println!("SKIPPED: no {name} here");
            return false;
        }
    }
    true
}

pub(crate) fn start(spec: &ContainerSpec) -> Running {
    let (sender, events) = mpsc::channel();
    let sink = Box::new(move |event| {
        let _ = sender.send(event);
    });
    let container = Container::start(spec, &keeper(), |_| {}, sink).expect("a container");
    Running { container, events: Mutex::new(events) }
}

/// A pipe whose write end is passed as the given numbers.
pub(crate) fn output_spec(argv: &[&str], numbers: &[i32]) -> LaunchSpec {
    let mut spec = LaunchSpec::new(argv[0], argv);
    spec.search_path = true;
    spec.environment =
        vec!["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into(), "LC_ALL=C".into()];
    spec.descriptors = numbers
        .iter()
        .map(|number| DescriptorSpec { number: *number, source: DescriptorSource::Passed(0) })
        .collect();
    spec
}

impl Running {
    /// The next event, within the bound.
    pub(crate) fn event(&self) -> ContainerEvent {
        self.events.lock().unwrap().recv_timeout(LIMIT).expect("an event")
    }

    /// The next exit, which must be of this program.
    pub(crate) fn exit_of(&self, id: LaunchId) -> i32 {
        loop {
            match self.event() {
                ContainerEvent::Program(LauncherEvent::Exited { id: other, status, .. }) => {
                    assert_eq!(other, id, "exit of another program");
                    return status;
                }
                ContainerEvent::Program(_) => {}
                ContainerEvent::Gone => panic!("the container has gone"),
            }
        }
    }

    /// Runs a program to its end: status, output (1 and 2).
    pub(crate) fn run_spec(
        &self,
        mut spec: LaunchSpec,
        extra: &[BorrowedFd<'_>],
    ) -> Result<(i32, String), LaunchError> {
        let (read, write) = descriptor::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let mut fds = vec![write.as_fd(), null.as_fd()];
        fds.extend(extra);
        if !spec.descriptors.iter().any(|descriptor| descriptor.number == 0) {
            let source = DescriptorSource::Passed(1);
            spec.descriptors.push(DescriptorSpec { number: 0, source });
        }
        let id = self.container.launcher.next_id();
        self.container.launcher.launch_as(id, spec, &fds)?;
        drop(write);
        let output = read_all(read);
        Ok((self.exit_of(id), output))
    }

    pub(crate) fn run(&self, argv: &[&str]) -> (i32, String) {
        self.run_spec(output_spec(argv, &[1, 2]), &[]).expect("launch")
    }

    pub(crate) fn sh(&self, script: &str) -> (i32, String) {
        self.run(&["sh", "-c", script])
    }

    /// Ends the container and checks that nothing of it is left.
    pub(crate) fn finish(self) {
        let pids: Vec<u32> =
            self.container.processes().unwrap().into_iter().map(|(outside, _)| outside).collect();
        let launcher = self.container.launcher_pid;
        self.container.end().expect("a complete end");
        self.container.end().expect("the same answer again");
        for pid in pids.into_iter().chain([launcher]) {
            assert!(!is_running(pid), "process {pid} is left");
        }
        for cgroup in &self.container.cgroups {
            assert!(!Path::new(cgroup).exists(), "cgroup {cgroup} is left");
        }
        assert!(!self.container.is_alive());
    }
}

/// Reads to the end, within the bound.
pub(crate) fn read_all(fd: OwnedFd) -> String {
    read_all_within(fd, LIMIT)
}

/// The same with another bound.
pub(crate) fn read_all_within(fd: OwnedFd, limit: Duration) -> String {
    let deadline = Instant::now() + limit;
    let mut file = File::from(fd);
    let mut bytes = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = u32::try_from(left.as_millis()).unwrap();
        assert!(descriptor::wait_readable(file.as_fd(), Some(left)).unwrap(), "no output in time");
        match file.read(&mut buffer).unwrap() {
            0 => return String::from_utf8_lossy(&bytes).into_owned(),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| !rest.trim_start().starts_with('Z')))
        .unwrap_or(false)
}

/// Waits until a condition holds, within the bound.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}
