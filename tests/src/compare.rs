//! The differences between two observations, in words.

use crate::observe::{End, Observation};
use std::fmt::Write;

/// Most bytes of a stream that a difference quotes, on each side of where it begins.
const QUOTE: usize = 160;
/// Most differences that are told.
const MAX_DIFFERENCES: usize = 12;

/// What differs; empty if nothing does.
#[must_use]
pub fn differences(native: &Observation, ours: &Observation) -> Vec<String> {
    let mut found = Vec::new();
    if native.end != ours.end {
        found.push(format!("end: native {}, ours {}", end(native.end), end(ours.end)));
    }
    if ours.held_open != native.held_open {
        found.push("a stream stayed open after the end".to_owned());
    }
    stream("stdout", &native.stdout, &ours.stdout, &mut found);
    stream("stderr", &native.stderr, &ours.stderr, &mut found);
    for (name, entry) in &native.files {
        match ours.files.get(name) {
            None => found.push(format!("file {name}: missing")),
            Some(other) if other.kind != entry.kind => {
                found.push(format!("file {name}: native a {}, ours a {}", entry.kind, other.kind));
            }
            Some(other) => {
                if other.mode != entry.mode {
                    let (native, ours) = (entry.mode, other.mode);
                    found.push(format!("file {name}: mode native {native:04o}, ours {ours:04o}"));
                }
                if other.links != entry.links {
                    let (native, ours) = (entry.links, other.links);
                    found.push(format!("file {name}: links native {native}, ours {ours}"));
                }
                stream(&format!("file {name}"), &entry.content, &other.content, &mut found);
            }
        }
    }
    for name in ours.files.keys().filter(|name| !native.files.contains_key(*name)) {
        found.push(format!("file {name}: native has none"));
    }
    if found.len() > MAX_DIFFERENCES {
        let more = found.len() - MAX_DIFFERENCES;
        found.truncate(MAX_DIFFERENCES);
        found.push(format!("and {more} more"));
    }
    found
}

fn end(end: End) -> String {
    match end {
        End::Status(status) => format!("status {status}"),
        End::TimedOut => "no end in its time".to_owned(),
    }
}

fn stream(name: &str, native: &[u8], ours: &[u8], found: &mut Vec<String>) {
    if native == ours {
        return;
    }
    let at = native.iter().zip(ours).take_while(|(a, b)| a == b).count();
    let from = native.get(..at).unwrap_or_default();
    let line = from.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let start = line.max(at.saturating_sub(QUOTE));
    let quote = |bytes: &[u8]| {
        let end = bytes.len().min(at + QUOTE);
        let mut text =
            format!("{:?}", String::from_utf8_lossy(bytes.get(start..end).unwrap_or(&[])));
        if end < bytes.len() {
            text.push('…');
        }
        text
    };
    let mut text = format!("{name}: ");
    let (a, b) = (native.len(), ours.len());
    let _ = write!(text, "native {a} bytes, ours {b}, from byte {at}: ");
    let _ = write!(text, "native {}, ours {}", quote(native), quote(ours));
    found.push(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;
    use std::time::Duration;

    fn observation(stdout: &str) -> Observation {
        Observation {
            end: End::Status(0),
            stdout: stdout.into(),
            stderr: Vec::new(),
            held_open: false,
            files: crate::tree::Tree::new(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn equal_is_equal() {
        assert!(differences(&observation("a"), &observation("a")).is_empty());
    }

    #[test]
    fn each_kind_of_difference_is_told() {
        let native = observation("one\ntwo\n");
        let mut ours = observation("one\nto\n");
        ours.end = End::TimedOut;
        let entry = Entry { kind: "file", mode: 0o644, links: 1, content: Vec::new() };
        ours.files.insert("f".into(), entry);
        let found = differences(&native, &ours);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[1].contains("native \"two\\n\", ours \"to\\n\""), "{}", found[1]);
    }
}
