//! A node that is closed leaves no thread, socket or file behind. Alone in its binary, because it
//! counts what the whole process has.

mod common;

use common::{Cluster, LONG, eventually};
use dvs_dvk::typed::{Caller, serve};
use dvs_dvk::{CallError, NameError, ReceiveError};
use std::thread;

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_closed_node_leaves_nothing_behind() {
    let (threads, descriptors) = (count("/proc/self/task"), count("/proc/self/fd"));
    for _ in 0..3 {
        let cluster = Cluster::new(3);
        let server = cluster.dc(0).bind("server").unwrap();
        serve(&server, 2, |_, number: u64| number + 1).unwrap();
        let silent = cluster.dc(0).endpoint().unwrap();
        let other = cluster.dc(2).endpoint().unwrap();
        thread::scope(|scope| {
            let caller: Caller<u64, u64> =
                Caller::new(cluster.dc(1).endpoint().unwrap(), server.address());
            assert_eq!(caller.call(&1, LONG), Ok(2));
            let waits = [
                scope.spawn(|| other.call(&silent.address(), vec![], LONG).unwrap_err()),
                scope.spawn(|| {
                    let error = cluster.dc(1).resolve("nobody", LONG).unwrap_err();
                    let NameError::Registry(error) = error else { panic!("{error}") };
                    error
                }),
            ];
            let receive = scope.spawn(|| silent.receive_from(&server.address(), LONG));
            eventually("all wait", || {
                silent.statistics().unwrap().waiting == 1
                    && cluster.nodes[1].statistics().calls == 1
            });
            for node in &cluster.nodes {
                node.close();
                node.close();
            }
            for wait in waits {
                let error = wait.join().unwrap();
                assert!(
                    matches!(
                        error,
                        CallError::Closed
                            | CallError::NodeGone { .. }
                            | CallError::NoEndpoint { .. }
                    ),
                    "{error}"
                );
            }
            assert_eq!(receive.join().unwrap().unwrap_err(), ReceiveError::Closed);
        });
        for index in 0..3 {
            assert!(!cluster.path(index).exists(), "its socket is gone");
        }
        drop((server, silent, other, cluster));
        eventually("the threads end", || count("/proc/self/task") == threads);
        eventually("the descriptors are closed", || count("/proc/self/fd") == descriptors);
    }
}
