//! From the command to its end: `dvs run -- true` and its peers.

use crate::Bench;
use crate::figures::{Compare, Report, Series};
use anyhow::{Context, ensure};
use dvs_tests::case::find_program;
use std::process::{Command, Stdio};
use std::time::Instant;

/// One contestant: its name, how it is started, its goal.
type Contestant<'a> = (String, Box<dyn Fn() -> Command + 'a>, Option<&'static str>);

pub(crate) fn measure(bench: &Bench, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let folder = bench.dvs.own_folder("work")?;
    let inside = |words: &'static [&'static str]| {
        let folder = folder.clone();
        move || {
            let mut command = bench.dvs.dvs();
            command.args(words).current_dir(&folder);
            bench.pinned(command)
        }
    };
    let mut contestants: Vec<Contestant<'_>> = vec![
        ("native".into(), Box::new(|| bench.pinned(bench.dvs.native("/bin/true"))), None),
        ("dvs run, from nothing".into(), Box::new(inside(&["run", "--", "/bin/true"])), Some("40")),
        (
            "dvs run --nodes 3, from nothing".into(),
            Box::new(inside(&["run", "--nodes", "3", "--", "/bin/true"])),
            Some("120"),
        ),
    ];
    if find_program("bwrap").is_some() {
        contestants.push((
            "bwrap".into(),
            Box::new(|| {
                let mut command = bench.dvs.native("bwrap");
                command.args("--ro-bind / / --proc /proc --dev /dev --unshare-all".split(' '));
                command.arg("/bin/true");
                bench.pinned(command)
            }),
            None,
        ));
    } else {
        report.note("bwrap is not installed: no figure for it (apt-get install bubblewrap)");
    }
    if let Some(bundle) = crun_bundle(bench)? {
        contestants.push((
            "crun".into(),
            Box::new(move || {
                let mut command = bench.dvs.native("crun");
                command.args(["--cgroup-manager=disabled", "run", "--bundle"]).arg(&bundle);
                command.arg("dvs-bench-crun");
                bench.pinned(command)
            }),
            None,
        ));
    } else {
        report.note("crun is not installed: no figure for it (apt-get install crun)");
    }
    turns("start of a container running /bin/true", &contestants, rounds, report)?;

    let node = |words: &[&str]| -> anyhow::Result<()> {
        let output = bench.dvs.dvs().arg("node").args(words).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "dvs node {}: {errors}", words.join(" "));
        Ok(())
    };
    node(&["start"])?;
    let running: Vec<Contestant<'_>> = vec![
        ("native".into(), Box::new(|| bench.pinned(bench.dvs.native("/bin/true"))), None),
        ("dvs run".into(), Box::new(inside(&["run", "--", "/bin/true"])), Some("8")),
    ];
    let outcome = turns("on a running node", &running, rounds, report);
    node(&["stop", "--all", "--force"])?;
    outcome
}

fn turns(
    title: &str,
    contestants: &[Contestant<'_>],
    rounds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut series = vec![Series::default(); contestants.len()];
    // The first round warms caches and does not count.
    for round in 0..=rounds {
        for ((name, make, _), series) in contestants.iter().zip(&mut series) {
            let mut command = make();
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let started = Instant::now();
            let status = command.status().with_context(|| format!("cannot start {name}"))?;
            let took = started.elapsed().as_secs_f64() * 1e3;
            ensure!(status.success(), "{name}: {status}");
            if round > 0 {
                series.0.push(took);
            }
        }
    }
    let lines = contestants
        .iter()
        .zip(series)
        .map(|((name, _, goal), series)| (name.clone(), series, *goal))
        .collect();
    report.group(title, "ms", Compare::Ratio, lines);
    Ok(())
}

/// A bundle for crun that shows the host's root read-only, if crun is here.
fn crun_bundle(bench: &Bench) -> anyhow::Result<Option<std::path::PathBuf>> {
    if find_program("crun").is_none() {
        return Ok(None);
    }
    let bundle = bench.dvs.own_folder("bundle")?;
    let mut config: serde_json::Value = serde_json::from_slice(
        &bench
            .dvs
            .native("crun")
            .arg("spec")
            .current_dir(&bundle)
            .output()
            .map(|_| ())
            .and_then(|()| std::fs::read(bundle.join("config.json")))?,
    )?;
    config["process"]["args"] = serde_json::json!(["/bin/true"]);
    config["process"]["terminal"] = false.into();
    config["root"]["path"] = "/".into();
    config["root"]["readonly"] = true.into();
    std::fs::write(bundle.join("config.json"), config.to_string())?;
    Ok(Some(bundle))
}
