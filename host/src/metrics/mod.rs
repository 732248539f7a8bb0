//! What ListMetricDescriptors and ListPodSandboxMetrics tell: cAdvisor's names, from the figures of
//! [`crate::sandbox::stats`]. A figure that nobody could tell makes no metric.

use std::sync::Arc;

use bulkhead_proto::{agent, cri};

use crate::container::{self, ContainerRecord, ContainerState};
use crate::node::Node;
use crate::sandbox::stats::Sample;
use crate::sandbox::{Sandbox, SandboxRecord};

mod cpu;
mod disk;
mod memory;
mod misc;
mod network;

/// Labels of every metric, before its own. A pod's own metrics have no container and no image.
const BASE_LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// Values of one metric with the values of its own labels.
type Values = Vec<(Vec<String>, u64)>;

/// One metric.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: cri::MetricType,
    /// Beside [`BASE_LABELS`].
    labels: &'static [&'static str],
    values: fn(&Subject<'_>) -> Values,
}

/// What is measured: a pod, or one of its containers.
#[derive(Default)]
struct Subject<'a> {
    cgroup: Option<&'a agent::CgroupStats>,
    /// Of a container only.
    container: Option<&'a agent::ContainerStats>,
    /// Of a container only.
    record: Option<&'a ContainerRecord>,
    /// Of a pod only.
    interfaces: &'a [agent::InterfaceStats],
    /// When the figures were read, in nanoseconds since 1970; 0 when they could not be.
    at: i64,
    /// New figures were asked for and did not come.
    failed: bool,
}

fn families() -> impl Iterator<Item = &'static Family> {
    [cpu::FAMILIES, memory::FAMILIES, disk::FAMILIES, network::FAMILIES, misc::FAMILIES].into_iter().flatten()
}

/// Every metric that there can be.
#[must_use]
pub fn descriptors() -> Vec<cri::MetricDescriptor> {
    families()
        .map(|family| cri::MetricDescriptor {
            name: family.name.to_owned(),
            help: family.help.to_owned(),
            label_keys: BASE_LABELS.iter().chain(family.labels).map(|label| (*label).to_owned()).collect(),
        })
        .collect()
}

/// The metrics of a pod and of its running containers.
#[must_use]
pub fn of_pod(node: &Node, sandbox: &Sandbox, sample: &Sample) -> cri::PodSandboxMetrics {
    let record = sandbox.record.get();
    let running = |record: &Arc<ContainerRecord>| matches!(record.state, ContainerState::Running { .. });
    let containers: Vec<_> = container::of_sandbox(node, &sandbox.id).iter().map(|c| c.record.get()).collect();
    let container_metrics = containers.iter().filter(|record| running(record)).map(|container| cri::ContainerMetrics {
        container_id: container.id.clone(),
        metrics: metrics(&labels_of_container(&record, container), &container_subject(container, sample)),
    });
    cri::PodSandboxMetrics {
        pod_sandbox_id: record.id.clone(),
        metrics: metrics(&labels_of_pod(&record), &pod_subject(sample)),
        container_metrics: container_metrics.collect(),
    }
}

fn pod_subject(sample: &Sample) -> Subject<'_> {
    let Some(host) = &sample.host else { return Subject { failed: true, ..Subject::default() } };
    Subject {
        cgroup: host.value.cgroup.as_ref(),
        interfaces: host.value.interfaces.as_deref().unwrap_or_default(),
        at: host.at,
        ..Subject::default()
    }
}

fn container_subject<'a>(record: &'a ContainerRecord, sample: &'a Sample) -> Subject<'a> {
    let figures = sample.container(&record.id);
    Subject {
        cgroup: figures.and_then(|figures| figures.cgroup.as_ref()),
        container: figures,
        record: Some(record),
        at: sample.guest.as_ref().map_or(0, |guest| guest.at),
        failed: sample.silent.is_some(),
        ..Subject::default()
    }
}

fn labels_of_pod(record: &SandboxRecord) -> [String; 6] {
    let metadata = record.metadata();
    [record.id.clone(), "POD".to_owned(), String::new(), String::new(), metadata.name, metadata.namespace]
}

fn labels_of_container(sandbox: &SandboxRecord, record: &ContainerRecord) -> [String; 6] {
    let (pod, name) = (sandbox.metadata(), record.metadata().name);
    let image = record.config.image.clone().unwrap_or_default();
    let image = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    [record.id.clone(), name.clone(), image, name, pod.name, pod.namespace]
}

fn metrics(base: &[String; 6], subject: &Subject<'_>) -> Vec<cri::Metric> {
    // The CRI: 0 means read just now.
    let timestamp = if subject.failed { subject.at } else { 0 };
    let one = |family: &'static Family, (labels, value): (Vec<String>, u64)| cri::Metric {
        name: family.name.to_owned(),
        timestamp,
        metric_type: family.kind as i32,
        label_values: base.iter().cloned().chain(labels).collect(),
        value: Some(cri::UInt64Value { value }),
    };
    families().flat_map(|family| (family.values)(subject).into_iter().map(move |value| one(family, value))).collect()
}

/// A metric without labels of its own.
fn plain(value: Option<u64>) -> Values {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

/// Whole seconds: the CRI's values are integers.
fn seconds(ns: Option<u64>) -> Option<u64> {
    ns.map(|ns| ns / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn full() -> (agent::CgroupStats, agent::ContainerStats) {
        let line = agent::PressureLine { total_us: 3_000_000, ..Default::default() };
        let pressure =
            agent::Pressure { some: Some(line.clone()).into(), full: Some(line).into(), ..Default::default() };
        let cgroup = agent::CgroupStats {
            cpu_usage_ns: Some(5_000_000_000),
            cpu_user_ns: Some(3_000_000_000),
            cpu_system_ns: Some(2_000_000_000),
            cpu_periods: Some(10),
            cpu_throttled_periods: Some(4),
            cpu_throttled_ns: Some(1_500_000_000),
            memory_usage_bytes: Some(100),
            memory_working_set_bytes: Some(60),
            memory_rss_bytes: Some(50),
            memory_page_faults: Some(9),
            memory_major_page_faults: Some(2),
            memory_limit_bytes: Some(200),
            memory_cache_bytes: Some(40),
            memory_kernel_bytes: Some(7),
            memory_mapped_file_bytes: Some(6),
            memory_peak_bytes: Some(150),
            memory_limit_hits: Some(1),
            oom_kills: Some(1),
            swap_usage_bytes: Some(3),
            pids_current: Some(8),
            pids_limit: Some(100),
            cpu_pressure: Some(pressure.clone()).into(),
            memory_pressure: Some(pressure.clone()).into(),
            io_pressure: Some(pressure).into(),
            io: vec![agent::DeviceIo { major: 254, minor: 16, read_bytes: 4096, ..Default::default() }],
            ..Default::default()
        };
        let container = agent::ContainerStats {
            container_id: "c".into(),
            cgroup: Some(cgroup.clone()).into(),
            rootfs_used_bytes: Some(8192),
            processes: Some(4),
            layers: Some(agent::FileSystem { total_bytes: 1 << 30, ..Default::default() }).into(),
            ..Default::default()
        };
        (cgroup, container)
    }

    #[test]
    fn every_metric_has_a_descriptor_and_its_labels() {
        let (cgroup, container) = full();
        let interfaces = [agent::InterfaceStats { name: "eth0".into(), rx_bytes: 5, ..Default::default() }];
        let subject = Subject {
            cgroup: Some(&cgroup),
            container: Some(&container),
            interfaces: &interfaces,
            at: 7,
            ..Subject::default()
        };
        let descriptors = descriptors();
        let names: BTreeSet<_> = descriptors.iter().map(|d| d.name.clone()).collect();
        assert_eq!(names.len(), descriptors.len(), "a name stands twice");
        let all = metrics(&Default::default(), &subject);
        for metric in &all {
            let descriptor = descriptors.iter().find(|d| d.name == metric.name).unwrap();
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
            assert_eq!(metric.timestamp, 0);
        }
        let value = |name: &str| all.iter().find(|m| m.name == name).unwrap().value.unwrap().value;
        assert_eq!(value("container_cpu_usage_seconds_total"), 5);
        assert_eq!(value("container_memory_working_set_bytes"), 60);
        assert_eq!(value("container_network_receive_bytes_total"), 5);
        assert_eq!(value("container_pressure_io_stalled_seconds_total"), 3);
        assert_eq!(value("container_fs_usage_bytes"), 8192);
    }

    #[test]
    fn what_is_not_known_makes_no_metric() {
        let told = metrics(&Default::default(), &Subject { failed: true, at: 7, ..Subject::default() });
        let names: Vec<_> = told.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["container_last_seen", "container_scrape_error"]);
        assert!(told.iter().all(|metric| metric.timestamp == 7));
    }
}
