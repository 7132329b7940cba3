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
    let server = "import socket, time\n\
                  s = socket.create_server(('127.0.0.1', 8000)); open('port', 'w').close()\n\
                  c, _ = s.accept(); time.sleep(1000)";
    fs::write(world.work().join("server.py"), server).unwrap();
    // With two nodes the server goes to n2; the shell itself is the client, on n1.
    let script = "python3 server.py & until [ -e port ]; do :; done\n\
                  exec 3<>/dev/tcp/127.0.0.1/8000; : >connected\n\
                  read -r -u 3 word || echo ended\n\
                  ( : <>/dev/tcp/127.0.0.1/8000 ) 2>/dev/null || echo refused\n\
                  wait; exit 3";
    let words = ["run", "--nodes", "2", "--place", "spread", "--network", "dc"];
    let mut command = world.dvs(&[&words[..], &["--", "bash", "-c", script]].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    eventually("they are connected", || world.work().join("connected").exists());
    let nodes = world.output(&["node", "ls", "--json"]).json();
    let list = nodes.as_array().cloned().unwrap_or_default();
    let daemon = list.iter().find(|node| node["node"] == "n2");
    let pid = daemon.and_then(|node| node["pid"].as_i64()).expect("the daemon's pid");
    dvs_sys::process::kill(pid.try_into().unwrap(), libc::SIGKILL).unwrap();
    let ran = wait(child);
    assert_eq!((ran.code, ran.out.as_str()), (3, "ended\nrefused\n"), "{ran:?}");
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
    // Without a program between them, so that they go to different nodes.
    let script = "python3 server.py & until [ -e port ]; do :; done\n\
                  python3 client.py; echo $?; kill -9 %1; wait";
    let ran = world.run(&[&SPREAD[..], &["--", "bash", "-c", script]].concat());
    assert_eq!(ran.out, "137\n", "{ran:?}");
    let line = ran.err.lines().find(|line| line.starts_with("dvs: ")).unwrap_or_default();
    assert!(line.contains("[::1]:8000 is on node") && line.contains("0.0.0.0"), "{ran:?}");
    world.nothing_left();
}

/// An address of this machine that is not its loopback's.
fn host_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only says from where it would be.
    socket.connect("192.0.2.200:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn the_outside_is_reached_by_connections_and_datagrams() {
    use std::io::{Read, Write};
    needs_python!();
    let Some(ip) = host_address() else {
        println!("SKIPPED: this machine has no address but its loopback's");
        return;
    };
    let world = World::new();
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let closed = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port();
    let datagrams = std::net::UdpSocket::bind((ip, 0)).unwrap();
    datagrams.set_read_timeout(Some(world::LIMIT)).unwrap();
    let ports = (listener.local_addr().unwrap().port(), datagrams.local_addr().unwrap().port());
    let client = "import socket, sys, errno\n\
        host, tcp, udp, closed = sys.argv[1], *map(int, sys.argv[2:])\n\
        s = socket.create_connection((host, tcp), 30)\n\
        print(s.getpeername() == (host, tcp), s.getsockname()[0])\n\
        data = bytes(i % 251 for i in range(1000)) * 2000\n\
        s.sendall(data); s.shutdown(socket.SHUT_WR); back = b''\n\
        while (more := s.recv(65536)): back += more\n\
        print(back == data[::-1])\n\
        n = socket.socket(); n.setblocking(False)\n\
        print(errno.errorcode[n.connect_ex((host, closed))])\n\
        try: socket.create_connection((host, closed), 30)\n\
        except OSError as e: print(e.strerror)\n\
        u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(30)\n\
        for size in (0, 5, 1400, 9000): u.sendto(b'x' * size, (host, udp)); d, a = u.recvfrom(65536); print(len(d), a == (host, udp))\n\
        c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.settimeout(30); c.connect((host, closed))\n\
        try: c.send(b'x'); c.recv(1)\n\
        except OSError as e: print(e.strerror)\n";
    fs::write(world.work().join("client.py"), client).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard.reverse();
        stream.write_all(&heard).unwrap();
        drop(stream);
        let mut buffer = [0; 65_536];
        for _ in 0..4 {
            let (length, from) = datagrams.recv_from(&mut buffer).unwrap();
            datagrams.send_to(&buffer[..length], from).unwrap();
        }
    });
    let (host, numbers) = (ip.to_string(), [ports.0, ports.1, closed].map(|p| p.to_string()));
    let program = ["--", "bash", "-c", "python3 client.py $@; exit $?", "x", &host];
    let arguments = numbers.each_ref().map(String::as_str);
    let ran = world.run(&[&SPREAD[..], &program, &arguments].concat());
    let expected = "True 10.77.0.1\nTrue\nEINPROGRESS\nConnection refused\n0 True\n5 True\n\
                    1400 True\n9000 True\nConnection refused\n";
    assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{ran:?}");
    server.join().unwrap();
    world.nothing_left();
}
