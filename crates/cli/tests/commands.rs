//! Every command's good, bad and JSON form.

mod world;

use std::fs;
use world::{World, finish};

#[test]
fn help_and_version_and_completion() {
    let world = World::new();
    assert!(world.output(&["--help"]).good().contains("dvs run -- make -j4"));
    assert!(world.output(&["run", "--help"]).good().contains("Examples:"));
    assert!(world.output(&["version"]).good().starts_with("dvs 0."));
    assert!(world.output(&["version", "--json"]).json()["version"].is_string());
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.output(&["completion", shell]).good().contains("doctor"));
    }
    world.output(&["completion", "tcsh"]).complains(125, &["tcsh"]);
    world.nothing_left();
}

#[test]
fn bad_words_are_one_line_and_125() {
    let world = World::new();
    world.output(&["frobnicate"]).complains(125, &["'frobnicate'", "dvs --help"]);
    world.run(&["--nodez", "3", "--", "true"]).complains(125, &["'--nodez'", "dvs run --help"]);
    world.run(&[]).complains(125, &["CMD"]);
    world.run(&["--nodes", "0", "--", "true"]).complains(125, &["--nodes"]);
    world.run(&["--name", "a/b", "--", "true"]).complains(125, &["'a/b'", "letters"]);
    world.run(&["--cpus", "x", "--", "true"]).complains(125, &["--cpus x"]);
    world.run(&["--memory", "1", "--", "true"]).complains(125, &["--memory 1"]);
    world.run(&["-v", "/no/such", "--", "true"]).complains(125, &["-v /no/such", "No such file"]);
    world.run(&["-e", "=x", "--", "true"]).complains(125, &["-e:"]);
    world.run(&["--env-file", "/no/file", "--", "true"]).complains(125, &["/no/file"]);
    world.run(&["--image", "/no/image", "--", "true"]).complains(125, &["--image /no/image"]);
    world.output(&["exec", "nobody", "--", "true"]).complains(125, &["nobody", "dvs dc ls"]);
    world.output(&["dc", "rm", "nobody"]).complains(125, &["nobody", "dvs dc ls"]);
    world.output(&["ps", "nobody"]).complains(125, &["nobody"]);
    world.output(&["node", "stop", "nobody"]).complains(125, &["nobody", "dvs node ls"]);
    world.nothing_left();
}

#[test]
fn the_system_is_not_shared_by_accident() {
    let world = World::new();
    for folder in ["/", "/etc", "/proc"] {
        let mut command = world.dvs(&["run", "--", "true"]);
        command.current_dir(folder);
        finish(command).complains(125, &[folder, "-w", "-v"]);
    }
    world.nothing_left();
}

#[test]
fn folders_are_no_standard_input() {
    let world = World::new();
    let mut command = world.dvs(&["run", "--", "true"]);
    command.stdin(fs::File::open("/").unwrap());
    finish(command).complains(125, &["standard input is a folder"]);
    world.nothing_left();
}

#[test]
fn empty_lists() {
    let world = World::new();
    assert_eq!(world.output(&["node", "ls", "--json"]).json(), serde_json::json!([]));
    assert_eq!(world.output(&["dc", "ls", "--json"]).json(), serde_json::json!([]));
    assert_eq!(world.output(&["ps", "--json"]).json(), serde_json::json!([]));
    assert!(world.output(&["node", "ls"]).good().starts_with("NODE "));
    assert!(world.output(&["dc", "ls"]).good().starts_with("CONTAINER "));
    assert!(world.output(&["ps"]).good().starts_with("CONTAINER "));
    world.nothing_left();
}

#[test]
fn the_doctor_tells() {
    let world = World::new();
    let report = world.output(&["doctor"]);
    let json = world.output(&["doctor", "--json"]);
    assert_eq!(report.code, json.code);
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(value["can_run"], report.code == 0);
    let findings = value["findings"].as_array().unwrap();
    assert!(findings.len() > 10);
    for finding in findings {
        assert!(report.out.contains(finding["sentence"].as_str().unwrap()));
    }
    world.nothing_left();
}

#[test]
fn the_doctor_names_an_open_folder() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    fs::create_dir(world.run_folder()).unwrap();
    fs::set_permissions(world.run_folder(), fs::Permissions::from_mode(0o755)).unwrap();
    world.run(&["--", "true"]).complains(125, &["chmod 700"]);
    let report = world.output(&["doctor"]);
    assert_eq!(report.code, 1);
    assert!(report.out.contains("chmod 700"), "{report:?}");
}

#[test]
fn nodes_start_and_stop() {
    needs_containers!();
    let world = World::new();
    let started = world.output(&["node", "start", "--count", "2", "--json"]).json();
    let names: Vec<&str> =
        started.as_array().unwrap().iter().map(|node| node["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["n1", "n2"]);
    assert_eq!(started[0]["links"], serde_json::json!([2]));
    world.output(&["node", "start", "--name", "n2"]).complains(125, &["n2", "dvs node stop n2"]);
    assert!(world.output(&["node", "start", "--name", "extra"]).good().contains("extra"));
    let listed = world.output(&["node", "ls", "--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    assert_eq!(listed[2]["links"], serde_json::json!([1, 2]));
    assert_eq!(world.output(&["node", "stop", "n2"]).good(), "n2\n");
    let stopped = world.output(&["node", "stop", "--all", "--json"]).json();
    assert_eq!(stopped["stopped"], serde_json::json!(["n1", "extra"]));
    world.nothing_left();
}

#[test]
fn a_dead_daemon_is_forgotten() {
    needs_containers!();
    let world = World::new();
    let started = world.output(&["node", "start", "--json"]).json();
    let pid = i32::try_from(started[0]["pid"].as_i64().unwrap()).unwrap();
    dvs_sys::process::kill(pid, libc::SIGKILL).unwrap();
    world::eventually("the daemon is gone", || world.left_running().is_empty());
    assert_eq!(world.output(&["node", "ls", "--json"]).json(), serde_json::json!([]));
    // A killed daemon's name is free again.
    assert!(world.output(&["node", "start", "--name", "n1"]).good().contains("n1"));
    world.output(&["node", "stop", "--all"]).good();
    world.nothing_left();
}
