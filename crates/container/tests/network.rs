//! Two containers as two nodes of a DC with a network, and the wire between them in this process.

mod support;

use dvs_container::network::{mac_of, mark_of};
use dvs_container::{DcNetwork, Network};
use dvs_sys::descriptor::{Poll, poll};
use dvs_sys::netdevice::{FRAME_HEADER, read_frame, write_frame};
use dvs_sys::netlink::diag;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use support::{Running, possible, spec, start};

/// A port of node 2's part of the ephemeral ports, of two nodes.
const PORT: u16 = 60_000;

fn node(number: u16) -> Running {
    let mut spec = spec(&format!("net-{number}"));
    spec.network = Network::Dc(DcNetwork { node: number, members: vec![1, 2] });
    start(&spec)
}

/// Carries frames between two devices until it is dropped.
struct Wire {
    stopped: Arc<AtomicBool>,
    frames: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Wire {
    fn between(devices: [OwnedFd; 2]) -> Wire {
        let (stopped, frames) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stop, count) = (Arc::clone(&stopped), Arc::clone(&frames));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            while !stop.load(Ordering::SeqCst) {
                let mut waits = [0, 1].map(|side: usize| Poll::readable(devices[side].as_fd()));
                poll(&mut waits, Some(20)).unwrap();
                for side in [0, 1] {
                    while let Ok(length) = read_frame(&devices[side], &mut buffer) {
                        let to = &buffer[FRAME_HEADER..FRAME_HEADER + 6];
                        assert_eq!(to, mac_of(2 - side as u16), "to the other node alone");
                        write_frame(&devices[1 - side], &buffer[..length]).unwrap();
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
        Wire { stopped, frames, thread: Some(thread) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || std::thread::panicking(), "the wire broke");
    }
}

fn python(running: &Running, script: &str) -> String {
    let (status, output) = running.run(&["/usr/bin/python3", "-c", script]);
    assert_eq!(status, 0, "{output}");
    output.trim().to_owned()
}

fn ready() -> bool {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: needs /usr/bin/python3");
        return false;
    }
    possible()
}

#[test]
fn two_nodes_have_one_localhost() {
    if !ready() {
        return;
    }
    let (mut one, mut two) = (node(1), node(2));
    let (first, second) = (one.container.network.take().unwrap(), two.container.network.take());
    let second = second.unwrap();
    let wire = Wire::between([first.device, second.device]);

    // Nobody there: refused at once by the other node, for the socket that asked.
    let refused = format!(
        "import socket, errno\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(50)\n\
         s.connect(('127.0.0.1', {PORT})); s.send(b'x')\n\
         try: s.recv(1)\n\
         except ConnectionRefusedError: print('refused', s.getsockname()[0])"
    );
    assert_eq!(python(&one, &refused), "refused 127.0.0.1");
    assert!(wire.frames.load(Ordering::SeqCst) >= 2);

    // Datagrams of every size, to both addresses, answered to where they came from.
    let serve = format!(
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', {PORT}))\n\
         for _ in range(4):\n\
         \x20 data, peer = s.recvfrom(70000); s.sendto(data[::-1], peer)\n"
    );
    // Until somebody is there it is refused, which the kernel says six times and then once a second
    // (icmp(7), icmp_ratelimit): what it does not say is noticed by time.
    let ask = format!(
        "import socket, time\n\
         def ask(host, data):\n\
         \x20 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)\n\
         \x20 s.connect((host, {PORT}))\n\
         \x20 while True:\n\
         \x20   try: s.send(data); return s.recv(70000), s.getpeername()[0]\n\
         \x20   except (ConnectionRefusedError, TimeoutError): time.sleep(0.1)\n\
         for host in ('127.0.0.1', '10.77.0.1'):\n\
         \x20 for size in (5, 60000):\n\
         \x20   data = bytes(i % 251 for i in range(size))\n\
         \x20   assert ask(host, data) == (data[::-1], host), (host, size)\n\
         print('all right')"
    );
    std::thread::scope(|scope| {
        let server = scope.spawn(|| python(&two, &serve));
        assert_eq!(python(&one, &ask), "all right");
        server.join().unwrap();
    });

    // The ends of sockets are heard of, and existing ones listed.
    let mut ends = Vec::new();
    support::eventually("the end of the server's socket", || {
        diag::ends(&second.ends, |end| ends.push(end.port)).unwrap();
        ends.contains(&PORT)
    });
    let listen = "import socket\ns = socket.create_server(('127.0.0.1', 4000))\nprint(s.fileno())";
    python(&one, listen);
    let mut listed = Vec::new();
    diag::list(&first.sockets, libc::AF_INET, libc::IPPROTO_TCP, |found| listed.push(found.port))
        .unwrap();
    assert_eq!(listed.len(), 1, "only the way outside listens: {listed:?}");
    assert!(!listed.contains(&4000));

    // Everyone chooses from its own ports.
    let port =
        "import socket\ns = socket.create_server(('127.0.0.1', 0))\nprint(s.getsockname()[1])";
    let chosen: Vec<u16> = [&one, &two].map(|node| python(node, port).parse().unwrap()).to_vec();
    assert!(chosen[0] < 46_884 && chosen[1] >= 46_884, "{chosen:?}");
    drop(wire);
    one.finish();
    two.finish();
}

#[test]
fn a_guest_cannot_choose_where_its_packets_go() {
    if !ready() {
        return;
    }
    let mut running = node(1);
    let handles = running.container.network.take().unwrap();
    let script = format!(
        "import socket, os\n\
         def tries(name, call):\n\
         \x20 try: call(); print(name, 'WORKS')\n\
         \x20 except OSError as error: print(name, error.errno in (1, 13))\n\
         s = socket.socket()\n\
         tries('mark', lambda: s.setsockopt(socket.SOL_SOCKET, 36, {mark}))\n\
         tries('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6))\n\
         tries('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))\n\
         tries('device', lambda: s.setsockopt(socket.SOL_SOCKET, socket.SO_DEBUG, 1))\n\
         def netlink(kind, body):\n\
         \x20 n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n\
         \x20 n.send((16 + len(body)).to_bytes(4, 'little') + kind.to_bytes(2, 'little') + (0x605).to_bytes(2, 'little') + bytes(8) + body)\n\
         \x20 code = -int.from_bytes(n.recv(4096)[16:20], 'little', signed=True)\n\
         \x20 if code: raise OSError(code, 'netlink')\n\
         tries('rule', lambda: netlink(32, bytes([2, 0, 0, 0, 255, 0, 0, 1]) + bytes(4)))\n\
         tries('setting', lambda: open('/proc/sys/net/ipv4/ip_forward', 'w').write('1'))\n",
        mark = mark_of(2),
    );
    let (status, output) = running.run(&["/usr/bin/python3", "-c", &script]);
    assert_eq!(status, 0, "{output}");
    for line in output.lines() {
        // /proc/sys is mounted read-only: another errno, and as good.
        let fine = line.ends_with("True") || line == "setting False";
        assert!(fine, "{output}");
    }
    assert_eq!(output.lines().count(), 6, "{output}");
    drop(handles);
    running.finish();
}
