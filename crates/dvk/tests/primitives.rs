//! Every primitive, in one process and between two nodes.

mod common;

use common::{Cluster, DC, LONG, eventually};
use dvs_dvk::{
    Address, CallError, DcId, Endpoint, Lane, MAX_MESSAGE, Message, MessageKind, NameError, NodeId,
    ReceiveError,
};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(30);

/// A server and a client on the same node, then on two.
fn both_ways(test: impl Fn(&Cluster, Endpoint, Endpoint)) {
    for client in [0, 1] {
        let cluster = Cluster::new(2);
        let server = cluster.dc(0).bind("server").unwrap();
        let client = cluster.dc(client).endpoint().unwrap();
        test(&cluster, server, client);
    }
}

fn receive(endpoint: &Endpoint) -> Message {
    endpoint.receive(LONG).unwrap()
}

#[test]
fn posts_arrive_in_order_and_with_their_source() {
    both_ways(|_, server, client| {
        for number in 0..500u32 {
            client.post(&server.address(), number.to_le_bytes().to_vec()).unwrap();
        }
        for number in 0..500u32 {
            let message = receive(&server);
            assert_eq!(message.body, number.to_le_bytes());
            assert_eq!(message.source, client.address());
            assert_eq!(message.kind, MessageKind::Post);
        }
        assert_eq!(server.receive(Duration::ZERO).unwrap_err(), ReceiveError::TimedOut);
    });
}

#[test]
fn calls_are_answered_by_any_thread() {
    both_ways(|_, server, client| {
        let to = server.address();
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..100 {
                    sender.send(server.receive(LONG).unwrap()).unwrap();
                }
            });
            scope.spawn(move || {
                for mut message in receiver {
                    let reply = message.take_reply().unwrap();
                    assert_eq!(reply.caller(), Some(message.source));
                    reply.reply(message.body);
                }
            });
            for number in 0..100u8 {
                assert_eq!(client.call(&to, vec![number], LONG).unwrap(), [number]);
            }
        });
    });
}

#[test]
fn large_messages_on_both_lanes() {
    both_ways(|_, server, client| {
        server.set_handler(|message| {
            let body = message.body.clone();
            message.reply(body);
        });
        for lane in Lane::ALL {
            for size in [0, 1, 65_536, MAX_MESSAGE] {
                let body = vec![size as u8 ^ 5; size];
                let answer = client.call_on(lane, &server.address(), body.clone(), LONG).unwrap();
                assert!(answer == body, "{size} bytes on {lane:?}");
            }
        }
        let long = vec![0; MAX_MESSAGE + 1];
        assert_eq!(
            client.call(&server.address(), long, LONG),
            Err(CallError::TooLarge { size: MAX_MESSAGE + 1 })
        );
    });
}

#[test]
fn an_answer_that_is_too_long_is_an_error_of_its_caller() {
    both_ways(|_, server, client| {
        server.set_handler(|message| message.reply(vec![0; MAX_MESSAGE + 1]));
        let error = client.call(&server.address(), vec![], LONG).unwrap_err();
        assert!(matches!(error, CallError::TooLarge { .. }), "{error}");
    });
}

#[test]
fn a_send_returns_when_its_message_is_received() {
    both_ways(|_, server, client| {
        let error = client.send(&server.address(), vec![1], SHORT).unwrap_err();
        assert!(matches!(error, CallError::TimedOut { .. }));
        // What was given up is not received any more, once the word of it is there.
        eventually("it is taken back", || server.statistics().unwrap().waiting == 0);
        assert_eq!(server.receive(SHORT).unwrap_err(), ReceiveError::TimedOut);
        thread::scope(|scope| {
            let sender = scope.spawn(|| client.send(&server.address(), vec![2], LONG));
            let message = receive(&server);
            assert_eq!((message.kind, &message.body[..]), (MessageKind::Send, &[2][..]));
            assert_eq!(sender.join().unwrap(), Ok(()));
        });
    });
}

#[test]
fn notifications_are_merged_and_come_first() {
    both_ways(|_, server, client| {
        client.post(&server.address(), vec![9]).unwrap();
        for bit in [1, 4, 4] {
            client.notify(&server.address(), bit).unwrap();
        }
        // The call comes behind them on the same lane, so they are there when it is.
        client.call_with(Lane::Small, &server.address(), vec![8], LONG, drop);
        eventually("everything waits", || server.statistics().unwrap().waiting == 2);
        let message = receive(&server);
        assert_eq!((message.kind, message.bits), (MessageKind::Notify, 5));
        assert_eq!(message.source, client.address());
        assert_eq!(receive(&server).body, [9]);
        assert_eq!(receive(&server).body, [8]);
    });
}

#[test]
fn receive_from_one_leaves_the_others_waiting() {
    both_ways(|cluster, server, client| {
        let other = cluster.dc(1).endpoint().unwrap();
        client.post(&server.address(), vec![2]).unwrap();
        other.post(&server.address(), vec![3]).unwrap();
        assert_eq!(server.receive_from(&other.address(), LONG).unwrap().body, [3]);
        assert_eq!(
            server.receive_from(&other.address(), SHORT).unwrap_err(),
            ReceiveError::TimedOut
        );
        assert_eq!(server.receive_from(&client.address(), LONG).unwrap().body, [2]);
    });
}

#[test]
fn a_dropped_request_is_an_error_of_its_caller() {
    both_ways(|_, server, client| {
        server.set_handler(drop);
        let error = client.call(&server.address(), vec![], LONG).unwrap_err();
        assert_eq!(error, CallError::Dropped { address: server.address() });
    });
}

#[test]
fn an_answer_after_the_deadline_goes_nowhere() {
    both_ways(|_, server, client| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let error = client.call(&server.address(), vec![1], SHORT).unwrap_err();
                assert!(matches!(error, CallError::TimedOut { .. }));
                assert_eq!(client.call(&server.address(), vec![2], LONG).unwrap(), [22]);
            });
            let late = receive(&server);
            assert_eq!(late.body, [1]);
            let next = receive(&server);
            assert_eq!(next.body, [2]);
            late.reply(vec![11]);
            next.reply(vec![22]);
        });
    });
}

#[test]
fn callbacks_and_handlers_must_not_wait_and_are_told_so() {
    both_ways(|_, server, client| {
        let (sender, receiver) = channel();
        let to = server.address();
        server.set_handler(|message| message.reply(vec![]));
        let own = client.clone();
        client.call_with(Lane::Small, &to, vec![], LONG, move |answer| {
            answer.unwrap();
            let call = own.call(&to, vec![], LONG).unwrap_err();
            let receive = own.receive(LONG).unwrap_err();
            sender.send((call, receive)).unwrap();
        });
        let errors = receiver.recv_timeout(LONG).unwrap();
        assert_eq!(errors, (CallError::InHandler, ReceiveError::InHandler));
    });
}

#[test]
fn a_handler_that_panics_loses_its_message_only() {
    both_ways(|_, server, client| {
        server.set_handler(|message| {
            assert!(message.body != [13], "thirteen (this panic is part of the test)");
            message.reply(vec![1]);
        });
        let error = client.call(&server.address(), vec![13], LONG).unwrap_err();
        assert!(matches!(error, CallError::Dropped { .. }));
        assert_eq!(client.call(&server.address(), vec![1], LONG).unwrap(), [1]);
    });
}

#[test]
fn handlers_that_send_to_each_other_do_not_nest() {
    // Two endpoints that post to each other 100,000 times would overflow the stack if they did.
    both_ways(|_, server, client| {
        const ROUNDS: u32 = 100_000;
        let (sender, receiver) = channel();
        for endpoint in [&server, &client] {
            let own = endpoint.clone();
            let sender = sender.clone();
            endpoint.set_handler(move |message| {
                let count = u32::from_le_bytes(message.body[..4].try_into().unwrap());
                if count == ROUNDS {
                    sender.send(()).unwrap();
                } else {
                    own.post(&message.source, (count + 1).to_le_bytes().to_vec()).unwrap();
                }
            });
        }
        client.post(&server.address(), 0u32.to_le_bytes().to_vec()).unwrap();
        receiver.recv_timeout(LONG).unwrap();
        server.close();
        client.close();
    });
}

#[test]
fn back_pressure_is_an_error_of_post_and_a_wait_of_the_others() {
    both_ways(|_, server, client| {
        let to = server.address();
        let mut sent = 0u32;
        let error = loop {
            match client.post(&to, sent.to_le_bytes().to_vec()) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 1_000_000);
        };
        assert_eq!(error, CallError::Busy { address: to });
        let late = client.post_within(Lane::Small, &to, vec![], SHORT).unwrap_err();
        assert_eq!(late, CallError::Busy { address: to });
        thread::scope(|scope| {
            let waiting = scope.spawn(|| client.post_within(Lane::Small, &to, vec![7], LONG));
            for number in 0..sent {
                assert_eq!(receive(&server).body, number.to_le_bytes());
            }
            waiting.join().unwrap().unwrap();
            assert_eq!(receive(&server).body, [7]);
        });
        // Another endpoint of the same node was never held up: see the test below.
    });
}

#[test]
fn a_stalled_receiver_delays_nobody_else() {
    both_ways(|cluster, stalled, client| {
        while client.post(&stalled.address(), vec![0; 10_000]).is_ok() {}
        let lively = cluster.dc(0).endpoint().unwrap();
        lively.set_handler(|message| message.reply(vec![1]));
        for _ in 0..2000 {
            assert_eq!(client.call(&lively.address(), vec![], LONG).unwrap(), [1]);
        }
    });
}

#[test]
fn names_are_found_wherever_their_endpoint_is() {
    let cluster = Cluster::new(3);
    let dcs: Vec<_> = (0..3).map(|index| cluster.dc(index)).collect();
    let ends: Vec<_> =
        (0..3).map(|index| dcs[index].bind(&format!("end{index}")).unwrap()).collect();
    for dc in &dcs {
        for (index, end) in ends.iter().enumerate() {
            assert_eq!(dc.resolve(&format!("end{index}"), LONG).unwrap(), end.address());
        }
        assert!(matches!(dc.bind("end2"), Err(NameError::Taken { .. })));
        assert!(matches!(dc.resolve("nobody", SHORT), Err(NameError::NotBound { .. })));
        assert_eq!(dc.bind("").unwrap_err(), NameError::BadName);
    }
    thread::scope(|scope| {
        let waiting: Vec<_> =
            dcs.iter().map(|dc| scope.spawn(|| dc.resolve("later", LONG))).collect();
        let later = dcs[1].bind("later").unwrap();
        for found in waiting {
            assert_eq!(found.join().unwrap().unwrap(), later.address());
        }
    });
}

#[test]
fn a_name_can_be_bound_again_after_its_endpoint_and_caches_are_corrected() {
    let cluster = Cluster::new(3);
    let first = cluster.dc(1).bind("service").unwrap();
    let client = cluster.dc(2).endpoint().unwrap();
    let old = cluster.dc(2).resolve("service", LONG).unwrap();
    assert_eq!(old, first.address());
    drop(first);
    let mut second = None;
    eventually("the name is free", || {
        second = cluster.dc(1).bind("service").ok();
        second.is_some()
    });
    let second = second.unwrap();
    second.set_handler(|message| message.reply(vec![2]));
    assert_eq!(client.call(&old, vec![], LONG), Err(CallError::NoEndpoint { address: old }));
    let new = cluster.dc(2).resolve("service", LONG).unwrap();
    assert_eq!(new, second.address());
    assert_eq!(client.call(&new, vec![], LONG).unwrap(), [2]);
}

#[test]
fn closed_endpoints_say_so_to_everybody() {
    both_ways(|_, server, client| {
        let to = server.address();
        thread::scope(|scope| {
            let caller = scope.spawn(|| client.call(&to, vec![], LONG));
            eventually("the call waits", || server.statistics().unwrap().waiting == 1);
            server.close();
            assert_eq!(caller.join().unwrap(), Err(CallError::NoEndpoint { address: to }));
        });
        assert_eq!(server.receive(LONG).unwrap_err(), ReceiveError::Closed);
        assert_eq!(server.post(&client.address(), vec![]), Err(CallError::Closed));
        assert_eq!(client.call(&to, vec![], LONG), Err(CallError::NoEndpoint { address: to }));
    });
}

#[test]
fn unknown_nodes_and_lives_are_told_apart() {
    let cluster = Cluster::new(2);
    let client = cluster.dc(0).endpoint().unwrap();
    let there = cluster.dc(1).endpoint().unwrap().address();
    let nobody = Address { node: NodeId(9), ..there };
    assert_eq!(
        client.call(&nobody, vec![], LONG),
        Err(CallError::NotConnected { node: NodeId(9) })
    );
    let past = Address { incarnation: 0, ..there };
    assert_eq!(client.call(&past, vec![], LONG), Err(CallError::NodeGone { node: NodeId(2) }));
}

#[test]
fn no_primitive_crosses_containers() {
    both_ways(|cluster, server, _| {
        let to = server.address();
        let other = DcId(DC.0 + 1);
        for index in [0, 1] {
            let dc = cluster.nodes[index].dc(other, 1);
            let stranger = dc.endpoint().unwrap();
            let refused = CallError::OtherDc { from: other, to: DC };
            assert_eq!(stranger.post(&to, vec![]), Err(refused.clone()));
            assert_eq!(stranger.call(&to, vec![], LONG), Err(refused.clone()));
            assert_eq!(stranger.send(&to, vec![], LONG), Err(refused.clone()));
            assert_eq!(stranger.notify(&to, 1), Err(refused));
            // The same number in the own container is another endpoint, or none.
            let forged = Address { dc: other, ..to };
            assert_eq!(
                stranger.call(&forged, vec![], LONG),
                Err(CallError::NoEndpoint { address: forged })
            );
            assert!(matches!(dc.resolve("server", SHORT), Err(NameError::NotBound { .. })));
        }
        assert_eq!(server.receive(SHORT).unwrap_err(), ReceiveError::TimedOut);
    });
}

#[test]
fn a_container_can_be_closed_to_a_node() {
    let cluster = Cluster::new(3);
    let server = cluster.dc(0).endpoint().unwrap();
    server.set_handler(|message| message.reply(vec![]));
    cluster.dc(0).restrict(&[NodeId(2)]);
    let allowed = cluster.dc(1).endpoint().unwrap();
    let stranger = cluster.dc(2).endpoint().unwrap();
    assert_eq!(allowed.call(&server.address(), vec![], LONG), Ok(vec![]));
    let refused = CallError::NoDc { dc: DC, node: NodeId(1) };
    assert_eq!(stranger.call(&server.address(), vec![], LONG), Err(refused.clone()));
    assert_eq!(stranger.send(&server.address(), vec![], LONG), Err(refused));
    stranger.post(&server.address(), vec![]).unwrap();
    stranger.notify(&server.address(), 1).unwrap();
    assert!(matches!(cluster.dc(2).resolve("x", SHORT), Err(NameError::Registry(_))));
    assert_eq!(server.statistics().unwrap().received, 1, "the call of node 2 alone");
}

#[test]
fn ten_thousand_endpoints() {
    let cluster = Cluster::new(2);
    let dc = cluster.dc(0);
    let client = cluster.dc(1).endpoint().unwrap();
    let ends: Vec<_> = (0..10_000)
        .map(|number| {
            let end = dc.bind(&format!("end{number}")).unwrap();
            end.set_handler(move |message| message.reply(vec![number as u8]));
            end
        })
        .collect();
    for number in (0..10_000).step_by(97) {
        let to = cluster.dc(1).resolve(&format!("end{number}"), LONG).unwrap();
        assert_eq!(to, ends[number].address());
        assert_eq!(client.call(&to, vec![], LONG).unwrap(), [number as u8]);
    }
    drop(ends);
    assert!(cluster.nodes[0].statistics().endpoints < 10, "they end with their handles");
}
