//! Series of measurements taken in turns, and the table made of them.

use std::fmt::Write;

/// Measurements of one thing, one per round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series(pub(crate) Vec<f64>);

impl Series {
    /// The smallest: what it costs when nothing disturbs.
    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n => {
                let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
                f64::midpoint(at((n - 1) / 2), at(n / 2))
            }
        }
    }

    /// The median of what each round gives when compared with the same round of another series.
    pub(crate) fn paired(&self, other: &Series, by: impl Fn(f64, f64) -> f64) -> f64 {
        Series(self.0.iter().zip(&other.0).map(|(a, b)| by(*a, *b)).collect()).median()
    }
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    series: Series,
    /// How it compares with the first line of its group: the text, and the number.
    compared: Option<(String, f64)>,
    goal: Option<String>,
}

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    groups: Vec<(String, Vec<Row>)>,
    notes: Vec<String>,
}

/// How a line is compared with the reference of its group.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Compare {
    /// `×1.2`: the ratio of times; more is worse.
    Ratio,
    /// `+30`: the difference.
    Difference,
    /// `×1.9 faster`: a speed-up.
    SpeedUp,
}

impl Report {
    /// Adds a group: the first series is the reference.
    pub(crate) fn group(
        &mut self,
        title: &str,
        unit: &'static str,
        compare: Compare,
        lines: Vec<(String, Series, Option<&str>)>,
    ) {
        let reference = lines.first().map(|(_, series, _)| series.clone()).unwrap_or_default();
        let rows = lines
            .into_iter()
            .enumerate()
            .map(|(index, (what, series, goal))| {
                let compared = (index > 0).then(|| match compare {
                    Compare::Ratio => {
                        let ratio = series.paired(&reference, |a, b| a / b);
                        (format!("×{ratio:.2}"), ratio)
                    }
                    Compare::Difference => {
                        let more = series.paired(&reference, |a, b| a - b);
                        (format!("{more:+.0} {unit}"), more)
                    }
                    Compare::SpeedUp => {
                        let ratio = series.paired(&reference, |a, b| b / a);
                        (format!("{ratio:.2} times as fast"), ratio)
                    }
                });
                Row { what, unit, series, compared, goal: goal.map(str::to_owned) }
            })
            .collect();
        self.groups.push((title.to_owned(), rows));
    }

    /// Adds a sentence.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (title, rows) in &self.groups {
            let _ = writeln!(text, "{title}");
            for row in rows {
                let (min, median) = (row.series.min(), row.series.median());
                let compared = row.compared.as_ref().map_or("reference", |(text, _)| text.as_str());
                let goal = row.goal.as_ref().map(|g| format!("  (goal {g})")).unwrap_or_default();
                let _ = writeln!(
                    text,
                    "  {:34} min {:>9} median {:>9} {:3} n={:<4} {}{}",
                    row.what,
                    number(min),
                    number(median),
                    row.unit,
                    row.series.0.len(),
                    compared,
                    goal
                );
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let groups: Vec<serde_json::Value> = self
            .groups
            .iter()
            .map(|(title, rows)| {
                let rows: Vec<serde_json::Value> = rows
                    .iter()
                    .map(|row| {
                        serde_json::json!({
                            "what": row.what, "unit": row.unit, "min": row.series.min(),
                            "median": row.series.median(), "rounds": row.series.0.len(),
                            "compared": row.compared.as_ref().map(|(_, number)| *number),
                            "goal": row.goal,
                        })
                    })
                    .collect();
                serde_json::json!({ "group": title, "rows": rows })
            })
            .collect();
        serde_json::json!({ "groups": groups, "notes": self.notes })
    }
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_pairs() {
        let ours = Series(vec![2.0, 4.0, 30.0]);
        let native = Series(vec![1.0, 2.0, 10.0]);
        assert_eq!((ours.min(), ours.median()), (2.0, 4.0));
        assert_eq!(ours.paired(&native, |a, b| a / b), 2.0);
        assert!(Series::default().median().is_nan());
        assert_eq!(Series(vec![1.0, 2.0]).median(), 1.5);
    }

    #[test]
    fn a_report_has_both_forms() {
        let mut report = Report::default();
        let line = |name: &str, value| (name.to_owned(), Series(vec![value]), None);
        report.group("g", "ms", Compare::SpeedUp, vec![line("native", 3.0), line("ours", 1.5)]);
        assert!(report.table().contains("2.00 times as fast"), "{}", report.table());
        assert_eq!(report.json()["groups"][0]["rows"][1]["compared"], 2.0);
    }
}
