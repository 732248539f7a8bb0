//! What went wrong with one monitor, which is no reason not to measure the others.

use std::fmt;

use anyhow::Result;

use super::comparison::COLUMNS;

/// Each failure, at most one of a monitor's part.
#[derive(Debug, Default)]
pub struct Failures(Vec<(usize, &'static str, String)>);

impl Failures {
    /// Does `work` unless this part of this monitor has failed before; so a column has values from the first round on, and
    /// rounds stay pairs.
    pub fn attempt<T>(&mut self, column: usize, part: &'static str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        if self.0.iter().any(|failure| (failure.0, failure.1) == (column, part)) {
            return None;
        }
        work().map_err(|error| self.add(column, part, &error)).ok()
    }

    /// Keeps why a part of a monitor cannot be measured.
    pub fn add(&mut self, column: usize, part: &'static str, error: &anyhow::Error) {
        let text = format!("{error:#}");
        eprintln!("failed: {}: {part}: {text}", COLUMNS[column]);
        self.0.push((column, part, text));
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(column, part, text)| {
            writeln!(f, "- {}, {part}, failed: {}", COLUMNS[*column], text.lines().next().unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_once_and_not_tried_again() {
        let mut failures = Failures::default();
        assert_eq!(failures.attempt(1, "boot", || Ok(7)), Some(7));
        assert_eq!(failures.attempt(1, "boot", || Err::<u8, _>(anyhow::anyhow!("no mark\nmore"))), None);
        assert_eq!(failures.attempt(1, "boot", || Ok(7)), None);
        assert_eq!(failures.attempt(0, "boot", || Ok(7)), Some(7));
        assert_eq!(failures.to_string(), "- QEMU, boot, failed: no mark\n");
    }
}
