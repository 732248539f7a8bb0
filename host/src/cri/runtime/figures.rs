//! Resource figures as the CRI shows them. What nobody could tell is left out, never 0.

use bulkhead_proto::{agent, cri};

use crate::container::{self, ContainerRecord, ContainerState};
use crate::node::Node;
use crate::sandbox::SandboxRecord;
use crate::sandbox::stats::Sample;

pub(super) fn value(value: u64) -> cri::UInt64Value {
    cri::UInt64Value { value }
}

/// Of a container: running ones have CPU, memory and the like; ended ones only what they take on disk.
pub(super) fn container(node: &Node, record: &ContainerRecord, sample: &Sample) -> cri::ContainerStats {
    let figures = sample.container(&record.id);
    let answer = sample.guest.as_ref();
    let at = answer.map_or(0, |answer| answer.at);
    let runs = matches!(record.state, ContainerState::Running { .. });
    let cgroup = figures.and_then(|figures| figures.cgroup.as_ref()).filter(|_| runs);
    let rate = answer.and_then(|answer| answer.value.rates.get(&record.id).copied());
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: record.id.clone(),
            metadata: Some(record.metadata()),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        cpu: cgroup.and_then(|cgroup| cpu(at, cgroup, rate)),
        memory: cgroup.and_then(|cgroup| memory(at, cgroup)),
        writable_layer: figures.and_then(|figures| writable_layer(node, at, figures)),
        swap: cgroup.and_then(|cgroup| swap(at, cgroup)),
        io: cgroup.and_then(|cgroup| io(at, cgroup)),
    }
}

/// Of a pod: its processes on the host, and what its agent says of the containers.
pub(super) fn sandbox(node: &Node, record: &SandboxRecord, sample: &Sample) -> cri::PodSandboxStats {
    let attributes = cri::PodSandboxAttributes {
        id: record.id.clone(),
        metadata: Some(record.metadata()),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    let known = sample.host.is_some() || sample.guest.is_some();
    let linux = known.then(|| linux(node, record, sample));
    cri::PodSandboxStats { attributes: Some(attributes), linux, windows: None }
}

fn linux(node: &Node, record: &SandboxRecord, sample: &Sample) -> cri::LinuxPodSandboxStats {
    let host = sample.host.as_ref();
    let (at, guest_at) = (host.map_or(0, |host| host.at), sample.guest.as_ref().map_or(0, |guest| guest.at));
    let cgroup = host.and_then(|host| host.value.cgroup.as_ref());
    let rate = host.and_then(|host| host.value.rate);
    let processes = sample.guest.as_ref().and_then(|guest| guest.value.stats.pod.as_ref()?.pids_current);
    let containers = container::of_sandbox(node, &record.id);
    let containers = containers.iter().map(|container| container.record.get());
    cri::LinuxPodSandboxStats {
        cpu: cgroup.and_then(|cgroup| cpu(at, cgroup, rate)),
        memory: cgroup.and_then(|cgroup| memory(at, cgroup)),
        network: host.and_then(|host| network(at, host.value.interfaces.as_deref()?)),
        process: processes.map(|count| cri::ProcessUsage { timestamp: guest_at, process_count: Some(value(count)) }),
        containers: containers
            .filter(|record| sample.container(&record.id).is_some())
            .map(|record| self::container(node, &record, sample))
            .collect(),
        io: cgroup.and_then(|cgroup| io(at, cgroup)),
    }
}

fn cpu(timestamp: i64, cgroup: &agent::CgroupStats, rate: Option<u64>) -> Option<cri::CpuUsage> {
    let usage = cgroup.cpu_usage_ns?;
    Some(cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: Some(value(usage)),
        usage_nano_cores: rate.map(value),
        psi: psi(cgroup.cpu_pressure.as_ref()),
    })
}

fn memory(timestamp: i64, cgroup: &agent::CgroupStats) -> Option<cri::MemoryUsage> {
    let usage = cgroup.memory_usage_bytes?;
    let working_set = cgroup.memory_working_set_bytes.unwrap_or(usage);
    Some(cri::MemoryUsage {
        timestamp,
        working_set_bytes: Some(value(working_set)),
        available_bytes: cgroup.memory_limit_bytes.map(|limit| value(limit.saturating_sub(working_set))),
        usage_bytes: Some(value(usage)),
        rss_bytes: cgroup.memory_rss_bytes.map(value),
        page_faults: cgroup.memory_page_faults.map(value),
        major_page_faults: cgroup.memory_major_page_faults.map(value),
        psi: psi(cgroup.memory_pressure.as_ref()),
    })
}

fn swap(timestamp: i64, cgroup: &agent::CgroupStats) -> Option<cri::SwapUsage> {
    let usage = cgroup.swap_usage_bytes?;
    Some(cri::SwapUsage {
        timestamp,
        swap_available_bytes: cgroup.swap_limit_bytes.map(|limit| value(limit.saturating_sub(usage))),
        swap_usage_bytes: Some(value(usage)),
    })
}

fn io(timestamp: i64, cgroup: &agent::CgroupStats) -> Option<cri::IoUsage> {
    let psi = psi(cgroup.io_pressure.as_ref())?;
    Some(cri::IoUsage { timestamp, psi: Some(psi) })
}

fn psi(pressure: Option<&agent::Pressure>) -> Option<cri::PsiStats> {
    let line = |line: &agent::PressureLine| cri::PsiData {
        total: line.total_us.saturating_mul(1000),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    let pressure = pressure?;
    Some(cri::PsiStats { full: pressure.full.as_ref().map(line), some: pressure.some.as_ref().map(line) })
}

fn writable_layer(node: &Node, at: i64, figures: &agent::ContainerStats) -> Option<cri::FilesystemUsage> {
    let bytes = figures.rootfs_used_bytes?;
    Some(cri::FilesystemUsage {
        timestamp: at,
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: node.container_file_system.display().to_string() }),
        used_bytes: Some(value(bytes)),
        inodes_used: figures.rootfs_used_inodes.map(value),
    })
}

fn network(timestamp: i64, interfaces: &[agent::InterfaceStats]) -> Option<cri::NetworkUsage> {
    let mut all = interfaces.iter().map(|interface| cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: Some(value(interface.rx_bytes)),
        rx_errors: Some(value(interface.rx_errors)),
        tx_bytes: Some(value(interface.tx_bytes)),
        tx_errors: Some(value(interface.tx_errors)),
    });
    let first = all.next()?;
    let rest = all.collect();
    Some(cri::NetworkUsage { timestamp, default_interface: Some(first), interfaces: rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let nothing = agent::CgroupStats::new();
        assert!(cpu(1, &nothing, Some(5)).is_none() && memory(1, &nothing).is_none());
        assert!(swap(1, &nothing).is_none() && io(1, &nothing).is_none());
        let some = agent::CgroupStats { memory_usage_bytes: Some(100), ..Default::default() };
        let memory = memory(1, &some).unwrap();
        assert_eq!((memory.usage_bytes, memory.available_bytes), (Some(value(100)), None));
        assert!(memory.psi.is_none() && memory.rss_bytes.is_none());
    }

    #[test]
    fn available_is_the_limit_less_the_working_set() {
        let figures = agent::CgroupStats {
            memory_usage_bytes: Some(100),
            memory_working_set_bytes: Some(60),
            memory_limit_bytes: Some(200),
            swap_usage_bytes: Some(30),
            swap_limit_bytes: Some(20),
            ..Default::default()
        };
        assert_eq!(memory(1, &figures).unwrap().available_bytes, Some(value(140)));
        assert_eq!(swap(1, &figures).unwrap().swap_available_bytes, Some(value(0)));
    }

    #[test]
    fn pressure_is_in_nanoseconds() {
        let line = agent::PressureLine { avg10: 1.5, total_us: 7, ..Default::default() };
        let pressure = agent::Pressure { some: Some(line).into(), ..Default::default() };
        let psi = psi(Some(&pressure)).unwrap();
        let some = psi.some.unwrap();
        assert_eq!((some.total, some.avg10, psi.full.is_none()), (7000, 1.5, true));
    }

    #[test]
    fn the_first_interface_is_the_default() {
        let named = |name: &str| agent::InterfaceStats { name: name.into(), rx_bytes: 4, ..Default::default() };
        let network = network(1, &[named("eth0"), named("net1")]).unwrap();
        assert_eq!(network.default_interface.unwrap().name, "eth0");
        assert_eq!(network.interfaces.len(), 1);
        assert!(self::network(1, &[]).is_none());
    }
}
