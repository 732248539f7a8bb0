//! CPU time, throttling and pressure.

use bulkhead_proto::cri::MetricType;

use super::{Family, Subject, Values, plain, seconds};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "container_cpu_usage_seconds_total",
        help: "CPU time consumed, in seconds",
        kind: MetricType::Counter,
        labels: &["cpu"],
        values: |subject| of_all_cpus(subject),
    },
    Family {
        name: "container_cpu_user_seconds_total",
        help: "CPU time consumed in user mode, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| seconds(cgroup.cpu_user_ns))),
    },
    Family {
        name: "container_cpu_system_seconds_total",
        help: "CPU time consumed in the kernel, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| seconds(cgroup.cpu_system_ns))),
    },
    Family {
        name: "container_cpu_cfs_periods_total",
        help: "Periods in which the CPU limit was enforced",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.cpu_periods)),
    },
    Family {
        name: "container_cpu_cfs_throttled_periods_total",
        help: "Periods in which the CPU limit was reached",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| cgroup.cpu_throttled_periods)),
    },
    Family {
        name: "container_cpu_cfs_throttled_seconds_total",
        help: "Time held back by the CPU limit, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| plain(subject.cgroup.and_then(|cgroup| seconds(cgroup.cpu_throttled_ns))),
    },
    Family {
        name: "container_pressure_cpu_waiting_seconds_total",
        help: "Time in which some task waited for a CPU, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| pressure(subject.cgroup.and_then(|cgroup| cgroup.cpu_pressure.some.as_ref())),
    },
    Family {
        name: "container_pressure_cpu_stalled_seconds_total",
        help: "Time in which every task waited for a CPU, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| pressure(subject.cgroup.and_then(|cgroup| cgroup.cpu_pressure.full.as_ref())),
    },
    Family {
        name: "container_pressure_memory_waiting_seconds_total",
        help: "Time in which some task waited for memory, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| pressure(subject.cgroup.and_then(|cgroup| cgroup.memory_pressure.some.as_ref())),
    },
    Family {
        name: "container_pressure_memory_stalled_seconds_total",
        help: "Time in which every task waited for memory, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| pressure(subject.cgroup.and_then(|cgroup| cgroup.memory_pressure.full.as_ref())),
    },
    Family {
        name: "container_pressure_io_waiting_seconds_total",
        help: "Time in which some task waited for I/O, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| pressure(subject.cgroup.and_then(|cgroup| cgroup.io_pressure.some.as_ref())),
    },
    Family {
        name: "container_pressure_io_stalled_seconds_total",
        help: "Time in which every task waited for I/O, in seconds",
        kind: MetricType::Counter,
        labels: &[],
        values: |subject| pressure(subject.cgroup.and_then(|cgroup| cgroup.io_pressure.full.as_ref())),
    },
];

/// The kernel counts by cgroup, not by CPU.
fn of_all_cpus(subject: &Subject<'_>) -> Values {
    let used = subject.cgroup.and_then(|cgroup| seconds(cgroup.cpu_usage_ns));
    used.map(|used| (vec!["total".to_owned()], used)).into_iter().collect()
}

fn pressure(line: Option<&bulkhead_proto::agent::PressureLine>) -> Values {
    plain(line.map(|line| line.total_us / 1_000_000))
}
