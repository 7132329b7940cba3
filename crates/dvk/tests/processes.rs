//! Nodes in processes of their own, some of which are killed.
//!
//! A child is this test binary again, running `child` alone; it ends when its standard input does.

mod common;

use common::{DC, LONG, eventually};
use dvs_dvk::{CallError, DcId, Node, NodeConfig, NodeEvent, NodeId};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// `node incarnation own-socket [peer=socket]...`
const CHILD: &str = "DVK_TEST_CHILD";

#[test]
fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let mut arguments = arguments.split(' ');
    let mut number = || arguments.next().unwrap().parse::<u64>().unwrap();
    let (id, incarnation) = (number() as u16, number());
    let node = Node::new(NodeConfig { incarnation, ..NodeConfig::new(id, common::CLUSTER, 1) });
    node.listen(arguments.next().unwrap()).unwrap();
    for peer in arguments {
        let (peer, path) = peer.split_once('=').unwrap();
        node.connect(peer.parse::<u16>().unwrap(), path, LONG).unwrap();
    }
    let dc = node.dc(DC, 1);
    let echo = dc.bind(&format!("echo{id}")).unwrap();
    let requests = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&requests);
    echo.set_handler(move |mut message| {
        seen.fetch_add(1, Ordering::Relaxed);
        let body = std::mem::take(&mut message.body);
        message.reply(body);
    });
    // A relay: asks the other child and passes its answer on.
    let relay = dc.bind(&format!("relay{id}")).unwrap();
    let client = dc.endpoint().unwrap();
    thread::spawn(move || {
        while let Ok(message) = relay.receive(Duration::from_secs(3600)) {
            let name = String::from_utf8(message.body.clone()).unwrap();
            let answer = dc
                .resolve(&name, Duration::from_secs(1))
                .map_err(|error| error.to_string())
                .and_then(|to| {
                    client.call(&to, b"hello".to_vec(), LONG).map_err(|error| error.to_string())
                })
                .unwrap_or_else(|error| error.into_bytes());
            message.reply(answer);
        }
    });
    println!("ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

struct Process {
    child: Child,
}

impl Process {
    fn start(arguments: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The harness prints the test's name before it, on the same line.
                if line.ends_with("ready") {
                    let _ = sender.send(());
                }
            }
        });
        receiver.recv_timeout(LONG).expect("the child is ready");
        Process { child }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The home node, with the usual, short bound: peers that go are really gone here.
fn home(folder: &Path) -> (Node, String, Receiver<NodeEvent>) {
    let node = Node::new(NodeConfig::new(1, common::CLUSTER, 1));
    let path = folder.join("one");
    node.listen(&path).unwrap();
    let _ = node.dc(DC, 1);
    let (sender, receiver) = channel();
    node.on_peer(move |event| {
        let _ = sender.send(event.clone());
    });
    (node, path.display().to_string(), receiver)
}

fn wait_down(events: &Receiver<NodeEvent>, wanted: u16) {
    loop {
        if let NodeEvent::NodeDown { node, .. } = events.recv_timeout(LONG).unwrap()
            && node == NodeId(wanted)
        {
            return;
        }
    }
}

#[test]
fn a_killed_node_fails_the_calls_in_flight_and_its_next_life_serves() {
    let folder = tempfile::tempdir().unwrap();
    let (node, path, events) = home(folder.path());
    let dc = node.dc(DC, 1);
    for incarnation in 1..=5 {
        let two = folder.path().join("two");
        let arguments = format!("2 {incarnation} {} 1={path}", two.display());
        let mut child = Process::start(&arguments);
        let to = dc.resolve("echo2", LONG).unwrap();
        assert_eq!(to.incarnation, incarnation);
        let answered = AtomicU64::new(0);
        thread::scope(|scope| {
            let callers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let client = dc.endpoint().unwrap();
                        loop {
                            match client.call(&to, vec![1; 100], LONG) {
                                Ok(_) => answered.fetch_add(1, Ordering::Relaxed),
                                Err(error) => return error,
                            };
                        }
                    })
                })
                .collect();
            eventually("calls are answered", || answered.load(Ordering::Relaxed) > 200);
            child.kill();
            for caller in callers {
                let error = caller.join().unwrap();
                assert!(
                    matches!(error, CallError::NodeGone { .. } | CallError::NotConnected { .. }),
                    "{error}"
                );
            }
        });
        wait_down(&events, 2);
        eventually("its names are gone", || dc.resolve("echo2", Duration::ZERO).is_err());
    }
}

#[test]
fn three_processes_find_each_other_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (node, one, events) = home(folder.path());
    let two = folder.path().join("two").display().to_string();
    let three = folder.path().join("three").display().to_string();
    let mut second = Process::start(&format!("2 1 {two} 1={one}"));
    let _third = Process::start(&format!("3 1 {three} 1={one} 2={two}"));
    let dc = node.dc(DC, 1);
    let client = dc.endpoint().unwrap();
    let relay = dc.resolve("relay3", LONG).unwrap();
    let ask = |name: &str| {
        let answer = client.call(&relay, name.into(), LONG).unwrap();
        String::from_utf8(answer).unwrap()
    };
    assert_eq!(ask("echo2"), "hello");
    assert_eq!(ask("echo3"), "hello");
    // A container of the same number of names, but another one, sees nothing of it.
    let other = node.dc(DcId(77), 1);
    assert!(other.resolve("relay3", Duration::ZERO).is_err());
    second.kill();
    wait_down(&events, 2);
    let answer = ask("echo2");
    assert!(answer.contains("node 2") || answer.contains("no endpoint bound"), "{answer}");
    assert_eq!(ask("echo3"), "hello");
}
