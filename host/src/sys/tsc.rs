//! How fast the processor's time-stamp counter runs.

#![allow(unsafe_code)]

use std::time::{Duration, Instant};

/// Long enough for an error far below what a guest's kernel tolerates.
const SPAN: Duration = Duration::from_millis(20);

/// The counter's frequency in kHz, measured against the monotonic clock; `None` where there is no such counter.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn frequency_khz() -> Option<u64> {
    // SAFETY: every x86-64 processor has RDTSC, and Linux leaves it enabled for user space; it touches no memory.
    let read = || unsafe { core::arch::x86_64::_rdtsc() };
    let (started, first) = (Instant::now(), read());
    std::thread::sleep(SPAN);
    let (ticks, elapsed) = (read().checked_sub(first)?, started.elapsed());
    u64::try_from(u128::from(ticks) * 1_000_000 / elapsed.as_nanos().max(1)).ok().filter(|khz| *khz > 0)
}

/// The counter's frequency in kHz, measured against the monotonic clock; `None` where there is no such counter.
#[cfg(not(target_arch = "x86_64"))]
#[must_use]
pub fn frequency_khz() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn two_measurements_agree() {
        let (a, b) = (super::frequency_khz().unwrap(), super::frequency_khz().unwrap());
        assert!(a.abs_diff(b) < a / 50, "{a} {b}");
    }
}
