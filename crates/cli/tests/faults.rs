//! Death and want: commands, daemons and nodes that are killed, disks that are full. Nothing hangs,
//! the user is told, and nothing is left.

mod world;

use dvs_sys::process;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use world::{Ran, World, eventually, wait};

/// Starts a program that says "up" and then goes on.
fn start(world: &World, words: &[&str]) -> (Child, std::process::ChildStdout) {
    let mut all = vec!["run"];
    all.extend(words);
    let mut command = world.dvs(&all);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = [0; 3];
    std::io::Read::read_exact(&mut output, &mut text).unwrap();
    assert_eq!(&text, b"up\n");
    (child, output)
}

/// Pid of a daemon, by name.
fn daemon(world: &World, name: &str) -> i32 {
    let list = world.output(&["node", "ls", "--json"]).json();
    let node = list.as_array().unwrap().iter().find(|node| node["node"] == name).unwrap().clone();
    node["pid"].as_i64().unwrap().try_into().unwrap()
}

fn kill(pid: i32) {
    process::kill(pid, libc::SIGKILL).unwrap();
}

fn ended(child: Child, output: std::process::ChildStdout) -> Ran {
    drop(output);
    wait(child)
}

const LONG: &str = "echo up; sleep 1000 & exec sleep 1000";
/// The same, but says that it is up when its programs are: one that is being loaded while its daemon is
/// killed says so itself, beside our line.
const LOADED: &str = "python3 -c 'import time; print(\"up\", flush=True); time.sleep(1000)'";

#[test]
fn the_command_is_killed() {
    needs_containers!();
    let world = World::new();
    for nodes in ["1", "3"] {
        let (child, output) =
            start(&world, &["--nodes", nodes, "--place", "spread", "--", "sh", "-c", LONG]);
        kill(child.id().try_into().unwrap());
        assert_eq!(ended(child, output).code, 137);
        world.nothing_left();
    }
}

#[test]
fn the_command_is_killed_on_a_cluster() {
    needs_containers!();
    let world = World::new();
    world.output(&["node", "start", "--count", "2"]).good();
    let (child, output) = start(&world, &["--place", "spread", "--", "sh", "-c", LONG]);
    kill(child.id().try_into().unwrap());
    assert_eq!(ended(child, output).code, 137);
    eventually("the container is gone", || {
        world.output(&["dc", "ls", "--json"]).json() == serde_json::json!([])
    });
    // The nodes go on.
    world.run(&["--", "true"]).good();
    world.output(&["node", "stop", "--all"]).good();
    world.nothing_left();
}

#[test]
fn the_daemon_is_killed() {
    needs_containers!();
    let world = World::new();
    let (child, output) = start(&world, &["--", "sh", "-c", LOADED]);
    kill(daemon(&world, "n1"));
    ended(child, output).complains(125, &["node n1", "ended unexpectedly"]);
    world.nothing_left();
}

#[test]
fn the_home_of_three_is_killed() {
    needs_containers!();
    let world = World::new();
    let (child, output) =
        start(&world, &["--nodes", "3", "--place", "spread", "--", "sh", "-c", LOADED]);
    kill(daemon(&world, "n1"));
    ended(child, output).complains(125, &["node n1", "ended unexpectedly"]);
    world.nothing_left();
}

#[test]
fn another_node_is_killed() {
    needs_containers!();
    let world = World::new();
    // With two nodes everything that is placed goes to n2.
    let script = "echo up; sleep 1000; echo $?; /bin/echo goes on; exit 3";
    let (child, mut output) =
        start(&world, &["--nodes", "2", "--place", "spread", "--", "sh", "-c", script]);
    eventually("the program runs on n2", || {
        let list = world.output(&["ps", "--json"]).json();
        let is = |process: &serde_json::Value| {
            process["command"] == "sleep 1000" && process["node"] == "n2"
        };
        list.as_array().unwrap().iter().any(is)
    });
    kill(daemon(&world, "n2"));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut output, &mut text).unwrap();
    // The shell may say "Killed".
    assert!(text.contains("137\ngoes on\n"), "{text}");
    let ran = ended(child, output);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("node n2 was lost"), "{ran:?}");
    world.nothing_left();
}

#[test]
fn interrupted_while_it_starts() {
    needs_containers!();
    let world = World::new();
    for delay in [0, 1, 3, 6, 10, 20, 40] {
        let mut command = world.dvs(&["run", "--nodes", "2", "--", "sleep", "1000"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        process::kill(child.id().try_into().unwrap(), libc::SIGINT).unwrap();
        assert_eq!(wait(child).code, 130, "after {delay} ms");
        world.nothing_left();
    }
}

#[test]
fn killed_while_it_starts() {
    needs_containers!();
    let world = World::new();
    for delay in [0, 1, 3, 6, 10, 20, 40] {
        let mut command = world.dvs(&["run", "--nodes", "2", "--", "sleep", "1000"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        kill(child.id().try_into().unwrap());
        assert_eq!(wait(child).code, 137, "after {delay} ms");
        // What was killed before its daemons took over the session leaves its folder, which the next
        // command removes.
        eventually("no process is left", || world.left_running().is_empty());
        world.output(&["node", "ls"]).good();
        world.nothing_left();
    }
}

#[test]
fn stopping_a_node_by_force_ends_its_containers() {
    needs_containers!();
    let world = World::new();
    world.output(&["node", "start"]).good();
    let (child, output) = start(&world, &["--", "sh", "-c", LONG]);
    assert_eq!(world.output(&["node", "stop", "--force", "n1"]).good(), "n1\n");
    let ran = ended(child, output);
    assert!([125, 137].contains(&ran.code), "{ran:?}");
    world.nothing_left();
}

#[test]
fn a_daemon_that_is_told_to_end_does() {
    needs_containers!();
    let world = World::new();
    world.output(&["node", "start"]).good();
    let (child, output) = start(&world, &["--", "sh", "-c", LONG]);
    process::kill(daemon(&world, "n1"), libc::SIGTERM).unwrap();
    let ran = ended(child, output);
    assert!([125, 137].contains(&ran.code), "{ran:?}");
    world.nothing_left();
}

#[test]
fn a_full_disk_is_the_programs_error() {
    needs_containers!();
    if process::effective_ids().0 != 0 {
        println!("SKIPPED: a small disk needs root to be mounted");
        return;
    }
    let world = World::new();
    // Mounted in a mount namespace of its own, which ends with the command.
    let script = format!(
        "mount -t tmpfs -o size=4m,mode=700 none {state} && exec {dvs} run -- sh -c 'dd if=/dev/zero of=/tmp/big bs=1M count=16; echo status $?; df /tmp | tail -1'",
        state = world.state_folder().display(),
        dvs = env!("CARGO_BIN_EXE_dvs"),
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(world.work());
    command.env("DVS_RUN_DIR", world.run_folder()).env("DVS_STATE_DIR", world.state_folder());
    command.stdin(Stdio::null());
    let ran = world::finish(command);
    assert!(ran.err.contains("No space left on device") && ran.out.contains("status 1"), "{ran:?}");
    world.nothing_left();
}

#[test]
fn no_fuse_is_said() {
    needs_containers!();
    if process::effective_ids().0 != 0 {
        println!("SKIPPED: hiding /dev/fuse needs root");
        return;
    }
    let world = World::new();
    let script = format!(
        "mount --bind /dev/null /dev/fuse && exec {} run -- true",
        env!("CARGO_BIN_EXE_dvs")
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(world.work());
    command.env("DVS_RUN_DIR", world.run_folder()).env("DVS_STATE_DIR", world.state_folder());
    command.stdin(Stdio::null());
    world::finish(command).complains(125, &["/dev/fuse", "modprobe fuse", "dvs doctor"]);
    world.nothing_left();
}

#[test]
fn an_end_is_quick() {
    needs_containers!();
    let world = World::new();
    let start = Instant::now();
    world.run(&["--nodes", "3", "--", "sh", "-c", "sleep 1000 & sleep 1000 & exit 0"]).good();
    // A bound, not a measurement: an end that runs into a time-out takes longer.
    assert!(start.elapsed() < Duration::from_secs(10));
    world.nothing_left();
}

#[test]
fn a_command_that_is_killed_while_its_container_is_made_leaves_nothing() {
    needs_containers!();
    let world = World::new();
    for nodes in ["1", "3"] {
        for pause in [0, 5, 15, 30, 45, 60, 90] {
            let mut command = world.dvs(&["run", "--nodes", nodes, "--", "sleep", "1000"]);
            let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(pause));
            kill(child.id().try_into().unwrap());
            assert_eq!(wait(child).code, 137);
            world.nothing_left();
        }
    }
}

/// The children of a process by their names.
fn children(pid: i32, name: &str) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")));
    let all: Vec<i32> = lists
        .flat_map(|list| {
            let list = list.unwrap_or_default();
            list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
        })
        .collect();
    let named = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    };
    all.into_iter().filter(named).collect()
}

#[test]
fn a_prepared_container_that_is_killed_is_made_anew() {
    needs_containers!();
    let world = World::new();
    world.output(&["node", "start"]).good();
    let daemon = daemon(&world, "n1");
    for _ in 0..3 {
        let prepared = || children(daemon, "dvs-keeper");
        eventually("a container is prepared", || prepared().len() == 1);
        prepared().into_iter().for_each(kill);
        world.run(&["--", "true"]).good();
        world.run(&["--", "true"]).good();
    }
    world.output(&["node", "stop", "--all"]).good();
    world.nothing_left();
}

#[test]
fn a_node_keeps_nothing_of_containers_that_ended() {
    needs_containers!();
    let world = World::new();
    world.output(&["node", "start"]).good();
    let daemon = daemon(&world, "n1");
    let count = |what: &str| std::fs::read_dir(format!("/proc/{daemon}/{what}")).unwrap().count();
    let held = || (count("task"), count("fd"));
    for _ in 0..3 {
        world.run(&["--", "true"]).good();
    }
    let before = held();
    for _ in 0..12 {
        world.run(&["--", "true"]).good();
    }
    // Each of them has more than one thread and a dozen descriptors; the next one may be being prepared.
    eventually("threads and descriptors of ended containers are gone", || {
        let now = held();
        now.0 < before.0 + 6 && now.1 < before.1 + 60
    });
    world.output(&["node", "stop", "--all"]).good();
    world.nothing_left();
}
