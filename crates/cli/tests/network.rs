//! `--network dc`: one localhost over several nodes, separate from everybody else's.

mod world;

use std::fs;
use std::net::TcpListener;
use std::process::Stdio;
use world::{World, eventually, wait};

/// A server that tells its port in a file and answers every connection with a word.
const SERVER: &str = r"
import os, socket, sys
s = socket.create_server(('127.0.0.1', int(sys.argv[1])))
open('port.new', 'w').write(str(s.getsockname()[1])); os.rename('port.new', 'port')
while True:
    c, _ = s.accept(); c.sendall(sys.argv[2].encode()); c.close()
";

/// Asks it; prints what it says.
const CLIENT: &str = r"
import socket, sys
try: print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20).recv(100).decode())
except OSError as e: print(e.strerror)
";

macro_rules! needs_python {
    () => {
        needs_containers!();
        if !std::path::Path::new("/usr/bin/python3").exists() {
            println!("SKIPPED: needs python3");
            return;
        }
    };
}

fn scripts(world: &World) {
    fs::write(world.work().join("server.py"), SERVER).unwrap();
    fs::write(world.work().join("client.py"), CLIENT).unwrap();
}

const SPREAD: [&str; 6] = ["--nodes", "3", "--place", "spread", "--network", "dc"];

#[test]
fn the_example_of_the_issue_works() {
    needs_python!();
    let world = World::new();
    scripts(&world);
    let script = "python3 server.py 8000 hello & until [ -e port ]; do sleep 0.02; done\n\
                  for i in 1 2 3; do python3 client.py 8000; done; kill %1; wait";
    let ran = world.run(&[&SPREAD[..], &["--", "bash", "-c", script]].concat());
    assert_eq!((ran.code, ran.out.as_str()), (0, "hello\nhello\nhello\n"), "{ran:?}");
    world.nothing_left();
}

#[test]
fn two_containers_do_not_see_each_other_nor_the_host() {
    needs_python!();
    let world = World::new();
    scripts(&world);
    let script = "python3 server.py 8000 $1 & until [ -e port ]; do sleep 0.02; done\n\
                  mv port ready-$1; until [ -e go-$1 ]; do sleep 0.02; done\n\
                  python3 client.py 8000; python3 client.py $2; kill %1; wait";
    // Something of the host's own that they must not reach.
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port().to_string();
    let start = |name: &str| {
        let words = [&["run"][..], &SPREAD, &["--", "bash", "-c", script, "x", name, &port]];
        let mut command = world.dvs(&words.concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        eventually("the server is there", || world.work().join(format!("ready-{name}")).exists());
        child
    };
    let children = [("one", start("one")), ("two", start("two"))];
    for (name, _) in &children {
        fs::write(world.work().join(format!("go-{name}")), "").unwrap();
    }
    for (name, child) in children {
        let ran = wait(child);
        assert_eq!((ran.code, ran.out), (0, format!("{name}\nConnection refused\n")));
    }
    world.nothing_left();
}

#[test]
fn a_connection_to_a_node_that_dies_ends() {
    needs_python!();
    let world = World::new();
    world.output(&["node", "start", "--count", "3"]).good();
    let server = "import os, socket, time\n\
                  s = socket.create_server(('127.0.0.1', 8000)); open('port', 'w').close()\n\
                  c, _ = s.accept(); time.sleep(1000)";
    let client = "import os, socket\n\
                  s = socket.create_connection(('127.0.0.1', 8000)); open('connected', 'w').close()\n\
                  try: print('data', s.recv(1))\n\
                  except OSError as e: print('ended')\n\
                  try: socket.create_connection(('127.0.0.1', 8000), 20)\n\
                  except ConnectionRefusedError: print('refused')";
    fs::write(world.work().join("server.py"), server).unwrap();
    fs::write(world.work().join("client.py"), client).unwrap();
    // The shell waits without starting programs, so that the next one goes to the next node.
    let script = "python3 server.py & until [ -e port ]; do :; done; python3 client.py & wait";
    let words = [&["run", "--name", "dc"][..], &SPREAD, &["--", "bash", "-c", script]].concat();
    let mut command = world.dvs(&words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    eventually("they are connected", || world.work().join("connected").exists());
    let listed = world.output(&["ps", "dc", "--json"]).json();
    let text = listed.to_string();
    let node_of = |program: &str| {
        let list = listed.as_array().cloned().unwrap_or_default();
        let runs = |entry: &serde_json::Value| {
            let has =
                |key: &str, word: &str| entry[key].as_str().is_some_and(|text| text.contains(word));
            has("command", program) && has("why", "placed by")
        };
        let found = list.iter().find(|entry| runs(entry));
        found.and_then(|entry| entry["node"].as_str()).map(str::to_owned)
    };
    let (of_server, of_client) = (node_of("server.py"), node_of("client.py"));
    assert!(of_server.is_some() && of_client.is_some() && of_server != of_client, "{text}");
    world.output(&["node", "stop", "--force", &of_server.unwrap()]).good();
    let ran = wait(child);
    assert_eq!((ran.code, ran.out.as_str()), (0, "ended\nrefused\n"), "{ran:?}");
    world.output(&["node", "stop", "--all", "--force"]);
    world.nothing_left();
}

#[test]
fn what_cannot_be_reached_is_said() {
    needs_python!();
    let world = World::new();
    // IPv6's localhost alone.
    let server = "import socket, time\n\
                  s = socket.socket(socket.AF_INET6); s.bind(('::1', 8000)); s.listen()\n\
                  open('port', 'w').close(); time.sleep(1000)";
    let client = "import socket; socket.create_connection(('::1', 8000), 20)";
    fs::write(world.work().join("server.py"), server).unwrap();
    fs::write(world.work().join("client.py"), client).unwrap();
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        println!("SKIPPED: no IPv6 here");
        return;
    }
    let script = "python3 server.py & until [ -e port ]; do sleep 0.02; done\n\
                  python3 client.py; echo $?; kill -9 %1; wait";
    let ran = world.run(&[&SPREAD[..], &["--", "bash", "-c", script]].concat());
    assert_eq!(ran.out, "137\n", "{ran:?}");
    let line = ran.err.lines().find(|line| line.starts_with("dvs: ")).unwrap_or_default();
    assert!(line.contains("[::1]:8000 is on node") && line.contains("0.0.0.0"), "{ran:?}");
    world.nothing_left();
}
