//! Programs placed on another node behave as on one machine.
//!
//! Every node is a container of this machine; the policy is `spread`, so every program that can be
//! placed goes to another node. A case is a script that runs natively and in the DC; status, output
//! and errors must be the same.

mod cases;
mod cluster;

use cluster::{Cluster, Outcome, native};
use dvs_linux::Reason;
use dvs_pm::placement::Policy;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

/// No script takes longer, natively or placed.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().map(String::as_str) == Some("internal") {
        std::process::exit(dvs_container::keeper::main());
    }
    if std::env::var("DVS_TEST_NODE").is_err() && !is_root() {
        println!("SKIPPED: containers with several ids need root");
        return;
    }
    let filter: Vec<&String> = arguments.iter().filter(|text| !text.starts_with('-')).collect();
    let wanted = |name: &str| filter.is_empty() || filter.iter().any(|text| name.contains(*text));
    let mut failed = 0;
    let mut ran = 0;
    let scripts: Vec<_> = cases::SCRIPTS.iter().filter(|(name, _)| wanted(name)).collect();
    if !scripts.is_empty() && std::env::var_os("DVS_CASES").is_none() {
        let cluster = Cluster::start(2, Policy::Spread);
        for (name, script) in scripts {
            ran += 1;
            failed += usize::from(!compare(&cluster, name, script));
        }
        failed += usize::from(!mostly_placed(&cluster));
    }
    // `DVS_CASES=folder` runs the case files below a folder in the same way.
    if let Some(folder) = std::env::var_os("DVS_CASES") {
        let cluster = Cluster::start(2, Policy::Spread);
        for (name, script) in case_files(Path::new(&folder)) {
            if wanted(&name) {
                ran += 1;
                failed += usize::from(!compare(&cluster, &name, &script));
            }
        }
        failed += usize::from(!mostly_placed(&cluster));
        println!("{ran} cases, {failed} failed");
        return;
    }
    for (name, check) in cases::CHECKS {
        if wanted(name) {
            ran += 1;
            let result = std::panic::catch_unwind(check);
            println!("{name}: {}", if result.is_ok() { "ok" } else { "FAILED" });
            failed += usize::from(result.is_err());
        }
    }
    println!("{ran} cases, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}

/// Name and text of every `.case` file below a folder.
fn case_files(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder).expect("folder of cases");
    for path in entries.map(|entry| entry.expect("entry").path()) {
        if path.is_dir() {
            found.extend(case_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "case") {
            let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
            found.push((name, std::fs::read_to_string(&path).expect("case")));
        }
    }
    found.sort();
    found
}

fn is_root() -> bool {
    dvs_sys::process::effective_ids().0 == 0
}

/// A folder that every id of a container may write to.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).expect("chmod");
    folder
}

fn bounded(what: &str, body: impl FnOnce() -> Outcome + Send) -> Outcome {
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        scope.spawn(move || {
            let _ = sender.send(body());
        });
        match receiver.recv_timeout(DEADLINE) {
            Ok(outcome) => outcome,
            Err(_) => {
                println!("{what}: HANGS");
                // The thread cannot be ended; nothing after this would mean anything.
                std::process::exit(1);
            }
        }
    })
}

fn compare(cluster: &Cluster, name: &str, script: &str) -> bool {
    let run_native = |directory: &Path| bounded(name, || native(script, directory));
    let (here, there) = (folder(), folder());
    let expected = run_native(here.path());
    let before = totals(cluster);
    let found = bounded(name, || cluster.run(script, there.path()));
    let after = totals(cluster);
    let same = expected == found;
    println!(
        "{name}: {} (placed {}, stayed {:?})",
        if same { "ok" } else { "FAILED" },
        after.0 - before.0,
        difference(&before.1, &after.1)
    );
    if !same {
        println!("  native: {expected:?}\n  placed: {found:?}");
    }
    same
}

fn totals(cluster: &Cluster) -> (u64, BTreeMap<Reason, u64>) {
    let mut stayed = BTreeMap::new();
    let mut placed = 0;
    for statistics in cluster.statistics() {
        placed += statistics.placed.values().sum::<u64>();
        for (reason, count) in statistics.stayed {
            *stayed.entry(reason).or_insert(0) += count;
        }
    }
    (placed, stayed)
}

fn difference(before: &BTreeMap<Reason, u64>, after: &BTreeMap<Reason, u64>) -> Vec<(Reason, u64)> {
    after
        .iter()
        .map(|(reason, count)| (*reason, count - before.get(reason).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// What was placed was really started elsewhere, and little of what could go stayed.
fn mostly_placed(cluster: &Cluster) -> bool {
    let (placed, stayed) = totals(cluster);
    let received: u64 = cluster.statistics().iter().map(|node| node.received).sum();
    let eligible: u64 =
        stayed.iter().filter(|(reason, _)| reason.is_eligible()).map(|(_, count)| count).sum();
    println!("placed {placed}, started elsewhere {received}, stayed {stayed:?}");
    let good = placed == received && placed * 100 >= (placed + eligible) * 90;
    if !good {
        println!("placement: FAILED");
    }
    good
}
