//! Long tests under disturbance: many programs at once, kills around exec, deaths of daemons, of a
//! node in the middle of a build, and of the command line. Right statuses, one copy at most, nothing
//! left over. Everything random comes from one seed, which a failure names.
#![forbid(unsafe_code)]

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use dvs_tests::census::Census;
use dvs_tests::command::{Cluster, Dvs, User};
use dvs_tests::machine::{Scope, Snapshot, left_over};
use dvs_tests::observe::{self, End, Observation};
use dvs_tests::{compare, descend};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Time that may pass until everything of an ended command is gone.
const CLEANUP: Duration = Duration::from_secs(20);
/// Time that a disturbed command may take to end.
const END: Duration = Duration::from_secs(60);
/// An empty lock file that may outlive a killed command; the next command removes it.
const EMPTY_LOCK: &str = "guard";
/// Time for one of the long programs.
const LONG: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Concurrent placed programs: large output, readers of standard input, deep children.
    Programs,
    /// Kills of programs at random moments around their exec.
    Kills,
    /// Kills of a random daemon at a random moment.
    Daemons,
    /// Death of a node in the middle of a build, which then goes on.
    Build,
    /// Interrupts and kills of the command line at random moments.
    Commands,
}

const ALL: [Part; 5] = [Part::Programs, Part::Kills, Part::Daemons, Part::Build, Part::Commands];

#[derive(Debug, Parser)]
#[command(
    about = "Programs, daemons and commands under stress",
    after_help = "Examples:
  dvs-stress --sample            small counts, for every run of the tests
  dvs-stress                     the full soak
  dvs-stress daemons --seed 7    one part, repeated from its seed"
)]
struct Options {
    /// Which parts [default: all].
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Small counts.
    #[arg(long)]
    sample: bool,
    /// Where random moments come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=16))]
    nodes: u16,
    /// Run as this ordinary user (needs root).
    #[arg(long)]
    user: Option<String>,
    /// The dvs to test [default: $DVS_BIN, or the one beside this program].
    #[arg(long)]
    dvs: Option<PathBuf>,
    /// Nothing else runs on this machine: check mounts, cgroups, sockets, ... of all of it.
    #[arg(long)]
    whole_machine: bool,
}

struct Stress {
    options: Options,
    dvs: Dvs,
    cluster: Cluster,
    scope: Scope,
}

fn main() -> ExitCode {
    // What this program happened to inherit is no business of the programs that it compares.
    let _ = dvs_sys::descriptor::close_range_on_exec(3, u32::MAX);
    let options = Options::parse();
    match run(options) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            println!("stress: {failures} parts failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("dvs-stress: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> anyhow::Result<usize> {
    descend::adopt_orphans()?;
    let user = options.user.as_deref().map(User::find).transpose()?;
    let dvs = Dvs::new(options.dvs.as_deref(), user)?;
    let cluster = Cluster { nodes: options.nodes, place: Some("spread".to_owned()) };
    let parts = if options.parts.is_empty() { ALL.to_vec() } else { options.parts.clone() };
    let stress = Stress { options, dvs, cluster, scope: Scope::default() };
    let mut failures = 0;
    for part in parts {
        let started = Instant::now();
        let before = stress.options.whole_machine.then(|| Snapshot::take(&stress.scope));
        let outcome = match part {
            Part::Programs => stress.programs(),
            Part::Kills => stress.kills(),
            Part::Daemons => stress.daemons(),
            Part::Build => stress.build(),
            Part::Commands => stress.commands(),
        };
        let outcome = outcome.and_then(|told| {
            if let Some(before) = &before {
                let left = left_over(before, &stress.scope, CLEANUP);
                ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
            }
            Ok(told)
        });
        let took = started.elapsed().as_secs_f64();
        match outcome {
            Ok(told) => println!("passed   {part:?}: {told}, {took:.1} s"),
            Err(error) => {
                failures += 1;
                let seed = stress.options.seed;
                println!("FAILED   {part:?} (seed {seed}), {took:.1} s: {error:#}");
            }
        }
    }
    Ok(failures)
}

impl Stress {
    fn count(&self, sample: u32, full: u32) -> u32 {
        if self.options.sample { sample } else { full }
    }

    fn random(&self, part: Part, round: u32) -> StdRng {
        let mixed = self.options.seed.wrapping_mul(1_000_003) ^ (part as u64) << 32;
        StdRng::seed_from_u64(mixed ^ u64::from(round))
    }

    /// Runs a shell script natively or in the container, in an empty folder.
    fn script(
        &self,
        inside: bool,
        text: &str,
        bound: Duration,
    ) -> anyhow::Result<(Observation, u32)> {
        let folder = self.fresh_folder()?;
        std::fs::write(folder.join("script.sh"), text)?;
        let mut command = if inside {
            let mut command = self.dvs.run(&self.cluster);
            command.args(["--", "bash"]);
            command
        } else {
            self.dvs.session("bash")
        };
        command.arg("./script.sh").current_dir(&folder);
        observe::run_with_pid(&mut command, &folder, bound)
    }

    fn fresh_folder(&self) -> anyhow::Result<PathBuf> {
        let folder = self.dvs.folder().join("work");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).context("empty the working folder")?;
        }
        self.dvs.own_folder("work")
    }

    /// Starts a script in the container; its output goes into files.
    fn start(&self, text: &str) -> anyhow::Result<Child> {
        let folder = self.fresh_folder()?;
        std::fs::write(folder.join("script.sh"), text)?;
        let output = |name: &str| std::fs::File::create(self.dvs.folder().join(name));
        let mut command: Command = self.dvs.run(&self.cluster);
        command
            .args(["--", "bash", "./script.sh"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(output("stdout")?)
            .stderr(output("stderr")?)
            .spawn()
            .context("start dvs run")
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.dvs.folder().join("stderr")).unwrap_or_default()
    }

    /// Nothing of a command is left: no process below us, nothing in the folders of daemons.
    fn nothing_left(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let mut left: Vec<String> = descend::list(&[])
                .into_iter()
                .map(|process| format!("process {} {} {}", process.pid, process.name, process.line))
                .collect();
            for folder in [self.dvs.run_folder().join("sessions"), self.dvs.state_folder()] {
                let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
                let names = entries.filter(|entry| entry.file_name() != EMPTY_LOCK);
                left.extend(names.map(|entry| entry.path().display().to_string()));
            }
            if left.is_empty() {
                return Ok(());
            }
            if started.elapsed() > CLEANUP {
                for process in descend::list(&[]) {
                    if let Ok(pid) = i32::try_from(process.pid) {
                        let _ = dvs_sys::process::kill(pid, libc::SIGKILL);
                    }
                }
                bail!("left behind:\n  {}", left.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn programs(&self) -> anyhow::Result<String> {
        let number = self.count(40, 300);
        let text = format!("N={number}\n{PROGRAMS}");
        let census = Census::start();
        let (native, _) = self.script(false, &text, LONG)?;
        ensure!(native.end == End::Status(0), "natively: {:?}", native.end);
        let (ours, pid) = self.script(true, &text, LONG)?;
        let differences = compare::differences(&native, &ours);
        ensure!(differences.is_empty(), "differs from native:\n  {}", differences.join("\n  "));
        self.nothing_left()?;
        Ok(match census {
            Ok(census) => match census.count(pid) {
                Ok(count) => {
                    let (remote, all) = (count.remote(), count.programs());
                    ensure!(
                        remote * 10 >= all * 9,
                        "{remote} of {all} programs ran on another node: fewer than 90 %"
                    );
                    format!("{number} at once, {remote} of {all} programs on another node")
                }
                Err(reason) => bail!("not counted: {reason}"),
            },
            Err(_) => format!("{number} at once (not counted from outside: not root)"),
        })
    }

    fn kills(&self) -> anyhow::Result<String> {
        let number = self.count(60, 300);
        let text = format!("python3 -c '{KILLS}' {number} {}", self.options.seed);
        let (seen, _) = self.script(true, &text, LONG)?;
        let output = String::from_utf8_lossy(&seen.stdout).into_owned();
        let errors = String::from_utf8_lossy(&seen.stderr).into_owned();
        ensure!(seen.end == End::Status(0), "{:?}: {output}{errors}", seen.end);
        self.nothing_left()?;
        // Each program wrote its number when it ran: at most once.
        let ran = seen.files.get("ran").map(|entry| entry.content.clone()).unwrap_or_default();
        let mut numbers: Vec<&[u8]> = ran.split(|byte| *byte == b'\n').collect();
        numbers.retain(|number| !number.is_empty());
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        ensure!(numbers.len() == all, "{} programs ran twice", all - numbers.len());
        Ok(format!("{}, {all} had begun", output.trim()))
    }

    /// The daemons of the running command: in the order of their nodes, the home first.
    fn daemon_pids(&self, command: &Child) -> anyhow::Result<Vec<u32>> {
        let started = Instant::now();
        loop {
            let mut daemons: Vec<(String, u32)> = descend::list(&[command.id()])
                .into_iter()
                .filter(|process| process.name.starts_with("dvs-n"))
                .map(|process| (process.name, process.pid))
                .collect();
            daemons.sort();
            if daemons.len() >= usize::from(self.options.nodes) {
                return Ok(daemons.into_iter().map(|(_, pid)| pid).collect());
            }
            ensure!(started.elapsed() < END, "the daemons did not come up: {daemons:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn daemons(&self) -> anyhow::Result<String> {
        let rounds = self.count(6, 100);
        let mut ends = std::collections::BTreeMap::<String, u32>::new();
        for round in 0..rounds {
            let mut random = self.random(Part::Daemons, round);
            let child = self.start(WORK)?;
            let daemons = self.daemon_pids(&child)?;
            std::thread::sleep(Duration::from_millis(random.random_range(0..600)));
            let victim = random.random_range(0..daemons.len());
            let pid = daemons.get(victim).copied().context("a daemon")?;
            // It may have ended meanwhile, with its command.
            let _ = dvs_sys::process::kill(i32::try_from(pid)?, libc::SIGKILL);
            let told = self
                .after_death(child, victim == 0)
                .and_then(|told| self.nothing_left().map(|()| told))
                .with_context(|| format!("round {round}, daemon {} killed", victim + 1))?;
            *ends.entry(told).or_default() += 1;
        }
        Ok(format!("{rounds} daemons killed: {ends:?}"))
    }

    /// A command whose home died ends with 125 or 137 and says so; one that lost another node goes
    /// on to its own end.
    fn after_death(&self, mut child: Child, home: bool) -> anyhow::Result<String> {
        let end = observe::wait(&mut child, END)?;
        let End::Status(status) = end else { bail!("no end; stderr: {}", self.errors()) };
        match (home, status) {
            (_, 0) => Ok("went on".to_owned()),
            (false, 125) if !self.dvs.folder().join("work/begun").exists() => {
                ensure!(self.errors().contains("dvs: "), "no message: {}", self.errors());
                Ok("node died before the program began, 125".to_owned())
            }
            (true, 125 | 137) => {
                ensure!(self.errors().contains("dvs: "), "no message: {}", self.errors());
                Ok(format!("home died, {status}"))
            }
            _ => bail!("status {status}; stderr: {}", self.errors()),
        }
    }

    fn build(&self) -> anyhow::Result<String> {
        let rounds = self.count(2, 10);
        for round in 0..rounds {
            let mut random = self.random(Part::Build, round);
            let mut child = self.start(BUILD)?;
            let daemons = self.daemon_pids(&child)?;
            std::thread::sleep(Duration::from_millis(random.random_range(300..1500)));
            let victim = daemons.get(random.random_range(1..daemons.len())).copied();
            let _ =
                dvs_sys::process::kill(i32::try_from(victim.context("a daemon")?)?, libc::SIGKILL);
            let end = observe::wait(&mut child, LONG)?;
            let output = std::fs::read_to_string(self.dvs.folder().join("stdout"))?;
            ensure!(
                end == End::Status(0) && output.ends_with("sum 820\n"),
                "round {round}: {end:?}, stdout: {output}, stderr: {}",
                self.errors()
            );
            self.nothing_left()?;
        }
        Ok(format!("{rounds} builds that lost a node ended right"))
    }

    fn commands(&self) -> anyhow::Result<String> {
        let rounds = self.count(10, 100);
        for round in 0..rounds {
            let mut random = self.random(Part::Commands, round);
            let signal = if random.random_bool(0.5) { libc::SIGKILL } else { libc::SIGINT };
            let mut child = self.start(COMMAND)?;
            std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
            dvs_sys::process::kill(i32::try_from(child.id())?, signal)?;
            let end = observe::wait(&mut child, END)?;
            let want = End::Status(128 + signal);
            ensure!(end == want, "round {round}: signal {signal}, {end:?}: {}", self.errors());
            self.nothing_left().with_context(|| format!("round {round}, signal {signal}"))?;
        }
        Ok(format!("{rounds} commands interrupted or killed"))
    }
}

/// A mix of N programs at once; what they print is the same in every run.
const PROGRAMS: &str = r#"
deep() { if [ $1 = 0 ]; then exit $2; else sh -c "$DEEP" deep $(($1-1)) $2; fi; }
export DEEP='[ $1 = 0 ] && exit $2; sh -c "$DEEP" deep $(($1-1)) $2'
for i in $(seq $N); do
  case $((i % 6)) in
    0) sh -c 'head -c 1000000 /dev/zero | tr "\0" x; exit 3' | md5sum >out.$i & ;;
    1) seq $i | sh -c 'n=0; while read x; do n=$((n+x)); done; echo $n >out.'$i'; exit '$((i % 100)) & ;;
    2) sh -c "$DEEP" deep 4 $((i % 50)) & ;;
    3) sh -c 'sleep 0.2; kill -TERM $$; sleep 60' & ;;
    4) sh -c 'echo '$i' | tr 0-9 a-j >out.'$i'; cat </dev/null; exit 9' & ;;
    5) python3 -S -c 'import sys; sys.stdout.write("y"*100000); sys.exit(7)' >out.$i & ;;
  esac
  p="$p $!"
done 2>/dev/null
for q in $p; do wait $q; echo -n "$? "; done 2>/dev/null
echo
"#;

/// Programs that are killed at a random moment around their exec; each marks that it ran.
const KILLS: &str = r#"
import os,random,signal,sys,time
n,seed=int(sys.argv[1]),int(sys.argv[2]); random.seed(seed); bad=0; by={}
for i in range(n):
    sig=random.choice([signal.SIGKILL,signal.SIGTERM,signal.SIGHUP])
    pid=os.fork()
    if pid==0:
        os.execv("/bin/sh",["sh","-c","echo %d >>ran; exec sleep 300"%i])
    t=time.monotonic()+random.random()*0.04
    while time.monotonic()<t: pass
    os.kill(pid,sig); st=os.waitpid(pid,0)[1]
    if not (os.WIFSIGNALED(st) and os.WTERMSIG(st)==sig): bad+=1; print("program",i,"signal",sig,"status",hex(st))
    by[sig.name]=by.get(sig.name,0)+1
print(n,"kills, wrong statuses",bad)
sys.exit(bad!=0)
"#;

/// A program that ends by an interrupt, whatever it is doing (a shell alone waits for its child, and
/// goes on if that was not interrupted).
const COMMAND: &str = "trap 'exit 130' INT; while :; do sleep 0.01; /bin/true | cat; done";

/// Work for daemons to die under: programs that may be lost, in a shell that goes on.
const WORK: &str = r#"
: >begun
for i in $(seq 40); do
  sh -c 'head -c 20000 /dev/zero | md5sum >/dev/null; sleep 0.02' 2>/dev/null & sh -c 'sleep 0.03' 2>/dev/null &
  wait
done 2>/dev/null
exit 0
"#;

/// A build of forty files that repeats what a lost node took with it.
const BUILD: &str = r##"
{ echo 'p: $(foreach i,$(shell seq 40),f$i.o) m.o'; echo '	@gcc -o $@ $^'; echo '%.o: %.c'; echo '	@gcc -O1 -c $<'; } >Makefile
for i in $(seq 40); do echo "#include <stdio.h>
#include <stdlib.h>
int f$i(void) { return $i; }" >f$i.c; d="$d int f$i(void);"; s="$s+f$i()"; done
echo "#include <stdio.h>
$d int main() { printf(\"sum %d\n\", 0$s); }" >m.c
for try in 1 2 3; do make -s -k -j6 && break; done
./p
"##;
