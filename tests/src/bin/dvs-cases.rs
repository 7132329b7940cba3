//! Runs the cases natively and in a container and tells every difference.
//!
//! Natively against natively (`--against native`) shows whether a case itself is steady.
#![forbid(unsafe_code)]

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use dvs_tests::case::{self, Case};
use dvs_tests::census::{Census, Count};
use dvs_tests::command::{Cluster, Dvs, User};
use dvs_tests::compare;
use dvs_tests::observe::{self, Observation};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Least share of all programs that must run on another node than their caller, where they are spread.
const LEAST_REMOTE: f64 = 0.9;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    /// Natively a second time.
    Native,
    /// In a container.
    Dvs,
}

#[derive(Debug, Parser)]
#[command(about = "Compares cases run natively and in a container, byte for byte")]
struct Options {
    /// Folder of the cases.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cases"))]
    cases: PathBuf,
    /// What is compared with native.
    #[arg(long, value_enum, default_value = "dvs")]
    against: Against,
    /// Nodes of the container.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes: u16,
    /// Placement; spread unless there is one node.
    #[arg(long)]
    place: Option<String>,
    /// Run as this ordinary user (needs root).
    #[arg(long)]
    user: Option<String>,
    /// Times that each case is run.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Only cases whose name or description has one of these words.
    #[arg(long)]
    filter: Vec<String>,
    /// Leave out cases whose name has one of these words.
    #[arg(long)]
    skip: Vec<String>,
    /// Only every Nth case: a sample.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Cases at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// One container for all the cases of a job, through `dvs exec`.
    #[arg(long)]
    shared: bool,
    /// Do not count from outside where programs ran.
    #[arg(long)]
    no_census: bool,
    /// Stop at the first case that differs.
    #[arg(long)]
    fail_fast: bool,
    /// The dvs to test [default: $DVS_BIN, or the one beside this program].
    #[arg(long)]
    dvs: Option<PathBuf>,
    /// List the cases and do nothing.
    #[arg(long)]
    list: bool,
    /// Print one JSON object a case, and a last one with the sums.
    #[arg(long)]
    json: bool,
    /// Print a line for each case that passes, too.
    #[arg(long, short)]
    verbose: bool,
}

/// How a case came out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Same,
    Differs(Vec<String>),
    /// Differs as its header says.
    Known(String),
    /// Its header says it differs, but it did not.
    NowPasses,
    Skipped(String),
}

#[derive(Debug, Default)]
struct Sums {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
    known: usize,
    remote: u64,
    programs: u64,
    stayed: BTreeMap<String, u64>,
    counted: usize,
    placed_says: u64,
}

/// What one run in a container told beside its observation.
#[derive(Debug, Default)]
struct Told {
    count: Option<Count>,
    statistics: Option<serde_json::Value>,
    complaint: Option<String>,
}

fn main() -> ExitCode {
    // What this program happened to inherit is no business of the programs that it compares.
    let _ = dvs_sys::descriptor::close_range_on_exec(3, u32::MAX);
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dvs-cases: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> anyhow::Result<bool> {
    let cases = chosen(options)?;
    if options.list {
        for case in &cases {
            println!("{:40} {}", case.name, case.shows);
        }
        println!("{} cases", cases.len());
        return Ok(true);
    }
    let user = options.user.as_deref().map(User::find).transpose()?;
    let cluster = Cluster {
        nodes: options.nodes,
        place: options.place.clone().or((options.nodes > 1).then(|| "spread".to_owned())),
    };
    let spread = options.nodes > 1 && options.against == Against::Dvs;
    let census = if spread && !options.no_census && !options.shared {
        Some(Census::start().context("or give --no-census")?)
    } else {
        None
    };
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let sums = Mutex::new(Sums::default());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.clamp(1, 64))
            .map(|job| {
                let (cases, next, sums) = (&cases, &next, &sums);
                let (cluster, census) = (&cluster, census.as_ref());
                scope.spawn(move || {
                    let runner = Runner::new(options, cluster, user, census, job)?;
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let began = Instant::now();
                        let verdict = runner.case(case, sums)?;
                        tell(options, case, &verdict, began.elapsed(), sums);
                        if options.fail_fast && matches!(verdict, Verdict::Differs(_)) {
                            next.store(cases.len(), Ordering::Relaxed);
                        }
                    }
                    runner.end()
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => bail!("a worker panicked"),
        })
    })?;
    let sums = sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(summary(options, &sums, census.is_some(), started.elapsed()))
}

fn chosen(options: &Options) -> anyhow::Result<Vec<Case>> {
    let has = |case: &Case, word: &String| case.name.contains(word) || case.shows.contains(word);
    let cases: Vec<Case> = case::load(&options.cases)?
        .into_iter()
        .filter(|case| {
            options.filter.is_empty() || options.filter.iter().any(|word| has(case, word))
        })
        .filter(|case| !options.skip.iter().any(|word| case.name.contains(word)))
        .step_by(options.every as usize)
        .collect();
    if cases.is_empty() {
        bail!("no case in {} matches", options.cases.display());
    }
    Ok(cases)
}

struct Runner<'a> {
    options: &'a Options,
    cluster: &'a Cluster,
    dvs: Dvs,
    user: Option<User>,
    census: Option<&'a Census>,
    /// The container that all cases of this job share: its name, and the `dvs run` that holds it.
    shared: Option<(String, std::process::Child)>,
}

impl<'a> Runner<'a> {
    fn new(
        options: &'a Options,
        cluster: &'a Cluster,
        user: Option<User>,
        census: Option<&'a Census>,
        job: usize,
    ) -> anyhow::Result<Self> {
        let dvs = match options.against {
            Against::Dvs => Dvs::new(options.dvs.as_deref(), user)?,
            Against::Native => Dvs::new(Some(Path::new("/bin/true")), user)?,
        };
        let shared = if options.shared && options.against == Against::Dvs {
            Some(share(&dvs, cluster, job)?)
        } else {
            None
        };
        Ok(Runner { options, cluster, dvs, user, census, shared })
    }

    /// Runs a case as often as asked for, until it differs.
    fn case(&self, case: &Case, sums: &Mutex<Sums>) -> anyhow::Result<Verdict> {
        let missing = case.missing();
        if !missing.is_empty() {
            return Ok(Verdict::Skipped(format!("not on this machine: {}", missing.join(", "))));
        }
        let ordinary = self.user.is_some_and(|user| user.uid != 0);
        if case.root && (ordinary || dvs_sys::process::effective_ids().0 != 0) {
            return Ok(Verdict::Skipped("for root only".to_owned()));
        }
        if case.network.is_some() && self.shared.is_some() {
            return Ok(Verdict::Skipped("needs a network of its own".to_owned()));
        }
        let spread = self.cluster.nodes > 1;
        let known = match self.options.against {
            Against::Native => None,
            Against::Dvs => {
                case.known.as_ref().or(case.known_spread.as_ref().filter(|_| spread)).cloned()
            }
        };
        for round in 0..self.options.repeat.max(1) {
            let native = self.observe(case, Against::Native)?.0;
            let (ours, told) = self.observe(case, self.options.against)?;
            let mut differences = Vec::new();
            if native.end == observe::End::TimedOut {
                differences.push("the case does not end natively: fix the case".to_owned());
            }
            if native.held_open {
                differences.push("the case leaves programs running natively: fix it".to_owned());
            }
            if let Some(statistics) = told.statistics {
                take_statistics(&statistics, sums);
            } else if self.options.against == Against::Dvs && self.shared.is_none() {
                differences.push("no statistics at the end of standard error".to_owned());
            }
            differences.extend(compare::differences(&native, &ours));
            if let Some(count) = told.count {
                let mut sums = sums.lock().expect("sums");
                sums.remote += count.remote();
                sums.programs += count.programs();
                sums.counted += 1;
            }
            differences.extend(told.complaint);
            if !differences.is_empty() {
                if self.options.repeat > 1 {
                    differences.insert(0, format!("in round {}", round + 1));
                }
                return Ok(match known {
                    Some(reason) => Verdict::Known(reason),
                    None => Verdict::Differs(differences),
                });
            }
        }
        Ok(if known.is_some() { Verdict::NowPasses } else { Verdict::Same })
    }

    /// One run in an empty folder; the folder has the same path for both sides.
    fn observe(&self, case: &Case, side: Against) -> anyhow::Result<(Observation, Told)> {
        let folder = self.dvs.own_folder("work")?;
        let script = folder.join("case.sh");
        std::fs::write(&script, &case.script).context("cannot write the script")?;
        let mut command = match (side, &self.shared) {
            (Against::Native, _) => self.dvs.session(&case.shell),
            (Against::Dvs, None) => {
                let mut command = self.dvs.run(self.cluster);
                if let Some(network) = &case.network {
                    command.args(["--network", network]);
                }
                command.args(["--stats=json", "--", &case.shell]);
                command
            }
            (Against::Dvs, Some((name, _))) => {
                let mut command = self.dvs.session(self.dvs.binary());
                command.args(["exec", "-w"]).arg(&folder).args([name, "--", &case.shell]);
                command
            }
        };
        command.arg("./case.sh").current_dir(&folder);
        let (mut observation, pid) = observe::run_with_pid(&mut command, &folder, case.timeout)?;
        let mut told = Told::default();
        if side == Against::Dvs {
            told.statistics = split_statistics(&mut observation.stderr);
            if let Some(census) = self.census {
                match census.count(pid) {
                    Ok(count) => told.count = Some(count),
                    Err(reason) => told.complaint = Some(format!("not counted: {reason}")),
                }
            }
        }
        if case.mask_pids {
            observation.stderr = case::mask_pids(&observation.stderr);
        }
        remove(&folder)?;
        Ok((observation, told))
    }

    fn end(self) -> anyhow::Result<()> {
        if let Some((_, mut holder)) = self.shared {
            let pid = i32::try_from(holder.id()).context("a pid")?;
            dvs_sys::process::kill(pid, libc::SIGTERM)?;
            observe::wait(&mut holder, Duration::from_secs(20))?;
        }
        Ok(())
    }
}

/// Starts the container that the cases of one job share.
fn share(
    dvs: &Dvs,
    cluster: &Cluster,
    job: usize,
) -> anyhow::Result<(String, std::process::Child)> {
    use std::io::Read;
    let name = format!("cases-{job}");
    let folder = dvs.own_folder("work")?;
    let mut command = dvs.run(cluster);
    command
        .args(["--name", &name, "-v"])
        .arg(dvs.folder())
        .args(["--", "sh", "-c", "echo up; exec sleep 86400"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut holder = command.spawn().context("cannot start the shared container")?;
    let mut word = [0u8; 3];
    if let Some(mut stdout) = holder.stdout.take() {
        stdout.read_exact(&mut word).context("the shared container did not come up")?;
    }
    Ok((name, holder))
}

/// Cuts the statistics that `dvs run --stats=json` printed from the end of standard error.
fn split_statistics(stderr: &mut Vec<u8>) -> Option<serde_json::Value> {
    let start = stderr.windows(9).rposition(|window| window == b"{\"nodes\":")?;
    let value: serde_json::Value = serde_json::from_slice(stderr.get(start..)?).ok()?;
    value.get("wall_seconds")?;
    stderr.truncate(start);
    Some(value)
}

fn take_statistics(statistics: &serde_json::Value, sums: &Mutex<Sums>) {
    let mut sums = sums.lock().expect("sums");
    sums.placed_says += statistics["placed"].as_u64().unwrap_or(0);
    for (reason, count) in statistics["stayed"].as_object().into_iter().flatten() {
        *sums.stayed.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
    }
}

/// Removes a folder that a case may have made unreadable.
fn remove(folder: &Path) -> anyhow::Result<()> {
    if std::fs::remove_dir_all(folder).is_err() {
        let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(folder).status();
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn tell(options: &Options, case: &Case, verdict: &Verdict, took: Duration, sums: &Mutex<Sums>) {
    let mut sums = sums.lock().expect("sums");
    let (word, detail) = match verdict {
        Verdict::Same => {
            sums.passed += 1;
            ("same", Vec::new())
        }
        Verdict::Differs(differences) => {
            sums.failed.push(case.name.clone());
            ("DIFFERS", differences.clone())
        }
        Verdict::Known(reason) => {
            sums.known += 1;
            ("known", vec![reason.clone()])
        }
        Verdict::NowPasses => {
            // A known difference may show only under some placements, so one equal run proves nothing.
            sums.passed += 1;
            let advice = "remove its `# known` line if it passes with --repeat 50, too";
            ("NOW PASSES", vec![advice.to_owned()])
        }
        Verdict::Skipped(reason) => {
            sums.skipped += 1;
            ("SKIPPED", vec![reason.clone()])
        }
    };
    if options.json {
        let line = serde_json::json!({
            "case": case.name, "verdict": word, "detail": detail, "seconds": took.as_secs_f64(),
        });
        println!("{line}");
    } else if *verdict != Verdict::Same || options.verbose {
        println!("{word:10} {:36} {:6.2} s  {}", case.name, took.as_secs_f64(), case.shows);
        for line in detail {
            println!("           {line}");
        }
    }
}

fn summary(options: &Options, sums: &Sums, census: bool, took: Duration) -> bool {
    let share = if sums.programs == 0 { 1.0 } else { sums.remote as f64 / sums.programs as f64 };
    let spread = options.place.as_deref().is_none_or(|place| place == "spread");
    let enough = !census || !spread || share >= LEAST_REMOTE;
    let nothing_counted = census && spread && sums.counted > 0 && sums.remote == 0;
    if options.json {
        let line = serde_json::json!({
            "passed": sums.passed, "failed": sums.failed, "skipped": sums.skipped,
            "known": sums.known, "seconds": took.as_secs_f64(), "programs": sums.programs,
            "remote": sums.remote, "share": share, "placed_by_statistics": sums.placed_says,
            "stayed": sums.stayed,
        });
        println!("{line}");
    } else {
        if census {
            println!(
                "counted from outside: {} programs, {} on another node ({:.1} %); statistics say {}",
                sums.programs,
                sums.remote,
                100.0 * share,
                sums.placed_says
            );
        }
        for (reason, count) in &sums.stayed {
            println!("stayed: {count:6} {reason}");
        }
        if !enough || nothing_counted {
            println!("FAILED: fewer than {:.0} % ran on another node", 100.0 * LEAST_REMOTE);
        }
        for name in &sums.failed {
            println!("FAILED: {name}");
        }
        println!(
            "cases: {} passed, {} failed, {} skipped, {} known differences, {:.1} s",
            sums.passed,
            sums.failed.len(),
            sums.skipped,
            sums.known,
            took.as_secs_f64()
        );
    }
    sums.failed.is_empty() && enough && !nothing_counted
}
