//! Links between hosts: TLS, networks that break, strangers, revoked certificates.

mod common;
#[path = "common/hosts.rs"]
mod hosts;

use common::{CLUSTER, LONG, eventually};
use dvs_dvk::tls::{AskError, Authority, Credentials, Invitation, MAX_QUESTION, ask, fingerprint};
use dvs_dvk::{ConnectError, DownReason, HostTimes, Lane, Node, NodeConfig, NodeEvent, NodeId};
use hosts::{ANY, Hosts, Network, Weather, config, credentials, refused};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(300);

/// Sends numbered posts on both lanes and calls beside them, while `disturb` runs again and again;
/// everything arrives once, in order.
fn nothing_is_lost(hosts: &Hosts, posts: u32, calls: u32, mut disturb: impl FnMut(usize) + Send) {
    let server = hosts.dc(0).endpoint().unwrap();
    let echo = hosts.dc(0).endpoint().unwrap();
    echo.set_handler(|message| {
        let body = message.body.clone();
        message.reply(body);
    });
    let clients: Vec<_> = Lane::ALL.map(|lane| (lane, hosts.dc(1).endpoint().unwrap())).into();
    let done = AtomicBool::new(false);
    struct SetAtEnd<'a>(&'a AtomicBool);
    impl Drop for SetAtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        let _done = SetAtEnd(&done);
        let (to, echo) = (server.address(), echo.address());
        for (lane, client) in &clients {
            scope.spawn(move || {
                for number in 0..posts {
                    let mut body = number.to_le_bytes().to_vec();
                    body.resize(4 + number as usize % 30_000, 0);
                    client.post_within(*lane, &to, body, LONG).unwrap();
                }
            });
            scope.spawn(move || {
                for number in 0..calls {
                    let body = number.to_le_bytes().to_vec();
                    assert_eq!(client.call_on(*lane, &echo, body.clone(), LONG), Ok(body));
                }
            });
        }
        let done = &done;
        scope.spawn(move || {
            let mut turn = 0;
            while !done.load(Ordering::Relaxed) {
                disturb(turn);
                turn += 1;
            }
        });
        let mut next = [0; 2];
        for _ in 0..2 * posts {
            let message = server.receive(LONG).unwrap();
            let from = clients.iter().position(|(_, end)| end.address() == message.source).unwrap();
            let number = u32::from_le_bytes(message.body[..4].try_into().unwrap());
            assert_eq!(number, next[from]);
            assert_eq!(message.body.len(), 4 + number as usize % 30_000);
            next[from] += 1;
        }
    });
    assert_eq!(hosts.nodes[0].peers(), [(NodeId(2), 1)], "the session is still the first one");
}

#[test]
fn cut_connections_between_hosts_lose_double_and_reorder_nothing() {
    let hosts = Hosts::new(2);
    let network = Network::new(hosts.addresses[0]);
    hosts.nodes[1].connect(1, network.address, LONG).unwrap();
    nothing_is_lost(&hosts, 1500, 200, |turn| {
        match turn % 3 {
            0 => network.cut(),
            node => hosts.nodes[node - 1].cut(3 - node as u16),
        }
        thread::sleep(Duration::from_millis(40));
    });
    assert!(network.made() > 4, "connections were made anew");
    let statistics = hosts.nodes[1].link_statistics(1, Lane::Bulk).unwrap();
    assert!(statistics.connections > 1 && statistics.sent_bytes > 0, "{statistics:?}");
}

#[test]
fn a_network_that_swallows_everything_is_walked_around() {
    let times = HostTimes {
        heartbeat: Duration::from_millis(50),
        stale: Duration::from_millis(400),
        reconnect: LONG,
    };
    let hosts = Hosts::with(2, |id| NodeConfig { hosts: times, ..config(id) });
    let network = Network::new(hosts.addresses[0]);
    hosts.nodes[1].connect(1, network.address, LONG).unwrap();
    let made = network.made();
    nothing_is_lost(&hosts, 300, 50, |turn| {
        if turn == 0 {
            network.set(Weather::Silent);
            // Until both ends have noticed: the one has dialled again, in vain.
            eventually("new connections are tried", || network.made() >= made + 2);
            network.set(Weather::Fair);
        }
        thread::sleep(Duration::from_millis(5));
    });
}

#[test]
fn strangers_are_dropped_with_a_word_in_the_log() {
    let hosts = Hosts::new(2);
    let node = &hosts.nodes[0];
    let (sender, reasons) = channel();
    node.on_peer(move |event| {
        if let NodeEvent::Refused { reason } = event {
            let _ = sender.send(reason.clone());
        }
    });
    // Every lane tries, so the same is said more than once.
    let refused_because = |words: &str| {
        loop {
            let reason = reasons.recv_timeout(LONG).expect(words);
            assert_eq!(reason.lines().count(), 1, "{reason:?}");
            if reason.contains(words) {
                return;
            }
        }
    };
    // Another authority for the same cluster's name.
    let other = Authority::create(CLUSTER).unwrap();
    let liar = Node::new(config(3));
    liar.set_credentials(&credentials(&other, 3), None).unwrap();
    let error = liar.connect(1, hosts.addresses[0], SHORT).unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    refused_because("received fatal alert");
    // One that trusts the right authority, but was certified by another.
    let mixed =
        Credentials { authority: hosts.authority.certificate().to_vec(), ..credentials(&other, 3) };
    liar.set_credentials(&mixed, None).unwrap();
    let error = liar.connect(1, hosts.addresses[0], SHORT).unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. } | ConnectError::TimedOut { .. }), "{error}");
    refused_because("BadSignature");
    // A node of the cluster that says it is another one.
    let thief = Node::new(config(2));
    let own = Credentials { node: NodeId(2), ..credentials(&hosts.authority, 3) };
    thief.set_credentials(&own, None).unwrap();
    assert!(thief.connect(1, hosts.addresses[0], SHORT).is_err());
    refused_because("does not speak for node 2");
    // Who is called is not who is there.
    let caller = Node::new(config(4));
    caller.set_credentials(&credentials(&hosts.authority, 4), None).unwrap();
    let error = caller.connect(2, hosts.addresses[0], SHORT).unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    // Without a certificate there are no links at all.
    let bare = Node::new(config(5));
    let error = bare.connect(1, hosts.addresses[0], SHORT).unwrap_err();
    assert!(matches!(error, ConnectError::NoCredentials), "{error}");
    assert!(matches!(bare.listen_tcp(ANY.parse().unwrap()), Err(ConnectError::NoCredentials)));
    assert_eq!(node.peers(), []);
    // The rightful one still gets in.
    hosts.nodes[1].connect(1, hosts.addresses[0], LONG).unwrap();
}

#[test]
fn bytes_that_are_no_handshake_are_dropped_and_counted() {
    let hosts = Hosts::new(2);
    hosts.nodes[1].connect(1, hosts.addresses[0], LONG).unwrap();
    let hello = client_hello();
    let mut pieces: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 64],
        vec![0xff; 70_000],
        // A TLS record that claims more than it may.
        [&[22, 3, 3, 0xff, 0xff][..], &[1; 100]].concat(),
        // The link's own handshake, without TLS.
        dvs_dvk::core::frame::Frame::control(
            dvs_dvk::core::frame::Kind::Hello,
            0,
            0,
            b"DVSL".to_vec(),
        )
        .encode(),
    ];
    // Truncated at every few bytes, and with one byte changed.
    pieces.extend((1..hello.len()).step_by(23).map(|end| hello[..end].to_vec()));
    pieces.extend((0..hello.len()).step_by(31).map(|at| {
        let mut changed = hello.clone();
        changed[at] ^= 0x55;
        changed
    }));
    for (index, piece) in pieces.iter().enumerate() {
        let mut stream = TcpStream::connect(hosts.addresses[0]).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // The other side may have closed already.
        let _ = stream.write_all(piece);
        let _ = stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        refused(&hosts.nodes[0], index as u64 + 1);
    }
    nothing_is_lost(&hosts, 50, 20, |_| thread::sleep(Duration::from_millis(5)));
}

/// What a TLS client says first.
fn client_hello() -> Vec<u8> {
    let listener = std::net::TcpListener::bind(ANY).unwrap();
    let address = listener.local_addr().unwrap();
    let asking = thread::spawn(move || {
        let invitation =
            Invitation { cluster: CLUSTER, node: NodeId(1), authority: fingerprint(b"") };
        ask(address, &invitation, b"").unwrap_err()
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 4096];
    let length = stream.read(&mut bytes).unwrap();
    bytes.truncate(length);
    drop(stream);
    asking.join().unwrap();
    bytes
}

#[test]
fn a_revoked_certificate_ends_its_links_and_makes_no_new_ones() {
    let hosts = Hosts::new(1);
    let own = credentials(&hosts.authority, 2);
    let second = Node::new(config(2));
    second.set_credentials(&own, None).unwrap();
    second.connect(1, hosts.addresses[0], LONG).unwrap();
    let (sender, told) = channel();
    for node in [&hosts.nodes[0], &second] {
        let sender = sender.clone();
        let id = node.id();
        node.on_peer(move |event| {
            if let NodeEvent::NodeDown { reason, .. } = event {
                let _ = sender.send((id, *reason));
            }
        });
    }
    let revoked = BTreeSet::from([fingerprint(&own.certificate)]);
    hosts.nodes[0].set_revoked(revoked.clone());
    let mut down = [told.recv_timeout(LONG).unwrap(), told.recv_timeout(LONG).unwrap()];
    down.sort_by_key(|(node, _)| *node);
    assert_eq!(down, [(NodeId(1), DownReason::Revoked), (NodeId(2), DownReason::Revoked)]);
    // Also a new life does not help, but a new certificate does.
    let reborn = Node::new(NodeConfig { incarnation: 2, ..config(2) });
    reborn.set_credentials(&own, None).unwrap();
    let error = reborn.connect(1, hosts.addresses[0], LONG).unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    reborn.set_credentials(&credentials(&hosts.authority, 2), None).unwrap();
    reborn.connect(1, hosts.addresses[0], LONG).unwrap();
    // The one who connects looks as well.
    let third = Node::new(config(3));
    third.set_credentials(&credentials(&hosts.authority, 3), None).unwrap();
    second.close();
    let late = Node::new(NodeConfig { incarnation: 3, ..config(2) });
    late.set_credentials(&own, None).unwrap();
    let address = late.listen_tcp(ANY.parse().unwrap()).unwrap();
    third.set_revoked(revoked);
    let error = third.connect(2, address, LONG).unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
}

#[test]
fn a_new_certificate_serves_new_connections_and_keeps_the_session() {
    let hosts = Hosts::new(2);
    hosts.nodes[1].connect(1, hosts.addresses[0], LONG).unwrap();
    for (index, node) in hosts.nodes.iter().enumerate() {
        let fresh = credentials(&hosts.authority, index as u16 + 1);
        node.set_credentials(&fresh, None).unwrap();
    }
    let connections = || hosts.nodes[0].link_statistics(2, Lane::Small).unwrap().connections;
    let before = connections();
    hosts.nodes[0].cut(2);
    eventually("it is connected again", || connections() > before);
    nothing_is_lost(&hosts, 20, 20, |_| thread::sleep(Duration::from_millis(5)));
}

#[test]
fn who_has_no_certificate_may_ask_one_question() {
    let hosts = Hosts::new(1);
    let answering = |question: &[u8]| -> Option<Vec<u8>> {
        (question.first() == Some(&b'?')).then(|| question.iter().rev().copied().collect())
    };
    let own = credentials(&hosts.authority, 1);
    hosts.nodes[0].set_credentials(&own, Some(Arc::new(answering))).unwrap();
    let invitation = Invitation {
        cluster: CLUSTER,
        node: NodeId(1),
        authority: fingerprint(hosts.authority.certificate()),
    };
    let to: SocketAddr = hosts.addresses[0];
    let long = vec![b'?'; MAX_QUESTION];
    let (answer, authority) = ask(to, &invitation, b"?abc").unwrap();
    assert_eq!((&answer[..], &authority[..]), (&b"cba?"[..], hosts.authority.certificate()));
    assert_eq!(ask(to, &invitation, &long).unwrap().0.len(), MAX_QUESTION);
    assert!(matches!(ask(to, &invitation, &[0; MAX_QUESTION + 1]), Err(AskError::TooLong(_))));
    assert!(ask(to, &invitation, b"no question").is_err());
    refused(&hosts.nodes[0], 1);
    // Somebody else's authority, cluster or node: nothing is said to it.
    let other = Invitation { authority: fingerprint(b"other"), ..invitation.clone() };
    let error = ask(to, &other, b"?secret").unwrap_err();
    assert!(matches!(error, AskError::Socket { .. }), "{error}");
    assert!(ask(to, &Invitation { node: NodeId(2), ..invitation.clone() }, b"?secret").is_err());
    assert!(ask(to, &Invitation { cluster: [9; 16], ..invitation }, b"?secret").is_err());
}
