//! Names of containers and nodes: checked, and made up.

use crate::protocol::{Failure, MAX_NAME};

/// Checks a name: letters, digits, `_`, `.`, `-`, beginning with a letter or digit, as docker has it.
///
/// # Errors
/// A sentence that says what a name may be.
pub fn check(what: &str, name: &str) -> Result<(), Failure> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest =
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if first && rest && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(Failure::new(format!(
        "'{}' is no {what} name: use letters, digits, '_', '.', '-', at most {MAX_NAME}, beginning with a letter or digit",
        name.escape_default()
    )))
}

const FIRST: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clear", "cosy", "crisp", "deep", "eager", "fair", "fresh",
    "gentle", "golden", "green", "happy", "keen", "kind", "light", "lively", "mellow", "neat",
    "noble", "plain", "quick", "quiet", "rapid", "ready", "sharp", "steady", "sunny", "swift",
    "warm",
];
const SECOND: [&str; 32] = [
    "ant", "bay", "birch", "brook", "cedar", "cliff", "cove", "crane", "dale", "elm", "fern",
    "field", "finch", "fjord", "grove", "heron", "hill", "lake", "lark", "maple", "marsh", "oak",
    "otter", "pine", "reef", "ridge", "river", "robin", "shore", "spruce", "vale", "wren",
];

/// A name made from a number; the caller sees to it that it is not taken.
#[must_use]
pub fn made_up(number: u64) -> String {
    let pick = |words: &'static [&'static str], index: u64| {
        words[usize::try_from(index).unwrap_or(0) % words.len()]
    };
    format!("{}-{}-{:02}", pick(&FIRST, number), pick(&SECOND, number >> 8), (number >> 16) % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "web-1", "x_y.z", &made_up(u64::MAX), &made_up(0)] {
            check("container", good).unwrap();
        }
        for bad in ["", "-x", ".", "a/b", "a b", "ä", "a\n", &"x".repeat(64)] {
            let failure = check("container", bad).unwrap_err();
            assert!(failure.message.contains("container name"), "{failure}");
            assert!(!failure.message.contains('\n'));
        }
    }
}
