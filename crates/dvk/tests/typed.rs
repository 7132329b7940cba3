//! Typed services: identity of requests, the reply cache, workers.

mod common;

use common::{Cluster, LONG};
use dvs_dvk::typed::{Caller, KEPT_ANSWERS, serve};
use dvs_dvk::{CallError, Endpoint, Lane};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

fn clients(cluster: &Cluster, server: &Endpoint) -> Vec<Caller<u64, u64>> {
    let to = server.address();
    (0..2).map(|index| Caller::new(cluster.dc(index).endpoint().unwrap(), to)).collect()
}

#[test]
fn requests_are_answered_with_and_without_workers() {
    for workers in [0, 1, 4] {
        let cluster = Cluster::new(2);
        let server = cluster.dc(0).endpoint().unwrap();
        serve(&server, workers, |_, request: u64| request + 1).unwrap();
        thread::scope(|scope| {
            for client in clients(&cluster, &server) {
                scope.spawn(move || {
                    for number in 0..300 {
                        assert_eq!(client.call(&number, LONG), Ok(number + 1));
                    }
                    let (sender, receiver) = channel();
                    client.call_with(&7, LONG, move |answer| sender.send(answer).unwrap());
                    assert_eq!(receiver.recv_timeout(LONG).unwrap(), Ok(8));
                });
            }
        });
    }
}

#[test]
fn a_repeated_request_is_executed_once() {
    let cluster = Cluster::new(2);
    let server = cluster.dc(0).endpoint().unwrap();
    let executed: Arc<Mutex<HashMap<u64, u64>>> = Arc::default();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let (seen, closed) = (Arc::clone(&executed), Arc::clone(&gate));
    serve(&server, 2, move |_, request: u64| {
        *seen.lock().unwrap().entry(request).or_default() += 1;
        let mut open = closed.0.lock().unwrap();
        while !*open {
            open = closed.1.wait(open).unwrap();
        }
        request * 2
    })
    .unwrap();
    thread::scope(|scope| {
        for client in clients(&cluster, &server) {
            scope.spawn(move || {
                let attempt = Duration::from_millis(10);
                assert_eq!(client.call_repeating(&21, attempt, LONG), Ok(42));
            });
        }
        // Both requests run, and are repeated meanwhile.
        common::eventually("repetitions", || {
            server.statistics().is_some_and(|figures| figures.received >= 10)
        });
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
    });
    assert_eq!(executed.lock().unwrap()[&21], 2, "once for each client");
}

#[test]
fn the_cut_link_of_a_client_doubles_nothing() {
    let cluster = Cluster::new(2);
    let server = cluster.dc(0).endpoint().unwrap();
    let total = Arc::new(AtomicU64::new(0));
    let sum = Arc::clone(&total);
    serve(&server, 1, move |_, request: u64| sum.fetch_add(request, Ordering::Relaxed)).unwrap();
    let client: Caller<u64, u64> =
        Caller::new(cluster.dc(1).endpoint().unwrap(), server.address()).on(Lane::Bulk);
    for number in 0..300 {
        if number % 10 == 0 {
            cluster.nodes[number / 10 % 2].cut(2 - (number / 10 % 2) as u16);
        }
        client.call_repeating(&1, Duration::from_millis(5), LONG).unwrap();
    }
    assert_eq!(total.load(Ordering::Relaxed), 300);
}

#[test]
fn a_request_that_panics_is_dropped_and_the_server_goes_on() {
    for workers in [0, 1] {
        let cluster = Cluster::new(2);
        let server = cluster.dc(0).endpoint().unwrap();
        serve(&server, workers, |_, request: u64| {
            assert!(request != 13, "thirteen (this panic is part of the test)");
            request
        })
        .unwrap();
        for client in clients(&cluster, &server) {
            let error = client.call(&13, LONG).unwrap_err();
            assert!(matches!(error, CallError::Dropped { .. }), "{error}");
            assert_eq!(client.call(&1, LONG), Ok(1));
        }
    }
}

#[test]
fn what_cannot_be_decoded_is_dropped() {
    let cluster = Cluster::new(2);
    let server = cluster.dc(0).endpoint().unwrap();
    serve(&server, 1, |_, text: String| text.len() as u64).unwrap();
    let plain = cluster.dc(1).endpoint().unwrap();
    let error = plain.call(&server.address(), vec![1, 200, 200], LONG).unwrap_err();
    assert!(matches!(error, CallError::Dropped { .. }));
    let client: Caller<String, String> = Caller::new(plain, server.address());
    assert_eq!(client.call(&"four".into(), LONG), Err(CallError::Malformed));
}

#[test]
fn answers_are_kept_up_to_their_bound() {
    // Sequence numbers are the caller's own: the envelope is built by hand here.
    let cluster = Cluster::new(1);
    let server = cluster.dc(0).endpoint().unwrap();
    let executed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&executed);
    serve(&server, 0, move |_, _: u64| count.fetch_add(1, Ordering::Relaxed)).unwrap();
    let client = cluster.dc(0).endpoint().unwrap();
    let call = |sequence: u8| client.call(&server.address(), vec![sequence, 0], LONG);
    let first: Vec<_> = (1..=KEPT_ANSWERS as u8).map(|sequence| call(sequence).unwrap()).collect();
    assert_eq!(call(1).unwrap(), first[0]);
    assert_eq!(executed.load(Ordering::Relaxed), KEPT_ANSWERS as u64);
    call(KEPT_ANSWERS as u8 + 1).unwrap();
    assert!(matches!(call(1), Err(CallError::Dropped { .. })), "forgotten, and not done again");
    assert_eq!(executed.load(Ordering::Relaxed), KEPT_ANSWERS as u64 + 1);
}
