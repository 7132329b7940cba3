//! Locks over two mounts: record locks and `flock`, waiting, interrupted, in a circle.

mod common;

use common::{Running, in_child, pairs, until};
use std::fs;
use std::process::Command;

fn held(running: Running) -> Running {
    assert_eq!(running.line(), "held");
    running
}

#[test]
fn a_record_lock_holds_on_all_nodes_and_ends_with_its_process() {
    in_child("a_record_lock_holds_on_all_nodes_and_ends_with_its_process", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("l"), "locked").unwrap();
            let holder = held(a.start("lock-hold", "l", &["10", "5"]));
            for node in [a, b] {
                assert_eq!(node.start("lock-try", "l", &["14", "1"]).finish(), 11);
                assert_eq!(node.start("lock-try", "l", &["15", "1"]).finish(), 0);
                assert_eq!(node.start("lock-try", "l", &["0", "10"]).finish(), 0);
            }
            assert_eq!(holder.finish(), 0);
            assert_eq!(b.start("lock-try", "l", &["0", "0"]).finish(), 0);
            // Also when it is killed.
            let mut holder = held(b.start("lock-hold", "l", &["0", "0"]));
            assert_eq!(a.start("lock-try", "l", &["3", "1"]).finish(), 11);
            holder.child.kill().unwrap();
            holder.finish();
            assert_eq!(a.start("lock-try", "l", &["3", "1"]).finish(), 0);
        }
    });
}

#[test]
fn who_waits_gets_it_next() {
    in_child("who_waits_gets_it_next", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("l"), "locked").unwrap();
            for _ in 0..20 {
                let first = held(a.start("lock-hold", "l", &["0", "0"]));
                let second = b.start("lock-hold", "l", &["0", "0"]);
                assert_eq!(first.finish(), 0);
                assert_eq!(held(second).finish(), 0);
            }
        }
    });
}

#[test]
fn a_signal_ends_the_waiting() {
    in_child("a_signal_ends_the_waiting", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("l"), "locked").unwrap();
            let holder = held(a.start("lock-hold", "l", &["0", "0"]));
            for round in 0..30 {
                let asked = (pair.locks)();
                let waiter = b.start("lock-interrupted", "l", &[]);
                assert_eq!(waiter.line(), "waiting");
                // Half of the signals come when the server surely has the request, half maybe before.
                if round % 2 == 0 {
                    until("the request", || (pair.locks)() > asked);
                }
                // A signal before the call is lost, as natively: so until it was one in the call.
                until("the end of the waiting", || {
                    waiter.signal(libc::SIGUSR1);
                    waiter_ended(&waiter)
                });
                assert_eq!(waiter.finish(), 0);
            }
            assert_eq!(holder.finish(), 0);
            assert_eq!(b.start("lock-try", "l", &["0", "0"]).finish(), 0, "nothing is left over");
        }
    });
}

fn waiter_ended(running: &Running) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", running.child.id())).unwrap();
    stat.contains(") Z ")
}

#[test]
fn a_killed_waiter_is_gone() {
    in_child("a_killed_waiter_is_gone", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("l"), "locked").unwrap();
            let holder = held(a.start("lock-hold", "l", &["0", "0"]));
            for _ in 0..10 {
                let asked = (pair.locks)();
                let mut waiter = b.start("lock-hold", "l", &["0", "0"]);
                until("the request", || (pair.locks)() > asked);
                waiter.child.kill().unwrap();
                waiter.finish();
            }
            assert_eq!(holder.finish(), 0);
            assert_eq!(a.start("lock-try", "l", &["0", "0"]).finish(), 0);
        }
    });
}

#[test]
fn a_circle_over_two_nodes_is_refused() {
    in_child("a_circle_over_two_nodes_is_refused", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("l"), "locked").unwrap();
            for _ in 0..10 {
                let mut first = held(a.start("lock-second", "l", &["0", "1"]));
                let mut second = held(b.start("lock-second", "l", &["1", "0"]));
                let asked = (pair.locks)();
                first.poke();
                until("the first to wait", || (pair.locks)() > asked);
                second.poke();
                // One is refused, by whoever closed the circle; its end lets the other on.
                let (mut lines, mut codes) = (Vec::new(), Vec::new());
                lines.push(second.line());
                codes.push(second.finish());
                lines.push(first.line());
                codes.push(first.finish());
                lines.sort();
                assert_eq!(lines, ["deadlock", "locked"]);
                assert_eq!(codes, [0, 0]);
            }
        }
    });
}

#[test]
fn flock_is_another_family_and_belongs_to_the_open_file() {
    in_child("flock_is_another_family_and_belongs_to_the_open_file", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("l"), "locked").unwrap();
            if Command::new("flock").arg("--version").output().is_err() {
                println!("SKIPPED: flock_is_another_family: flock(1) is missing");
                return;
            }
            let holder = held(a.start("lock-hold", "l", &["0", "0"]));
            // The record lock does not hinder it.
            assert_eq!(b.shell("flock -n l echo free"), "free");
            assert_eq!(holder.finish(), 0);
            // Inherited with the descriptor, and gone with its last copy.
            let script = "exec 9< l; flock 9; (flock -n l true || echo taken); sleep 0; echo end";
            assert_eq!(a.shell(script), "taken\nend");
            assert_eq!(b.shell("flock -n l echo free"), "free");
            // Waiting on the other node.
            let mut command = Command::new("flock");
            command.arg("l").args(["sh", "-c", "echo held; read x || true"]).current_dir(&a.path);
            let first = held(Running::new(command));
            let mut command = Command::new("flock");
            command.arg("l").args(["echo", "held"]).current_dir(&b.path);
            let second = Running::new(command);
            assert_eq!(b.shell("flock -n l true || echo taken"), "taken");
            first.finish();
            assert_eq!(held(second).finish(), 0);
        }
    });
}

#[test]
fn many_waiters_stop_nobody_else() {
    in_child("many_waiters_stop_nobody_else", || {
        for pair in pairs() {
            let (a, b) = (&pair.a, &pair.b);
            fs::write(a.at("l"), "locked").unwrap();
            let holder = held(a.start("lock-hold", "l", &["0", "0"]));
            let waiters: Vec<_> =
                (0..64).map(|at| [a, b][at % 2].start("lock-hold", "l", &["0", "0"])).collect();
            until("all to wait", || (pair.locks)() >= 65);
            for node in [a, b] {
                node.shell(
                    "echo works > other; grep -q works other; mkdir d; mv other d/; rm -r d",
                );
            }
            assert_eq!(holder.finish(), 0);
            // Each in turn; ending the standard input of all lets each end as soon as it holds it.
            let running: Vec<_> = waiters
                .into_iter()
                .map(|waiter| std::thread::spawn(move || waiter.finish()))
                .collect();
            for waiter in running {
                assert_eq!(waiter.join().unwrap(), 0);
            }
        }
    });
}
