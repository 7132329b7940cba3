//! `dvs run --hosts`: nodes over ssh, to servers of our own in network namespaces.

mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use world::net::{self, Net};
use world::{Ran, World, eventually, finish, wait};

/// The server: a program of its own that this machine may not have.
fn server() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    folders.into_iter().map(|folder| folder.join("sshd")).find(|file| file.is_file())
}

/// Skips a test where there can be no servers.
macro_rules! needs_servers {
    () => {
        needs_containers!();
        if let Some(reason) = net::missing() {
            println!("SKIPPED: {reason}");
            return;
        }
        if server().is_none() {
            println!("SKIPPED: no sshd; install openssh-server");
            return;
        }
    };
}

/// Hosts 2 and up with ssh servers, which host 1 knows as b, c and so on.
struct Servers<'a> {
    // Dropped in this order.
    servers: Daemons,
    net: Net<'a>,
    folder: PathBuf,
}

/// The servers; ended however the test ends.
struct Daemons(Vec<Child>);

impl Drop for Daemons {
    fn drop(&mut self) {
        for mut server in self.0.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl<'a> Servers<'a> {
    fn new(world: &'a World, count: u16) -> Self {
        let folder = world.work().parent().unwrap().join("ssh");
        fs::create_dir(&folder).unwrap();
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(key))
                .status()
                .unwrap();
            assert!(made.success());
        }
        let net = Net::new(world, count);
        let mut servers = Servers { servers: Daemons(Vec::new()), net, folder };
        let mut hosts = String::new();
        for number in 2..=count {
            servers.serve(number);
            hosts.push_str(&format!("Host {}\n HostName {}\n", name(number), Net::address(number)));
        }
        let config = format!(
            "{hosts}Host gone\n HostName {}\n ConnectTimeout 3\nHost *\n User root\n IdentityFile {}\n IdentitiesOnly yes\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n",
            Net::address(1),
            servers.folder.join("user").display()
        );
        fs::write(servers.folder.join("config"), config).unwrap();
        // The user's own configuration is where the user's home is; a test has another one.
        let found = Command::new("sh").args(["-c", "command -v ssh"]).output().unwrap();
        let ssh = String::from_utf8(found.stdout).unwrap();
        let wrapper = format!(
            "#!/bin/sh\nexec {} -F {} \"$@\"\n",
            ssh.trim(),
            servers.folder.join("config").display()
        );
        let bin = servers.folder.join("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("ssh"), wrapper).unwrap();
        fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        servers
    }

    fn serve(&mut self, number: u16) {
        let folder = &self.folder;
        let show = |path: &Path| path.display().to_string();
        let config = folder.join(format!("sshd{number}"));
        let lines = [
            format!("ListenAddress {}", Net::address(number)),
            format!("HostKey {}", show(&folder.join("host"))),
            format!("AuthorizedKeysFile {}", show(&folder.join("user.pub"))),
            format!(
                "SetEnv XDG_CACHE_HOME={} DVS_RUN_DIR={} DVS_STATE_DIR={}",
                show(&self.cache(number)),
                show(&self.net.run_folder(number)),
                show(&self.net.state_folder(number))
            ),
            "StrictModes no\nPermitRootLogin yes\nPidFile none\nLogLevel ERROR".into(),
        ];
        fs::write(&config, lines.join("\n")).unwrap();
        // In the host's own mount namespace: what the server wants to find, without touching ours.
        let script = format!(
            "mount -t tmpfs -o mode=755 none /run && mkdir /run/sshd &&
             cp /etc/passwd {users} && {{ grep -q ^sshd: {users} || echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >>{users}; }} &&
             mount --bind {users} /etc/passwd && exec {server} -D -e -f {config}",
            users = show(&folder.join(format!("passwd{number}"))),
            server = show(&server().unwrap()),
            config = show(&config),
        );
        let mut command = self.net.on(number, "sh");
        let child = command.args(["-ec", &script]).stderr(Stdio::inherit()).spawn().unwrap();
        self.servers.0.push(child);
    }

    fn cache(&self, number: u16) -> PathBuf {
        self.folder.join(format!("cache{number}"))
    }

    fn dvs(&self, words: &[&str]) -> Command {
        let mut command = self.net.dvs(1, words);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.folder.join("bin").display()));
        command
    }

    /// Once the servers answer.
    fn run(&self, words: &[&str]) -> Ran {
        finish(self.dvs(words))
    }

    fn ready(&self) {
        for number in 2..2 + u16::try_from(self.servers.0.len()).unwrap() {
            eventually("the server answers", || {
                let mut command = self.net.on(1, "sh");
                let path = self.folder.join("bin/ssh");
                let line = format!("{} {} true", path.display(), name(number));
                finish_quietly(command.args(["-c", &line]))
            });
        }
    }

    fn cached(&self, number: u16) -> Vec<(PathBuf, std::time::SystemTime)> {
        let folder = self.cache(number).join("dvs");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap())).collect()
    }

    /// Nothing is left on the hosts but the cache.
    fn nothing_left(&self) {
        for number in 1..2 + u16::try_from(self.servers.0.len()).unwrap() {
            eventually("no file is left", || {
                let left = |folder: PathBuf| {
                    let left = world::files(&folder);
                    left.into_iter().filter(|file| !file.ends_with("/guard")).collect::<Vec<_>>()
                };
                left(self.net.run_folder(number)).is_empty()
                    && left(self.net.state_folder(number)).is_empty()
            });
        }
    }

    fn end(self) {
        let Servers { servers, net, .. } = self;
        drop(servers);
        net.end();
    }
}

fn name(number: u16) -> String {
    char::from(b'a' + u8::try_from(number).unwrap() - 1).to_string()
}

fn finish_quietly(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn a_command_runs_on_hosts_over_ssh_and_leaves_only_the_cache() {
    needs_servers!();
    let world = World::new();
    let servers = Servers::new(&world, 3);
    servers.ready();
    let script = "seq 50 | sort -rn | head -n 1; sh -c 'exit 3'; echo $?; echo made >made; cat made; /bin/echo end";
    let words = [
        "run",
        "--hosts",
        "b,root@c",
        "--place",
        "spread",
        "--stats=json",
        "--",
        "sh",
        "-c",
        script,
    ];
    let ran = servers.run(&words);
    assert_eq!((ran.code, ran.out.as_str()), (0, "50\n3\nmade\nend\n"), "{ran:?}");
    let statistics: serde_json::Value = serde_json::from_str(ran.err.trim()).unwrap();
    let names: Vec<_> = (0..3).map(|node| statistics["nodes"][node]["node"].clone()).collect();
    assert_eq!(names, ["n1", "b", "c"], "{statistics}");
    for node in [1, 2] {
        assert!(statistics["nodes"][node]["placed"].as_u64().unwrap() > 0, "{statistics}");
    }
    servers.nothing_left();
    let cached = [servers.cached(2), servers.cached(3)];
    assert!(cached.iter().all(|files| files.len() == 1), "{cached:?}");
    // The second time nothing is copied; an input reaches a program over there.
    let mut command =
        servers.dvs(&["run", "--hosts", "b", "--place", "spread", "--", "sh", "-c", "wc -l; true"]);
    command.stdin(fs::File::open("/etc/passwd").unwrap());
    let lines = fs::read_to_string("/etc/passwd").unwrap().lines().count();
    assert_eq!(finish(command).good().trim(), lines.to_string());
    assert_eq!([servers.cached(2), servers.cached(3)], cached);
    servers.nothing_left();
    servers.end();
}

#[test]
fn a_host_that_is_not_reached_is_named_and_nothing_is_left() {
    needs_servers!();
    let world = World::new();
    let servers = Servers::new(&world, 2);
    servers.ready();
    let ran = servers.run(&["run", "--hosts", "b,gone", "--", "true"]);
    assert_eq!(ran.code, 125, "{ran:?}");
    let ours = ran.err.lines().last().unwrap();
    assert!(ours.starts_with("dvs: host gone: ") && ours.contains("ssh"), "{ran:?}");
    servers.run(&["run", "--hosts=-oProxyCommand=x", "--", "true"]).complains(125, &["--hosts"]);
    servers
        .run(&["run", "--hosts", "b", "--nodes", "2", "--", "true"])
        .complains(125, &["--nodes", "--hosts"]);
    // A cache that cannot be written.
    fs::remove_dir_all(servers.cache(2)).unwrap();
    fs::write(servers.cache(2), "in the way").unwrap();
    servers.run(&["run", "--hosts", "b", "--", "true"]).complains(125, &["host b", "cannot write"]);
    fs::remove_file(servers.cache(2)).unwrap();
    servers.nothing_left();
    servers.end();
}

#[test]
fn an_ssh_that_dies_is_a_lost_node() {
    needs_servers!();
    let world = World::new();
    let servers = Servers::new(&world, 2);
    servers.ready();
    let script = "echo up; sleep 1000; echo $?; /bin/echo goes on; exit 4";
    let mut command =
        servers.dvs(&["run", "--hosts", "b", "--place", "spread", "--", "sh", "-c", script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the program runs on b", || {
        let list = servers.net.output(1, &["ps", "--json"]).json();
        list.as_array()
            .unwrap()
            .iter()
            .any(|process| process["command"] == "sleep 1000" && process["node"] == "b")
    });
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let ssh = children
        .split_whitespace()
        .find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "ssh")
        })
        .expect("an ssh");
    dvs_sys::process::kill(ssh.parse().unwrap(), libc::SIGKILL).unwrap();
    let ran = wait(child);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.out.contains("137\ngoes on\n") && ran.err.contains("node b was lost"), "{ran:?}");
    servers.nothing_left();
    servers.end();
}
