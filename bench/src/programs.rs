//! What a program inside pays: for starting others, here and on another node, and for system calls.

use crate::Bench;
use crate::figures::{Compare, Report, Series};
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Programs that one measuring program starts.
const SPAWNS: u32 = 200;

/// The measuring program, copied to where containers see it.
pub(crate) fn measurer(bench: &Bench) -> anyhow::Result<std::path::PathBuf> {
    let folder = bench.dvs.own_folder("work")?;
    let own = std::env::current_exe().context("where is this program?")?;
    std::fs::copy(own, folder.join("measure")).context("cannot copy the measuring program")?;
    Ok(folder)
}

/// Natively or in a container: `./measure inner WORDS`.
pub(crate) fn output(
    bench: &Bench,
    folder: &Path,
    inside: Option<&[&str]>,
    words: &[&str],
) -> anyhow::Result<String> {
    let mut command: Command = match inside {
        None => bench.dvs.native("./measure"),
        Some(options) => {
            let mut command = bench.dvs.dvs();
            command.arg("run").args(options).args(["--", "./measure"]);
            command
        }
    };
    command.arg("inner").args(words).current_dir(folder);
    let output = bench.pinned(command).stdin(Stdio::null()).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "measuring failed: {}: {errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Medians and minima of spawning, a pair of values a round.
fn spawning(
    bench: &Bench,
    title: &str,
    options: &[&str],
    name: &str,
    goal: Option<&str>,
    rounds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let folder = measurer(bench)?;
    let mut series: [Series; 2] = Default::default();
    for round in 0..=rounds {
        for (side, series) in [None, Some(options)].into_iter().zip(&mut series) {
            let text = output(bench, &folder, side, &["spawn", &SPAWNS.to_string(), "/bin/true"])?;
            let values: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
            ensure!(values.len() == SPAWNS as usize, "{} of {SPAWNS} values", values.len());
            if round > 0 {
                series.0.push(Series(values).median());
            }
        }
    }
    let [native, ours] = series;
    let lines = vec![("native".to_owned(), native, None), (name.to_owned(), ours, goal)];
    report.group(title, "µs", Compare::Ratio, lines);
    Ok(())
}

pub(crate) fn placed(bench: &Bench, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let goal = if bench.pin.is_some() { "1200" } else { "1600" };
    let options = ["--nodes", "2", "--place", "spread"];
    let title = "/bin/true started and awaited (medians of 200)";
    spawning(bench, title, &options, "on another node", Some(goal), rounds, report)
}

pub(crate) fn local(bench: &Bench, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let title = "/bin/true started and awaited (medians of 200)";
    let options = ["--nodes", "1"];
    spawning(bench, title, &options, "in a container, same node", Some("×1.1"), rounds, report)
}

pub(crate) fn calls(bench: &Bench, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let folder = measurer(bench)?;
    let mut all: BTreeMap<String, [Series; 2]> = BTreeMap::new();
    for _ in 0..rounds {
        for (index, side) in [None, Some(&["--nodes", "1"][..])].into_iter().enumerate() {
            for line in output(bench, &folder, side, &["calls"])?.lines() {
                let Some((name, value)) = line.split_once('\t') else { continue };
                if let Some(series) = all.entry(name.to_owned()).or_default().get_mut(index) {
                    series.0.push(value.parse()?);
                }
            }
        }
    }
    for (name, [native, ours]) in all {
        let lines = vec![
            ("native".to_owned(), native, None),
            ("in a container".to_owned(), ours, Some("+70 ns")),
        ];
        report.group(&format!("{name} (least of batches)"), "ns", Compare::Difference, lines);
    }
    Ok(())
}
