//! `dvs doctor`: what this machine can do, what is missing, and the exact way to get it.
//!
//! Prints no file contents, environment or names of others: a report can be shown to anybody.

use crate::arguments::ListArguments;
use crate::failure::{Failure, colours};
use crate::nodes;
use crate::output;
use dvs_node::folders::Folders;
use dvs_sys::process;
use std::path::Path;

/// How a look turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should be.
    Good,
    /// DVS works, something is slower or absent.
    Limited,
    /// DVS cannot work.
    Broken,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Limited => "limited",
            Verdict::Broken => "broken",
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Verdict::Good => "ok",
            Verdict::Limited => "--",
            Verdict::Broken => "!!",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Verdict::Good => "32",
            Verdict::Limited => "33",
            Verdict::Broken => "31;1",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// What was looked at.
    pub(crate) name: String,
    /// How it turned out.
    pub(crate) verdict: Verdict,
    /// What is so, and what to do about it.
    pub(crate) sentence: String,
}

/// `dvs doctor`. Exit code 1 if a container cannot run here.
///
/// # Errors
/// When the report cannot be written.
pub(crate) fn doctor(list: &ListArguments) -> Result<u8, Failure> {
    let lines = look();
    let broken = lines.iter().any(|line| line.verdict == Verdict::Broken);
    if list.json {
        let findings: Vec<serde_json::Value> = lines
            .iter()
            .map(|line| {
                serde_json::json!({
                    "name": line.name, "verdict": line.verdict.word(), "sentence": line.sentence,
                })
            })
            .collect();
        output::print_json(&serde_json::json!({ "can_run": !broken, "findings": findings }))?;
    } else {
        output::print(&text(&lines, colours(&std::io::stdout())))?;
    }
    Ok(u8::from(broken))
}

fn text(lines: &[Line], colours: bool) -> String {
    let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        let mark = if colours {
            format!("\x1b[{}m{}\x1b[0m", line.verdict.colour(), line.verdict.mark())
        } else {
            line.verdict.mark().to_owned()
        };
        text.push_str(&format!("{mark}  {:width$}  {}\n", line.name, line.sentence));
    }
    let count = |verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    text.push_str(&match (count(Verdict::Broken), count(Verdict::Limited)) {
        (0, 0) => "Containers can run here.\n".to_owned(),
        (0, limited) => format!("Containers can run here; {limited} things are limited (--).\n"),
        (broken, _) => format!("Containers cannot run here: {broken} to fix (!!).\n"),
    });
    text
}

fn look() -> Vec<Line> {
    let mut lines: Vec<Line> = nodes::features()
        .findings()
        .into_iter()
        .map(|finding| Line {
            name: finding.name.to_owned(),
            verdict: match (finding.present, finding.needed) {
                (true, _) => Verdict::Good,
                (false, false) => Verdict::Limited,
                (false, true) => Verdict::Broken,
            },
            sentence: finding.sentence.to_owned(),
        })
        .collect();
    let folders = Folders::of_process();
    lines.push(folder("run folder", &folders.run, folders.prepare().err()));
    let state = dvs_node::folders::private_folder(&folders.state);
    lines.push(folder("state folder", &folders.state, state.err()));
    folders.tidy();
    let descriptors = process::prlimit(0, libc::RLIMIT_NOFILE, None).map_or(0, |(_, hard)| hard);
    lines.push(open_files(descriptors));
    lines.push(pid_space(&read("/proc/sys/kernel/pid_max")));
    lines.push(user(process::effective_ids().0, &read("/etc/subuid")));
    lines.extend(crate::doctor_host::look(process::effective_ids().0));
    lines.push(daemons(&folders));
    lines
}

fn folder(name: &str, path: &Path, failure: Option<Failure>) -> Line {
    match failure {
        None => Line {
            name: name.to_owned(),
            verdict: Verdict::Good,
            sentence: format!("{} is private and can be written.", path.display()),
        },
        Some(failure) => Line {
            name: name.to_owned(),
            verdict: Verdict::Broken,
            sentence: format!("{failure}."),
        },
    }
}

/// A node holds a descriptor or more for every open file of its programs.
fn open_files(hard: u64) -> Line {
    const WANTED: u64 = 4096;
    let good = hard >= WANTED;
    Line {
        name: "open files".to_owned(),
        verdict: if good { Verdict::Good } else { Verdict::Limited },
        sentence: if good {
            format!("A node may have {hard} files open.")
        } else {
            format!(
                "A node may have only {hard} files open, which large builds exceed: ulimit -Hn {WANTED} (limits.conf: nofile)."
            )
        },
    }
}

/// Ghosts take a pid on the home node for every program that runs elsewhere.
fn pid_space(pid_max: &str) -> Line {
    let pids: u64 = pid_max.trim().parse().unwrap_or(0);
    let good = pids >= 32768;
    Line {
        name: "pids".to_owned(),
        verdict: if good { Verdict::Good } else { Verdict::Limited },
        sentence: if good {
            format!("The machine has {pids} pids for all its processes and containers.")
        } else {
            format!(
                "The machine has only {pids} pids for all its processes and containers: sysctl kernel.pid_max=4194304."
            )
        },
    }
}

/// What ids a container can have.
fn user(uid: u32, subuid: &str) -> Line {
    let named = |line: &str| line.split(':').next() == Some(&uid.to_string());
    let (verdict, sentence) = if uid == 0 {
        (Verdict::Good, "Run as root: a container has 65536 users of its own.".to_owned())
    } else if subuid.lines().any(named) {
        (Verdict::Good, "This user has subordinate ids.".to_owned())
    } else {
        (
            Verdict::Limited,
            format!(
                "A container has one user (yours, shown as root): programs that change owners fail. More need subordinate ids, which this version does not use yet, or root (uid {uid} now)."
            ),
        )
    };
    Line { name: "users".to_owned(), verdict, sentence }
}

fn daemons(folders: &Folders) -> Line {
    let reached = nodes::all(folders);
    let count = reached.nodes.len();
    let (verdict, sentence) = match (count, reached.failures.first()) {
        (_, Some(failure)) => (Verdict::Broken, format!("{failure}.")),
        (0, None) => {
            (Verdict::Good, "None runs; `dvs run` starts its own for each command.".to_owned())
        }
        (count, None) => (Verdict::Good, format!("{count} run and answer.")),
    };
    Line { name: "daemons".to_owned(), verdict, sentence }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_comes_with_a_fix() {
        assert!(open_files(256).sentence.contains("ulimit"));
        assert!(pid_space("4096\n").sentence.contains("sysctl kernel.pid_max"));
        assert_eq!(pid_space("4194304\n").verdict, Verdict::Good);
        assert_eq!(user(1000, "").verdict, Verdict::Limited);
        assert_eq!(user(0, "").verdict, Verdict::Good);
        let failed = folder("run folder", Path::new("/x"), Some(Failure::new("/x is open; chmod")));
        assert_eq!(
            (failed.verdict, failed.sentence.as_str()),
            (Verdict::Broken, "/x is open; chmod.")
        );
    }

    #[test]
    fn the_report_ends_with_the_sum() {
        let line = |verdict| Line { name: "a".into(), verdict, sentence: "b.".into() };
        assert!(text(&[line(Verdict::Good)], false).ends_with("Containers can run here.\n"));
        let limited = text(&[line(Verdict::Good), line(Verdict::Limited)], false);
        assert!(limited.ends_with("1 things are limited (--).\n"), "{limited}");
        let broken = text(&[line(Verdict::Broken)], true);
        assert!(broken.contains("\x1b[31;1m!!") && broken.contains("cannot run"), "{broken}");
    }
}
