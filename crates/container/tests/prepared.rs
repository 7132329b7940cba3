//! Containers that are prepared before anybody asks for them.

mod support;

use dvs_container::launch::LaunchSpec;
use dvs_container::{ClockOffsets, Prepared, StartError};
use std::sync::{Mutex, mpsc};
use support::{LIMIT, Running, eventually, is_running, keeper, possible, spec};

const HOUR: i64 = 3_600_000_000_000;

fn finish(prepared: Prepared, wanted: &dvs_container::ContainerSpec) -> Running {
    let (sender, events) = mpsc::channel();
    let sink = Box::new(move |event| {
        let _ = sender.send(event);
    });
    let container = prepared.finish(wanted, |_| {}, sink).expect("a container");
    Running { container, events: Mutex::new(events) }
}

#[test]
fn what_its_user_decides_is_decided_at_the_end() {
    if !possible() {
        return;
    }
    let prepared = Prepared::new(&spec("early"), &keeper()).unwrap();
    let mut wanted = prepared.spec().clone();
    wanted.name = "test-late".into();
    wanted.hostname = "late".into();
    wanted.first_pid = Some(16_384);
    wanted.clocks = ClockOffsets { monotonic: 1000 * HOUR, boot: 1000 * HOUR };
    assert!(prepared.fits(&wanted) && prepared.is_alive());
    let running = finish(prepared, &wanted);
    let (status, output) = running.sh("hostname; echo $$; cut -d. -f1 /proc/uptime");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((status, lines[0]), (0, "late"), "{output}");
    assert_eq!(lines[1], "16384", "the first pid");
    // Without time namespaces there is a warning, and the host's clock.
    if running.container.warnings.is_empty() {
        assert!(lines[2].parse::<i64>().unwrap() >= 3_600_000, "its clock is ahead: {output}");
    }
    // Nothing of the host's tree is left over the root.
    let (_, mounts) = running.sh("awk '{ print $5 }' /proc/self/mountinfo");
    assert_eq!(mounts.lines().filter(|place| *place == "/").count(), 1, "{mounts}");
    assert!(!mounts.contains("/root/dev"), "{mounts}");
    running.finish();
}

#[test]
fn one_that_was_made_for_something_else_does_not_fit() {
    if !possible() {
        return;
    }
    let prepared = Prepared::new(&spec("picky"), &keeper()).unwrap();
    let differs = |change: &dyn Fn(&mut dvs_container::ContainerSpec)| {
        let mut wanted = prepared.spec().clone();
        change(&mut wanted);
        !prepared.fits(&wanted)
    };
    assert!(differs(&|wanted| wanted.network = dvs_container::Network::Host));
    assert!(differs(&|wanted| wanted.limits.pids = Some(100)));
    assert!(differs(&|wanted| wanted.traps.push(1)));
    assert!(differs(&|wanted| wanted.exec_cookie ^= 1));
    assert!(differs(&|wanted| wanted.sysctls.push(("net.x".into(), "1".into()))));
    assert!(differs(&|wanted| wanted.users[0].outside += 1));
    assert!(differs(&|wanted| wanted.first_pid = None), "its pids were chosen already");
    let mut other = prepared.spec().clone();
    other.exec_cookie ^= 1;
    let refused = prepared.finish(&other, |_| {}, Box::new(|_| {})).unwrap_err();
    assert!(matches!(refused, StartError::Spec(_)), "{refused}");
}

#[test]
fn nothing_is_left_of_one_that_nobody_wanted() {
    if !possible() {
        return;
    }
    let prepared = Prepared::new(&spec("unwanted"), &keeper()).unwrap();
    let processes = prepared.processes();
    assert!(processes.iter().all(|pid| is_running(*pid)));
    drop(prepared);
    assert!(processes.iter().all(|pid| !is_running(*pid)), "{processes:?}");
}

#[test]
fn one_that_was_killed_is_known_to_be_dead_and_fails_to_start() {
    if !possible() {
        return;
    }
    let prepared = Prepared::new(&spec("killed"), &keeper()).unwrap();
    let [keeper_pid, launcher, init] = prepared.processes();
    let _ = dvs_sys::process::kill(launcher as i32, libc::SIGKILL);
    eventually("the end of all", || !prepared.is_alive());
    let wanted = prepared.spec().clone();
    let failed = prepared.finish(&wanted, |_| {}, Box::new(|_| {})).unwrap_err();
    assert!(matches!(failed, StartError::Lost(_)), "{failed}");
    assert!([keeper_pid, launcher, init].iter().all(|pid| !is_running(*pid)));
}

#[test]
fn programs_start_in_a_finished_one_at_once() {
    if !possible() {
        return;
    }
    let prepared = Prepared::new(&spec("several"), &keeper()).unwrap();
    let wanted = prepared.spec().clone();
    let running = finish(prepared, &wanted);
    let launcher = &running.container.launcher;
    let (sender, receiver) = mpsc::channel();
    for _ in 0..4 {
        let sender = sender.clone();
        launcher.launch_then(
            launcher.next_id(),
            LaunchSpec::new("/bin/true", &["true"]),
            &[],
            move |result| sender.send(result).unwrap(),
        );
    }
    for _ in 0..4 {
        assert!(receiver.recv_timeout(LIMIT).unwrap().is_ok());
    }
    running.finish();
}
