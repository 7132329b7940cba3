//! The file system: the same calls and programs on the host's own file system, in a container at
//! home, and on another node of three. All in the same folder, which is shared with the container.

use crate::Bench;
use crate::figures::{Compare, Report, Series};
use crate::programs::measurer;
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Files of the source tree that is unpacked.
const TREE_FILES: u32 = 2_000;
/// C files of the build.
const BUILD_FILES: u32 = 24;
/// Files of the repository for `git status`.
const REPOSITORY_FILES: u32 = 20_000;
/// Bytes of the large file.
const LARGE: u64 = 1 << 30;

/// Where a command runs.
const SIDES: [(&str, &[&str]); 3] = [
    ("native", &[]),
    ("at home", &["--nodes", "1"]),
    ("on another node of three", &["--nodes", "3", "--place", "spread"]),
];

/// A thing that is timed, and its goals at home and on another node.
struct Load {
    title: &'static str,
    /// Made anew before each run, for the shell.
    prepare: &'static str,
    /// What is timed, for the shell.
    command: &'static str,
    goals: [Option<&'static str>; 2],
}

const LOADS: [Load; 6] = [
    Load {
        title: "tar xf of 2,000 small files",
        prepare: "rm -rf unpacked; mkdir unpacked",
        command: "exec tar -xf tree.tar -C unpacked",
        goals: [Some("×3"), Some("×5")],
    },
    Load {
        title: "make -j2 of 24 C files, warm",
        prepare: "make -s clean",
        command: "exec make -s -j2",
        goals: [Some("×1.15"), None],
    },
    Load {
        title: "git status of 20,000 files, warm",
        prepare: "git -C repository status >/dev/null",
        command: "exec git --no-optional-locks -C repository status --porcelain",
        goals: [Some("×2"), Some("×2")],
    },
    Load {
        title: "find of 20,000 files, warm",
        prepare: "find repository >/dev/null",
        command: "exec find repository -newer tree.tar -name nothing",
        goals: [None, None],
    },
    Load {
        title: "sequential write of 1 GB",
        prepare: "rm -f large",
        command: "exec dd if=/dev/zero of=large bs=1M count=1024 status=none",
        goals: [Some("×1.67"), None],
    },
    Load {
        title: "cached read of 1 GB",
        prepare: "cat large >/dev/null",
        command: "exec dd if=large of=/dev/null bs=1M status=none",
        goals: [Some("×1.11"), None],
    },
];

/// Goals of the calls that [`crate::inner::Inner::Files`] times, at home and on another node.
fn goals_of_call(name: &str) -> [Option<&'static str>; 2] {
    match name {
        "stat" | "read 4 KiB" | "exec" => [Some("×1.2"), Some("×1.2")],
        "open and close" => [Some("×8"), Some("×8")],
        "create and unlink" => [None, Some("100 µs")],
        _ => [None, None],
    }
}

pub(crate) fn measure(
    bench: &Bench,
    rounds: u32,
    only: Option<&str>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let folder = measurer(bench)?;
    let wanted = |title: &str| only.is_none_or(|only| title.contains(only));
    if wanted("calls") {
        calls(bench, &folder, rounds, report)?;
    }
    if LOADS.iter().any(|load| wanted(load.title)) {
        furnish(&folder)?;
    }
    for load in LOADS.iter().filter(|load| wanted(load.title)) {
        let mut series: [Series; 3] = Default::default();
        for _ in 0..rounds {
            for ((_, options), series) in SIDES.iter().zip(&mut series) {
                let words = ["inner", "timed", load.prepare, load.command];
                let text = run(bench, &folder, options, false, &words)?;
                let value = text.lines().last().and_then(|line| line.parse().ok());
                series.0.push(value.with_context(|| format!("{}: {text}", load.title))?);
            }
        }
        group(report, load.title, "ms", series, load.goals);
    }
    let _ = std::fs::remove_file(folder.join("large"));
    for name in ["repository", "unpacked", "tree"] {
        let _ = std::fs::remove_dir_all(folder.join(name));
    }
    Ok(())
}

fn calls(bench: &Bench, folder: &Path, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let mut all: BTreeMap<String, [Series; 3]> = BTreeMap::new();
    for _ in 0..rounds {
        for (index, (_, options)) in SIDES.iter().enumerate() {
            for line in run(bench, folder, options, true, &["inner", "files"])?.lines() {
                let Some((name, value)) = line.split_once('\t') else { continue };
                if let Some(series) = all.entry(name.to_owned()).or_default().get_mut(index) {
                    series.0.push(value.parse()?);
                }
            }
        }
    }
    for (name, series) in all {
        let title = format!("{name} (least of batches)");
        group(report, &title, "µs", series, goals_of_call(&name));
    }
    Ok(())
}

fn group(
    report: &mut Report,
    title: &str,
    unit: &'static str,
    series: [Series; 3],
    goals: [Option<&str>; 2],
) {
    let goals = [None, goals[0], goals[1]];
    let lines = SIDES.iter().zip(series).zip(goals);
    let lines = lines.map(|(((name, _), series), goal)| ((*name).to_owned(), series, goal));
    report.group(title, unit, Compare::Ratio, lines.collect());
}

/// Runs the measuring program on one of the sides. `placed`: it is itself to be on the other node,
/// not only the programs that it starts.
fn run(
    bench: &Bench,
    folder: &Path,
    options: &[&str],
    placed: bool,
    words: &[&str],
) -> anyhow::Result<String> {
    let mut command = if options.is_empty() {
        bench.dvs.native("./measure")
    } else {
        let mut command = bench.dvs.dvs();
        command.arg("run").args(options).arg("--");
        if placed {
            // The first program of a command stays at home; its child does not.
            command.args(["sh", "-c", "./measure \"$@\"; exit $?", "sh"]);
        } else {
            command.arg("./measure");
        }
        command
    };
    command.args(words).current_dir(folder).stdin(Stdio::null());
    let output = bench.pinned(command).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "measuring failed: {}: {errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes what the loads work on.
fn furnish(folder: &Path) -> anyhow::Result<()> {
    for number in 0..TREE_FILES {
        let below = folder.join(format!("tree/part{}/src", number % 40));
        std::fs::create_dir_all(&below)?;
        let text = "a line of a source file of the tree\n".repeat(number as usize % 200 + 1);
        std::fs::write(below.join(format!("file{number}.c")), text)?;
    }
    for number in 0..REPOSITORY_FILES {
        let below = folder.join(format!("repository/folder{}/part{}", number % 20, number % 100));
        std::fs::create_dir_all(&below)?;
        std::fs::write(below.join(format!("file{number}")), format!("file {number}\n"))?;
    }
    let mut rules = String::from("all: program\nOBJECTS =");
    let mut main = String::from("#include <stdio.h>\n");
    let mut sum = String::from("0");
    for number in 0..BUILD_FILES {
        let text = format!(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\
             int f{number}(int n) {{ char b[64]; snprintf(b, sizeof b, \"%d\", n); return atoi(b) + {number}; }}\n"
        );
        std::fs::write(folder.join(format!("unit{number}.c")), text)?;
        let _ = write!(rules, " unit{number}.o");
        let _ = writeln!(main, "int f{number}(int);");
        let _ = write!(sum, " + f{number}(1)");
    }
    let _ = writeln!(main, "int main(void) {{ printf(\"%d\\n\", {sum}); return 0; }}");
    std::fs::write(folder.join("main.c"), main)?;
    rules.push_str(
        " main.o\nprogram: $(OBJECTS)\n\tcc -o $@ $(OBJECTS)\n%.o: %.c\n\tcc -O1 -c -o $@ $<\n\
         clean:\n\trm -f *.o program\n",
    );
    std::fs::write(folder.join("Makefile"), rules)?;
    let script = "tar -cf tree.tar tree && cd repository && git init -q . && git add . && \
                  git -c user.name=n -c user.email=e commit -q -m all";
    let status = Command::new("sh").args(["-c", script]).current_dir(folder).status()?;
    ensure!(status.success(), "cannot make the trees: {status} (are tar and git there?)");
    ensure!(LARGE == 1024 << 20, "the large file is what dd writes");
    Ok(())
}
