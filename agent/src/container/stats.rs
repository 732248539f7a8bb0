//! Figures of cgroups.

use bulkhead_proto::agent::CgroupStats;

use super::cgroups::{Cgroup, key};
use crate::reaper::now_ns;

/// Reads a cgroup's figures; those whose controller is missing are 0.
#[must_use]
pub fn read(cgroup: &Cgroup) -> CgroupStats {
    let memory = cgroup.read("memory.stat");
    let usage = cgroup.number("memory.current");
    let mut stats = CgroupStats::new();
    stats.timestamp_ns = now_ns();
    stats.cpu_usage_ns = key(&cgroup.read("cpu.stat"), "usage_usec").saturating_mul(1000);
    stats.memory_usage_bytes = usage;
    stats.memory_working_set_bytes = usage.saturating_sub(key(&memory, "inactive_file"));
    stats.memory_rss_bytes = key(&memory, "anon");
    stats.memory_page_faults = key(&memory, "pgfault");
    stats.memory_major_page_faults = key(&memory, "pgmajfault");
    stats.memory_limit_bytes = cgroup.number("memory.max");
    stats.swap_usage_bytes = cgroup.number("memory.swap.current");
    stats.pids_current = cgroup.number("pids.current");
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let text = "pgfault_x 1\npgfault 27\nanon 4096\n";
        assert_eq!((key(text, "pgfault"), key(text, "anon"), key(text, "file")), (27, 4096, 0));
    }
}
