//! Rows of numbers as a table in Markdown.

use std::fmt;
use std::time::Duration;

/// What a row's numbers are.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    /// Printed with one digit after the point.
    Milliseconds,
    /// Two numbers of one round, divided.
    Ratio,
    /// Printed with two digits after the point.
    Mebibytes,
}

/// One thing that was measured.
#[derive(Debug)]
pub struct Row {
    name: String,
    unit: Unit,
    values: Vec<f64>,
    goal: &'static str,
}

/// All rows.
#[derive(Debug)]
pub struct Table<'a> {
    /// Measurements of each row.
    pub rounds: usize,
    /// Top first.
    pub rows: &'a [Row],
}

impl Row {
    /// Without values yet.
    pub fn new(name: &str, unit: Unit) -> Self {
        Self { name: name.to_owned(), unit, values: Vec::new(), goal: "" }
    }

    /// With what it should be.
    pub fn goal(self, goal: &'static str) -> Self {
        Self { goal, ..self }
    }

    /// Adds a number.
    pub fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Adds a time.
    pub fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1000.0);
    }

    fn number(&self, value: f64) -> String {
        match self.unit {
            Unit::Milliseconds => format!("{value:.1} ms"),
            Unit::Ratio => format!("{value:.2} x"),
            Unit::Mebibytes => format!("{value:.2} MiB"),
        }
    }

    fn cells(&self) -> [String; 5] {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let numbers = match (sorted.first(), sorted.last()) {
            (Some(first), Some(last)) => [*first, median(&sorted), *last].map(|value| self.number(value)),
            _ => ["skipped", "", ""].map(str::to_owned),
        };
        let [minimum, median, maximum] = numbers;
        [self.name.clone(), minimum, median, maximum, self.goal.to_owned()]
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head =
            [format!("{} rounds", self.rounds), "minimum".into(), "median".into(), "maximum".into(), "goal".into()];
        let lines: Vec<[String; 5]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 5] = std::array::from_fn(width);
        for (number, line) in lines.iter().enumerate() {
            let [name, first, second, third, goal] = line;
            let [a, b, c, d, e] = widths;
            writeln!(f, "| {name:<a$} | {first:>b$} | {second:>c$} | {third:>d$} | {goal:<e$} |")?;
            if number == 0 {
                let rule = |width: usize| "-".repeat(width);
                writeln!(f, "|-{}-|-{}:|-{}:|-{}:|-{}-|", rule(a), rule(b), rule(c), rule(d), rule(e))?;
            }
        }
        Ok(())
    }
}
