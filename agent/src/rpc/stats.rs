//! Stats: figures of containers, interfaces and the pod.

use std::sync::Arc;

use bulkhead_proto::agent::{ContainerStats, InterfaceStats, StatsRequest, StatsResponse};

use super::{Service, blocking, errors};
use crate::container::{Container, ContainerError, stats};
use crate::sandbox::Sandbox;

pub(super) async fn run(service: &Service, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
    let sandbox = Arc::clone(&service.sandbox);
    let containers: Vec<Arc<Container>> = if request.container_ids.is_empty() {
        sandbox.containers()
    } else {
        let found = request.container_ids.iter().map(|id| sandbox.container(id));
        found.collect::<Result<_, _>>().map_err(errors::refuse)?
    };
    blocking(move || Ok::<_, ContainerError>(read(&sandbox, &containers))).await
}

fn read(sandbox: &Sandbox, containers: &[Arc<Container>]) -> StatsResponse {
    let mut response = StatsResponse::new();
    response.containers = containers.iter().map(|container| container_stats(container)).collect();
    response.pod = Some(stats::read(&sandbox.cgroup.whole())).into();
    let table = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    response.interfaces = interfaces(&table);
    response
}

fn container_stats(container: &Container) -> ContainerStats {
    let mut figures = ContainerStats::new();
    figures.container_id.clone_from(&container.id);
    figures.cgroup = Some(stats::read(&container.cgroup)).into();
    (figures.rootfs_used_bytes, figures.rootfs_used_inodes) = container.layer_usage();
    figures
}

/// Reads the kernel's table of interfaces, less the loopback.
fn interfaces(table: &str) -> Vec<InterfaceStats> {
    table
        .lines()
        .filter_map(|line| {
            let (name, figures) = line.split_once(':')?;
            let figures: Vec<u64> = figures.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
            let mut stats = InterfaceStats::new();
            stats.name = name.trim().into();
            (stats.rx_bytes, stats.rx_errors) = (*figures.first()?, *figures.get(2)?);
            (stats.tx_bytes, stats.tx_errors) = (*figures.get(8)?, *figures.get(10)?);
            (stats.name != "lo").then_some(stats)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_table_is_read() {
        let table = "Inter-|   Receive\n face |bytes packets errs\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            \x20 eth0: 100 2 3 0 0 0 0 0 200 4 5 0 0 0 0 0\n  bad: 1\n";
        let found = interfaces(table);
        assert_eq!(found.len(), 1);
        let eth0 = &found[0];
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.rx_errors), ("eth0", 100, 3));
        assert_eq!((eth0.tx_bytes, eth0.tx_errors), (200, 5));
    }
}
