//! From cumulative CPU time to cores in use.

/// Shortest window of a rate, in nanoseconds: shorter ones show the scheduler's ticks.
const WINDOW: i64 = 1_000_000_000;
/// More cores than any host has mean that the clock or the counter was wrong.
const MAX_CORES: u128 = 8192;

/// Watches one counter.
#[derive(Debug, Default)]
pub struct Meter {
    base: Option<(i64, u64)>,
    rate: Option<u64>,
}

impl Meter {
    /// Takes the counter's value (nanoseconds of CPU time) at a time (nanoseconds) and gives the cores in use, in
    /// billionths, over the last window; `None` until there was one.
    pub fn update(&mut self, at: i64, usage: u64) -> Option<u64> {
        match self.base {
            Some((before, used)) if usage >= used && at >= before => {
                let window = at.saturating_sub(before);
                if window >= WINDOW {
                    self.rate = rate(usage - used, window);
                    self.base = Some((at, usage));
                }
            }
            // The first value, a counter that began anew, or a clock that was set back.
            _ => *self = Self { base: Some((at, usage)), rate: None },
        }
        self.rate
    }
}

fn rate(used: u64, window: i64) -> Option<u64> {
    let window = u128::try_from(window).ok().filter(|window| *window > 0)?;
    let rate = u128::from(used) * 1_000_000_000 / window;
    u64::try_from(rate.min(MAX_CORES * 1_000_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_needs_a_window() {
        let mut meter = Meter::default();
        assert_eq!(meter.update(0, 500), None);
        assert_eq!(meter.update(SECOND / 2, 600), None);
        assert_eq!(meter.update(2 * SECOND, 500 + 1_000_000_000), Some(500_000_000));
        // Within the next window the last rate stands.
        assert_eq!(meter.update(2 * SECOND + 5, 500 + 1_000_000_100), Some(500_000_000));
        assert_eq!(meter.update(3 * SECOND, 500 + 1_000_000_000), Some(0));
    }

    #[test]
    fn what_goes_backwards_begins_anew() {
        let mut meter = Meter::default();
        meter.update(0, 1000);
        assert_eq!(meter.update(SECOND, 2000), Some(1000));
        assert_eq!(meter.update(2 * SECOND, 5), None);
        assert_eq!(meter.update(SECOND, 6), None);
        assert_eq!(meter.update(2 * SECOND, 6), Some(0));
        assert_eq!(meter.update(i64::MAX, u64::MAX), rate(u64::MAX - 6, i64::MAX - 2 * SECOND));
    }
}
