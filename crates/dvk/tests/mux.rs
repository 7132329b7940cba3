//! Links over forwarded connections: two nodes whose only way to each other is one byte stream.

mod common;

use common::{CLUSTER, DC, LONG, eventually};
use dvs_dvk::core::mux::MuxEnd;
use dvs_dvk::mux::Mux;
use dvs_dvk::{Lane, LinkAddress, Node, NodeConfig};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

struct Pair {
    streams: [UnixStream; 2],
    nodes: [Node; 2],
    muxes: [Mux; 2],
    ended: Receiver<Option<String>>,
}

fn pair() -> Pair {
    let (one, two) = UnixStream::pair().unwrap();
    let nodes = [1, 2].map(|id| Node::new(NodeConfig::new(id, CLUSTER, 1)));
    let (sender, ended) = channel();
    let start = |end: MuxEnd, stream: &UnixStream, node: &Node| {
        let (node, id) = (node.clone(), node.id().0);
        let sender = sender.clone();
        Mux::start(
            end,
            Box::new(stream.try_clone().unwrap()),
            Box::new(stream.try_clone().unwrap()),
            Box::new(move |target, stream| {
                assert_eq!(target, id);
                node.adopt(stream);
            }),
            Box::new(move |reason| sender.send(reason).unwrap()),
        )
        .unwrap()
    };
    let muxes = [start(MuxEnd::First, &one, &nodes[0]), start(MuxEnd::Second, &two, &nodes[1])];
    Pair { streams: [one, two], nodes, muxes, ended }
}

#[test]
fn a_link_runs_over_one_stream_and_ends_with_it() {
    let pair = pair();
    let mux = pair.muxes[0].clone();
    let through = LinkAddress::Through(Arc::new(move || mux.open(2)));
    pair.nodes[0].connect(2, through, LONG).unwrap();
    let sum = Arc::new(AtomicUsize::new(0));
    let dc = pair.nodes[1].dc(DC, 2);
    let server = dc.bind("server").unwrap();
    let total = Arc::clone(&sum);
    server.set_handler(move |message| {
        total.fetch_add(message.body.len(), Ordering::SeqCst);
        let body = message.body.clone();
        message.reply(body);
    });
    let client = pair.nodes[0].dc(DC, 2).endpoint().unwrap();
    let to = pair.nodes[0].dc(DC, 2).resolve("server", LONG).unwrap();
    for length in [0, 1, 100, 30_000, 1 << 20, 2 << 20] {
        for lane in Lane::ALL {
            let body = vec![7; length];
            assert_eq!(client.call_on(lane, &to, body.clone(), LONG), Ok(body));
        }
    }
    assert!(sum.load(Ordering::SeqCst) > 6 << 20);
    pair.streams[0].shutdown(std::net::Shutdown::Both).unwrap();
    eventually("both have given each other up", || {
        pair.nodes.iter().all(|node| node.peers().is_empty())
    });
    for _ in 0..2 {
        pair.ended.recv_timeout(LONG).unwrap();
    }
    assert!(pair.muxes[0].open(2).is_err());
}

#[test]
fn one_that_does_not_read_holds_up_no_other() {
    let (one, two) = UnixStream::pair().unwrap();
    let (sender, opened) = channel();
    let start = |end, stream: &UnixStream| {
        let sender = sender.clone();
        Mux::start(
            end,
            Box::new(stream.try_clone().unwrap()),
            Box::new(stream.try_clone().unwrap()),
            Box::new(move |target, stream| sender.send((target, stream)).unwrap()),
            Box::new(|_| {}),
        )
        .unwrap()
    };
    let first = start(MuxEnd::First, &one);
    let _second = start(MuxEnd::Second, &two);
    let mut lazy = first.open(5).unwrap();
    let (target, unread) = opened.recv_timeout(LONG).unwrap();
    assert_eq!(target, 5);
    lazy.set_nonblocking(true).unwrap();
    let block = vec![1; 64 << 10];
    // Until everything between the two ends is full: what is written afterwards stays.
    let mut full = 0;
    eventually("it is full", || {
        while lazy.write(&block).is_ok() {
            full = 0;
        }
        full += 1;
        full > 20
    });
    let mut quick = first.open(6).unwrap();
    let (_, mut other) = opened.recv_timeout(LONG).unwrap();
    let mut answer = [0; 5];
    for _ in 0..100 {
        quick.write_all(b"hello").unwrap();
        other.read_exact(&mut answer).unwrap();
        other.write_all(&answer).unwrap();
        quick.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    }
    // The end of one end is the end of the other.
    drop(quick);
    assert_eq!(other.read(&mut answer).unwrap(), 0);
    drop(unread);
    one.shutdown(std::net::Shutdown::Both).unwrap();
}

#[test]
fn garbage_ends_the_stream_with_a_reason() {
    let pair = pair();
    (&pair.streams[0]).write_all(&[0xff; 64]).unwrap();
    let reason = pair.ended.recv_timeout(LONG).unwrap();
    assert!(reason.is_some_and(|reason| reason.contains("no frame")));
    drop(pair.streams);
}
