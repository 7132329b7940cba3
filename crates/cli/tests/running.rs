//! Programs in containers: statuses, streams, environment, folders, signals, terminals.

mod world;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use world::{World, eventually, finish, wait};

#[test]
fn statuses_are_the_programs_own() {
    needs_containers!();
    let world = World::new();
    assert_eq!(world.run(&["--", "true"]).good(), "");
    assert_eq!(world.run(&["--", "sh", "-c", "exit 42"]).code, 42);
    assert_eq!(world.run(&["--", "sh", "-c", "kill -TERM $$"]).code, 143);
    assert_eq!(world.run(&["--", "sh", "-c", "kill -KILL $$"]).code, 137);
    world.run(&["--", "no-such-program"]).complains(127, &["no-such-program: command not found"]);
    world.run(&["--", "./nothing"]).complains(127, &["./nothing: No such file or directory"]);
    fs::write(world.work().join("plain"), "no program").unwrap();
    world.run(&["--", "./plain"]).complains(126, &["./plain: Permission denied"]);
    fs::set_permissions(world.work().join("plain"), fs::Permissions::from_mode(0o755)).unwrap();
    world.run(&["--", "./plain"]).complains(126, &["./plain: Exec format error", "#!/bin/sh"]);
    world.run(&["--", "/usr"]).complains(126, &["/usr: Permission denied"]);
    world.run(&["-w", "/no/such", "--", "true"]).complains(125, &["/no/such", "-w"]);
    world.nothing_left();
}

#[test]
fn streams_are_connected_as_they_are() {
    needs_containers!();
    let world = World::new();
    let mut command = world.dvs(&["run", "--", "sh", "-c", "wc -c; echo problem >&2"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&vec![b'x'; 300_000]).unwrap();
    let ran = wait(child);
    assert_eq!((ran.out.trim(), ran.err.as_str(), ran.code), ("300000", "problem\n", 0));

    let path = world.work().join("out");
    let mut command = world.dvs(&["run", "--", "sh", "-c", "echo one; echo two"]);
    command.stdout(fs::File::create(&path).unwrap());
    assert_eq!(command.status().unwrap().code(), Some(0));
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");

    // Whatever it opens anew must be its own.
    let ran = world.run(&["--", "sh", "-c", "echo again > /dev/stdout; echo err > /dev/stderr"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "again\n", "err\n"));
    world.nothing_left();
}

#[test]
fn a_closed_reader_ends_the_writer() {
    needs_containers!();
    let world = World::new();
    let script = format!("{} run -- yes | head -n 1", env!("CARGO_BIN_EXE_dvs"));
    let mut command = world.dvs(&[]);
    command = {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).current_dir(world.work()).stdin(Stdio::null());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell
    };
    assert_eq!(finish(command).out, "y\n");
    world.nothing_left();
}

#[test]
fn the_working_directory_is_shared() {
    needs_containers!();
    let world = World::new();
    fs::write(world.work().join("in"), "text").unwrap();
    let here = world.work().display().to_string();
    let ran = world.run(&["--", "sh", "-c", "pwd; cat in; echo made > out; mkdir d"]);
    assert_eq!(ran.good(), format!("{here}\ntext"));
    assert_eq!(fs::read_to_string(world.work().join("out")).unwrap(), "made\n");
    assert!(world.work().join("d").is_dir());

    let ran = world.run(&["--isolated", "--", "sh", "-c", "echo changed > in; rm out; cat in; ls"]);
    assert_eq!(ran.good(), "changed\nd\nin\n");
    assert_eq!(fs::read_to_string(world.work().join("in")).unwrap(), "text");
    assert!(world.work().join("out").exists());

    let shared = format!("{here}/d:/data");
    world.run(&["-v", &shared, "--", "sh", "-c", "echo x > /data/x"]).good();
    assert!(world.work().join("d/x").exists());
    let read_only = format!("{here}/d:/data:ro");
    let ran = world.run(&["-v", &read_only, "--", "sh", "-c", "cat /data/x; echo y > /data/y"]);
    assert!(ran.out == "x\n" && ran.code != 0 && !world.work().join("d/y").exists(), "{ran:?}");
    world.nothing_left();
}

#[test]
fn private_places_are_hidden() {
    needs_containers!();
    let world = World::new();
    let ran =
        world.run(&["--", "sh", "-c", "ls -A /home /root /mnt /run | grep -v :; cat /etc/shadow"]);
    assert!(ran.code != 0, "{ran:?}");
    assert!(!ran.out.contains("root:"), "{ran:?}");
    world.run(&["--", "sh", "-c", "echo x > /usr/x && echo x > /tmp/x && test -f /usr/x"]).good();
    assert!(!std::path::Path::new("/usr/x").exists() && !std::path::Path::new("/tmp/x").exists());
    world.nothing_left();
}

#[test]
fn another_image() {
    needs_containers!();
    let world = World::new();
    let image = world.work().join("image");
    for folder in ["etc", "bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(image.join(folder)).unwrap();
    }
    fs::write(image.join("etc/passwd"), "root:x:0:0::/nowhere:/bin/sh\nother:x:7:8::/o:/bin/sh\n")
        .unwrap();
    let image = image.to_str().unwrap();
    world.run(&["--image", image, "--", "sh"]).complains(127, &["sh: command not found"]);
    let ran = world.run(&["--image", image, "-u", "strange", "--", "x"]);
    ran.complains(125, &["strange", "/etc/passwd"]);
    world.nothing_left();
}

#[test]
fn environment_and_user() {
    needs_containers!();
    let world = World::new();
    let mut command = world.dvs(&["run", "-e", "A=1", "-e", "GITHUB_TOKEN", "--", "env"]);
    command.env("CC", "my-cc").env("GITHUB_TOKEN", "t").env("OTHER_TOKEN", "hidden");
    let ran = finish(command);
    for line in ["A=1", "CC=my-cc", "GITHUB_TOKEN=t", "HOME=/root"] {
        assert!(ran.good().lines().any(|seen| seen == line), "{line} in {ran:?}");
    }
    assert!(!ran.out.contains("hidden") && !ran.out.contains("DVS_"), "{ran:?}");
    let mut command = world.dvs(&["run", "--", "sh", "-c", "umask; ulimit -n"]);
    command.stdin(Stdio::null());
    let ran = finish(command);
    assert!(ran.good().starts_with('0'), "{ran:?}");
    if dvs_sys::process::effective_ids().0 == 0 {
        let ran = world.run(&["-u", "1234:56", "--", "sh", "-c", "id -u; id -g; touch mine"]);
        // The folder belongs to root, so this user may not write there.
        assert!(ran.out.starts_with("1234\n56\n") && ran.code != 0, "{ran:?}");
        fs::set_permissions(world.work(), fs::Permissions::from_mode(0o777)).unwrap();
        world.run(&["-u", "1234:56", "--", "touch", "mine"]).good();
        use std::os::unix::fs::MetadataExt;
        let owner = fs::metadata(world.work().join("mine")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (1234, 56));
    }
    world.nothing_left();
}

#[test]
fn host_name_and_network() {
    needs_containers!();
    let world = World::new();
    assert_eq!(world.run(&["--hostname", "box", "--", "hostname"]).good(), "box\n");
    assert_eq!(world.run(&["--name", "web", "--", "hostname"]).good(), "web\n");
    let devices = |words: &[&str]| {
        let mut all = words.to_vec();
        all.extend(["--", "cat", "/proc/net/dev"]);
        world.run(&all).good().lines().count()
    };
    assert_eq!(devices(&[]), 3, "two lines of header and a loopback");
    let host = fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    assert_eq!(devices(&["--network", "host"]), host);
    world.nothing_left();
}

#[test]
fn signals_reach_the_program() {
    needs_containers!();
    let world = World::new();
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        let mut command = world.dvs(&["run", "--", "sh", "-c", "echo up; exec sleep 100"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        first_line(&mut child);
        dvs_sys::process::kill(child.id().try_into().unwrap(), signal).unwrap();
        assert_eq!(wait(child).code, code);
    }
    let script = "trap 'echo got; exit 7' USR1; echo up; while :; do sleep 0.01; done";
    let mut command = world.dvs(&["run", "--", "sh", "-c", script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut rest = first_line(&mut child);
    dvs_sys::process::kill(child.id().try_into().unwrap(), libc::SIGUSR1).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut rest, &mut text).unwrap();
    assert_eq!((wait(child).code, text.as_str()), (7, "got\n"));
    world.nothing_left();
}

/// Waits for the program's first line; the rest of its output.
fn first_line(child: &mut std::process::Child) -> std::process::ChildStdout {
    let mut output = child.stdout.take().unwrap();
    let mut byte = [0];
    loop {
        std::io::Read::read_exact(&mut output, &mut byte).unwrap();
        if byte[0] == b'\n' {
            return output;
        }
    }
}

#[test]
fn a_stubborn_program_is_ended_by_a_second_interrupt() {
    needs_containers!();
    let world = World::new();
    let script = "trap '' INT; echo up; while :; do sleep 1; done";
    let mut command = world.dvs(&["run", "--", "sh", "-c", script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = first_line(&mut child);
    let pid = child.id().try_into().unwrap();
    // Signals of one number that wait are one signal: the second is sent until it counts.
    eventually("it ended", || {
        let _ = dvs_sys::process::kill(pid, libc::SIGINT);
        child.try_wait().unwrap().is_some()
    });
    drop(output);
    assert_eq!(wait(child).code, 137);
    world.nothing_left();
}

#[test]
fn exec_ps_and_rm() {
    needs_containers!();
    let world = World::new();
    let mut command = world.dvs(&[
        "run",
        "--name",
        "web",
        "-e",
        "GREETING=hi",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = first_line(&mut child);
    world.run(&["--nodes", "1", "--name", "other", "--", "true"]).good();

    let ran = world.output(&["exec", "web", "--", "sh", "-c", "echo $GREETING; exit 5"]);
    assert_eq!((ran.code, ran.out.as_str()), (5, "hi\n"), "{ran:?}");
    world.output(&["exec", "web", "--", "missing"]).complains(127, &["missing: command not found"]);
    let list = world.output(&["dc", "ls", "--json"]).json();
    assert_eq!(list[0]["container"], "web");
    assert!(world.output(&["dc", "ls"]).good().contains("web"));
    let list = world.output(&["ps", "web", "--why", "--json"]).json();
    assert_eq!(list[0]["command"], "sleep 1000");
    assert!(list[0]["why"].as_str().unwrap().len() > 3);
    assert!(world.output(&["ps", "web"]).good().contains("sleep 1000"));
    assert_eq!(world.output(&["dc", "rm", "web"]).good(), "web\n");
    drop(output);
    assert_eq!(wait(child).code, 137);
    world.nothing_left();
}

#[test]
fn names_are_unique_on_a_cluster() {
    needs_containers!();
    let world = World::new();
    world.output(&["node", "start"]).good();
    let mut command =
        world.dvs(&["run", "--name", "web", "--", "sh", "-c", "echo up; exec sleep 1000"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = first_line(&mut child);
    world.run(&["--name", "web", "--", "true"]).complains(125, &["web", "dvs dc rm web"]);
    world.run(&["--nodes", "2", "--", "true"]).complains(125, &["2 nodes", "dvs node start"]);
    world.output(&["node", "stop", "n1"]).complains(125, &["web", "--force"]);
    assert_eq!(world.output(&["dc", "rm", "web", "--json"]).json()["removed"][0], "web");
    drop(output);
    assert_eq!(wait(child).code, 137);
    world.output(&["node", "stop", "--all"]).good();
    world.nothing_left();
}

#[test]
fn statistics_are_printed() {
    needs_containers!();
    let world = World::new();
    let ran = world.run(&["--stats=json", "--", "sh", "-c", "/bin/true; /bin/true"]);
    let value: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert!(value["nodes"][0]["stayed"].as_u64().unwrap() >= 3, "{value}");
    assert!(value["wall_seconds"].as_f64().unwrap() > 0.0);
    let ran = world.run(&["--stats", "--", "true"]);
    assert!(ran.err.contains("n1:"), "{ran:?}");
    world.nothing_left();
}

#[test]
fn several_at_once() {
    needs_containers!();
    let world = World::new();
    let children: Vec<_> = (0..6)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            let mut command = world.dvs(&["run", "--", "sh", "-c", &script]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let ran = wait(child);
        assert_eq!((ran.code, ran.out), (number as i32, format!("{number}\n")), "{}", ran.err);
    }
    world.nothing_left();
}

#[test]
fn a_terminal_of_its_own() {
    needs_containers!();
    let world = World::new();
    // Without -i it is only shown.
    let ran = world.run(&["-t", "--", "sh", "-c", "test -t 0 && test -t 1 && stty size && tty"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "24 80\r\n/dev/pts/0\r\n");
    world.run(&["-it", "--", "true"]).complains(125, &["-i with -t", "terminal"]);
    world.nothing_left();
}

#[test]
fn clocks_are_the_same_on_every_node() {
    needs_containers!();
    let world = World::new();
    // Each pass of the loop runs on another node; their daemons' clocks differ by hours.
    let script = "for turn in 1 2 3 4; do cut -d. -f1 /proc/uptime; done";
    let ran = world.run(&[
        "--nodes",
        "3",
        "--place",
        "spread",
        "--clock-offset",
        "0,7200,36000",
        "--stats=json",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let seconds: Vec<i64> = ran.out.lines().map(|line| line.parse().unwrap()).collect();
    let (least, most) = (seconds.iter().min().unwrap(), seconds.iter().max().unwrap());
    assert!(seconds.len() == 4 && most - least < 600, "{ran:?}");
    let statistics: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert!(statistics["placed"].as_u64().unwrap() >= 4, "{statistics}");
    world.nothing_left();
}

#[test]
fn an_interactive_terminal() {
    needs_containers!();
    use dvs_sys::terminal;
    use std::os::fd::AsFd;
    let world = World::new();
    let (ours, theirs) = terminal::open_pair(std::path::Path::new(terminal::PTMX)).unwrap();
    let size = terminal::WindowSize { rows: 31, columns: 97, width: 0, height: 0 };
    terminal::set_window_size(ours.as_fd(), size).unwrap();
    let before = terminal::attributes(theirs.as_fd()).unwrap();
    let mut command = world.dvs(&["run", "-it", "--", "sh"]);
    let copy = || Stdio::from(theirs.try_clone().unwrap());
    let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
    drop(command);
    let mut terminal = fs::File::from(ours.try_clone().unwrap());
    let mut source = terminal.try_clone().unwrap();
    let mut seen = String::new();
    let mut read_until = |text: &str| {
        let start = std::time::Instant::now();
        let mut buffer = [0; 4096];
        while !seen.contains(text) {
            assert!(start.elapsed() < world::LIMIT, "{seen}");
            assert!(
                dvs_sys::descriptor::wait_readable(ours.as_fd(), Some(60_000)).unwrap(),
                "{seen}"
            );
            let got = std::io::Read::read(&mut source, &mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..got]));
        }
        seen.clear();
    };
    read_until("# ");
    terminal.write_all(b"stty size\n").unwrap();
    read_until("31 97");
    // A larger window is seen inside.
    let size = terminal::WindowSize { rows: 40, columns: 100, width: 0, height: 0 };
    terminal::set_window_size(ours.as_fd(), size).unwrap();
    dvs_sys::process::kill(child.id().try_into().unwrap(), libc::SIGWINCH).unwrap();
    terminal.write_all(b"sleep 1000 ; stty size\n").unwrap();
    // ^C goes to the program in the foreground, not to the command.
    read_until("stty size");
    terminal.write_all(b"\x03").unwrap();
    terminal.write_all(b"stty size\n").unwrap();
    read_until("40 100");
    terminal.write_all(b"exit 7\n").unwrap();
    eventually("the command ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert_eq!(terminal::attributes(theirs.as_fd()).unwrap(), before, "put back");
    world.nothing_left();
}

#[test]
fn an_ordinary_user() {
    needs_containers!();
    if dvs_sys::process::effective_ids().0 != 0 {
        println!("SKIPPED: every other test runs as an ordinary user here already");
        return;
    }
    let world = World::new();
    let folder = world.work().parent().unwrap().to_owned();
    for path in [folder.clone(), world.work(), world.state_folder()] {
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    }
    let binary = folder.join("dvs");
    fs::copy(env!("CARGO_BIN_EXE_dvs"), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    // Where /dev/fuse is root's alone, this user gets one that is not, in a mount namespace that
    // ends with the command.
    let run = |words: &str| {
        let script = format!(
            "mount -t tmpfs -o mode=755,dev none /mnt && mknod -m 666 /mnt/fuse c 10 229 &&
             mount --bind /mnt/fuse /dev/fuse && cd {work} &&
             exec setpriv --reuid 1234 --regid 1234 --clear-groups sh -c '{dvs} {words} </dev/null 2>err | cat; cat err >&2'",
            work = world.work().display(),
            dvs = binary.display(),
        );
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).stdin(Stdio::null());
        command.env("DVS_RUN_DIR", world.run_folder()).env("DVS_STATE_DIR", world.state_folder());
        finish(command)
    };
    assert_eq!(run("run -- sh -c \"id -u; echo x > made; id -u\"").good(), "0\n0\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(world.work().join("made")).unwrap().uid(), 1234);
    let ran =
        run("run --nodes 2 --place spread --stats=json -- sh -c \"/bin/echo one; /bin/echo two\"");
    assert_eq!(ran.out, "one\ntwo\n", "{ran:?}");
    let statistics: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(statistics["placed"], 2, "{statistics}");
    assert!(run("run -u 5 -- true").err.contains("one user"));
    world.nothing_left();
}
