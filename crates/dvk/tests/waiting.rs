//! Waiting that ends early: cancellation, async code, sources that are gone.

mod common;

use common::{Cluster, LONG, eventually};
use dvs_dvk::{CallError, Cancellation, Endpoint, Lane, MessageKind, NameError, ReceiveError};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

fn both_ways(test: impl Fn(&Cluster, Endpoint, Endpoint)) {
    for client in [0, 1] {
        let cluster = Cluster::new(2);
        let server = cluster.dc(0).bind("server").unwrap();
        let client = cluster.dc(client).endpoint().unwrap();
        test(&cluster, server, client);
    }
}

/// The smallest executor: runs one future on this thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park_timeout(LONG),
        }
    }
}

#[test]
fn whatever_waits_is_cancelled_and_taken_back() {
    both_ways(|cluster, server, client| {
        let to = server.address();
        let nobody = cluster.dc(0);
        let cancellation = Cancellation::new();
        thread::scope(|scope| {
            let call = scope.spawn(|| cancellation.cover(|| client.call(&to, vec![1], LONG)));
            let send = scope.spawn(|| cancellation.cover(|| client.send(&to, vec![2], LONG)));
            let receive = scope.spawn(|| cancellation.cover(|| client.receive(LONG)));
            let resolve = scope.spawn(|| cancellation.cover(|| nobody.resolve("nobody", LONG)));
            eventually("both wait", || server.statistics().unwrap().waiting == 2);
            cancellation.cancel();
            let cancelled = CallError::Cancelled { address: to };
            assert_eq!(call.join().unwrap(), Err(cancelled.clone()));
            assert_eq!(send.join().unwrap(), Err(cancelled));
            assert_eq!(receive.join().unwrap().unwrap_err(), ReceiveError::Cancelled);
            assert_eq!(resolve.join().unwrap(), Err(NameError::Cancelled));
        });
        eventually("they are taken back", || server.statistics().unwrap().waiting == 0);
        // Begun later: ends at once. Without the cover: goes on.
        let late = cancellation.cover(|| client.call(&to, vec![], LONG)).unwrap_err();
        assert_eq!(late, CallError::Cancelled { address: to });
        server.set_handler(|message| message.reply(vec![3]));
        assert_eq!(client.call(&to, vec![], LONG), Ok(vec![3]));
    });
}

#[test]
fn a_wait_for_room_is_cancelled_too() {
    both_ways(|_, server, client| {
        let to = server.address();
        while client.post(&to, vec![]).is_ok() {}
        let cancellation = Cancellation::new();
        cancellation.cancel();
        let error = cancellation.cover(|| client.post_within(Lane::Small, &to, vec![], LONG));
        assert_eq!(error, Err(CallError::Cancelled { address: to }));
    });
}

#[test]
fn futures_of_every_primitive_that_waits() {
    both_ways(|_, server, client| {
        let to = server.address();
        thread::scope(|scope| {
            scope.spawn(|| {
                run(async {
                    let first = server.receive_async(LONG).await.unwrap();
                    assert_eq!((first.kind, &first.body[..]), (MessageKind::Send, &[1][..]));
                    let from = client.address();
                    let mut second = server.receive_from_async(&from, LONG).await.unwrap();
                    let body = std::mem::take(&mut second.body);
                    second.reply(body);
                });
            });
            run(async {
                client.send_async(&to, vec![1], LONG).await.unwrap();
                let answer = client.call_async(Lane::Bulk, &to, vec![2], LONG).await;
                assert_eq!(answer, Ok(vec![2]));
            });
        });
        server.close();
        let error = run(client.call_async(Lane::Small, &to, vec![], LONG)).unwrap_err();
        assert_eq!(error, CallError::NoEndpoint { address: to });
        assert_eq!(run(server.receive_async(LONG)).unwrap_err(), ReceiveError::Closed);
    });
}

#[test]
fn a_dropped_future_takes_its_request_back() {
    both_ways(|_, server, client| {
        let future = client.call_async(Lane::Small, &server.address(), vec![1], LONG);
        eventually("it waits", || server.statistics().unwrap().waiting == 1);
        drop(future);
        eventually("it is taken back", || server.statistics().unwrap().waiting == 0);
        // A receive that is given up leaves what comes later to others,
        drop(server.receive_async(LONG));
        client.post(&server.address(), vec![2]).unwrap();
        assert_eq!(server.receive(LONG).unwrap().body, [2]);
        // and what had come to it is answered.
        let lost = server.receive_async(LONG);
        let call = client.call_async(Lane::Small, &server.address(), vec![3], LONG);
        eventually("it was received", || server.statistics().unwrap().received == 2);
        drop(lost);
        assert_eq!(run(call), Err(CallError::Dropped { address: server.address() }));
    });
}

#[test]
fn a_receive_from_an_endpoint_that_ends_ends_with_it() {
    both_ways(|cluster, server, client| {
        let from = client.address();
        client.post(&server.address(), vec![1]).unwrap();
        assert_eq!(server.receive_from(&from, LONG).unwrap().body, [1]);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| server.receive_from(&from, LONG));
            // Notifications of others do not end it.
            let other = cluster.dc(1).endpoint().unwrap();
            other.notify(&server.address(), 1).unwrap();
            // The other side knows of the receiver when it was sent something.
            server.post(&from, vec![]).unwrap();
            client.receive(LONG).unwrap();
            client.close();
            let error = waiting.join().unwrap().unwrap_err();
            assert_eq!(error, ReceiveError::Gone { address: from });
        });
    });
}
