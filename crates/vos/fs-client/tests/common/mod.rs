//! Mounts for tests. Each test runs in a process of its own, in a mount namespace of its own, under
//! a watchdog: when something hangs, the process that serves the mounts is killed, and with it
//! everything that hangs in them.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a module of test binaries")]

pub mod real;
pub mod stub;

use dvs_fs::messages::ClientId;
use dvs_fs_client::{
    Client, ClientOptions, FsTransport, Hooks, Mount, MountHandle, MountOptions, NoHooks,
};
use dvs_sys::fuse::Device;
use real::Real;
use std::ffi::CString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use stub::{Link, Stub};

/// No wait in a test is longer.
pub const WAIT: Duration = Duration::from_secs(60);
const CHILD: &str = "DVS_FS_CLIENT_TEST";

/// Runs the test `name` (this function's caller) in a child process, or says why not.
pub fn in_child(name: &str, body: impl FnOnce()) {
    if std::env::var(CHILD).as_deref() == Ok(name) {
        enter_namespace();
        body();
        return;
    }
    if let Some(reason) = missing() {
        println!("SKIPPED: {name}: {reason}");
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1", "--include-ignored"])
        .env(CHILD, name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let group = child.id();
    let output = drain(child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let by_hand = std::env::var_os("DVS_RUN").is_some();
    let status = wait_for(&mut child, if by_hand { WAIT * 30 } else { WAIT * 2 });
    // The test's own processes, whatever became of it. None of them leaves its group.
    let _ = dvs_sys::process::kill(-i32::try_from(group).unwrap(), libc::SIGKILL);
    let text = output.join().unwrap();
    match status {
        Some(status) if status.success() => println!("{}", if by_hand { &text } else { "" }),
        Some(status) => panic!("{name}: {status}\n{text}"),
        None => {
            let _ = child.wait();
            panic!("{name}: hangs\n{text}");
        }
    }
}

fn drain(out: ChildStdout, err: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = BufReader::new(err).read_to_end(&mut text);
            text
        });
        let mut text = Vec::new();
        let _ = BufReader::new(out).read_to_end(&mut text);
        text.extend(errors.join().unwrap());
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Waits for a child, but not for ever.
pub fn wait_for(child: &mut Child, bound: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + bound;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

fn missing() -> Option<String> {
    if dvs_sys::process::effective_ids().0 != 0 {
        return Some("mounting needs root".into());
    }
    Device::open().err().map(|error| error.to_string())
}

fn enter_namespace() {
    dvs_sys::namespace::unshare(libc::CLONE_NEWNS).unwrap();
    dvs_sys::mount::make_private(c"/").unwrap();
    dvs_sys::mount::mount(c"tmpfs", c"tmpfs", c"/mnt", 0, c"").unwrap();
}

/// One mounted node.
pub struct Node {
    pub path: PathBuf,
    pub client: Arc<Client>,
    pub handle: MountHandle,
    /// Of a node on the stub.
    pub link: Option<Arc<Link>>,
}

impl Node {
    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Runs the helper and gives what it prints.
    pub fn helper(&self, what: &str, name: &str, rest: &[&str]) -> String {
        let output = helper(what, &self.at(name), rest).output().unwrap();
        text(&output)
    }

    /// Starts the helper.
    pub fn start(&self, what: &str, name: &str, rest: &[&str]) -> Running {
        Running::new(helper(what, &self.at(name), rest))
    }

    /// Runs a shell script with this node's root as directory.
    pub fn shell(&self, script: &str) -> String {
        let output =
            Command::new("sh").args(["-ec", script]).current_dir(&self.path).output().unwrap();
        text(&output)
    }

    pub fn unmount(&self) {
        let path = CString::new(self.path.as_os_str().as_bytes()).unwrap();
        dvs_sys::mount::unmount(&path, libc::MNT_DETACH).unwrap();
    }
}

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A server of either kind.
pub trait Server {
    /// A way to it for one client.
    fn way(self: &Arc<Self>) -> (Arc<dyn FsTransport>, Option<Arc<Link>>);
    /// Its notices for the client go there.
    fn welcome(&self, client: &Arc<Client>);
}

impl Server for Stub {
    fn way(self: &Arc<Self>) -> (Arc<dyn FsTransport>, Option<Arc<Link>>) {
        let link = self.link();
        (Arc::clone(&link) as _, Some(link))
    }

    fn welcome(&self, client: &Arc<Client>) {
        self.join(client);
    }
}

impl Server for Real {
    fn way(self: &Arc<Self>) -> (Arc<dyn FsTransport>, Option<Arc<Link>>) {
        (Arc::clone(self) as _, None)
    }

    fn welcome(&self, client: &Arc<Client>) {
        self.join(client);
    }
}

/// Mounts one node on a server.
pub fn mount_with<S: Server>(server: &Arc<S>, number: u16, hooks: Arc<dyn Hooks>) -> Node {
    let (transport, link) = server.way();
    let id = ClientId { node: number, incarnation: 1 };
    let options = ClientOptions { first_pause: Duration::ZERO, ..ClientOptions::default() };
    let client = Client::connect(transport, id, options).unwrap();
    server.welcome(&client);
    let (path, handle) = mount_client(&client, number, hooks);
    Node { path, client, handle, link }
}

/// Two nodes on one server.
pub struct Pair {
    pub a: Node,
    pub b: Node,
    /// Says whether every recall was obeyed.
    pub obeyed: Box<dyn Fn() -> bool>,
    /// Requests for locks that the server has got.
    pub locks: Box<dyn Fn() -> u64>,
}

/// Pairs of nodes on each kind of server: the strict one of these tests, and the real one.
pub fn pairs() -> Vec<Pair> {
    let stub = Stub::new();
    let real =
        Real::new(Arc::new(dvs_fs::tree::memory::MemoryTree::new(dvs_fs::tree::Life::Private)));
    let (a, b) = (mount(&stub, 1), mount(&stub, 2));
    let count = Arc::clone(&stub);
    let first = Pair {
        a,
        b,
        obeyed: Box::new(move || stub.recall_timeouts.load(Ordering::Relaxed) == 0),
        locks: Box::new(move || count.count("lock")),
    };
    let (a, b) = (mount(&real, 3), mount(&real, 4));
    let count = Arc::clone(&real);
    let second = Pair {
        a,
        b,
        obeyed: Box::new(move || real.clients.fenced.load(Ordering::Relaxed) == 0),
        locks: Box::new(move || count.locks.load(Ordering::Relaxed)),
    };
    vec![first, second]
}

/// Mounts a client at `/mnt/N`.
pub fn mount_client(
    client: &Arc<Client>,
    number: u16,
    hooks: Arc<dyn Hooks>,
) -> (PathBuf, MountHandle) {
    let path = PathBuf::from(format!("/mnt/{number}"));
    std::fs::create_dir(&path).unwrap();
    let device = Device::open().unwrap();
    let fd = std::os::fd::AsFd::as_fd(&device).as_raw_fd();
    let options =
        format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other");
    let options = CString::new(options).unwrap();
    let target = CString::new(path.as_os_str().as_bytes()).unwrap();
    dvs_sys::mount::mount(c"fuse.dvs", c"dvs", &target, 0, &options).unwrap();
    let client = Arc::clone(client);
    let fd = std::os::fd::AsFd::as_fd(&device).try_clone_to_owned().unwrap();
    drop(device);
    let handle =
        Mount::serve(fd, client, hooks, MountOptions { readers: 2, alone: false }).unwrap();
    until("INIT", || handle.is_ready());
    (path, handle)
}

pub fn mount<S: Server>(server: &Arc<S>, number: u16) -> Node {
    mount_with(server, number, Arc::new(NoHooks))
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT;
    while !is_so() {
        assert!(Instant::now() < end, "waited too long for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A helper that runs.
pub struct Running {
    pub child: Child,
    input: Option<ChildStdin>,
    output: std::sync::mpsc::Receiver<String>,
}

impl Running {
    pub fn new(mut command: Command) -> Running {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running { input: child.stdin.take(), child, output: receiver }
    }

    /// Its next line.
    pub fn line(&self) -> String {
        self.output.recv_timeout(WAIT).unwrap()
    }

    /// One byte for its standard input.
    pub fn poke(&mut self) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// Ends its standard input and waits for it.
    pub fn finish(mut self) -> i32 {
        drop(self.input.take());
        wait_for(&mut self.child, WAIT).expect("a helper hangs").code().unwrap_or(-1)
    }

    pub fn signal(&self, number: i32) {
        dvs_sys::process::kill(i32::try_from(self.child.id()).unwrap(), number).unwrap();
    }
}

/// The helper program with its arguments.
pub fn helper(what: &str, path: &Path, rest: &[&str]) -> Command {
    let mut command = Command::new(helper_program());
    command.arg(what).arg(path).args(rest);
    command
}

/// Compiles the helper, once per process, on the namespace's own tmpfs.
fn helper_program() -> &'static Path {
    static PROGRAM: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/helper.c");
        let program = PathBuf::from("/mnt/helper");
        let status =
            Command::new("cc").arg("-O1").arg("-o").arg(&program).arg(source).status().unwrap();
        assert!(status.success(), "cc: {status}");
        program
    })
}
