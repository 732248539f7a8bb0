//! What a boot of the guest kernel consists of, by its own log (`initcall_debug`).

use std::fmt::Write;

use anyhow::{Result, ensure};

use super::Setup;
use super::monitors::{Guest, Kind};
use super::running::Running;

/// Initcalls and phases that are listed.
const LISTED: usize = 16;

/// Boots once under bulkhead-vmm; two tables in Markdown.
///
/// # Errors
/// When the guest does not boot, or its log has no initcalls.
pub fn tables(setup: &Setup, kind: &Kind) -> Result<String> {
    let arguments = format!("{} bench.log initcall_debug log_buf_len=1M", setup.guest().arguments);
    let running = Running::start(kind, &Guest { arguments: &arguments, ..setup.guest() })?;
    let log = running.said();
    let mut calls = initcalls(&log);
    ensure!(!calls.is_empty(), "the guest's log has no initcalls: {log}");
    let all: u64 = calls.iter().map(|(microseconds, _)| microseconds).sum();
    calls.sort_by(|a, b| b.cmp(a));
    let mut text = format!("| initcall, {} in all | µs of {all} |\n|---|---:|\n", calls.len());
    for (microseconds, name) in calls.iter().take(LISTED) {
        writeln!(text, "| `{name}` | {microseconds} |")?;
    }
    let mut gaps = gaps(&log);
    let end = gaps.iter().map(|gap| gap.0).sum::<u64>();
    gaps.sort_by(|a, b| b.cmp(a));
    write!(text, "\n| the kernel's line after the longest times between two lines | µs of {end} |\n|---|---:|\n")?;
    for (microseconds, line) in gaps.iter().take(LISTED) {
        writeln!(text, "| `{line}` | {microseconds} |")?;
    }
    Ok(text)
}

/// "initcall NAME+0x0/0x30 returned 0 after 12 usecs".
fn initcalls(log: &str) -> Vec<(u64, &str)> {
    let call = |line: &'_ str| -> Option<(u64, usize, usize)> {
        let start = line.find("] initcall ")? + "] initcall ".len();
        let len = line[start..].find(['+', ' '])?;
        let microseconds = line.rsplit_once(" after ")?.1.strip_suffix(" usecs")?.parse().ok()?;
        Some((microseconds, start, start + len))
    };
    let lines = log.lines().map(str::trim_end);
    lines.filter_map(|line| call(line).map(|(us, start, end)| (us, &line[start..end]))).collect()
}

/// Microseconds since the line before, for each line that begins like "<6>[    0.012345] ".
fn gaps(log: &str) -> Vec<(u64, &str)> {
    let mut before = 0;
    let mut gaps = Vec::new();
    for line in log.lines() {
        let Some((time, text)) = line.split_once('[').and_then(|(_, rest)| rest.split_once("] ")) else { continue };
        let Some((seconds, fraction)) = time.trim().split_once('.') else { continue };
        let (Ok(seconds), Ok(fraction)) = (seconds.parse::<u64>(), fraction.parse::<u64>()) else { continue };
        let now = seconds * 1_000_000 + fraction;
        let text = text.trim_end();
        gaps.push((now.saturating_sub(before), text.get(..70).unwrap_or(text)));
        before = now;
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "<6>[    0.000000] Linux\n<7>[    0.000100] calling  a+0x0/0x1 @ 1\n\
                       <7>[    0.002100] initcall a+0x0/0x1 returned 0 after 1999 usecs\n~\n";

    #[test]
    fn a_log_is_read() {
        assert_eq!(initcalls(LOG), [(1999, "a")]);
        assert_eq!(gaps(LOG).iter().map(|gap| gap.0).collect::<Vec<_>>(), [0, 100, 2000]);
    }
}
