//! ContainerStats.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::figures;
use crate::node::Node;
use crate::sandbox::stats;

pub(super) async fn container_stats(
    node: &Arc<Node>,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Status> {
    let found = node.containers.find("container", &request.container_id)?;
    let sandbox = node.sandboxes.find("sandbox", &found.record.get().sandbox_id)?;
    let sample = stats::sample(node, &sandbox).await;
    Ok(cri::ContainerStatsResponse { stats: Some(figures::container(node, &found.record.get(), &sample)) })
}
