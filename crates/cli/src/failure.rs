//! How errors and warnings reach the user: one line on standard error, `dvs: what; what to do`.

use std::io::{IsTerminal, Write};

pub(crate) use dvs_node::protocol::{EXIT_DVS, Failure};

/// Prints a failure.
pub(crate) fn print_error(message: &str) {
    print("31;1", message);
}

/// Prints a warning.
pub(crate) fn print_warning(message: &str) {
    print("33;1", message);
}

fn print(colour: &str, message: &str) {
    let mut error = std::io::stderr().lock();
    // The terminal may be gone; there is nobody else to tell.
    let _ = if colours(&error) {
        writeln!(error, "\x1b[{colour}mdvs:\x1b[0m {}", one_line(message))
    } else {
        writeln!(error, "dvs: {}", one_line(message))
    };
}

/// Whether colours are wanted: on a terminal, unless `NO_COLOR` is set (no-color.org).
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Control characters, which a name given by somebody else may contain, are shown escaped.
pub(crate) fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for character in message.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Clap's several lines as one of ours.
pub(crate) fn of_clap(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut said = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            continue;
        }
        let line = line.strip_prefix("error: ").unwrap_or(line);
        if let Some(tip) = line.strip_prefix("tip: ") {
            said.push(format!("({tip})"));
        } else if !line.is_empty() {
            said.push(line.to_owned());
        }
    }
    let usage = text.lines().find_map(|line| line.trim().strip_prefix("Usage: "));
    // "dvs run [OPTIONS] <CMD>..." -> "dvs run --help"
    let words = usage.unwrap_or("dvs").split_whitespace();
    let path: Vec<&str> = words.take_while(|word| !word.starts_with(['[', '<', '-'])).collect();
    format!("{}; see: {} --help", said.join(" "), path.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::CommandLine;
    use clap::Parser;

    #[test]
    fn clap_errors_become_one_line() {
        let error = CommandLine::try_parse_from(["dvs", "run", "--nodez", "3", "ls"]).unwrap_err();
        let line = of_clap(&error);
        assert!(line.contains("'--nodez'") && line.ends_with("; see: dvs run --help"), "{line}");
        assert!(!line.contains('\n'));
        let error = CommandLine::try_parse_from(["dvs", "run"]).unwrap_err();
        assert!(of_clap(&error).contains("CMD"), "{}", of_clap(&error));
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(one_line("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
    }
}
