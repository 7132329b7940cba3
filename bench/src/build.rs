//! A build on nodes of half a core each. A node's daemon, keeper and container are all within its
//! quota: the daemon is started in the node's cgroup, and what it makes lies below.

use crate::Bench;
use crate::figures::{Compare, Report, Series};
use anyhow::{Context, bail, ensure};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

/// Quota of a node: half a core.
const PERIOD: u64 = 100_000;
const QUOTA: u64 = 50_000;

pub(crate) fn measure(
    bench: &Bench,
    files: u32,
    most: u16,
    rounds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let hierarchy = Hierarchy::find()?;
    let folder = bench.dvs.own_folder("work")?;
    write_source(&folder, files)?;
    let mut series = vec![Series::default(); usize::from(most) + 1];
    for _ in 0..rounds {
        for (nodes, series) in (0..=most).zip(&mut series) {
            series.0.push(one(bench, &hierarchy, &folder, nodes)?);
        }
    }
    let lines = series
        .into_iter()
        .enumerate()
        .map(|(nodes, series)| {
            let name = match nodes {
                0 => "plain make, one quota".to_owned(),
                1 => "dvs, 1 node".to_owned(),
                n => format!("dvs, {n} nodes"),
            };
            let goal = match nodes {
                2 => Some("1.85"),
                3 => Some("2.5"),
                _ => None,
            };
            (name, series, goal)
        })
        .collect();
    let title = format!("make of {files} C files; each node half a core, daemons included");
    report.group(&title, "s", Compare::SpeedUp, lines);
    Ok(())
}

/// Seconds of one clean build: natively for no nodes.
fn one(bench: &Bench, hierarchy: &Hierarchy, folder: &Path, nodes: u16) -> anyhow::Result<f64> {
    let groups: Vec<Group> =
        (0..nodes.max(1)).map(|index| hierarchy.group(index)).collect::<anyhow::Result<_>>()?;
    let clean = bench.dvs.native("make").args(["-s", "clean"]).current_dir(folder).status()?;
    ensure!(clean.success(), "make clean: {clean}");
    let inside = |group: &Group, words: &[&str]| -> anyhow::Result<()> {
        let mut command = bench.dvs.native("sh");
        let script = "echo $$ >\"$1\"/cgroup.procs && shift && exec \"$@\"";
        command.args(["-c", script, "sh"]).arg(&group.0).args(words).current_dir(folder);
        let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}: {errors}", words.join(" "), output.status);
        Ok(())
    };
    let first = groups.first().context("a group")?;
    if nodes == 0 {
        let started = Instant::now();
        inside(first, &["make", "-s", "-j2"])?;
        return Ok(started.elapsed().as_secs_f64());
    }
    let binary = bench.dvs.binary().to_string_lossy().into_owned();
    let result = (|| {
        for (index, group) in groups.iter().enumerate() {
            let name = format!("b{}", index + 1);
            inside(group, &[&binary, "node", "start", "--name", &name])?;
        }
        let jobs = format!("-j{}", 2 * nodes);
        let number = nodes.to_string();
        let started = Instant::now();
        inside(first, &[&binary, "run", "--nodes", &number, "--", "make", "-s", &jobs])?;
        Ok(started.elapsed().as_secs_f64())
    })();
    let _ = bench.dvs.dvs().args(["node", "stop", "--all", "--force"]).output();
    result
}

/// A program of many files, each of some weight, and its Makefile.
fn write_source(folder: &Path, files: u32) -> anyhow::Result<()> {
    let mut main = String::from("#include <stdio.h>\n");
    let mut sum = String::from("0");
    for index in 0..files {
        let mut text = String::from(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n\
             #include <math.h>\n#include <sys/types.h>\n#include <pthread.h>\n",
        );
        for function in 0..12 {
            writeln!(
                text,
                "int f{index}_{function}(int n, char *s) {{ int a[64]; for (int i = 0; i < 64; i++) \
                 a[i] = n * i + (int)strlen(s); for (int i = 0; i < n; i++) for (int j = 0; j < 64; \
                 j++) a[j] = a[(j * 7 + i) % 64] ^ (a[j] << (i % 5)) % {}; snprintf(s, 9, \"%d\", \
                 a[n % 64]); return a[3] > {function} ? atoi(s) : a[n % 64]; }}",
                index + 3
            )?;
        }
        writeln!(
            text,
            "int f{index}(void) {{ char s[16] = \"x\"; return f{index}_3(0, s) ? 1 : 1; }}"
        )?;
        std::fs::write(folder.join(format!("f{index}.c")), text)?;
        writeln!(main, "int f{index}(void);")?;
        write!(sum, "+f{index}()")?;
    }
    writeln!(main, "int main(void) {{ return printf(\"%d\\n\", {sum}) < 1; }}")?;
    std::fs::write(folder.join("main.c"), main)?;
    let makefile = "O := $(patsubst %.c,%.o,$(wildcard *.c))\n\
        prog: $O\n\tgcc -o $@ $O\n%.o: %.c\n\tgcc -O2 -c $<\nclean:\n\trm -f *.o prog\n";
    std::fs::write(folder.join("Makefile"), makefile)?;
    Ok(())
}

/// Where cgroups with a CPU quota can be made.
enum Hierarchy {
    /// Version 1: the mount of the cpu controller.
    V1(PathBuf),
    /// Version 2.
    V2(PathBuf),
}

impl Hierarchy {
    fn find() -> anyhow::Result<Hierarchy> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (Some(place), Some(kind), Some(options)) =
                (fields.get(1), fields.get(2), fields.get(3))
            else {
                continue;
            };
            if *kind == "cgroup" && options.split(',').any(|option| option == "cpu") {
                return Ok(Hierarchy::V1(place.into()));
            }
            let controllers = std::fs::read_to_string(Path::new(place).join("cgroup.controllers"));
            if *kind == "cgroup2"
                && controllers.is_ok_and(|c| c.split_whitespace().any(|c| c == "cpu"))
            {
                return Ok(Hierarchy::V2(place.into()));
            }
        }
        bail!("no cgroup hierarchy with the cpu controller: the build cannot be given a quota")
    }

    fn group(&self, index: u16) -> anyhow::Result<Group> {
        let root = match self {
            Hierarchy::V1(root) | Hierarchy::V2(root) => root,
        };
        let folder = root.join(format!("dvs-bench-{}-{index}", std::process::id()));
        std::fs::create_dir(&folder)
            .with_context(|| format!("cannot make {} (root only)", folder.display()))?;
        let group = Group(folder);
        let write = |name: &str, text: String| {
            let path = group.0.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        match self {
            Hierarchy::V1(_) => {
                write("cpu.cfs_period_us", PERIOD.to_string())?;
                write("cpu.cfs_quota_us", QUOTA.to_string())?;
            }
            Hierarchy::V2(root) => {
                let _ = std::fs::write(root.join("cgroup.subtree_control"), "+cpu");
                write("cpu.max", format!("{QUOTA} {PERIOD}"))?;
            }
        }
        Ok(group)
    }
}

/// A cgroup of one node; removed at its end.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        // What ran in it ends a moment before the kernel lets it go.
        for _ in 0..200 {
            match std::fs::remove_dir(&self.0) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                _ => return,
            }
        }
        eprintln!("dvs-bench: cannot remove {}", self.0.display());
    }
}
