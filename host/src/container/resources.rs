//! CPU, memory and process limits between the CRI and the agent.

use bulkhead_proto::{agent, cri};

/// The agent's form of the CRI's limits.
pub(super) fn to_agent(r: &cri::LinuxContainerResources) -> agent::Resources {
    let huge_pages =
        r.hugepage_limits.iter().map(|limit| (format!("hugetlb.{}.max", limit.page_size), limit.limit.to_string()));
    agent::Resources {
        cpu_quota_us: r.cpu_quota,
        cpu_period_us: u64::try_from(r.cpu_period).unwrap_or(0),
        cpu_shares: u64::try_from(r.cpu_shares).unwrap_or(0),
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        memory_limit_bytes: r.memory_limit_in_bytes,
        memory_swap_limit_bytes: r.memory_swap_limit_in_bytes,
        // What is asked for by its own name goes before.
        unified: huge_pages.chain(r.unified.clone()).collect(),
        ..Default::default()
    }
}

/// `changes` over `before`; 0 and empty mean "as before" in the CRI.
pub(super) fn merge(
    before: cri::LinuxContainerResources,
    changes: cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    fn number(before: i64, change: i64) -> i64 {
        if change == 0 { before } else { change }
    }
    fn text(before: String, change: String) -> String {
        if change.is_empty() { before } else { change }
    }
    let mut unified = before.unified;
    unified.extend(changes.unified);
    cri::LinuxContainerResources {
        cpu_period: number(before.cpu_period, changes.cpu_period),
        cpu_quota: number(before.cpu_quota, changes.cpu_quota),
        cpu_shares: number(before.cpu_shares, changes.cpu_shares),
        memory_limit_in_bytes: number(before.memory_limit_in_bytes, changes.memory_limit_in_bytes),
        oom_score_adj: number(before.oom_score_adj, changes.oom_score_adj),
        cpuset_cpus: text(before.cpuset_cpus, changes.cpuset_cpus),
        cpuset_mems: text(before.cpuset_mems, changes.cpuset_mems),
        hugepage_limits: hugepages(before.hugepage_limits, changes.hugepage_limits),
        unified,
        memory_swap_limit_in_bytes: number(before.memory_swap_limit_in_bytes, changes.memory_swap_limit_in_bytes),
    }
}

/// Sizes that are not named again keep their limits.
fn hugepages(before: Vec<cri::HugepageLimit>, changes: Vec<cri::HugepageLimit>) -> Vec<cri::HugepageLimit> {
    let is_named = |limit: &cri::HugepageLimit| changes.iter().any(|change| change.page_size == limit.page_size);
    let mut all: Vec<_> = before.into_iter().filter(|limit| !is_named(limit)).collect();
    all.extend(changes);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_of_other_sizes_keep_their_limits() {
        let limits = |all: &[(&str, u64)]| {
            let all = all.iter().map(|(size, limit)| cri::HugepageLimit { page_size: (*size).into(), limit: *limit });
            cri::LinuxContainerResources { hugepage_limits: all.collect(), ..Default::default() }
        };
        let merged = merge(limits(&[("1GB", 0), ("2MB", 0)]), limits(&[("2MB", 4 << 20)]));
        assert_eq!(merged, limits(&[("1GB", 0), ("2MB", 4 << 20)]));
    }

    #[test]
    fn huge_pages_have_files_by_their_size() {
        let limit = |size: &str, limit| cri::HugepageLimit { page_size: size.into(), limit };
        let resources = cri::LinuxContainerResources {
            hugepage_limits: vec![limit("2MB", 4 << 20), limit("1GB", 0)],
            unified: [("hugetlb.1GB.max".to_owned(), "max".to_owned())].into(),
            ..Default::default()
        };
        let unified = to_agent(&resources).unified;
        assert_eq!((unified["hugetlb.2MB.max"].as_str(), unified["hugetlb.1GB.max"].as_str()), ("4194304", "max"));
    }

    #[test]
    fn zeros_keep_what_was() {
        let before =
            cri::LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 1 << 20, ..Default::default() };
        let changes = cri::LinuxContainerResources { memory_limit_in_bytes: 2 << 20, ..Default::default() };
        let merged = merge(before, changes);
        assert_eq!((merged.cpu_shares, merged.memory_limit_in_bytes), (512, 2 << 20));
    }
}
