//! Helper of the container tests: `internal keeper`, `daemon` (a daemon that is to be killed),
//! `attack` (a hostile guest), `sender` (prints who sends it a signal).

#![forbid(unsafe_code)]

#[path = "attack.rs"]
mod attack;

use dvs_container::launch::LaunchSpec;
use dvs_container::{Container, ContainerSpec, KeeperProgram, RootSpec};
use std::io::Read;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let code = match words[..] {
        ["internal", "keeper"] => dvs_container::keeper::main(),
        ["daemon", base] => daemon(base),
        ["attack-starting", pid] => attack::run_on(pid.parse().unwrap_or(0)),
        ["attack", marker] => attack::run(marker),
        ["sender", signal] => sender(signal),
        _ => 2,
    };
    std::process::exit(code);
}

/// Starts a container with two programs, prints its pids and cgroups, and waits to be killed.
fn daemon(base: &str) -> i32 {
    let root = RootSpec::Bind { path: "/".into(), writable: false };
    let spec = ContainerSpec::new("test-daemon", root);
    let spec = match base.parse::<u32>() {
        Ok(0) | Err(_) => {
            let (uid, gid) = dvs_sys::process::effective_ids();
            spec.with_single_id((0, 0), (uid, gid))
        }
        Ok(base) => spec.with_id_range(base),
    };
    let program = KeeperProgram::own().expect("own binary");
    let container = Container::start(&spec, &program, |_| {}, Box::new(|_| {})).expect("container");
    let mut sleep = LaunchSpec::new("/bin/sleep", &["sleep", "1000"]);
    let running = container.launcher.launch(sleep.clone(), &[]).expect("sleep");
    sleep.hold = true;
    let held = container.launcher.launch(sleep, &[]).expect("held sleep");
    println!(
        "{} {} {} {}\t{}",
        container.init,
        container.launcher_pid,
        running.host_pid,
        held.host_pid,
        container.cgroups.join("\t")
    );
    // Until the test kills this process; its end of standard input is the bound.
    let mut all = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut all);
    0
}

/// Waits for a signal and prints its number, code and sender.
fn sender(signal: &str) -> i32 {
    let Ok(signal) = signal.parse::<i32>() else { return 2 };
    let fd = dvs_sys::signals::SignalFd::new(&[signal]).expect("signalfd");
    println!("ready");
    let arrived = dvs_sys::descriptor::wait_readable(std::os::fd::AsFd::as_fd(&fd), Some(60_000));
    if arrived != Ok(true) {
        return 3;
    }
    let taken = fd.take().expect("read").expect("signal");
    println!("{} {} {}", taken.signal, taken.code, taken.pid);
    0
}
