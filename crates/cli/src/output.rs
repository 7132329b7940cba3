//! Lists for people (columns) and for programs (JSON, one value).

use crate::failure::{Failure, one_line};
use std::io::Write;

/// A list in columns.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these columns.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Table { header: header.to_vec(), rows: Vec::new() }
    }

    /// One more line; as many cells as columns.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| one_line(cell)).collect());
    }

    /// The text. The last column is not padded.
    pub(crate) fn text(&self) -> String {
        let header: Vec<String> = self.header.iter().map(ToString::to_string).collect();
        let lines = || std::iter::once(&header).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> =
            (0..self.header.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in lines() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Prints it to standard output.
    ///
    /// # Errors
    /// When standard output cannot be written, other than that nobody reads it any more.
    pub(crate) fn print(&self) -> Result<(), Failure> {
        print(&self.text())
    }
}

/// Prints one line to standard output.
///
/// # Errors
/// As [`Table::print`].
pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    print(&format!("{}\n", one_line(line)))
}

/// Prints a value as indented JSON.
///
/// # Errors
/// As [`Table::print`].
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// Prints text as it is.
///
/// # Errors
/// As [`Table::print`].
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_listened(text).map(|_| ())
}

/// The same; false: nobody reads it any more.
///
/// # Errors
/// As [`Table::print`].
pub(crate) fn print_listened(text: &str) -> Result<bool, Failure> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            Err(Failure::new(format!("standard output: {}", dvs_node::folders::reason(&error))))
        }
    }
}

/// `2`, `0.5`.
pub(crate) fn cpus(millicpus: u32) -> String {
    let text = format!("{:.2}", f64::from(millicpus) / 1000.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `23.5G`.
pub(crate) fn bytes(amount: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    // Exact to 53 bits, and only three digits are shown.
    let mut value = amount as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 100.0);
    format!("{value:.digits$}{}", UNITS.get(unit).unwrap_or(&""))
}

/// `0:01.25` as `ps` shows CPU time.
pub(crate) fn cpu_time(microseconds: u64) -> String {
    let hundredths = microseconds / 10_000;
    format!("{}:{:02}.{:02}", hundredths / 6000, hundredths / 100 % 60, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["PID", "COMMAND"]);
        table.row(vec!["1".into(), "a\nb".into()]);
        table.row(vec!["12345".into(), "x".into()]);
        assert_eq!(table.text(), "PID    COMMAND\n1      a\\nb\n12345  x\n");
    }

    #[test]
    fn amounts_are_readable() {
        assert_eq!((cpus(2000), cpus(500), cpus(1250)), ("2".into(), "0.5".into(), "1.25".into()));
        assert_eq!(
            (bytes(100), bytes(1536), bytes(24 << 30)),
            ("100B".into(), "1.5K".into(), "24.0G".into())
        );
        assert_eq!((cpu_time(0), cpu_time(61_250_000)), ("0:00.00".into(), "1:01.25".into()));
    }
}
