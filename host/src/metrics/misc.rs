//! Processes, limits as asked for, and the reading itself.

use bulkhead_proto::cri::{LinuxContainerResources, MetricType};

use super::{Family, Subject, plain};
use crate::container::ContainerState;

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "container_processes",
        help: "Processes in the container",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.container.and_then(|container| container.processes)),
    },
    Family {
        name: "container_threads",
        help: "Threads in the container",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.pids_current)),
    },
    Family {
        name: "container_threads_max",
        help: "Most threads that there may be; 0 is no limit",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| {
            plain(
                subject
                    .cgroup
                    .filter(|cgroup| cgroup.pids_current.is_some())
                    .map(|cgroup| cgroup.pids_limit.unwrap_or(0)),
            )
        },
    },
    Family {
        name: "container_spec_cpu_period",
        help: "Period of the CPU limit in microseconds",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(limit(subject, |limits| limits.cpu_period)),
    },
    Family {
        name: "container_spec_cpu_quota",
        help: "CPU limit in microseconds of each period",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(limit(subject, |limits| limits.cpu_quota)),
    },
    Family {
        name: "container_spec_cpu_shares",
        help: "CPU weight on the scale of cgroup v1",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(limit(subject, |limits| limits.cpu_shares)),
    },
    Family {
        name: "container_start_time_seconds",
        help: "When the container was started, in seconds since 1970",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(started(subject)),
    },
    Family {
        name: "container_last_seen",
        help: "When the figures were read, in seconds since 1970",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(u64::try_from(subject.at / 1_000_000_000).ok()),
    },
    Family {
        name: "container_scrape_error",
        help: "1 when new figures did not come in time, else 0",
        kind: MetricType::Gauge,
        labels: &[],
        values: |subject| plain(Some(u64::from(subject.failed))),
    },
];

fn limit(subject: &Subject<'_>, of: fn(&LinuxContainerResources) -> i64) -> Option<u64> {
    let limits = subject.record?.config.linux.as_ref()?.resources.as_ref()?;
    u64::try_from(of(limits)).ok().filter(|value| *value > 0)
}

fn started(subject: &Subject<'_>) -> Option<u64> {
    match subject.record?.state {
        ContainerState::Running { started_at } => u64::try_from(started_at / 1_000_000_000).ok(),
        _ => None,
    }
}
