//! The example, as its own text says to run it.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// `cargo test` builds the examples next to the tests; with `--test example` they must be there.
fn counter() -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/counter");
    assert!(path.exists(), "{} is missing; cargo build --examples makes it", path.display());
    Command::new(path)
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_clients_on_two_nodes_share_a_counter() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut server = counter()
        .arg("server")
        .arg(&socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _server = Ended(server);
    assert_eq!(line, "ready\n");
    let clients: Vec<Ended> = ["2", "3"]
        .map(|node| {
            let mut client = counter();
            client.args(["client", node]).arg(&socket).arg("500").stdout(Stdio::piped());
            Ended(client.spawn().unwrap())
        })
        .into();
    let mut last = 0;
    for mut client in clients {
        let mut output = String::new();
        client.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(client.0.wait().unwrap().success());
        let seen: u64 = output.trim().parse().unwrap();
        assert!((500..=1000).contains(&seen), "{seen}");
        last = last.max(seen);
    }
    assert_eq!(last, 1000);
}
