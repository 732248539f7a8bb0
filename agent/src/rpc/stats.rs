//! Stats: figures of containers, interfaces and the pod.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_proto::agent::{ContainerStats, StatsRequest, StatsResponse};
use bulkhead_proto::figures;

use super::{Service, blocking, errors};
use crate::container::{Container, ContainerError, stats};
use crate::sandbox::Sandbox;

/// Longest wait for all counts of writable layers together; the daemon gives this verb a second or two.
const COUNTING: Duration = Duration::from_millis(300);

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
    // All at once, then one wait for all.
    containers.iter().for_each(|container| container.count_layer());
    let deadline = Instant::now() + COUNTING;
    response.containers = containers.iter().map(|container| container_stats(container, deadline)).collect();
    response.pod = Some(stats::read(&sandbox.cgroup.whole())).into();
    let table = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    response.interfaces = figures::interfaces(&table);
    response
}

fn container_stats(container: &Container, deadline: Instant) -> ContainerStats {
    let mut figures = ContainerStats::new();
    figures.container_id.clone_from(&container.id);
    figures.cgroup = Some(stats::read(&container.cgroup)).into();
    figures.processes = Some(container.cgroup.processes().len() as u64);
    if let Some(usage) = container.layer_usage(deadline) {
        (figures.rootfs_used_bytes, figures.rootfs_used_inodes) = (Some(usage.bytes), Some(usage.inodes));
        figures.rootfs_counted_at_ns = usage.at_ns;
    }
    figures.layers = container.layer_space().into();
    figures
}
