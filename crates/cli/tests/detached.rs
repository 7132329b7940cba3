//! Containers that live without a command: kept, looked at, stopped, started again, removed.

mod world;

use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use world::{World, eventually, finish, wait};

/// A world with a node that stays, stopped at the end.
struct Cluster(World);

impl Cluster {
    fn new(count: &str) -> Cluster {
        let world = World::new();
        world.output(&["node", "start", "--count", count]).good();
        Cluster(world)
    }

    fn good(&self, words: &[&str]) -> String {
        self.0.output(words).good().to_owned()
    }

    fn complains(&self, words: &[&str], told: &[&str]) {
        self.0.output(words).complains(125, told);
    }

    /// Runs a shell script in a detached container.
    fn keep(&self, name: &str, words: &[&str], script: &str) {
        let mut all = vec!["run", "-d", "--name", name];
        all.extend(words);
        all.extend(["--", "sh", "-c", script]);
        assert_eq!(self.good(&all), format!("{name}\n"));
    }

    fn inspect(&self, name: &str) -> Value {
        self.0.output(&["inspect", name]).json()[0].clone()
    }

    fn until(&self, name: &str, what: &str, so: impl Fn(&Value) -> bool) {
        eventually(what, || so(&self.inspect(name)));
    }

    /// Waits for the program's own word that it is up.
    fn until_logged(&self, name: &str, text: &str) {
        eventually(text, || self.0.output(&["logs", name]).out.contains(text));
    }

    fn end(self) {
        self.0.output(&["node", "stop", "--all", "--force"]).good();
        self.0.nothing_left();
    }
}

const FOREVER: &str = "echo up; exec sleep 1000";

#[test]
fn a_detached_container_is_kept_until_it_is_removed() {
    needs_containers!();
    let cluster = Cluster::new("1");
    cluster.keep("web", &["-l", "app=shop"], "echo out; echo err >&2; exit 3");
    assert_eq!(cluster.good(&["wait", "web"]), "3\n");
    let logs = cluster.0.output(&["logs", "web"]);
    assert_eq!((logs.out.as_str(), logs.err.as_str()), ("out\n", "err\n"));
    // docker's fingers: ls shows what runs, -a what was.
    assert_eq!(cluster.0.output(&["dc", "ls", "--json"]).json(), serde_json::json!([]));
    for words in [&["dc", "ls", "-a", "--json"][..], &["ps", "-a", "--json"], &["ls", "-aq"]] {
        assert!(cluster.good(words).contains("web"), "{words:?}");
    }
    assert!(cluster.good(&["dc", "ls", "-a"]).contains("Exited (3)"));
    let listed = cluster.0.output(&["ls", "--filter", "label=app=shop", "-a", "--json"]).json();
    assert_eq!((&listed[0]["state"], &listed[0]["exit_code"]), (&"exited".into(), &3.into()));
    assert_eq!(cluster.good(&["ls", "-q", "--filter", "exited=0"]), "");
    let all = cluster.inspect("web");
    assert_eq!(all["program"]["arguments"][0], "sh");
    assert_eq!(all["labels"]["app"], "shop");
    // The name stays taken.
    cluster.complains(&["run", "--name", "web", "--", "true"], &["web", "dvs rm web"]);
    cluster.complains(&["run", "-d", "--name", "web", "--", "true"], &["web", "dvs rm web"]);
    cluster.complains(&["exec", "web", "--", "true"], &["does not run", "dvs start web"]);
    cluster.complains(&["attach", "web"], &["does not run", "dvs start web"]);
    cluster.complains(&["kill", "web"], &["does not run"]);
    assert_eq!(cluster.good(&["rm", "web"]), "web\n");
    cluster.complains(&["logs", "web"], &["web", "dvs dc ls -a"]);
    cluster.complains(&["rm", "web"], &["web"]);
    cluster.end();
}

#[test]
fn what_does_not_start_is_said_and_not_kept() {
    needs_containers!();
    let cluster = Cluster::new("1");
    let run = |words: &[&str]| cluster.0.run(words);
    run(&["-d", "--", "no-such-program"]).complains(127, &["no-such-program: command not found"]);
    run(&["-d", "--", "/usr"]).complains(126, &["/usr"]);
    run(&["-d", "--nodes", "9", "--", "true"]).complains(125, &["9 nodes", "dvs node start"]);
    run(&["-d", "--restart", "maybe", "--", "true"]).complains(125, &["--restart maybe"]);
    run(&["-d", "--rm", "--restart", "always", "--", "true"]).complains(125, &["--rm"]);
    run(&["-d", "--stats", "--", "true"]).complains(125, &["--stats"]);
    run(&["--ulimit", "files=3", "--", "true"]).complains(125, &["--ulimit files=3", "nofile"]);
    run(&["--stop-signal", "FOO", "--", "true"]).complains(125, &["FOO"]);
    run(&["-l", "=x", "--", "true"]).complains(125, &["--label =x"]);
    run(&["-d", "--health-cmd", "true", "--health-interval", "x", "--", "true"])
        .complains(125, &["--health-interval x"]);
    for words in [
        &["stop", "nobody"][..],
        &["kill", "nobody"],
        &["start", "nobody"],
        &["restart", "nobody"],
        &["wait", "nobody"],
        &["pause", "nobody"],
        &["unpause", "nobody"],
        &["inspect", "nobody"],
        &["rename", "nobody", "other"],
        &["update", "--pids", "5", "nobody"],
        &["stats", "nobody"],
        &["attach", "nobody"],
        &["logs", "nobody"],
    ] {
        cluster.complains(words, &["nobody"]);
    }
    cluster.complains(&["ls", "--filter", "foo=1"], &["--filter foo=1"]);
    cluster.complains(&["logs", "--tail", "x", "nobody"], &["--tail x"]);
    cluster.complains(&["logs", "--since", "x", "nobody"], &["--since x"]);
    cluster.complains(&["kill", "-s", "99", "nobody"], &["99"]);
    cluster.complains(&["update", "nobody"], &["--cpus"]);
    assert_eq!(cluster.good(&["ls", "-aq"]), "");
    cluster.end();
}

#[test]
fn with_nothing_running_a_node_is_started_for_it() {
    needs_containers!();
    let world = World::new();
    let ran = world.run(&["-d", "--name", "solo", "--", "sleep", "1000"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "solo\n"), "{ran:?}");
    assert!(ran.err.contains("dvs node stop --all"), "{ran:?}");
    world.output(&["rm", "solo"]).complains(125, &["runs", "dvs rm -f solo"]);
    assert_eq!(world.output(&["rm", "-f", "solo"]).good(), "solo\n");
    assert_eq!(world.output(&["node", "stop", "--all"]).good(), "n1\n");
    world.nothing_left();
}

#[test]
fn output_can_be_followed_and_cut() {
    needs_containers!();
    let cluster = Cluster::new("1");
    let script = "echo one; echo two; until [ -e go ]; do sleep 0.02; done; echo three";
    cluster.keep("log", &[], script);
    cluster.until_logged("log", "two");
    let mut command = cluster.0.dvs(&["logs", "-f", "--tail", "1", "log"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let first = read_until(child.stdout.as_mut().unwrap(), "\n");
    assert_eq!(first, "two\n");
    std::fs::write(cluster.0.work().join("go"), "").unwrap();
    let followed = wait(child);
    assert_eq!((followed.code, followed.out.as_str()), (0, "three\n"));
    assert_eq!(cluster.good(&["logs", "-n", "2", "log"]), "two\nthree\n");
    assert_eq!(cluster.good(&["logs", "--since", "2099-01-01", "log"]), "");
    assert_eq!(cluster.good(&["logs", "--since", "1h", "log"]), "one\ntwo\nthree\n");
    let line = cluster.good(&["logs", "-t", "-n", "1", "log"]);
    assert!(line.starts_with("20") && line.ends_with("Z three\n"), "{line}");
    let lines = cluster.good(&["logs", "--json", "-n", "1", "log"]);
    let value: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((&value["text"], &value["stream"]), (&"three".into(), &"stdout".into()));
    cluster.end_removing(&["log"]);
}

impl Cluster {
    fn end_removing(self, names: &[&str]) {
        for name in names {
            self.good(&["rm", "-f", name]);
        }
        self.end();
    }
}

#[test]
fn stopping_asks_first_and_then_forces() {
    needs_containers!();
    let cluster = Cluster::new("1");
    cluster.keep("kind", &[], "trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done");
    cluster.until_logged("kind", "up");
    assert_eq!(cluster.good(&["stop", "kind"]), "kind\n");
    assert_eq!(cluster.inspect("kind")["exit_code"], 7);
    // Once more is no error, as docker has it.
    assert_eq!(cluster.good(&["stop", "kind"]), "kind\n");
    let own = ["--stop-signal", "USR1", "--stop-timeout", "60"];
    cluster.keep("own", &own, "trap 'exit 8' USR1; echo up; while :; do sleep 0.02; done");
    cluster.until_logged("own", "up");
    cluster.good(&["stop", "own"]);
    assert_eq!(cluster.inspect("own")["exit_code"], 8);
    cluster.keep("deaf", &[], "trap '' TERM; echo up; while :; do sleep 0.02; done");
    cluster.until_logged("deaf", "up");
    cluster.good(&["stop", "-t", "0", "deaf"]);
    assert_eq!(cluster.inspect("deaf")["exit_code"], 137);
    let trap = "trap 'echo got' HUP; echo up; while :; do sleep 0.02; done";
    cluster.keep("killed", &[], trap);
    cluster.until_logged("killed", "up");
    cluster.good(&["kill", "-s", "HUP", "killed"]);
    cluster.until_logged("killed", "got");
    let killed = cluster.0.output(&["kill", "--json", "killed"]).json();
    assert_eq!(killed["killed"], serde_json::json!(["killed"]));
    assert_eq!(cluster.inspect("killed")["exit_code"], 137);
    let pruned = cluster.good(&["dc", "prune"]);
    assert_eq!(pruned.lines().count(), 4, "{pruned}");
    cluster.end();
}

#[test]
fn a_followed_container_can_be_stopped_and_waited_for() {
    needs_containers!();
    let cluster = Cluster::new("1");
    let start = |name: &str| {
        let mut command = cluster.0.dvs(&["run", "--name", name, "--", "sh", "-c", FOREVER]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        read_until(child.stdout.as_mut().unwrap(), "up\n");
        child
    };
    let child = start("fore");
    cluster.complains(&["logs", "fore"], &["fore", "run -d"]);
    cluster.complains(&["attach", "fore"], &["fore", "run -d"]);
    cluster.complains(&["restart", "fore"], &["fore", "run -d"]);
    cluster.complains(&["rm", "fore"], &["runs"]);
    let waiting = cluster.0.dvs(&["wait", "fore"]).stdout(Stdio::piped()).spawn().unwrap();
    cluster.good(&["stop", "fore"]);
    assert_eq!(wait(child).code, 143);
    let waited = wait(waiting);
    // The wait may have come too late to find it.
    assert!(waited.out == "143\n" || waited.code == 125, "{waited:?}");
    let child = start("again");
    cluster.good(&["kill", "again"]);
    assert_eq!(wait(child).code, 137);
    cluster.end();
}

#[test]
fn ended_ones_start_again_and_survive_their_daemon() {
    needs_containers!();
    let cluster = Cluster::new("1");
    cluster.keep("twice", &[], "echo run; exit 5");
    cluster.good(&["wait", "twice"]);
    cluster.good(&["start", "twice"]);
    cluster.good(&["wait", "twice"]);
    assert_eq!(cluster.good(&["logs", "twice"]), "run\nrun\n");
    cluster.keep("lasting", &["--restart", "unless-stopped"], FOREVER);
    cluster.keep("stopped", &["--restart", "unless-stopped"], FOREVER);
    cluster.good(&["stop", "stopped"]);
    cluster.keep("plain", &[], FOREVER);
    cluster.good(&["restart", "plain"]);
    assert_eq!(cluster.inspect("plain")["state"], "running");
    cluster.complains(&["node", "stop", "--all"], &["lasting", "plain", "--force"]);
    cluster.good(&["node", "stop", "--all", "--force"]);
    cluster.good(&["node", "start"]);
    let states = |name: &str| cluster.inspect(name)["state"].as_str().unwrap().to_owned();
    assert_eq!((states("twice"), states("stopped")), ("exited".into(), "exited".into()));
    assert_eq!(
        (states("plain"), &cluster.inspect("plain")["exit_code"]),
        ("exited".into(), &137.into())
    );
    cluster.until("lasting", "started with its daemon", |all| all["state"] == "running");
    assert_eq!(cluster.good(&["logs", "twice"]), "run\nrun\n");
    // A daemon that is killed leaves them as ended.
    let list = cluster.0.output(&["node", "ls", "--json"]).json();
    let pid = i32::try_from(list[0]["pid"].as_i64().unwrap()).unwrap();
    cluster.good(&["update", "--restart", "no", "lasting"]);
    dvs_sys::process::kill(pid, libc::SIGKILL).unwrap();
    eventually("the daemon is gone", || cluster.0.left_running().is_empty());
    cluster.good(&["node", "start"]);
    let lost = cluster.inspect("lasting");
    assert_eq!((&lost["state"], &lost["exit_code"]), (&"exited".into(), &137.into()));
    assert!(lost["error"].as_str().unwrap().contains("daemon"), "{lost}");
    cluster.end_removing(&["twice", "lasting", "stopped", "plain"]);
}

#[test]
fn policies_start_them_again() {
    needs_containers!();
    let cluster = Cluster::new("1");
    cluster.keep("failing", &["--restart", "on-failure:2"], "echo run; exit 9");
    cluster.until("failing", "it gave up", |all| all["state"] == "exited");
    let all = cluster.inspect("failing");
    assert_eq!((&all["restarts"], &all["exit_code"]), (&2.into(), &9.into()));
    assert_eq!(cluster.good(&["logs", "failing"]), "run\nrun\nrun\n");
    cluster.keep("good", &["--restart", "on-failure"], "exit 0");
    cluster.until("good", "it stays ended", |all| all["state"] == "exited");
    assert_eq!(cluster.inspect("good")["restarts"], 0);
    cluster.keep("always", &["--restart", "always"], "exit 0");
    cluster.until("always", "it came again", |all| all["restarts"].as_u64() > Some(1));
    cluster.good(&["stop", "always"]);
    assert_eq!(cluster.inspect("always")["state"], "exited");
    // With --rm nothing is kept.
    cluster.keep("brief", &["--rm"], "exit 0");
    eventually("nothing is kept", || !cluster.good(&["ls", "-aq"]).contains("brief"));
    cluster.end_removing(&["failing", "good", "always"]);
}

#[test]
fn names_change_and_programs_pause() {
    needs_containers!();
    let cluster = Cluster::new("2");
    let count = "i=0; while :; do i=$((i+1)); echo $i > count; sleep 0.01; done";
    cluster.keep("old", &["--place", "spread", "--pids", "500"], count);
    cluster.keep("other", &[], FOREVER);
    cluster.complains(&["rename", "old", "other"], &["other"]);
    cluster.complains(&["rename", "old", "a/b"], &["'a/b'"]);
    cluster.good(&["rename", "old", "new"]);
    cluster.complains(&["inspect", "old"], &["old"]);
    assert_eq!(cluster.inspect("new")["hostname"], "new");
    assert!(cluster.good(&["ps", "new"]).contains("count"));
    cluster.complains(&["unpause", "new"], &["not paused"]);
    let read = || std::fs::read_to_string(cluster.0.work().join("count")).unwrap_or_default();
    eventually("it counts", || !read().trim().is_empty());
    assert_eq!(cluster.good(&["pause", "new"]), "new\n");
    assert_eq!(cluster.inspect("new")["state"], "paused");
    assert!(cluster.good(&["ls"]).contains("(paused)"));
    cluster.complains(&["pause", "new"], &["paused already"]);
    cluster.complains(&["exec", "new", "--", "true"], &["paused", "dvs unpause new"]);
    // Frozen means within a moment, not at once: what it writes may still be under way.
    let mut before = read();
    eventually("it stands still", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = read();
        std::mem::replace(&mut before, now.clone()) == now
    });
    cluster.good(&["unpause", "new"]);
    eventually("it goes on", || read() != before);
    // A paused one can be stopped.
    cluster.good(&["pause", "other"]);
    cluster.good(&["stop", "other"]);
    assert_eq!(cluster.inspect("other")["exit_code"], 143);
    cluster.end_removing(&["new", "other"]);
}

#[test]
fn usage_limits_and_events_are_told() {
    needs_containers!();
    let cluster = Cluster::new("1");
    cluster.keep("busy", &["--memory", "512m"], "echo up; while :; do :; done");
    cluster.until_logged("busy", "up");
    let lines = cluster.good(&["stats", "--no-stream", "--json"]);
    let value: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((&value["container"], &value["node"]), (&"busy".into(), &"n1".into()));
    assert!(value["memory_bytes"].as_u64() > Some(0) && value["processes"] == 1, "{value}");
    assert_eq!(value["memory_limit_bytes"], 512 << 20);
    assert!(cluster.good(&["stats", "--no-stream", "busy"]).starts_with("CONTAINER "));
    let ran = cluster.0.output(&["update", "--memory", "1g", "--cpus", "1", "busy"]);
    assert_eq!(ran.out, "busy\n");
    // The container has no group for its CPU time.
    assert!(ran.code == 0 && ran.err.contains("--cpus"), "{ran:?}");
    let limits = &cluster.inspect("busy")["limits"];
    assert_eq!((&limits["memory_bytes"], &limits["cpus"]), (&(1 << 30).into(), &1.0.into()));
    cluster.good(&["exec", "busy", "--", "true"]);
    cluster.good(&["kill", "busy"]);
    let told = cluster.good(&["events", "--since", "1h", "--until", "0s", "--json"]);
    let actions: Vec<String> = told
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["action"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(actions, ["create", "start", "update", "exec_start", "die", "kill"]);
    let died = cluster.good(&["events", "--since", "1h", "--until", "0s", "--filter", "event=die"]);
    assert!(died.contains("die busy (node=n1, exitCode=137)"), "{died}");
    // Followed: what happens from now on.
    let mut command = cluster.0.dvs(&["events", "--since", "0", "--filter", "event=destroy"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    cluster.good(&["rm", "busy"]);
    let mut output = child.stdout.take().unwrap();
    read_until(&mut output, "destroy busy");
    child.kill().unwrap();
    child.wait().unwrap();
    cluster.complains(&["events", "--filter", "x=1"], &["--filter x=1"]);
    cluster.end();
    World::new().output(&["events"]).complains(125, &["no node runs"]);
}

#[test]
fn health_is_looked_after() {
    needs_containers!();
    let cluster = Cluster::new("1");
    std::fs::write(cluster.0.work().join("well"), "").unwrap();
    let words =
        ["--health-cmd", "test -e well", "--health-interval", "50ms", "--health-retries", "2"];
    cluster.keep("checked", &words, FOREVER);
    cluster.until("checked", "healthy", |all| all["health"] == "healthy");
    assert!(cluster.good(&["ls", "--filter", "health=healthy"]).contains("(healthy)"));
    std::fs::remove_file(cluster.0.work().join("well")).unwrap();
    cluster.until("checked", "unhealthy", |all| all["health"] == "unhealthy");
    assert_eq!(cluster.inspect("checked")["state"], "running");
    cluster.end_removing(&["checked"]);
}

#[test]
fn options_of_docker_users_work() {
    needs_containers!();
    let world = World::new();
    std::fs::write(world.work().join("vars"), "A=1\n# no\nB=2\n").unwrap();
    let script = "echo $A$B; ulimit -n; ulimit -Hn";
    let words = ["--env-file", "vars", "--ulimit", "nofile=99:100", "--init", "--rm"];
    let mut all = words.to_vec();
    all.extend(["--", "sh", "-c", script]);
    assert_eq!(world.run(&all).good(), "12\n99\n100\n");
    assert_eq!(world.run(&["--entrypoint", "echo", "--", "a", "b"]).good(), "a b\n");
    assert_eq!(world.run(&["--entrypoint", "pwd"]).code, 0);
    world.nothing_left();
}

/// Reads a terminal or pipe until a text is seen; what was read.
fn read_until(from: &mut (impl Read + std::os::fd::AsFd), text: &str) -> String {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let ready = dvs_sys::descriptor::wait_readable(from.as_fd(), Some(60_000)).unwrap();
        assert!(ready, "{text:?} not in {seen:?}");
        let got = from.read(&mut buffer).unwrap();
        assert!(got > 0, "the end before {text:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..got]));
    }
    seen
}

#[test]
fn a_terminal_can_be_left_and_come_back_to() {
    needs_containers!();
    use dvs_sys::terminal;
    use std::os::fd::AsFd;
    let cluster = Cluster::new("1");
    let started = cluster.good(&["run", "-dit", "--name", "shell", "--", "sh"]);
    assert_eq!(started, "shell\n");
    let (ours, theirs) = terminal::open_pair(std::path::Path::new(terminal::PTMX)).unwrap();
    let size = terminal::WindowSize { rows: 33, columns: 99, width: 0, height: 0 };
    terminal::set_window_size(ours.as_fd(), size).unwrap();
    let before = terminal::attributes(theirs.as_fd()).unwrap();
    let attach = |words: &[&str]| -> Child {
        let mut all = vec!["attach"];
        all.extend(words);
        all.push("shell");
        let mut command: Command = cluster.0.dvs(&all);
        let copy = || Stdio::from(theirs.try_clone().unwrap());
        command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap()
    };
    let mut typing = std::fs::File::from(ours.try_clone().unwrap());
    let child = attach(&[]);
    eventually("the terminal is raw", || terminal::attributes(theirs.as_fd()).unwrap() != before);
    typing.write_all(b"x=kept; stty size\n").unwrap();
    read_until(&mut typing, "33 99");
    // ^C is the program's own business.
    typing.write_all(b"\x03").unwrap();
    typing.write_all(&[0x10, 0x11]).unwrap();
    assert_eq!(wait(child).code, 0);
    assert_eq!(terminal::attributes(theirs.as_fd()).unwrap(), before, "put back");
    assert_eq!(cluster.inspect("shell")["state"], "running");
    let child = attach(&["--detach-keys", "ctrl-x"]);
    eventually("the terminal is raw", || terminal::attributes(theirs.as_fd()).unwrap() != before);
    typing.write_all(b"echo $x again\n").unwrap();
    read_until(&mut typing, "kept again");
    typing.write_all(b"exit 4\n").unwrap();
    assert_eq!(wait(child).code, 4);
    cluster.complains(&["attach", "--detach-keys", "ctrl-", "shell"], &["--detach-keys ctrl-"]);
    cluster.end_removing(&["shell"]);
}

#[test]
fn pipes_can_be_attached() {
    needs_containers!();
    let cluster = Cluster::new("1");
    let script = "echo up; while read line; do echo \"got $line\"; done; echo closed";
    let ran = cluster.good(&["run", "-di", "--name", "reader", "--", "sh", "-c", script]);
    assert_eq!(ran, "reader\n");
    let mut command = cluster.0.dvs(&["attach", "reader"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input: ChildStdin = child.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    cluster.until_logged("reader", "got one");
    drop(input);
    // The input stays open for who attaches next.
    let mut next = cluster.0.dvs(&["attach", "--no-stdin", "reader"]);
    next.stdin(Stdio::null());
    let next = next.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    cluster.good(&["stop", "reader"]);
    assert_eq!(wait(child).code, 143);
    let next = wait(next);
    // It may have come when the container was over.
    assert!([143, 125].contains(&next.code), "{next:?}");
    cluster.end_removing(&["reader"]);
}

#[test]
fn several_follow_one_and_leave() {
    needs_containers!();
    let cluster = Cluster::new("1");
    cluster.keep("source", &[], "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done");
    let follow = || {
        let mut command = cluster.0.dvs(&["logs", "-f", "source"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut children = [follow(), follow(), follow()];
    for child in &mut children {
        let text = read_until(child.stdout.as_mut().unwrap(), "9\n");
        assert!(text.starts_with("1\n2\n3\n"), "{text}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let script = format!("{} logs -f source | head -n 3", env!("CARGO_BIN_EXE_dvs"));
    let mut shell = Command::new("sh");
    let template = cluster.0.dvs(&[]);
    shell.args(["-c", &script]).current_dir(cluster.0.work()).stdin(Stdio::null());
    shell.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_eq!(finish(shell).out, "1\n2\n3\n");
    cluster.end_removing(&["source"]);
}
