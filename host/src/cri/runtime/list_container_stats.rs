//! ListContainerStats: pods are asked side by side; one that hangs has no figures.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::container::{self, stats};
use crate::node::Node;

pub(super) async fn list_container_stats(
    node: &Arc<Node>,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let mut result = Vec::new();
    for (sandbox_id, pod) in stats::of_all(node).await {
        // Our own records decide whose figures these are: ids in a guest's answer are claims.
        for container in container::of_sandbox(node, &sandbox_id) {
            let record = container.record.get();
            let wanted = record.id.starts_with(&filter.id)
                && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
                && convert::selected(&record.config.labels, &filter.label_selector);
            let figures = pod.containers.iter().find(|figures| figures.container_id == record.id);
            if wanted && figures.is_some() {
                result.push(convert::container_stats(node, &record, figures));
            }
        }
    }
    Ok(cri::ListContainerStatsResponse { stats: result })
}
