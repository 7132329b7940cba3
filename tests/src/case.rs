//! Case files: a shell script whose first comment lines say what it shows and what it needs.
//!
//! ```text
//! # a reader takes only its own line of a shared pipe
//! # needs: python3
//! # timeout: 60
//! seq 5 | while read x; do ...
//! ```
//!
//! The whole file is run by its shell in an empty folder. Whatever it prints, how it ends and
//! which files it leaves must be the same natively and in a container.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time a case may take when it does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Most time a case may ask for.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Most header lines that are looked at.
const MAX_HEADER_LINES: usize = 16;

/// One case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// `kind/name`.
    pub name: String,
    /// What it shows.
    pub shows: String,
    /// Commands without which it is skipped.
    pub needs: Vec<String>,
    /// Its bound.
    pub timeout: Duration,
    /// The shell that runs it.
    pub shell: String,
    /// It makes sense for root only (it changes owners, makes devices, ...).
    pub root: bool,
    /// The shell prints pids on standard error ("Killed" and the like): they are made equal.
    pub mask_pids: bool,
    /// The network that it asks its container for.
    pub network: Option<String>,
    /// Why it is known to differ in any container.
    pub known: Option<String>,
    /// Why it is known to differ once programs are placed on other nodes.
    pub known_spread: Option<String>,
    /// The script.
    pub script: String,
}

impl Case {
    /// Reads a case from its text.
    pub fn parse(name: &str, text: &str) -> anyhow::Result<Case> {
        let mut lines = text.lines().take(MAX_HEADER_LINES);
        let shows = lines
            .next()
            .and_then(|line| line.strip_prefix("# "))
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .with_context(|| format!("{name}: the first line must be `# what it shows`"))?;
        let mut case = Case {
            name: name.to_owned(),
            shows: shows.to_owned(),
            needs: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            shell: "bash".to_owned(),
            root: false,
            mask_pids: false,
            network: None,
            known: None,
            known_spread: None,
            script: text.to_owned(),
        };
        for line in lines {
            let Some(line) = line.strip_prefix("# ") else { break };
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "needs" => {
                    case.needs.extend(value.split_whitespace().map(str::to_owned));
                }
                "timeout" => {
                    let seconds: u64 = value
                        .parse()
                        .with_context(|| format!("{name}: timeout is a number of seconds"))?;
                    case.timeout = Duration::from_secs(seconds);
                    if case.timeout > MAX_TIMEOUT || seconds == 0 {
                        bail!("{name}: timeout must be 1 to {} s", MAX_TIMEOUT.as_secs());
                    }
                }
                "shell" => value.clone_into(&mut case.shell),
                "root" => case.root = value == "yes",
                "mask-pids" => case.mask_pids = value == "yes",
                "network" => case.network = Some(value.to_owned()),
                "known" => case.known = Some(value.to_owned()),
                "known-spread" => case.known_spread = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(case)
    }

    /// The commands that it needs and this machine does not have.
    #[must_use]
    pub fn missing(&self) -> Vec<&str> {
        self.needs.iter().map(String::as_str).filter(|need| find_program(need).is_none()).collect()
    }
}

/// Replaces every number that stands alone after blanks, as the shell prints a pid, by one word.
#[must_use]
pub fn mask_pids(text: &[u8]) -> Vec<u8> {
    let mut masked = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let blanks = rest.iter().take_while(|byte| **byte == b' ').count();
        let number = rest.iter().skip(blanks).take_while(|byte| byte.is_ascii_digit()).count();
        let after = rest.get(blanks + number);
        if blanks > 0 && number > 0 && after == Some(&b' ') {
            masked.extend_from_slice(b" PID");
            rest = rest.get(blanks + number..).unwrap_or_default();
        } else if blanks > 0 {
            masked.extend(std::iter::repeat_n(b' ', blanks));
            rest = rest.get(blanks..).unwrap_or_default();
        } else {
            masked.push(first);
            rest = tail;
        }
    }
    masked
}

/// Search path of programs, for native runs and inside alike: a user's own shims are not there.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a program is on [`PATH`].
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).exists().then(|| PathBuf::from(name));
    }
    PATH.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// All cases below a folder of kinds, sorted by name.
pub fn load(folder: &Path) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    let list = |folder: &Path| -> anyhow::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder)
            .with_context(|| format!("cannot list the cases in {}", folder.display()))?;
        entries.map(|entry| Ok(entry?.path())).collect()
    };
    for kind in list(folder)?.iter().filter(|path| path.is_dir()) {
        for file in list(kind)?.iter().filter(|path| path.extension().is_some_and(|e| e == "case"))
        {
            let stem = |path: &Path| {
                path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            };
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            cases.push(Case::parse(&format!("{}/{}", stem(kind), stem(file)), &text)?);
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read() {
        let text = "# it shows x\n# needs: a b\n# timeout: 5\n# known-spread: no bridge\necho hi\n# needs: no\n";
        let case = Case::parse("k/n", text).expect("a case");
        assert_eq!((case.shows.as_str(), case.needs.len()), ("it shows x", 2));
        assert_eq!((case.timeout.as_secs(), case.shell.as_str()), (5, "bash"));
        assert_eq!((case.known, case.known_spread.as_deref()), (None, Some("no bridge")));
        assert_eq!(case.script, text);
    }

    #[test]
    fn only_lone_numbers_are_masked() {
        let text = b"./case.sh: line 2:  3933 Killed  sleep 60\n      39 Exit 3";
        let masked = String::from_utf8(mask_pids(text)).expect("text");
        assert_eq!(masked, "./case.sh: line 2: PID Killed  sleep 60\n PID Exit 3");
    }

    #[test]
    fn bad_headers_are_refused() {
        for text in ["", "echo", "# \n", "# x\n# timeout: soon\n", "# x\n# timeout: 0\n"] {
            assert!(Case::parse("k/n", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_corpus_is_sound_and_large_enough() {
        let cases = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")).expect("cases");
        assert!(cases.len() >= 150, "{} cases", cases.len());
        let mut shown: Vec<_> = cases.iter().map(|case| case.shows.as_str()).collect();
        shown.sort_unstable();
        shown.dedup();
        assert_eq!(shown.len(), cases.len(), "two cases say the same");
    }
}
