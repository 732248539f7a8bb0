//! Memory, swap and the OOM killer.

use bulkhead_proto::cri::MetricType;

use super::{Family, Subject, Values, plain};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "container_memory_usage_bytes",
        help: "Memory in use, caches included",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.memory_usage_bytes)),
    },
    Family {
        name: "container_memory_working_set_bytes",
        help: "Memory in use less inactive file pages",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.memory_working_set_bytes)),
    },
    Family {
        name: "container_memory_rss",
        help: "Anonymous memory in bytes",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.memory_rss_bytes)),
    },
    Family {
        name: "container_memory_cache",
        help: "Page cache in bytes",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.memory_cache_bytes)),
    },
    Family {
        name: "container_memory_kernel_usage",
        help: "Memory of the kernel in bytes",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.memory_kernel_bytes)),
    },
    Family {
        name: "container_memory_mapped_file",
        help: "Memory of mapped files in bytes",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.memory_mapped_file_bytes)),
    },
    Family {
        name: "container_memory_max_usage_bytes",
        help: "Most memory that was ever in use",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.memory_peak_bytes)),
    },
    Family {
        name: "container_memory_swap",
        help: "Swap in use in bytes",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.swap_usage_bytes)),
    },
    Family {
        name: "container_memory_failcnt",
        help: "How often the memory limit was met",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.memory_limit_hits)),
    },
    Family {
        name: "container_memory_failures_total",
        help: "Page faults",
        kind: MetricType::Counter,
        labels: &["failure_type", "scope"],
        values: |subject| faults(subject),
    },
    Family {
        name: "container_oom_events_total",
        help: "Processes that the kernel killed for memory",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.oom_kills)),
    },
    Family {
        name: "container_spec_memory_limit_bytes",
        help: "Memory limit; 0 is none",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| {
            plain(
                subject
                    .cgroup
                    .filter(|cgroup| cgroup.memory_usage_bytes.is_some())
                    .map(|cgroup| cgroup.memory_limit_bytes.unwrap_or(0)),
            )
        },
    },
];

/// The kernel counts over the whole cgroup.
fn faults(subject: &Subject<'_>) -> Values {
    let Some(cgroup) = subject.cgroup else { return Values::new() };
    let counted = [("pgfault", cgroup.memory_page_faults), ("pgmajfault", cgroup.memory_major_page_faults)];
    let scopes = counted.into_iter().filter_map(|(kind, count)| Some((kind, count?)));
    scopes.map(|(kind, count)| (vec![kind.to_owned(), "hierarchy".to_owned()], count)).collect()
}
