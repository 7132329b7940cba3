//! A world of its own for each test: folders, a working directory, and a look at what is left.
//!
//! The test process becomes the reaper of its descendants: whatever a command leaves running becomes
//! its child and is found, however it was started. So tests of one file run one after the other.

#![allow(dead_code, unreachable_pub, reason = "each file of tests uses a part")]

pub mod net;

use dvs_sys::process;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest run of one command; a longer one is a failure, not a hang.
pub const LIMIT: Duration = Duration::from_secs(60);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// See the module.
pub struct World {
    root: tempfile::TempDir,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

/// Why containers cannot be tested here, if so.
pub fn missing() -> Option<String> {
    let features = dvs_sys::features::Features::get();
    let lacking =
        features.findings().into_iter().find(|finding| finding.needed && !finding.present);
    lacking.map(|finding| finding.sentence.to_owned())
}

/// Skips (returns from) a test with a printed reason where containers cannot run.
#[macro_export]
macro_rules! needs_containers {
    () => {
        if let Some(reason) = $crate::world::missing() {
            println!("SKIPPED: {reason}");
            return;
        }
    };
}

impl World {
    pub fn new() -> World {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        process::set_child_subreaper().unwrap();
        let root = tempfile::Builder::new().prefix("dvs-cli-").tempdir().unwrap();
        for name in ["work", "state"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        fs::set_permissions(root.path().join("state"), fs::Permissions::from_mode(0o700)).unwrap();
        World { root, mounts: mounts(), cgroups: cgroups(), _turn: turn }
    }

    /// The folder that is shared with containers.
    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    pub fn run_folder(&self) -> PathBuf {
        self.root.path().join("run")
    }

    pub fn state_folder(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// `dvs` in this world, with no input.
    pub fn dvs(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dvs"));
        command
            .args(words)
            .current_dir(self.work())
            .env("DVS_RUN_DIR", self.run_folder())
            .env("DVS_STATE_DIR", self.state_folder())
            .env_remove("NO_COLOR")
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end.
    pub fn output(&self, words: &[&str]) -> Ran {
        finish(self.dvs(words))
    }

    /// Runs a program in a container.
    pub fn run(&self, words: &[&str]) -> Ran {
        let mut all = vec!["run"];
        all.extend(words);
        self.output(&all)
    }

    /// The children that this process has now: what commands have left.
    pub fn left_running(&self) -> Vec<String> {
        let mut left = Vec::new();
        for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for pid in children.split_whitespace() {
                let read = |name: &str| {
                    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
                };
                if read("stat").contains(") Z ") {
                    let _ = process::wait(pid.parse().unwrap(), libc::WNOHANG, 0);
                } else {
                    left.push(format!("{pid} {}", read("cmdline").replace('\0', " ")));
                }
            }
        }
        left
    }

    /// Checks that nothing is left: no process, mount, cgroup or file.
    pub fn nothing_left(&self) {
        let start = Instant::now();
        loop {
            let left = self.all_left();
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(15), "left over: {left:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn all_left(&self) -> Vec<String> {
        let mut left = self.left_running();
        for folder in [self.run_folder(), self.state_folder()] {
            // Folders and their guards are kept for the next command while one of them is used.
            left.extend(files(&folder).into_iter().filter(|file| !file.ends_with("/guard")));
        }
        let ours = |text: &String| text.contains(self.root.path().to_str().unwrap());
        left.extend(mounts().difference(&self.mounts).filter(|mount| ours(mount)).cloned());
        let new: Vec<PathBuf> = cgroups().difference(&self.cgroups).cloned().collect();
        left.extend(new.iter().map(|path| path.display().to_string()));
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A test that failed must not spoil the next ones.
        let left = if std::thread::panicking() { self.left_running() } else { Vec::new() };
        for process in left {
            if let Some(pid) = process.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
                let _ = process::kill(pid, libc::SIGKILL);
            }
        }
    }
}

fn mounts() -> BTreeSet<String> {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(str::to_owned).collect()
}

/// Cgroups of containers whose daemon this process reaps would have its own cgroup as ancestor.
fn cgroups() -> BTreeSet<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let mount = if controllers.is_empty() { "unified" } else { controllers };
        let folder = Path::new("/sys/fs/cgroup").join(mount).join(path.trim_start_matches('/'));
        for entry in fs::read_dir(folder.join("dvs")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if entry.path().is_dir() && name.to_string_lossy().starts_with("dvs-") {
                found.insert(entry.path());
            }
        }
    }
    found
}

pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
            if !["nodes", "sessions"].iter().any(|name| path.ends_with(name)) {
                found.push(path.display().to_string());
            }
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; 128 + n for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Standard error is one line of ours that holds all the words.
    pub fn complains(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.starts_with("dvs: "), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} in {self:?}");
        }
    }

    /// It worked, and said nothing on standard error.
    pub fn good(&self) -> &str {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        &self.out
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.good()).unwrap()
    }
}

/// Runs a command to its end, within [`LIMIT`].
pub fn finish(mut command: Command) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    wait(command.spawn().unwrap())
}

/// Waits for a child that was started with pipes.
pub fn wait(child: Child) -> Ran {
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let output: Output = receiver
        .recv_timeout(LIMIT)
        .unwrap_or_else(|_| {
            let _ = process::kill(pid.try_into().unwrap(), libc::SIGKILL);
            panic!("the command did not end within {LIMIT:?}")
        })
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code, out: text(output.stdout), err: text(output.stderr) }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
