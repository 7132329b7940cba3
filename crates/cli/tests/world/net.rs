//! Hosts: network namespaces joined by a bridge, each with its own mount namespace and folders, in
//! which the working folder of the test is not to be seen but on the first one.

use super::{LIMIT, Ran, World, finish, wait};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Why hosts cannot be made here, if so.
pub fn missing() -> Option<String> {
    if dvs_sys::process::effective_ids().0 != 0 {
        return Some("hosts are network namespaces, which need root".into());
    }
    let script = "ip link add br0 type bridge && ip link add eth0 type veth peer name h0";
    let tried = Command::new("unshare").args(["--net", "sh", "-c", script]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "no bridged network namespaces: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("unshare (util-linux): {error}")),
    }
}

/// A process that holds namespaces until its standard input ends.
struct Holder(Child);

impl Holder {
    fn new(kinds: &[&str], script: &str) -> Self {
        let script = format!("{script}\necho ready; read end");
        let mut child = Command::new("unshare")
            .args(kinds)
            .args(["sh", "-ec", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut said).expect("namespaces were not made");
        Holder(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// See the module.
pub struct Net<'a> {
    world: &'a World,
    hub: Holder,
    hosts: Vec<Holder>,
}

impl<'a> Net<'a> {
    /// Hosts 1 to `count`, at 10.77.0.1 and so on.
    pub fn new(world: &'a World, count: u16) -> Self {
        let hub = Holder::new(&["--net"], "ip link add br0 type bridge; ip link set br0 up");
        let mut net = Net { world, hub, hosts: Vec::new() };
        for number in 1..=count {
            let work = world.work();
            let hidden = format!("mount -t tmpfs none {}", work.display());
            let script = if number == 1 { "true" } else { hidden.as_str() };
            let host = Holder::new(&["--net", "--mount"], script);
            let port = format!("h{number}");
            run(Command::new("ip").args(["link", "add", "eth0", "netns", &host.pid()]).args([
                "type",
                "veth",
                "peer",
                "name",
                &port,
                "netns",
                &net.hub.pid(),
            ]));
            net.in_hub(&["ip", "link", "set", &port, "master", "br0", "up"]);
            let address = format!("{}/24", Net::address(number));
            net.hosts.push(host);
            run(net.on(number, "ip").args(["address", "add", &address, "dev", "eth0"]));
            run(net.on(number, "ip").args(["link", "set", "eth0", "up"]));
            run(net.on(number, "ip").args(["link", "set", "lo", "up"]));
        }
        net
    }

    /// A host's address.
    pub fn address(number: u16) -> String {
        format!("10.77.0.{number}")
    }

    fn in_hub(&self, words: &[&str]) {
        run(Command::new("nsenter").args(["--target", &self.hub.pid(), "--net"]).args(words));
    }

    /// Takes a host's cable out, or puts it in again.
    pub fn cable(&self, number: u16, state: &str) {
        self.in_hub(&["ip", "link", "set", &format!("h{number}"), state]);
    }

    pub fn run_folder(&self, number: u16) -> PathBuf {
        self.world.root.path().join(format!("run{number}"))
    }

    pub fn state_folder(&self, number: u16) -> PathBuf {
        self.world.root.path().join(format!("state{number}"))
    }

    /// A command on a host; on the first one in the working folder.
    pub fn on(&self, number: u16, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let folder = if number == 1 { self.world.work() } else { "/".into() };
        let enter = r#"cd "$1" && shift && exec "$@""#;
        command
            .args(["--target", &self.hosts[usize::from(number) - 1].pid(), "--net", "--mount"])
            // Entered inside: a folder that was opened outside has no path there.
            .args(["sh", "-c", enter, "sh"])
            .args([folder.as_os_str(), program.as_ref()])
            .env("DVS_RUN_DIR", self.run_folder(number))
            .env("DVS_STATE_DIR", self.state_folder(number))
            .env_remove("NO_COLOR")
            .stdin(Stdio::null());
        command
    }

    /// `dvs` on a host.
    pub fn dvs(&self, number: u16, words: &[&str]) -> Command {
        let mut command = self.on(number, env!("CARGO_BIN_EXE_dvs"));
        command.args(words);
        command
    }

    /// Runs `dvs` to its end.
    pub fn output(&self, number: u16, words: &[&str]) -> Ran {
        finish(self.dvs(number, words))
    }

    /// Runs `dvs` to its end with an input.
    pub fn output_of(&self, number: u16, words: &[&str], input: &str) -> Ran {
        let mut command = self.dvs(number, words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        wait(child)
    }

    /// Makes a cluster of all hosts: n1 on the first, and so on.
    pub fn cluster(&self) {
        self.output(1, &["node", "start", "--listen", &Net::address(1)]).good();
        for number in 2..=u16::try_from(self.hosts.len()).unwrap() {
            let token = self.output(1, &["node", "token"]).good().to_owned();
            self.output_of(number, &["node", "join", "--token-file", "-"], &token).good();
        }
    }

    /// Stops the nodes of all hosts and checks that nothing is left of them but their identity.
    pub fn end(self) {
        for number in 1..=u16::try_from(self.hosts.len()).unwrap() {
            let ran = self.output(number, &["node", "stop", "--all", "--force"]);
            assert_eq!(ran.code, 0, "{ran:?}");
            let left = super::files(&self.run_folder(number));
            let left: Vec<_> = left.iter().filter(|file| !file.ends_with("/guard")).collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let Net { world, hosts, hub, .. } = self;
        drop((hosts, hub));
        world.nothing_left();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?} within {LIMIT:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
