//! CPU time of three daemons that hold a container in which nothing happens.

use crate::Bench;
use crate::figures::{Compare, Report, Series};
use anyhow::ensure;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Kernel clock ticks a second in `/proc/PID/stat` (always 100 for user space).
const TICKS: f64 = 100.0;

pub(crate) fn measure(bench: &Bench, seconds: u64, report: &mut Report) -> anyhow::Result<()> {
    let folder = bench.dvs.own_folder("work")?;
    let dvs = |words: &[&str]| -> anyhow::Result<String> {
        let output = bench.dvs.dvs().args(words).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "dvs {}: {errors}", words.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    dvs(&["node", "start", "--count", "3"])?;
    let mut holder = bench
        .dvs
        .dvs()
        .args(["run", "--nodes", "3", "--", "sh", "-c", "echo up; exec sleep 86400"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut up = [0u8; 3];
    if let Some(stdout) = &mut holder.stdout {
        std::io::Read::read_exact(stdout, &mut up)?;
    }
    let list: serde_json::Value = serde_json::from_str(&dvs(&["node", "ls", "--json"])?)?;
    let pids: Vec<u64> =
        list.as_array().into_iter().flatten().filter_map(|node| node["pid"].as_u64()).collect();
    ensure!(pids.len() == 3, "three daemons expected, not {}", pids.len());
    std::thread::sleep(Duration::from_secs(2));
    let before: Vec<f64> = pids.iter().map(|pid| cpu(*pid)).collect();
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(seconds));
    let elapsed = started.elapsed().as_secs_f64();
    let shares = pids.iter().zip(before).map(|(pid, before)| (cpu(*pid) - before) / elapsed);
    let shares = Series(shares.map(|share| 100.0 * share).collect());
    let pid = i32::try_from(holder.id())?;
    dvs_sys::process::kill(pid, libc::SIGTERM)?;
    holder.wait()?;
    dvs(&["node", "stop", "--all", "--force"])?;
    let lines = vec![("each of three daemons".to_owned(), shares, Some("below 0.2"))];
    report.group("an idle daemon that holds a container, % of a core", "%", Compare::Ratio, lines);
    Ok(())
}

/// Seconds of CPU that a process has used.
fn cpu(pid: u64) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, fields)) = stat.rsplit_once(')') else { return f64::NAN };
    let field = |at: usize| fields.split_whitespace().nth(at)?.parse::<f64>().ok();
    field(11).zip(field(12)).map_or(f64::NAN, |(user, system)| (user + system) / TICKS)
}
