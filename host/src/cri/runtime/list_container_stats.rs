//! ListContainerStats: pods are asked side by side; one that hangs has the figures it gave last, or none.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::{convert, figures};
use crate::container;
use crate::node::Node;
use crate::sandbox::stats;

pub(super) async fn list_container_stats(
    node: &Arc<Node>,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let mut result = Vec::new();
    for (sandbox, sample) in stats::sample_all(node).await {
        // Our own records decide whose figures these are: ids in a guest's answer are claims.
        for container in container::of_sandbox(node, &sandbox.id) {
            let record = container.record.get();
            let wanted = record.id.starts_with(&filter.id)
                && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
                && convert::selected(&record.config.labels, &filter.label_selector);
            if wanted && sample.container(&record.id).is_some() {
                result.push(figures::container(node, &record, &sample));
            }
        }
    }
    Ok(cri::ListContainerStatsResponse { stats: result })
}
