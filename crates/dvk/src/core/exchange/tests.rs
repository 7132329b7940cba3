//! Tests of the exchange's state machine.

use super::{Command, Exchange, Key, Submission};
use crate::core::frame::{Frame, Header, Kind, Status};
use crate::core::inbox::{
    From, MAX_NOTIFIERS, MAX_RECEIVERS, MessageKind, WINDOW_BYTES, WINDOW_MESSAGES,
};
use crate::error::{CallError, ReceiveError};
use crate::ids::{Address, DcId, Lane, NodeId};
use std::collections::BTreeSet;

const DC: DcId = DcId(1);
const SOURCE: u64 = 2 << 48 | 7;

type Node = Exchange<&'static str>;
type Commands = Vec<Command<&'static str>>;

/// Node 1 with an endpoint, and sessions with nodes 2 and 3.
fn node() -> (Node, Key) {
    let mut node = Exchange::new(NodeId(1), 1);
    node.open_dc(DC);
    node.peer_up(NodeId(2), 1);
    node.peer_up(NodeId(3), 1);
    let key = node.bind(DC).unwrap();
    (node, key)
}

fn remote(node: u16) -> Address {
    Address { dc: DC, node: NodeId(node), incarnation: 1, number: SOURCE }
}

fn submission(source: Key, to: Address, kind: MessageKind) -> Submission {
    Submission { source, to, kind, lane: Lane::Small, body: vec![1], deadline: 100 }
}

fn frame(kind: Kind, key: Key, request: u64) -> Frame {
    let header = Header {
        kind,
        status: 0,
        sequence: 1,
        dc: DC,
        source: SOURCE,
        destination: key.number,
        request,
    };
    Frame { header, body: vec![5] }
}

fn come(node: &mut Node, from: u16, frame: Frame) -> Commands {
    let mut out = Vec::new();
    node.remote(NodeId(from), 1, Lane::Small, frame, &mut out);
    out
}

fn call(node: &mut Node, source: Key, to: Address) -> u64 {
    let waiter = Some("call");
    node.submit(submission(source, to, MessageKind::Call), waiter, true, &mut Vec::new()).unwrap()
}

fn finished(commands: &Commands) -> Vec<&Result<Vec<u8>, CallError>> {
    let mut results = Vec::new();
    for command in commands {
        if let Command::Finish { result, .. } = command {
            results.push(result);
        }
    }
    results
}

#[test]
fn only_the_endpoint_that_was_asked_may_answer() {
    let (mut node, key) = node();
    let request = call(&mut node, key, remote(2));
    let mut other_endpoint = frame(Kind::Reply, key, request);
    other_endpoint.header.source += 1;
    assert!(come(&mut node, 2, other_endpoint).is_empty());
    assert!(come(&mut node, 3, frame(Kind::Reply, key, request)).is_empty(), "another node");
    assert_eq!(node.statistics().stray_replies, 2);
    let commands = come(&mut node, 2, frame(Kind::Reply, key, request));
    assert_eq!(finished(&commands), [&Ok(vec![5])]);
    assert!(come(&mut node, 2, frame(Kind::Reply, key, request)).is_empty(), "answered once");
}

#[test]
fn the_end_of_a_node_ends_what_waits_for_it_and_nothing_else() {
    let (mut node, key) = node();
    call(&mut node, key, remote(2));
    let other = call(&mut node, key, remote(3));
    let from = From::One(remote(2));
    assert!(node.receive(key, from, 100, "receive", &mut Vec::new()).is_some());
    let mut out = Vec::new();
    node.peer_down(NodeId(2), 1, &mut out);
    assert_eq!(finished(&out), [&Err(CallError::NodeGone { node: NodeId(2) })]);
    assert!(out.iter().any(|command| matches!(
        command,
        Command::Received { waiter: "receive", result: Err(ReceiveError::NodeGone { .. }) }
    )));
    assert_eq!(node.statistics().calls, 1);
    assert!(node.cancel(other, &mut Vec::new()));
    let gone = node
        .submit(submission(key, remote(2), MessageKind::Post), None, true, &mut Vec::new())
        .unwrap_err();
    assert_eq!(gone.error, CallError::NotConnected { node: NodeId(2) });
}

#[test]
fn calls_of_a_dead_client_are_dropped_and_its_posts_are_not() {
    let (mut node, key) = node();
    come(&mut node, 2, frame(Kind::Call, key, 1));
    come(&mut node, 2, frame(Kind::Post, key, 0));
    node.peer_down(NodeId(2), 1, &mut Vec::new());
    node.peer_up(NodeId(2), 2);
    // A frame of the old life that was still on its way says nothing.
    assert!(come(&mut node, 2, frame(Kind::Post, key, 0)).is_empty());
    assert_eq!(node.endpoint_statistics(key).unwrap().waiting, 1);
    let mut out = Vec::new();
    node.receive(key, From::Any, 100, "receive", &mut out);
    let [Command::Received { result: Ok(taken), .. }] = &out[..] else { panic!("{out:?}") };
    assert_eq!(taken.kind, MessageKind::Post);
    assert_eq!(taken.source.incarnation, 1);
}

#[test]
fn an_answer_never_reaches_another_life_of_its_caller() {
    let (mut node, key) = node();
    come(&mut node, 2, frame(Kind::Call, key, 1));
    let mut out = Vec::new();
    node.receive(key, From::Any, 100, "receive", &mut out);
    let [Command::Received { result: Ok(taken), .. }] = &out[..] else { panic!("{out:?}") };
    let token = taken.reply.unwrap();
    let mut out = Vec::new();
    node.reply(token, Ok(vec![]), &mut out);
    let [Command::Transmit { node: to, incarnation, .. }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((*to, *incarnation), (NodeId(2), 1), "the runtime drops it without that session");
}

#[test]
fn deadlines_end_calls_and_receives_and_take_requests_back() {
    let (mut node, key) = node();
    let request = call(&mut node, key, remote(2));
    node.receive(key, From::Any, 50, "receive", &mut Vec::new()).unwrap();
    assert_eq!(node.next_deadline(), Some(50));
    let mut out = Vec::new();
    node.tick(49, &mut out);
    assert!(out.is_empty());
    node.tick(100, &mut out);
    assert_eq!(finished(&out), [&Err(CallError::TimedOut { address: remote(2) })]);
    assert!(out.iter().any(|command| matches!(
        command,
        Command::Received { result: Err(ReceiveError::TimedOut), .. }
    )));
    assert!(out.iter().any(|command| matches!(
        command,
        Command::Transmit { frame: Frame { header, .. }, .. }
            if header.kind == Kind::Cancel && header.request == request
    )));
    assert_eq!(node.next_deadline(), None);
    // The other side: a request that was taken back is not received.
    come(&mut node, 2, frame(Kind::Call, key, 9));
    come(&mut node, 2, frame(Kind::Cancel, key, 9));
    assert_eq!(node.endpoint_statistics(key).unwrap().waiting, 0);
}

#[test]
fn the_window_is_counted_at_the_sender_and_given_back_by_credit() {
    let (mut node, key) = node();
    let post = submission(key, remote(2), MessageKind::Post);
    for _ in 0..WINDOW_MESSAGES {
        node.submit(post.clone(), None, true, &mut Vec::new()).unwrap();
    }
    let full = node.submit(post.clone(), None, true, &mut Vec::new()).unwrap_err();
    assert_eq!(full.error, CallError::Busy { address: remote(2) });
    let other = submission(key, remote(3), MessageKind::Post);
    assert!(node.submit(other, None, true, &mut Vec::new()).is_ok(), "its own window");
    let mut credit = frame(Kind::Credit, Key { dc: DC, number: 2 }, 2);
    credit.body.clear();
    come(&mut node, 2, credit);
    assert!(node.submit(post.clone(), None, true, &mut Vec::new()).is_ok());
    assert!(node.submit(post.clone(), None, true, &mut Vec::new()).is_ok());
    assert!(node.submit(post.clone(), None, true, &mut Vec::new()).is_err());
    let mut gone = frame(Kind::Gone, key, 0);
    gone.body.clear();
    let out = come(&mut node, 2, gone);
    assert!(matches!(&out[..], [Command::Stale(address)] if *address == remote(2)));
    let no_room = node.submit(post, None, false, &mut Vec::new()).unwrap_err();
    assert_eq!(no_room.error, CallError::Busy { address: remote(2) }, "the link is full");
}

#[test]
fn bytes_count_as_well_as_messages() {
    let (mut node, key) = node();
    let body = vec![0; 1 << 20];
    let block = Submission { body, ..submission(key, remote(2), MessageKind::Post) };
    for _ in 0..WINDOW_BYTES >> 20 {
        node.submit(block.clone(), None, true, &mut Vec::new()).unwrap();
    }
    assert!(node.submit(block, None, true, &mut Vec::new()).is_err());
}

#[test]
fn credit_is_given_for_consumed_posts_only() {
    let (mut node, key) = node();
    let mut credit = 0;
    for count in 1..=WINDOW_MESSAGES as u64 {
        come(&mut node, 2, frame(Kind::Post, key, 0));
        let mut out = Vec::new();
        node.receive(key, From::Any, 100, "receive", &mut out);
        for command in out {
            if let Command::Transmit { frame, .. } = command {
                assert_eq!(frame.header.kind, Kind::Credit);
                credit += frame.header.destination;
                assert_eq!(credit, count);
            }
        }
    }
    assert_eq!(credit, WINDOW_MESSAGES as u64);
}

#[test]
fn containers_and_their_members_are_kept_apart() {
    let (mut node, key) = node();
    let mut other = frame(Kind::Call, key, 1);
    other.header.dc = DcId(2);
    let out = come(&mut node, 2, other);
    let status = |out: &Commands| match &out[..] {
        [Command::Transmit { frame, .. }] => frame.header.status,
        _ => panic!("{out:?}"),
    };
    assert_eq!(status(&out), Status::NoDc as u8);
    node.restrict_dc(DC, BTreeSet::from([NodeId(3)]));
    let out = come(&mut node, 2, frame(Kind::Send, key, 1));
    assert_eq!(status(&out), Status::NoDc as u8);
    assert!(come(&mut node, 2, frame(Kind::Notify, key, 1)).is_empty());
    assert!(come(&mut node, 2, frame(Kind::Post, key, 0)).is_empty());
    assert_eq!(node.endpoint_statistics(key).unwrap().waiting, 0);
    let mut out = Vec::new();
    assert!(node.receive(key, From::Any, 1, "receive", &mut out).is_some(), "{out:?}");
    come(&mut node, 3, frame(Kind::Post, key, 0));
    assert_eq!(node.endpoint_statistics(key).unwrap().received, 1);
}

#[test]
fn waiting_receivers_and_notifiers_are_bounded() {
    let (mut node, key) = node();
    for _ in 0..MAX_RECEIVERS {
        assert!(node.receive(key, From::One(remote(3)), 100, "r", &mut Vec::new()).is_some());
    }
    let mut out = Vec::new();
    node.receive(key, From::Any, 100, "r", &mut out);
    assert!(matches!(&out[..], [Command::Received { result: Err(ReceiveError::TooMany), .. }]));
    for source in 0..MAX_NOTIFIERS as u64 + 10 {
        let mut bits = frame(Kind::Notify, key, 1);
        bits.header.source = source;
        come(&mut node, 2, bits);
    }
    assert_eq!(node.endpoint_statistics(key).unwrap().refused, 10);
}

#[test]
fn a_handler_is_told_once_and_gets_everything() {
    let (mut node, key) = node();
    come(&mut node, 2, frame(Kind::Post, key, 0));
    let mut out = Vec::new();
    node.set_handler(key, &mut out);
    assert!(matches!(&out[..], [Command::Drain(drained)] if *drained == key));
    assert!(come(&mut node, 2, frame(Kind::Post, key, 0)).is_empty(), "somebody drains already");
    for _ in 0..2 {
        assert!(node.next_for_handler(key, &mut Vec::new()).is_some());
    }
    assert!(node.next_for_handler(key, &mut Vec::new()).is_none());
    let out = come(&mut node, 2, frame(Kind::Post, key, 0));
    assert!(matches!(&out[..], [Command::Drain(_)]));
}
