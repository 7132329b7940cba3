//! Capabilities: checked by the DVK at the endpoint's node, for every primitive.

mod common;

use common::{Cluster, LONG, eventually};
use dvs_dvk::{CallError, Endpoint, Manage, Permit, ReceiveError, Rights, Role};
use std::time::Duration;

fn both_ways(test: impl Fn(&Cluster, Endpoint, Endpoint, Endpoint)) {
    for client in [0, 1] {
        let cluster = Cluster::new(2);
        let server = cluster.dc(0).bind("server").unwrap();
        let [one, two] = [(); 2].map(|()| cluster.dc(client).endpoint().unwrap());
        test(&cluster, server, one, two);
    }
}

#[test]
fn only_the_permitted_reach_an_endpoint() {
    both_ways(|_, server, friend, stranger| {
        let to = server.address();
        server.permit_everybody(Rights::NONE).unwrap();
        server.grant(&friend.address(), Rights::CALL).unwrap();
        let denied = CallError::Denied { address: to };
        assert_eq!(stranger.call(&to, vec![], LONG), Err(denied.clone()));
        assert_eq!(stranger.send(&to, vec![], LONG), Err(denied.clone()));
        // Whoever does not wait is told only where that costs no message.
        for result in [stranger.post(&to, vec![]), stranger.notify(&to, 1)] {
            assert!(result == Ok(()) || result == Err(denied.clone()), "{result:?}");
        }
        friend.post(&to, vec![1]).unwrap();
        assert_eq!(server.receive(LONG).unwrap().body, [1]);
        assert_eq!(server.receive(Duration::ZERO).unwrap_err(), ReceiveError::TimedOut);
        server.grant(&friend.address(), Rights::NONE).unwrap();
        assert_eq!(friend.call(&to, vec![], LONG), Err(denied));
    });
}

#[test]
fn management_takes_the_right_to_it_wherever_the_endpoint_is() {
    both_ways(|_, server, manager, stranger| {
        let to = server.address();
        let denied = CallError::Denied { address: to };
        let open = Manage::Permit(Permit::Everybody(Rights::ALL));
        for what in [open, Manage::Close] {
            assert_eq!(stranger.manage(&to, what), Err(denied.clone()));
        }
        server.grant(&manager.address(), Rights::CALL.and(Rights::MANAGE)).unwrap();
        let close = Manage::Permit(Permit::Everybody(Rights::NONE));
        manager.manage(&to, close).unwrap();
        assert_eq!(stranger.call(&to, vec![], LONG), Err(denied));
        manager.manage(&to, Manage::Close).unwrap();
        assert_eq!(server.receive(LONG).unwrap_err(), ReceiveError::Closed);
        let gone = CallError::NoEndpoint { address: to };
        assert_eq!(manager.manage(&to, Manage::Close), Err(gone));
    });
}

#[test]
fn management_does_not_cross_containers() {
    let cluster = Cluster::new(2);
    let server = cluster.dc(0).endpoint().unwrap();
    server.permit_everybody(Rights::ALL).unwrap();
    for index in [0, 1] {
        let stranger = cluster.nodes[index].dc(dvs_dvk::DcId(43), 1).endpoint().unwrap();
        let error = stranger.manage(&server.address(), Manage::Close).unwrap_err();
        assert!(matches!(error, CallError::OtherDc { .. }), "{error}");
    }
    assert!(server.statistics().is_some());
}

#[test]
fn a_backup_has_the_name_when_the_primary_is_gone_and_is_told() {
    let cluster = Cluster::new(3);
    let primary = cluster.dc(1).bind("service").unwrap();
    let (backup, holder) = cluster.dc(2).bind_as("service", Role::Backup).unwrap();
    assert_eq!(holder, primary.address());
    let (replica, _) = cluster.dc(0).bind_as("service", Role::Replica).unwrap();
    assert_eq!(cluster.dc(2).resolve("service", LONG).unwrap(), primary.address());
    assert_eq!(cluster.dc(0).resolve("service", LONG).unwrap(), replica.address());
    // Told even if nobody may call it.
    backup.permit_everybody(Rights::NONE).unwrap();
    drop(primary);
    assert!(backup.receive(LONG).unwrap().is_promotion());
    let dc = cluster.dc(1);
    eventually("it is found", || dc.resolve("service", LONG) == Ok(backup.address()));
    // The death of a node is the same.
    cluster.nodes[2].close();
    let message = replica.receive(LONG).unwrap();
    assert!(message.is_promotion());
    eventually("it is found", || dc.resolve("service", LONG) == Ok(replica.address()));
}
