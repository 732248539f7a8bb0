//! The writable layer, and what goes to block devices.

use bulkhead_proto::agent;
use bulkhead_proto::cri::MetricType;

use super::{Family, Subject, Values};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "container_fs_usage_bytes",
        help: "What the writable layer takes, in bytes",
        kind: MetricType::Gauge,
        labels: &["device"],
        values: |subject| layer(subject, |container| container.rootfs_used_bytes),
    },
    Family {
        name: "container_fs_limit_bytes",
        help: "Size of the writable layer's file system, in bytes",
        kind: MetricType::Gauge,
        labels: &["device"],
        values: |subject| layer(subject, |container| container.layers.as_ref().map(|layers| layers.total_bytes)),
    },
    Family {
        name: "container_fs_inodes_total",
        help: "Inodes of the writable layer's file system",
        kind: MetricType::Gauge,
        labels: &["device"],
        values: |subject| layer(subject, |container| container.layers.as_ref().map(|layers| layers.total_inodes)),
    },
    Family {
        name: "container_fs_inodes_free",
        help: "Free inodes of the writable layer's file system",
        kind: MetricType::Gauge,
        labels: &["device"],
        values: |subject| layer(subject, |container| container.layers.as_ref().map(|layers| layers.free_inodes)),
    },
    Family {
        name: "container_fs_reads_bytes_total",
        help: "Bytes read",
        kind: MetricType::Counter,
        labels: &["device"],
        values: |subject| devices(subject, |io| io.read_bytes),
    },
    Family {
        name: "container_fs_writes_bytes_total",
        help: "Bytes written",
        kind: MetricType::Counter,
        labels: &["device"],
        values: |subject| devices(subject, |io| io.written_bytes),
    },
    Family {
        name: "container_fs_reads_total",
        help: "Reads completed",
        kind: MetricType::Counter,
        labels: &["device"],
        values: |subject| devices(subject, |io| io.reads),
    },
    Family {
        name: "container_fs_writes_total",
        help: "Writes completed",
        kind: MetricType::Counter,
        labels: &["device"],
        values: |subject| devices(subject, |io| io.writes),
    },
    Family {
        name: "container_blkio_device_usage_total",
        help: "Bytes read from and written to block devices",
        kind: MetricType::Counter,
        labels: &["device", "major", "minor", "operation"],
        values: |subject| operations(subject),
    },
];

/// The pod's scratch drive, or the host's disk under a native pod: the CRI knows no name for it.
const LAYERS: &str = "scratch";

fn layer(subject: &Subject<'_>, figure: fn(&agent::ContainerStats) -> Option<u64>) -> Values {
    let found = subject.container.and_then(figure);
    found.map(|value| (vec![LAYERS.to_owned()], value)).into_iter().collect()
}

fn devices(subject: &Subject<'_>, figure: fn(&agent::DeviceIo) -> u64) -> Values {
    let all = subject.cgroup.map(|cgroup| cgroup.io.as_slice()).unwrap_or_default();
    all.iter().map(|io| (vec![name(io)], figure(io))).collect()
}

fn operations(subject: &Subject<'_>) -> Values {
    let all = subject.cgroup.map(|cgroup| cgroup.io.as_slice()).unwrap_or_default();
    let labels =
        |io: &agent::DeviceIo, what: &str| vec![name(io), io.major.to_string(), io.minor.to_string(), what.to_owned()];
    all.iter().flat_map(|io| [(labels(io, "Read"), io.read_bytes), (labels(io, "Write"), io.written_bytes)]).collect()
}

fn name(io: &agent::DeviceIo) -> String {
    format!("{}:{}", io.major, io.minor)
}
