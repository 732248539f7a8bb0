//! Figures of cgroups.

use bulkhead_proto::agent::CgroupStats;
use bulkhead_proto::figures;

use super::cgroups::Cgroup;
use crate::reaper::now_ns;

/// Reads a cgroup's figures; those whose controller or file is missing are unset.
#[must_use]
pub fn read(cgroup: &Cgroup) -> CgroupStats {
    let mut stats = figures::cgroup(now_ns(), &|file| cgroup.read(file));
    if stats.memory_usage_bytes.is_none() {
        count_memory(&cgroup.processes(), &mut stats);
    }
    if stats.pids_current.is_none() {
        stats.pids_current = Some(cgroup.processes().len() as u64);
    }
    stats
}

/// Without the controller (a host whose cgroup v1 holds it) the processes are asked; shared pages count in each.
fn count_memory(processes: &[i32], stats: &mut CgroupStats) {
    let (mut usage, mut rss, mut swap) = (0, 0, 0);
    for pid in processes {
        // One that has ended meanwhile has no memory.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0)
        };
        usage += kib("VmRSS:") << 10;
        rss += kib("RssAnon:") << 10;
        swap += kib("VmSwap:") << 10;
    }
    (stats.memory_usage_bytes, stats.memory_working_set_bytes) = (Some(usage), Some(usage));
    (stats.memory_rss_bytes, stats.swap_usage_bytes) = (Some(rss), Some(swap));
}
