//! Copies into and out of containers, containers from a file, other machines, manual pages.

mod world;

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use world::{World, finish};

/// A shell command in this world's folder and environment, with `dvs` as `$DVS`.
fn shell(world: &World, script: &str) -> world::Ran {
    let template = world.dvs(&[]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).current_dir(world.work()).stdin(Stdio::null());
    shell.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.env("DVS", env!("CARGO_BIN_EXE_dvs"));
    finish(shell)
}

#[test]
fn files_are_copied_both_ways() {
    needs_containers!();
    let world = World::new();
    world.output(&["node", "start"]).good();
    let run = ["run", "-d", "--name", "box", "--", "sleep", "1000"];
    assert_eq!(world.output(&run).good(), "box\n");
    let work = world.work();
    fs::create_dir_all(work.join("src/deep")).unwrap();
    fs::write(work.join("src/deep/file"), "text").unwrap();
    std::os::unix::fs::symlink("deep/file", work.join("src/link")).unwrap();
    let inside = |words: &[&str]| {
        let mut all = vec!["exec", "box", "--"];
        all.extend(words);
        world.output(&all)
    };
    let good = |words: &[&str]| assert_eq!(world.output(words).good(), "", "{words:?}");
    // A folder that is not there takes the name; one that is there takes it in.
    good(&["cp", "src", "box:/srv/new"]);
    assert_eq!(inside(&["cat", "/srv/new/link"]).good(), "text");
    good(&["cp", "src", "box:/srv"]);
    assert_eq!(inside(&["cat", "/srv/src/deep/file"]).good(), "text");
    good(&["cp", "src/.", "box:/srv"]);
    assert_eq!(inside(&["cat", "/srv/deep/file"]).good(), "text");
    good(&["cp", "src/deep/file", "box:/srv/renamed"]);
    assert_eq!(inside(&["cat", "/srv/renamed"]).good(), "text");
    inside(&["sh", "-c", "echo more > /srv/src/deep/file; chmod 4755 /srv/src/deep/file"]).good();
    good(&["cp", "box:/srv/src", "out"]);
    assert_eq!(fs::read_to_string(work.join("out/link")).unwrap(), "more\n");
    let mode = fs::metadata(work.join("out/deep/file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "no set-user-id bit comes out");
    good(&["cp", "box:/srv/renamed", "."]);
    assert_eq!(fs::read_to_string(work.join("renamed")).unwrap(), "text");
    let piped = shell(&world, "$DVS cp box:/srv/src - | tar tf - | sort | head -1");
    assert_eq!(piped.good(), "src/\n");
    let piped = shell(&world, "tar cf - src | $DVS cp - box:/mnt");
    assert_eq!((piped.code, inside(&["cat", "/mnt/src/link"]).good()), (0, "text"));
    let complains = |words: &[&str], told: &[&str]| world.output(words).complains(125, told);
    complains(&["cp", "box:/no/such", "."], &["box:/no/such", "No such file"]);
    complains(&["cp", "no-such", "box:/srv"], &["no-such"]);
    complains(&["cp", "src", "box:/no/such/place"], &["/no/such/place", "make it first"]);
    complains(&["cp", "src", "box:/srv/renamed"], &["/srv/renamed", "is a file"]);
    complains(&["cp", "box:/srv/src", "src/deep/file"], &["is a file"]);
    complains(&["cp", "a", "b"], &["DC:PATH"]);
    complains(&["cp", "box:/a", "box:/b"], &["this machine"]);
    complains(&["cp", "nobody:/a", "."], &["nobody"]);
    complains(&["cp", "box:../x", "."], &["'..'"]);
    world.output(&["rm", "-f", "box"]).good();
    world.output(&["node", "stop", "--all"]).good();
    world.nothing_left();
}

const FILE: &str = "
nodes: 1
services:
  web:
    command: sh -c 'echo $$GREETING; exec sleep 1000'
    environment: {GREETING: hello}
    depends_on: [db]
  db:
    command: [sleep, '1000']
    restart: unless-stopped
";

#[test]
fn a_file_is_made_true() {
    needs_containers!();
    let world = World::new();
    let path = world.work().join("dvs.yaml");
    fs::write(&path, FILE).unwrap();
    let before = world.output(&["diff"]);
    assert_eq!(
        (before.code, before.out.as_str()),
        (1, "create work-db\ncreate work-web\n"),
        "{before:?}"
    );
    let up = world.output(&["up"]);
    assert_eq!((up.code, up.out.as_str()), (0, "create work-db\ncreate work-web\n"), "{up:?}");
    assert_eq!(world.output(&["diff"]).good(), "");
    assert_eq!(world.output(&["up"]).good(), "keep work-db\nkeep work-web\n");
    world::eventually("it greets", || world.output(&["logs", "work-web"]).out == "hello\n");
    let labels = world.output(&["inspect", "work-web"]).json()[0]["labels"].clone();
    assert_eq!(labels["dvs.project"], "work");
    world.output(&["stop", "work-db"]).good();
    assert_eq!(world.output(&["up"]).good(), "start work-db\nkeep work-web\n");
    fs::write(&path, FILE.replace("hello", "changed")).unwrap();
    assert_eq!(world.output(&["up"]).good(), "keep work-db\nreplace work-web\n");
    world::eventually("it changed", || world.output(&["logs", "work-web"]).out == "changed\n");
    let fewer = FILE.split("  db:").next().unwrap().replace("depends_on: [db]", "");
    fs::write(&path, fewer).unwrap();
    let orphan = world.output(&["up"]);
    assert!(orphan.code == 0 && orphan.err.contains("--remove-orphans"), "{orphan:?}");
    let steps = world.output(&["up", "--remove-orphans", "--json"]).json();
    assert!(steps.as_array().unwrap().contains(&json!({"container": "work-db", "step": "remove"})));
    assert_eq!(world.output(&["down"]).good(), "remove work-web\n");
    assert_eq!(world.output(&["ls", "-aq"]).good(), "");
    assert_eq!(world.output(&["down"]).good(), "");
    world.output(&["node", "stop", "--all"]).good();
    world.nothing_left();
}

#[test]
fn mistakes_in_a_file_are_found_before_anything_is_done() {
    let world = World::new();
    world.output(&["up"]).complains(125, &["dvs.yaml", "-f"]);
    world.output(&["up", "-f", "nothing.yaml"]).complains(125, &["nothing.yaml"]);
    let wrong = |text: &str, told: &[&str]| {
        fs::write(world.work().join("dvs.yaml"), text).unwrap();
        for command in ["up", "diff"] {
            world.output(&[command]).complains(125, told);
        }
    };
    wrong("services: [", &["dvs.yaml", "line"]);
    wrong("services: {web: {command: x, frob: 1}}", &["services.web", "'frob'"]);
    wrong("services: {web: {command: x, cpus: many}}", &["services.web", "--cpus many"]);
    wrong("services: {web: {command: x, image: nginx}}", &["services.web.image", "registries"]);
    world.nothing_left();
}

#[test]
fn another_machine_is_reached_through_ssh() {
    let world = World::new();
    // A stand-in that shows what it was given and runs the line as the far shell would.
    let script =
        "#!/bin/sh\necho \"$1 $2 $3\" >&2\nfor word; do last=$word; done\nexec sh -c \"$last\"\n";
    let ssh = world.work().join("ssh");
    fs::write(&ssh, script).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", world.work().display(), std::env::var("PATH").unwrap());
    let far = format!("ssh://me@box{}", env!("CARGO_BIN_EXE_dvs"));
    let reach = |words: &[&str], address: Option<&str>| {
        let mut command = world.dvs(words);
        command.env("PATH", &path);
        if let Some(address) = address {
            command.env("DVS_HOST", address);
        }
        finish(command)
    };
    let ran = reach(&["--host", &far, "version", "--json"], None);
    assert_eq!((ran.code, ran.err.as_str()), (0, "-T -- me@box\n"));
    assert!(ran.out.contains("control_protocol"), "{ran:?}");
    assert_eq!(reach(&["version"], Some(&far)).code, 0);
    let ran = reach(&["--host", &far, "ps", "no body"], None);
    assert!(ran.code == 125 && ran.err.contains("no body"), "{ran:?}");
    reach(&["--host", "box", "ps"], None).complains(125, &["--host box", "ssh://"]);
    reach(&["--host", "ssh://-oX", "ps"], None).complains(125, &["--host"]);
    fs::write(&ssh, "#!/bin/sh\nexit 255\n").unwrap();
    reach(&["--host", &far, "ps"], None).complains(125, &["ssh to me@box failed"]);
    world.nothing_left();
}

#[test]
fn the_busiest_are_on_top() {
    needs_containers!();
    use dvs_sys::terminal;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    let world = World::new();
    world.output(&["top"]).complains(125, &["no node runs"]);
    world.output(&["node", "start"]).good();
    world.output(&["run", "-d", "--name", "idle", "--", "sleep", "1000"]).good();
    assert!(world.output(&["top"]).good().contains("idle"));
    assert_eq!(world.output(&["top", "--json"]).json()["nodes"][0]["node"], "n1");
    let (ours, theirs) = terminal::open_pair(std::path::Path::new(terminal::PTMX)).unwrap();
    let before = terminal::attributes(theirs.as_fd()).unwrap();
    let mut command = world.dvs(&["top"]);
    let copy = || Stdio::from(theirs.try_clone().unwrap());
    let child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
    let mut terminal_file = fs::File::from(ours);
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let mut asked = false;
    while !seen.contains("\x1b[?1049l") {
        let ready = dvs_sys::descriptor::wait_readable(terminal_file.as_fd(), Some(60_000));
        assert!(ready.unwrap(), "{seen}");
        let got = terminal_file.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..got]));
        if seen.contains("idle") && !asked {
            asked = true;
            terminal_file.write_all(b"q").unwrap();
        }
    }
    assert_eq!(world::wait(child).code, 0);
    assert_eq!(terminal::attributes(theirs.as_fd()).unwrap(), before, "put back");
    world.output(&["rm", "-f", "idle"]).good();
    world.output(&["node", "stop", "--all"]).good();
    world.nothing_left();
}

#[test]
fn manual_pages_are_written() {
    let world = World::new();
    let page = world.output(&["man"]).good().to_owned();
    assert!(page.contains(".TH dvs") && page.contains("Exit codes"), "{page}");
    let written = world.output(&["man", "pages"]).good().to_owned();
    assert!(written.lines().count() > 30, "{written}");
    let run = fs::read_to_string(world.work().join("pages/dvs-run.1")).unwrap();
    assert!(run.contains("detach") && run.contains("dvs\\-run"), "{run}");
    world.output(&["man", "/proc/pages"]).complains(125, &["/proc/pages"]);
    world.nothing_left();
}
