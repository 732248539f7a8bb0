//! ListContainerStats: pods are asked side by side; one that hangs has no figures.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::container::stats;
use crate::node::Node;

pub(super) async fn list_container_stats(
    node: &Arc<Node>,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let mut result = Vec::new();
    for (_, pod) in stats::of_all(node).await {
        for figures in &pod.containers {
            let Ok(found) = node.containers.find("container", &figures.container_id) else { continue };
            let record = found.record.get();
            let wanted = record.id.starts_with(&filter.id)
                && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
                && convert::selected(&record.config.labels, &filter.label_selector);
            if wanted {
                result.push(convert::container_stats(node, &record, Some(figures)));
            }
        }
    }
    Ok(cri::ListContainerStatsResponse { stats: result })
}
