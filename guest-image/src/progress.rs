//! Shows that a long build lives: one line that changes on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a log, as against a terminal, gets a line.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);
const TERMINAL_INTERVAL: Duration = Duration::from_millis(100);

/// Counts steps of one job and tells standard error.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    terminal: bool,
    steps: usize,
    /// About how many steps there will be; only shown, never relied upon.
    expected: usize,
    started: Instant,
    shown: Instant,
}

impl Progress {
    /// Starts the clock of `what`, which usually takes about `expected` steps.
    pub fn start(what: &'static str, expected: usize) -> Self {
        let now = Instant::now();
        Self { what, terminal: io::stderr().is_terminal(), steps: 0, expected, started: now, shown: now }
    }

    /// One more step is done.
    pub fn step(&mut self) {
        self.steps += 1;
        self.tick();
    }

    /// Gives the display a chance to show that time passes.
    pub fn tick(&mut self) {
        let interval = if self.terminal { TERMINAL_INTERVAL } else { PLAIN_INTERVAL };
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let line = describe(self.what, self.steps, self.expected, self.started.elapsed());
        if self.terminal {
            eprint!("\r\x1b[K{line}");
            // A terminal that went away must not fail the build.
            let _ = io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }

    /// Clears the changing line, so that what follows starts on a fresh one.
    pub fn finish(self) -> Duration {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        self.started.elapsed()
    }
}

fn describe(what: &str, steps: usize, expected: usize, elapsed: Duration) -> String {
    let percent = (steps * 100 / expected.max(1)).min(99);
    let seconds = elapsed.as_secs();
    format!("{what}: {steps} of about {expected} steps ({percent} %), {}m{:02}s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_claims_to_be_done() {
        let line = describe("kernel", 250, 200, Duration::from_secs(75));
        assert_eq!(line, "kernel: 250 of about 200 steps (99 %), 1m15s");
    }
}
