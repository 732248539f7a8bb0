//! How much memory a process holds.

use std::fs;
use std::io;

/// Memory of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident bytes; of pages that several processes share, its share.
    pub proportional_bytes: u64,
    /// The part of it that no file backs.
    pub anonymous_bytes: u64,
}

/// Reads /proc/PID/smaps_rollup.
///
/// # Errors
/// When the process is gone.
pub fn of_process(pid: u32) -> io::Result<ProcessMemory> {
    Ok(parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?))
}

fn parse(text: &str) -> ProcessMemory {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
    };
    ProcessMemory { proportional_bytes: bytes("Pss"), anonymous_bytes: bytes("Pss_Anon") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read() {
        let text = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  400 kB\nPss:   120 kB\nPss_Anon:     80 kB\n";
        assert_eq!(parse(text), ProcessMemory { proportional_bytes: 120 << 10, anonymous_bytes: 80 << 10 });
        assert!(of_process(std::process::id()).unwrap().proportional_bytes > 0);
    }
}
