//! ContainerStats.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::container::stats;
use crate::node::Node;

pub(super) async fn container_stats(
    node: &Arc<Node>,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Status> {
    let found = node.containers.find("container", &request.container_id)?;
    let record = found.record.get();
    let sandbox = node.sandboxes.find("sandbox", &record.sandbox_id)?;
    let stats = stats::of_pod(&sandbox).await;
    let figures = stats.iter().flat_map(|stats| &stats.containers).find(|figures| figures.container_id == record.id);
    Ok(cri::ContainerStatsResponse { stats: Some(convert::container_stats(node, &record, figures)) })
}
