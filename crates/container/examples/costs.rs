//! What starting a container and a program in it costs here: minimum and median, microseconds.
//! `cargo run --profile test-fast -p dvs-container --example costs [ROUNDS]`

#![forbid(unsafe_code)]

use dvs_container::launch::{LaunchSpec, LauncherEvent};
use dvs_container::{Container, ContainerEvent, ContainerSpec, KeeperProgram, RootSpec};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "internal") {
        std::process::exit(dvs_container::keeper::main());
    }
    let rounds = arguments.first().and_then(|count| count.parse().ok()).unwrap_or(200);
    let program = KeeperProgram::own().expect("own binary");
    let micros = |since: Instant| since.elapsed().as_secs_f64() * 1e6;

    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..(rounds / 4).max(5) {
        let begin = Instant::now();
        let container =
            Container::start(&spec(), &program, |_| {}, Box::new(|_| {})).expect("container");
        starts.push(micros(begin));
        let begin = Instant::now();
        container.end().expect("end");
        ends.push(micros(begin));
    }
    print("container: start", starts);
    print("container: end", ends);

    let (sender, events) = mpsc::channel();
    let sink = Box::new(move |event| {
        let _ = sender.send(event);
    });
    let container = Container::start(&spec(), &program, |_| {}, sink).expect("container");
    let launcher = &container.launcher;
    let wait = || loop {
        if let Ok(ContainerEvent::Program(LauncherEvent::Exited { .. })) = events.recv() {
            break;
        }
    };
    let mut held = LaunchSpec::new("/bin/true", &["true"]);
    held.hold = true;
    let plain = LaunchSpec::new("/bin/true", &["true"]);
    let (mut prepares, mut releases, mut aborts) = (Vec::new(), Vec::new(), Vec::new());
    let (mut launches, mut wholes, mut natives, mut signals) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let begin = Instant::now();
        held.pid = Some(10_000 + round);
        let launched = launcher.launch(held.clone(), &[]).expect("prepare");
        prepares.push(micros(begin));
        let begin = Instant::now();
        launcher.release(launched.id);
        wait();
        releases.push(micros(begin));

        held.pid = Some(20_000 + round);
        let launched = launcher.launch(held.clone(), &[]).expect("prepare");
        let begin = Instant::now();
        launcher.abort(launched.id);
        aborts.push(micros(begin));

        let begin = Instant::now();
        launcher.launch(plain.clone(), &[]).expect("launch");
        launches.push(micros(begin));
        wait();
        wholes.push(micros(begin));

        let begin = Instant::now();
        let status = Command::new("/bin/true").stdin(Stdio::null()).status();
        natives.push(micros(begin));
        status.expect("true");

        let begin = Instant::now();
        launcher.signal(1, 0, None).expect("signal");
        signals.push(micros(begin));
    }
    print("program: prepare (until held)", prepares);
    print("program: release until its exit is known", releases);
    print("program: abort (sent)", aborts);
    print("program: launch without hold", launches);
    print("program: launch until its exit is known", wholes);
    print("native: posix_spawn and wait", natives);
    print("signal from inside", signals);
    container.end().expect("end");
}

fn spec() -> ContainerSpec {
    let root = RootSpec::Bind { path: "/".into(), writable: false };
    let (uid, gid) = dvs_sys::process::effective_ids();
    let spec = ContainerSpec::new("costs", root);
    if uid == 0 { spec.with_id_range(0x2000_0000) } else { spec.with_single_id((0, 0), (uid, gid)) }
}

fn print(name: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).copied().unwrap_or(0.0);
    let least = values.first().copied().unwrap_or(0.0);
    println!("{name:45} {least:8.0} {middle:8.0}");
}
