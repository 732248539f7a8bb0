//! A table in Markdown: one line for each thing that is measured, one column for each monitor, and the ratios of rounds.

use std::fmt;
use std::time::Duration;

/// What a row's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds; less is better.
    Milliseconds,
    /// Microseconds; less is better.
    Microseconds,
    /// Less is better.
    Mebibytes,
    /// More is better.
    MebibytesPerSecond,
    /// Processor time; less is better.
    MicrosecondsPerMebibyte,
}

/// The monitors, in the order of the columns. Those without a number are not shown.
pub const COLUMNS: [&str; 4] = ["bulkhead-vmm", "QEMU", "Firecracker", "before"];

/// One thing that is measured.
#[derive(Debug)]
pub struct Row {
    name: String,
    unit: Unit,
    goal: &'static str,
    values: [Vec<f64>; COLUMNS.len()],
}

impl Row {
    /// Without values yet; `goal` is shown as it is.
    pub fn new(name: impl Into<String>, unit: Unit, goal: &'static str) -> Self {
        Self { name: name.into(), unit, goal, values: Default::default() }
    }

    /// Adds a number of this round.
    pub fn add(&mut self, column: usize, value: f64) {
        self.values[column].push(value);
    }

    /// Adds a time.
    pub fn add_time(&mut self, column: usize, time: Duration) {
        let scale = if self.unit == Unit::Milliseconds { 1e3 } else { 1e6 };
        self.add(column, time.as_secs_f64() * scale);
    }

    fn cells(&self, shown: &[usize]) -> Vec<String> {
        let mut cells = vec![format!("{}, {}", self.name, self.unit)];
        let digits = if self.is_large() { 0 } else { 1 };
        cells.extend(shown.iter().map(|column| spread(&self.values[*column], digits)));
        for other in shown.iter().filter(|column| **column > 0) {
            let ratios: Vec<f64> =
                self.values[0].iter().zip(&self.values[*other]).map(|(ours, other)| ours / other).collect();
            cells.push(spread(&ratios, 2));
        }
        cells.push(self.goal.to_owned());
        cells
    }

    fn is_large(&self) -> bool {
        self.values.iter().flatten().all(|value| *value >= 100.0)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Mebibytes => "MiB",
            Self::MebibytesPerSecond => "MiB/s",
            Self::MicrosecondsPerMebibyte => "µs/MiB",
        })
    }
}

/// "median (minimum to maximum)".
fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else { return "skipped".to_owned() };
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
    format!("{median:.digits$} ({first:.digits$} to {last:.digits$})")
}

/// All rows.
#[derive(Debug)]
pub struct Table<'a> {
    /// Measurements of each cell.
    pub rounds: usize,
    /// Top first.
    pub rows: &'a [Row],
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut head = vec![format!("{} rounds: median (minimum to maximum)", self.rounds)];
        let shown: Vec<usize> =
            (0..COLUMNS.len()).filter(|column| self.rows.iter().any(|row| !row.values[*column].is_empty())).collect();
        head.extend(shown.iter().map(|column| COLUMNS[*column].to_owned()));
        head.extend(shown.iter().filter(|column| **column > 0).map(|column| format!("/ {}", COLUMNS[*column])));
        head.push("goal".to_owned());
        let lines: Vec<Vec<String>> =
            std::iter::once(head).chain(self.rows.iter().map(|row| row.cells(&shown))).collect();
        for (number, line) in lines.iter().enumerate() {
            writeln!(f, "| {} |", line.join(" | "))?;
            if number == 0 {
                writeln!(f, "|---|{}---|", "---:|".repeat(line.len() - 2))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_rounds() {
        let mut row = Row::new("boot", Unit::Milliseconds, "at most 0.8 x");
        for (ours, qemu) in [(200, 400), (300, 300), (100, 400)] {
            row.add_time(0, Duration::from_millis(ours));
            row.add_time(1, Duration::from_millis(qemu));
        }
        let text = Table { rounds: 3, rows: &[row] }.to_string();
        let line = text.lines().last().unwrap_or_default();
        assert_eq!(line, "| boot, ms | 200 (100 to 300) | 400 (300 to 400) | 0.50 (0.25 to 1.00) | at most 0.8 x |");
    }
}
