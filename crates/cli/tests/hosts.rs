//! Clusters of hosts (network namespaces): made, joined, used, cut, cleaned up.

mod world;

use std::process::Stdio;
use world::net::{self, Net};
use world::{World, eventually, wait};

/// Skips a test where hosts cannot be made.
macro_rules! needs_hosts {
    () => {
        needs_containers!();
        if let Some(reason) = net::missing() {
            println!("SKIPPED: {reason}");
            return;
        }
    };
}

/// Names of the nodes that a host's node reaches, itself among them.
fn reached(net: &Net, host: u16) -> Vec<String> {
    let list = net.output(host, &["node", "ls", "--json"]).json();
    let nodes = list.as_array().unwrap().iter().filter(|node| node["reached"] == true);
    nodes.map(|node| node["node"].as_str().unwrap().to_owned()).collect()
}

fn all_linked(net: &Net, hosts: &[u16], names: &[&str]) {
    for host in hosts {
        eventually("all are linked", || reached(net, *host) == names);
    }
}

#[test]
fn programs_run_on_other_hosts_and_files_are_at_home() {
    needs_hosts!();
    let world = World::new();
    let net = Net::new(&world, 3);
    net.cluster();
    all_linked(&net, &[1, 2, 3], &["n1", "n2", "n3"]);
    let script = "
        seq 100 >numbers
        sort -rn numbers | head -n 1
        for i in 1 2 3 4 5 6; do ip -o -4 address show dev eth0 >/dev/null 2>&1; cat numbers | wc -l; done | sort -u
        sh -c 'exit 7'; echo $?
        sleep 1000 & kill $!; wait $!; echo $?
        echo done | tee made
        pwd";
    let ran = net.output(
        1,
        &["run", "--nodes", "3", "--place", "spread", "--stats=json", "--", "sh", "-c", script],
    );
    let work = std::fs::canonicalize(world.work()).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, format!("100\n100\n7\n143\ndone\n{}\n", work.display()), "{ran:?}");
    assert_eq!(std::fs::read_to_string(world.work().join("made")).unwrap(), "done\n");
    let statistics: serde_json::Value =
        serde_json::from_str(ran.err.lines().last().unwrap()).unwrap();
    for node in [1, 2] {
        let placed = statistics["nodes"][node]["placed"].as_u64().unwrap();
        assert!(placed > 0, "{statistics}");
    }
    // Any host can be a home.
    let ran = net
        .output(3, &["run", "-w", "/tmp", "--place", "spread", "--", "sh", "-c", "echo $(uname)"]);
    assert_eq!(ran.good(), "Linux\n");
    net.end();
}

#[test]
fn cut_cables_lose_nothing() {
    needs_hosts!();
    let world = World::new();
    let net = Net::new(&world, 3);
    net.cluster();
    all_linked(&net, &[1], &["n1", "n2", "n3"]);
    // Every round makes programs elsewhere, moves data through pipes and files, and checks it.
    let script = r#"
        i=0
        while [ ! -e stop ]; do
            i=$((i + 1))
            [ "$(seq $i | sort -n | tail -n 1)" = $i ] || { echo "wrong in round $i"; exit 1; }
            echo $i | tee -a log >last.new && mv last.new last
        done
        [ "$(wc -l <log)" = $i ] && [ "$(sort -n log | uniq | wc -l)" = $i ] && echo whole"#;
    let mut command =
        net.dvs(1, &["run", "--nodes", "3", "--place", "spread", "--", "sh", "-c", script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let rounds = || {
        let last = std::fs::read_to_string(world.work().join("last")).unwrap_or_default();
        last.trim().parse::<u32>().unwrap_or(0)
    };
    let goes_on = |what: &str| {
        let before = rounds();
        eventually(what, || rounds() > before + 2);
    };
    goes_on("it runs");
    // Short cuts, which TCP heals by itself, and one that is longer than a connection may be silent.
    for (host, milliseconds) in [(2, 300), (3, 700), (2, 5000)] {
        net.cable(host, "down");
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        net.cable(host, "up");
        goes_on("it goes on after a cut");
    }
    std::fs::write(world.work().join("stop"), "").unwrap();
    let ran = wait(child);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "whole\n", ""), "{ran:?}");
    net.end();
}

#[test]
fn a_host_that_is_gone_is_a_lost_node_and_can_return() {
    needs_hosts!();
    let world = World::new();
    let net = Net::new(&world, 2);
    net.cluster();
    let script = "echo up; sleep 1000; echo $?; /bin/echo goes on";
    let mut command =
        net.dvs(1, &["run", "--nodes", "2", "--place", "spread", "--", "sh", "-c", script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the program runs on n2", || {
        let list = net.output(1, &["ps", "--json"]).json();
        list.as_array()
            .unwrap()
            .iter()
            .any(|process| process["command"] == "sleep 1000" && process["node"] == "n2")
    });
    let list = net.output(2, &["node", "ls", "--json"]).json();
    let pid =
        list.as_array().unwrap().iter().find(|node| node["node"] == "n2").unwrap()["pid"].as_i64();
    dvs_sys::process::kill(i32::try_from(pid.unwrap()).unwrap(), libc::SIGKILL).unwrap();
    // A new life of the node is told from the old one, whose programs are gone.
    net.output(2, &["node", "start"]).good();
    let ran = wait(child);
    assert!(ran.out.contains("137\ngoes on\n"), "{ran:?}");
    assert!(ran.err.contains("node n2 was lost"), "{ran:?}");
    all_linked(&net, &[1, 2], &["n1", "n2"]);
    let ran = net.output(1, &["run", "--nodes", "2", "--place", "spread", "--", "echo", "again"]);
    assert_eq!(ran.good(), "again\n");
    net.end();
}

#[test]
fn certificates_are_replaced_under_running_programs_and_revoked() {
    needs_hosts!();
    let world = World::new();
    let net = Net::new(&world, 3);
    net.cluster();
    all_linked(&net, &[1, 2, 3], &["n1", "n2", "n3"]);
    let script = "/bin/echo up; until [ -e stop ]; do sleep 0.05; done; /bin/echo whole";
    let mut command =
        net.dvs(1, &["run", "--nodes", "3", "--place", "spread", "--", "sh", "-c", script]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it runs", || net.output(1, &["ps", "--json"]).json() != serde_json::json!([]));
    for host in [2, 1, 3] {
        net.output(host, &["node", "rotate"]).good();
    }
    all_linked(&net, &[1, 2, 3], &["n1", "n2", "n3"]);
    std::fs::write(world.work().join("stop"), "").unwrap();
    let ran = wait(child);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "up\nwhole\n", ""), "{ran:?}");
    // Only the first node decides, and not against itself.
    net.output(2, &["node", "rm", "n3"]).complains(125, &["n1", "10.77.0.1"]);
    net.output(1, &["node", "rm", "n1"]).complains(125, &["n1", "authority"]);
    net.output(1, &["node", "rm", "n9"]).complains(125, &["n9", "dvs node ls"]);
    assert_eq!(net.output(1, &["node", "rm", "n3"]).good(), "n3\n");
    all_linked(&net, &[1, 2], &["n1", "n2"]);
    // Out for good, also after a new start.
    net.output(3, &["node", "stop", "--all"]).good();
    let ran = net.output(3, &["node", "start"]);
    assert!(ran.code == 0 && ran.err.contains("was removed from there"), "{ran:?}");
    let list = net.output(3, &["node", "ls", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list.out).unwrap();
    let reached: Vec<_> =
        list.as_array().unwrap().iter().filter(|node| node["reached"] == true).collect();
    assert!(reached.len() == 1 && reached[0]["node"] == "n3", "{list}");
    all_linked(&net, &[1, 2], &["n1", "n2"]);
    // As a new node it may come in again.
    net.output(3, &["node", "stop", "--all"]).good();
    assert_eq!(net.output(3, &["node", "leave"]).good(), "n3\n");
    let token = net.output(1, &["node", "token", "--json"]).json();
    let token = token["token"].as_str().unwrap().to_owned();
    net.output_of(3, &["node", "join", "--name", "back", "--token-file", "-"], &token).good();
    all_linked(&net, &[1, 2, 3], &["n1", "n2", "back"]);
    net.end();
}

#[test]
fn strangers_are_counted_and_change_nothing() {
    needs_hosts!();
    let world = World::new();
    let net = Net::new(&world, 2);
    net.cluster();
    all_linked(&net, &[1, 2], &["n1", "n2"]);
    let refused = || {
        let list = net.output(1, &["node", "ls", "--json"]).json();
        let node = list.as_array().unwrap().iter().find(|node| node["node"] == "n1").cloned();
        node.unwrap()["refused_connections"].as_u64().unwrap()
    };
    let before = refused();
    let script = "exec 3<>/dev/tcp/10.77.0.1/7117 && head -c 4096 /dev/urandom >&3; exec 3>&-";
    for _ in 0..5 {
        // The other side may close before all is written.
        let _ = net.on(2, "bash").args(["-c", script]).output().unwrap();
    }
    eventually("they are counted", || refused() >= before + 5);
    let ran = net.output(
        1,
        &["run", "--nodes", "2", "--place", "spread", "--", "sh", "-c", "echo $(uname)"],
    );
    assert_eq!(ran.good(), "Linux\n");
    net.end();
}

#[test]
fn who_may_not_join_is_told_why() {
    needs_hosts!();
    let world = World::new();
    let net = Net::new(&world, 2);
    let join = |words: &[&str], token: &str| {
        let words: Vec<&str> =
            ["node", "join", "--token-file", "-"].iter().chain(words).copied().collect();
        net.output_of(2, &words, token)
    };
    net.output(1, &["node", "token"]).complains(125, &["belongs to no cluster", "--listen"]);
    net.output(1, &["node", "start", "--listen", "0.0.0.0"]).complains(125, &["--advertise"]);
    net.output(1, &["node", "start", "--listen", "nonsense:"]).complains(125, &["IP:PORT"]);
    net.output(1, &["node", "start", "--listen", "10.77.0.1", "--count", "2"])
        .complains(125, &["one node", "--count"]);
    net.output(1, &["node", "start", "--listen", "10.77.0.1", "--name", "first"]).good();
    net.output(1, &["node", "start"]).complains(125, &["first", "already"]);
    join(&[], "nonsense").complains(125, &["no token", "dvs node token"]);
    net.output(2, &["node", "join"]).complains(125, &["--token-file"]);
    net.output(2, &["node", "join", "--token-file", "/no/such"]).complains(125, &["/no/such"]);
    net.output(1, &["node", "token", "--for", "never"]).complains(125, &["never", "15m"]);
    net.output(1, &["node", "token", "--for", "30d"]).complains(125, &["a week"]);
    net.output(1, &["node", "token", "--uses", "0"]).complains(125, &["1 to 256"]);
    let token = net.output(1, &["node", "token"]).good().to_owned();
    join(&["10.77.0.1:9"], &token).complains(125, &["10.77.0.1:9", "refused"]);
    join(&["--name", "first"], &token).complains(125, &["first", "--name"]);
    // A token of another cluster, as far as anybody can tell.
    let forged = token.trim().to_owned();
    let end = if forged.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{end}", &forged[..forged.len() - 1]);
    join(&[], &forged).complains(125, &["not valid", "dvs node token"]);
    join(&["--name", "second"], &token).good();
    join(&[], &token).complains(125, &["second", "already"]);
    net.output(2, &["node", "stop", "--all"]).good();
    net.output(2, &["node", "leave"]).good();
    join(&[], &token).complains(125, &["not valid"]);
    net.output(1, &["node", "leave"]).complains(125, &["first", "stop it first"]);
    net.output(1, &["node", "stop", "--all"]).good();
    net.output(1, &["node", "leave"]).complains(125, &["authority", "--force"]);
    net.output(1, &["node", "leave", "--force"]).good();
    net.output(1, &["node", "leave"]).complains(125, &["no cluster"]);
    net.end();
}
