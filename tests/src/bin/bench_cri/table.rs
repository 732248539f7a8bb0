//! Tables in Markdown.

use std::fmt;

/// What was measured of one thing.
#[derive(Debug, Default, Clone)]
pub struct Numbers(pub Vec<f64>);

/// A verb on both sides.
#[derive(Debug)]
pub struct Row {
    /// Its name, and how many at a time.
    pub verb: String,
    /// In milliseconds.
    pub ours: Numbers,
    /// In milliseconds.
    pub theirs: Numbers,
    /// Ours by theirs, one for each round.
    pub ratio: Numbers,
    /// What it should be.
    pub goal: &'static str,
}

/// Verbs on both sides.
#[derive(Debug)]
pub struct Pairs<'a> {
    /// Of each load.
    pub rounds: usize,
    /// Top first.
    pub rows: &'a [Row],
}

/// The middle of the values; not a number without any.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

impl Numbers {
    /// "minimum / median / maximum"
    pub fn text(&self, digits: usize) -> String {
        let extreme = |pick: fn(f64, f64) -> f64| self.0.iter().copied().reduce(pick);
        match (extreme(f64::min), extreme(f64::max)) {
            (Some(first), Some(last)) => format!("{first:.digits$} / {:.digits$} / {last:.digits$}", median(&self.0)),
            _ => "skipped".into(),
        }
    }
}

impl fmt::Display for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = [
            format!("{} rounds; minimum / median / maximum", self.rounds),
            "bulkhead, native, ms".into(),
            "containerd + runc, ms".into(),
            "ratio".into(),
            "goal".into(),
        ];
        let cells = |row: &Row| {
            [row.verb.clone(), row.ours.text(1), row.theirs.text(1), row.ratio.text(2), row.goal.to_owned()]
        };
        lines(f, &head, &self.rows.iter().map(cells).collect::<Vec<_>>())
    }
}

/// Writes a table whose columns are as wide as they need to be, numbers to the right.
pub fn lines<const N: usize>(f: &mut fmt::Formatter<'_>, head: &[String; N], rows: &[[String; N]]) -> fmt::Result {
    let all = || std::iter::once(head).chain(rows);
    let widths: [usize; N] =
        std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let is_number = |column: usize| column > 0 && column + 1 < N;
    for (number, row) in all().enumerate() {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            if is_number(column) { write!(f, "| {cell:>width$} ")? } else { write!(f, "| {cell:<width$} ")? }
        }
        writeln!(f, "|")?;
        if number == 0 {
            for (column, width) in widths.into_iter().enumerate() {
                write!(f, "|-{}{}", "-".repeat(width), if is_number(column) { ":" } else { "-" })?;
            }
            writeln!(f, "|")?;
        }
    }
    Ok(())
}
