//! Tests of the link's state machine, two ends in one thread.

use super::frame::{Frame, Header, Kind};
use super::hello::HelloError;
use super::lane::LaneError;
use super::link::{DownReason, Link, LinkConfig, LinkError, Output};
use crate::ids::{DcId, Lane, NodeId};

fn link(node: u16, incarnation: u64, peer: u16) -> Link {
    let config = LinkConfig {
        cluster: [1; 16],
        node: NodeId(node),
        incarnation,
        proof: Vec::new(),
        heartbeat: 10,
        stale: u64::MAX,
        silence: 100,
        reconnect: 50,
    };
    Link::new(config, NodeId(peer))
}

fn post(body: u8) -> Frame {
    let header = Header {
        kind: Kind::Post,
        status: 0,
        sequence: 0,
        dc: DcId(1),
        source: 1,
        destination: 2,
        request: 0,
    };
    Frame { header, body: vec![body] }
}

/// What a link would write, as frames.
fn written(link: &mut Link, lane: Lane, now: u64) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((_, batch)) = link.take_batch(lane, now) {
        for packet in batch {
            let mut bytes = packet.header.to_vec();
            bytes.extend(&packet.body);
            let mut decoder = super::frame::Decoder::default();
            frames.push(decoder.next(&mut bytes.as_slice()).unwrap().unwrap());
        }
    }
    frames
}

/// Moves everything that one link has written on a connection to the other; returns what came.
fn carry(from: &mut Link, to: &mut Link, lane: Lane, connection: u64, now: u64) -> Vec<u8> {
    let mut came = Vec::new();
    for frame in written(from, lane, now) {
        let received = to.received(lane, connection, frame, now).unwrap();
        came.extend(received.frame.into_iter().flat_map(|frame| frame.body));
    }
    came
}

/// Joins the two by a new connection of the lane.
fn join(one: &mut Link, two: &mut Link, lane: Lane, connection: u64, now: u64) {
    one.connected(lane, connection, now);
    let hello = written(one, lane, now).remove(0);
    let hello = super::hello::Hello::parse(&hello).unwrap();
    two.accepted(connection, &hello, now).unwrap();
    let answer = written(two, lane, now);
    for frame in answer {
        one.received(lane, connection, frame, now).unwrap();
    }
}

fn session() -> (Link, Link) {
    let (mut one, mut two) = (link(1, 1, 2), link(2, 1, 1));
    join(&mut one, &mut two, Lane::Small, 1, 0);
    join(&mut one, &mut two, Lane::Bulk, 2, 0);
    (one, two)
}

#[test]
fn a_cut_connection_goes_on_where_it_was() {
    let (mut one, mut two) = session();
    for body in 0..5 {
        one.send(Lane::Small, post(body)).unwrap();
    }
    // Three of five frames come through before the cut.
    for frame in written(&mut one, Lane::Small, 1).into_iter().take(3) {
        two.received(Lane::Small, 1, frame, 1).unwrap();
    }
    one.closed(Lane::Small, 1, 2);
    one.send(Lane::Small, post(5)).unwrap();
    join(&mut one, &mut two, Lane::Small, 3, 3);
    assert_eq!(carry(&mut one, &mut two, Lane::Small, 3, 4), [3, 4, 5]);
    assert_eq!(one.statistics(Lane::Small).resent, 2);
}

#[test]
fn what_comes_by_an_old_connection_is_void() {
    let (mut one, mut two) = session();
    one.send(Lane::Small, post(0)).unwrap();
    let late = written(&mut one, Lane::Small, 1);
    join(&mut one, &mut two, Lane::Small, 3, 2);
    for frame in late {
        assert_eq!(two.received(Lane::Small, 1, frame, 3), Err(LinkError::Superseded));
    }
    assert_eq!(carry(&mut one, &mut two, Lane::Small, 3, 4), [0]);
}

#[test]
fn frames_are_kept_until_they_are_acknowledged() {
    let (mut one, mut two) = session();
    for body in 0..200 {
        one.send(Lane::Small, post(body)).unwrap();
    }
    assert_eq!(carry(&mut one, &mut two, Lane::Small, 1, 1).len(), 200);
    assert_eq!(one.statistics(Lane::Small).buffered_frames, 200);
    carry(&mut two, &mut one, Lane::Small, 1, 2);
    assert_eq!(one.statistics(Lane::Small).buffered_frames, 0, "acknowledged by the 64th at last");
    one.send(Lane::Small, post(1)).unwrap();
    carry(&mut one, &mut two, Lane::Small, 1, 3);
    assert!(two.tick(4).contains(&Output::Write(Lane::Small)));
    carry(&mut two, &mut one, Lane::Small, 1, 4);
    assert_eq!(one.statistics(Lane::Small).buffered_frames, 0, "and by the tick");
}

#[test]
fn a_peer_that_does_not_come_back_or_is_silent_is_given_up() {
    let (mut one, _) = session();
    one.closed(Lane::Bulk, 2, 20);
    assert!(!one.tick(69).iter().any(|output| matches!(output, Output::Down { .. })));
    assert!(one.tick(70).contains(&Output::Down { incarnation: 1, reason: DownReason::Cut }));
    assert_eq!(one.incarnation(), None);
    assert!(one.send(Lane::Small, post(0)).is_err());

    let (mut one, mut two) = session();
    assert!(one.tick(10).contains(&Output::Write(Lane::Small)), "a heartbeat is due");
    carry(&mut one, &mut two, Lane::Small, 1, 99);
    let silent = Output::Down { incarnation: 1, reason: DownReason::Silent };
    assert!(two.tick(100).contains(&silent), "the bulk lane said nothing");
}

#[test]
fn an_ended_life_is_refused_and_told_and_the_next_one_is_welcome() {
    let (mut one, mut two) = session();
    one.give_up(DownReason::Asked, 1);
    let farewell = written(&mut one, Lane::Small, 1).remove(0);
    let told = two.received(Lane::Small, 1, farewell, 2).unwrap().outputs;
    assert!(told.contains(&Output::Down { incarnation: 1, reason: DownReason::GivenUp }));
    two.connected(Lane::Small, 7, 3);
    let hello = written(&mut two, Lane::Small, 3).remove(0);
    let hello = super::hello::Hello::parse(&hello).unwrap();
    let ended = LinkError::Hello(HelloError::Ended { node: NodeId(2) });
    assert_eq!(one.accepted(7, &hello, 3), Err(ended));
    let mut reborn = link(2, 2, 1);
    join(&mut reborn, &mut one, Lane::Small, 8, 4);
    assert_eq!(one.incarnation(), Some(2));
}

#[test]
fn a_farewell_goes_to_the_connection_that_it_is_meant_for() {
    let (mut one, _) = session();
    one.give_up(DownReason::Asked, 1);
    let mut reborn = link(2, 2, 1);
    join(&mut reborn, &mut one, Lane::Small, 8, 2);
    assert_eq!(reborn.incarnation(), Some(1));
    assert_eq!(one.incarnation(), Some(2));
}

#[test]
fn a_restarted_peer_begins_at_the_beginning() {
    let (mut one, mut two) = session();
    one.send(Lane::Small, post(1)).unwrap();
    carry(&mut one, &mut two, Lane::Small, 1, 1);
    one.send(Lane::Small, post(2)).unwrap();
    let mut reborn = link(2, 2, 1);
    // Our own reconnection meets the new life, and speaks of the old one.
    one.closed(Lane::Small, 1, 2);
    one.connected(Lane::Small, 5, 2);
    let hello = written(&mut one, Lane::Small, 2).remove(0);
    let hello = super::hello::Hello::parse(&hello).unwrap();
    reborn.accepted(5, &hello, 2).unwrap();
    let answer = written(&mut reborn, Lane::Small, 2).remove(0);
    let outputs = one.received(Lane::Small, 5, answer, 3).unwrap().outputs;
    assert!(outputs.contains(&Output::Down { incarnation: 1, reason: DownReason::Restarted }));
    assert!(outputs.contains(&Output::Up { incarnation: 2 }));
    one.send(Lane::Small, post(3)).unwrap();
    assert_eq!(carry(&mut one, &mut reborn, Lane::Small, 5, 4), [3], "nothing of the old session");
}

#[test]
fn if_both_connect_one_connection_stays() {
    let (mut one, mut two) = (link(1, 1, 2), link(2, 1, 1));
    one.connected(Lane::Small, 1, 0);
    two.connected(Lane::Small, 1, 0);
    let hello = |link: &mut Link| {
        super::hello::Hello::parse(&written(link, Lane::Small, 0).remove(0)).unwrap()
    };
    let (from_one, from_two) = (hello(&mut one), hello(&mut two));
    assert_eq!(one.accepted(2, &from_two, 0), Err(LinkError::Superseded));
    two.accepted(2, &from_one, 0).unwrap();
    for frame in written(&mut two, Lane::Small, 0) {
        one.received(Lane::Small, 1, frame, 0).unwrap();
    }
    one.send(Lane::Small, post(1)).unwrap();
    assert_eq!(carry(&mut one, &mut two, Lane::Small, 2, 1), [1]);
}

#[test]
fn a_frame_that_comes_twice_is_dropped_and_counted() {
    let (mut one, mut two) = session();
    one.send(Lane::Small, post(1)).unwrap();
    let frame = written(&mut one, Lane::Small, 1).remove(0);
    assert!(two.received(Lane::Small, 1, frame.clone(), 1).unwrap().frame.is_some());
    assert!(two.received(Lane::Small, 1, frame, 1).unwrap().frame.is_none());
    assert_eq!(two.statistics(Lane::Small).duplicates, 1);
}

#[test]
fn broken_rules_are_errors() {
    let (mut one, _) = session();
    let mut gap = post(0);
    gap.header.sequence = 5;
    let error = LinkError::Lane(LaneError::Gap { expected: 1, found: 5 });
    assert_eq!(one.received(Lane::Small, 1, gap, 1), Err(error));
    let ack = Frame::control(Kind::Ack, 0, 9, vec![]);
    assert_eq!(one.received(Lane::Small, 1, ack, 1), Err(LinkError::Lane(LaneError::Ack(9))));
    let hello = Frame::control(Kind::Hello, 0, 0, vec![]);
    let error = LinkError::Lane(LaneError::Unexpected);
    assert_eq!(one.received(Lane::Small, 1, hello, 1), Err(error));
}

#[test]
fn a_peer_that_takes_nothing_is_given_up_at_the_bound() {
    use super::lane::{BUFFER_BYTES, BUFFER_FRAMES, OVERRUN};
    let (mut one, _) = session();
    let mut sent = 0;
    while one.has_room(Lane::Small) {
        one.send(Lane::Small, post(0)).unwrap();
        sent += 1;
    }
    assert_eq!(sent, BUFFER_FRAMES);
    const { assert!(BUFFER_FRAMES * OVERRUN < BUFFER_BYTES) };
    for _ in sent..BUFFER_FRAMES * OVERRUN {
        one.send(Lane::Small, post(0)).unwrap();
    }
    assert!(!one.tick(1).iter().any(|output| matches!(output, Output::Down { .. })));
    one.send(Lane::Small, post(0)).unwrap();
    assert!(one.tick(1).contains(&Output::Down { incarnation: 1, reason: DownReason::Overrun }));
}

#[test]
fn a_connection_that_brings_nothing_is_made_anew_and_the_session_goes_on() {
    let config = |node| LinkConfig {
        cluster: [1; 16],
        node: NodeId(node),
        incarnation: 1,
        proof: Vec::new(),
        heartbeat: 10,
        stale: 40,
        silence: 1000,
        reconnect: 500,
    };
    let mut one = Link::new(config(1), NodeId(2));
    let mut two = Link::new(config(2), NodeId(1));
    join(&mut one, &mut two, Lane::Small, 1, 0);
    assert!(one.send(Lane::Small, post(1)).unwrap());
    // Written, and swallowed by the network.
    assert!(!written(&mut one, Lane::Small, 1).is_empty());
    assert!(!one.tick(39).iter().any(|output| matches!(output, Output::Close { .. })));
    let outputs = one.tick(45);
    assert!(outputs.contains(&Output::Close { lane: Lane::Small, connection: 1 }), "{outputs:?}");
    assert!(one.incarnation().is_some() && !one.is_open(Lane::Small));
    two.closed(Lane::Small, 1, 46);
    join(&mut one, &mut two, Lane::Small, 2, 50);
    assert_eq!(carry(&mut one, &mut two, Lane::Small, 2, 51), [1], "sent again");
    assert_eq!(one.statistics(Lane::Small).connections, 2);
    // And when nobody comes back, the peer is given up.
    one.closed(Lane::Small, 2, 60);
    let outputs = one.tick(560);
    assert!(
        outputs.contains(&Output::Down { incarnation: 1, reason: DownReason::Cut }),
        "{outputs:?}"
    );
}
