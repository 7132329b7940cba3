//! Links that are cut, peers that restart, leave, break the rules, or are given up.

mod common;

use common::{CLUSTER, Cluster, DC, LONG, config, eventually};
use dvs_dvk::core::frame::{Decoder, Frame, Header, Kind, Status};
use dvs_dvk::core::inbox::WINDOW_MESSAGES;
use dvs_dvk::core::link::{Link, LinkConfig};
use dvs_dvk::{
    CallError, ConnectError, DownReason, Lane, Node, NodeConfig, NodeEvent, NodeId, ReceiveError,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(30);

fn events(node: &Node) -> Receiver<NodeEvent> {
    let (sender, receiver) = channel();
    node.on_peer(move |event| {
        let _ = sender.send(event.clone());
    });
    receiver
}

fn down(events: &Receiver<NodeEvent>) -> (NodeId, u64, DownReason) {
    loop {
        if let NodeEvent::NodeDown { node, incarnation, reason } =
            events.recv_timeout(LONG).unwrap()
        {
            return (node, incarnation, reason);
        }
    }
}

/// Ends the cutter also when the test fails.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn cut_links_lose_double_and_reorder_nothing() {
    let cluster = Cluster::new(2);
    let server = cluster.dc(0).endpoint().unwrap();
    let echo = cluster.dc(0).endpoint().unwrap();
    echo.set_handler(|message| {
        let body = message.body.clone();
        message.reply(body);
    });
    let clients: Vec<_> = Lane::ALL.map(|lane| (lane, cluster.dc(1).endpoint().unwrap())).into();
    const POSTS: u32 = 4000;
    const CALLS: u32 = 1000;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _done = SetAtEnd(&done);
        let (server_address, echo_address) = (server.address(), echo.address());
        let mut senders = Vec::new();
        for (lane, client) in &clients {
            senders.push(scope.spawn(move || {
                for number in 0..POSTS {
                    let mut body = number.to_le_bytes().to_vec();
                    body.resize(4 + number as usize % 3000, 0);
                    client.post_within(*lane, &server_address, body, LONG).unwrap();
                }
            }));
            senders.push(scope.spawn(move || {
                for number in 0..CALLS {
                    let body = number.to_le_bytes().to_vec();
                    let answer = client.call_on(*lane, &echo_address, body.clone(), LONG).unwrap();
                    assert_eq!(answer, body);
                }
            }));
        }
        let cutter = scope.spawn(|| {
            let mut cuts = 0;
            while !done.load(Ordering::Relaxed) {
                cluster.nodes[cuts % 2].cut(2 - (cuts % 2) as u16);
                cuts += 1;
                thread::sleep(Duration::from_millis(3));
            }
            cuts
        });
        let mut next = [0; 2];
        for _ in 0..2 * POSTS {
            let message = server.receive(LONG).unwrap();
            let from = clients.iter().position(|(_, end)| end.address() == message.source).unwrap();
            let number = u32::from_le_bytes(message.body[..4].try_into().unwrap());
            assert_eq!(number, next[from]);
            assert_eq!(message.body.len(), 4 + number as usize % 3000);
            next[from] += 1;
        }
        for sender in senders {
            sender.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(cutter.join().unwrap() > 5, "the links were cut");
    });
    assert_eq!(server.receive(SHORT).unwrap_err(), ReceiveError::TimedOut);
    assert_eq!(cluster.nodes[0].peers(), [(NodeId(2), 1)], "the session is still the first one");
}

#[test]
fn a_restarted_node_fails_old_calls_and_takes_new_ones() {
    let mut cluster = Cluster::new(2);
    let seen = events(&cluster.nodes[0]);
    let client = cluster.dc(0).endpoint().unwrap();
    let old = cluster.dc(1).bind("service").unwrap().address();
    let silent = cluster.dc(1).endpoint().unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(&silent.address(), vec![], LONG));
        eventually("the call waits", || silent.statistics().unwrap().waiting == 1);
        cluster.nodes[1].close();
        let error = call.join().unwrap().unwrap_err();
        assert!(
            matches!(error, CallError::NodeGone { .. } | CallError::NoEndpoint { .. }),
            "{error}"
        );
    });
    assert_eq!(down(&seen), (NodeId(2), 1, DownReason::Left));
    let reborn = Node::new(NodeConfig { incarnation: 2, ..config(2) });
    reborn.connect(1, cluster.path(0), LONG).unwrap();
    let service = reborn.dc(DC, 1).bind("service").unwrap();
    service.set_handler(|message| message.reply(vec![2]));
    let found = cluster.dc(0).resolve("service", LONG).unwrap();
    assert_eq!(client.call(&found, vec![], LONG), Ok(vec![2]));
    assert_eq!(client.call(&old, vec![], LONG), Err(CallError::NodeGone { node: NodeId(2) }));
    cluster.nodes[1] = reborn;
}

#[test]
fn a_node_that_does_not_come_back_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let short = |id| NodeConfig { reconnect: Duration::from_millis(50), ..config(id) };
    let one = Node::new(short(1));
    one.listen(&path).unwrap();
    let seen = events(&one);
    let mut peer = RawPeer::connect(&path, 2, 1);
    peer.handshake();
    eventually("the session is there", || one.peers() == [(NodeId(2), 1)]);
    drop(peer);
    assert_eq!(down(&seen), (NodeId(2), 1, DownReason::Cut));
    assert_eq!(one.peers(), []);
}

#[test]
fn a_life_that_was_given_up_cannot_return() {
    let cluster = Cluster::new(2);
    let (seen, told) = (events(&cluster.nodes[0]), events(&cluster.nodes[1]));
    cluster.nodes[0].give_up(2);
    assert_eq!(down(&seen), (NodeId(2), 1, DownReason::Asked));
    assert_eq!(down(&told), (NodeId(1), 1, DownReason::GivenUp));
    let refused = cluster.nodes[1].connect(1, cluster.path(0), LONG);
    assert!(matches!(refused, Err(ConnectError::Handshake { .. })), "{refused:?}");
    let reborn = Node::new(NodeConfig { incarnation: 2, ..config(2) });
    reborn.connect(1, cluster.path(0), LONG).unwrap();
}

#[test]
fn nodes_that_do_not_fit_are_refused_with_the_reason() {
    let cluster = Cluster::new(1);
    let path = cluster.path(0);
    let stranger = Node::new(NodeConfig { cluster: [8; 16], ..config(2) });
    assert!(stranger.connect(1, &path, Duration::from_millis(300)).is_err());
    let other = Node::new(config(3));
    assert!(other.connect(7, &path, Duration::from_millis(300)).is_err());
    let same = Node::new(config(1));
    assert!(matches!(same.connect(1, &path, LONG), Err(ConnectError::Handshake { .. })));
    let nobody = other.connect(9, cluster.folder.path().join("none"), SHORT);
    assert!(matches!(nobody, Err(ConnectError::Socket { .. } | ConnectError::TimedOut { .. })));
    eventually("they are counted", || cluster.nodes[0].refused_connections() >= 2);
    assert_eq!(cluster.nodes[0].peers(), []);
}

#[test]
fn garbage_is_dropped_and_counted() {
    let cluster = Cluster::new(2);
    let path = cluster.path(0);
    for (index, garbage) in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100], &[0; 48], &[]].into_iter().enumerate()
    {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        eventually("it is counted", || cluster.nodes[0].refused_connections() == index as u64 + 1);
    }
    // A node that knows how to begin and then breaks the rules is given up.
    let seen = events(&cluster.nodes[0]);
    for (id, bad) in [
        (11, frame(Kind::Post, 5, 0).encode()),
        (12, Frame::control(Kind::Ack, 0, 77, vec![]).encode()),
        (13, vec![0xff; 48]),
    ] {
        let mut peer = RawPeer::connect(&path, id, 1);
        peer.handshake();
        peer.stream.write_all(&bad).unwrap();
        assert_eq!(down(&seen), (NodeId(id), 1, DownReason::Protocol));
    }
    let server = cluster.dc(0).endpoint().unwrap();
    server.set_handler(|message| message.reply(vec![]));
    let client = cluster.dc(1).endpoint().unwrap();
    assert_eq!(client.call(&server.address(), vec![], LONG), Ok(vec![]));
}

#[test]
fn a_flood_is_limited_and_not_obeyed() {
    let cluster = Cluster::new(2);
    let victim = cluster.dc(0).endpoint().unwrap();
    let mut peer = RawPeer::connect(&cluster.path(0), 9, 1);
    peer.handshake();
    let calls = 3 * WINDOW_MESSAGES as u64;
    for sequence in 1..=calls {
        let mut call = frame(Kind::Call, sequence, victim.address().number);
        call.header.request = sequence;
        peer.stream.write_all(&call.encode()).unwrap();
    }
    let mut busy = 0;
    while busy < WINDOW_MESSAGES {
        let frame = peer.next();
        if frame.header.kind == Kind::Reply {
            assert_eq!(frame.header.status, Status::Busy as u8);
            busy += 1;
        }
    }
    let statistics = victim.statistics().unwrap();
    assert_eq!(statistics.waiting, 2 * WINDOW_MESSAGES);
    assert_eq!(statistics.refused, WINDOW_MESSAGES as u64);
    let client = cluster.dc(1).endpoint().unwrap();
    client.post(&victim.address(), vec![5]).unwrap();
    assert_eq!(victim.receive_from(&client.address(), LONG).unwrap().body, [5]);
    // Answers to what it never asked change nothing.
    let mut forged = frame(Kind::Reply, calls + 1, client.address().number);
    forged.header.request = 1;
    peer.stream.write_all(&forged.encode()).unwrap();
    eventually("it is counted", || cluster.nodes[0].statistics().stray_replies == 1);
}

fn frame(kind: Kind, sequence: u64, destination: u64) -> Frame {
    let source = 1 << 48;
    let header = Header { kind, status: 0, sequence, dc: DC, source, destination, request: 0 };
    Frame { header, body: Vec::new() }
}

/// A peer that speaks the protocol only as far as a test wants.
struct RawPeer {
    stream: UnixStream,
    link: Link,
    decoder: Decoder,
    input: Vec<u8>,
}

impl RawPeer {
    fn connect(path: &std::path::Path, node: u16, incarnation: u64) -> Self {
        let config = LinkConfig {
            cluster: CLUSTER,
            node: NodeId(node),
            incarnation,
            proof: Vec::new(),
            heartbeat: 1 << 40,
            stale: u64::MAX,
            silence: 1 << 40,
            reconnect: 1 << 40,
        };
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        RawPeer {
            stream,
            link: Link::new(config, NodeId(1)),
            decoder: Decoder::default(),
            input: Vec::new(),
        }
    }

    fn handshake(&mut self) {
        self.link.connected(Lane::Small, 1, 0);
        let (_, batch) = self.link.take_batch(Lane::Small, 0).unwrap();
        for packet in batch {
            self.stream.write_all(&packet.header).unwrap();
            self.stream.write_all(&packet.body).unwrap();
        }
        assert_eq!(self.next().header.kind, Kind::Hello);
    }

    fn next(&mut self) -> Frame {
        loop {
            let mut input = self.input.as_slice();
            let frame = self.decoder.next(&mut input).unwrap();
            self.input = input.to_vec();
            if let Some(frame) = frame {
                return frame;
            }
            let mut buffer = [0; 65536];
            let length = self.stream.read(&mut buffer).unwrap();
            assert!(length > 0, "the other side closed the connection");
            self.input = buffer[..length].to_vec();
        }
    }
}
