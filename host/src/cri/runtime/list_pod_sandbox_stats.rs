//! ListPodSandboxStats: pods are asked side by side; one that hangs has no figures.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::container::stats;
use crate::node::Node;

pub(super) async fn list_pod_sandbox_stats(
    node: &Arc<Node>,
    request: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let mut result = Vec::new();
    for (id, figures) in stats::of_all(node).await {
        let Ok(sandbox) = node.sandboxes.find("sandbox", &id) else { continue };
        let record = sandbox.record.get();
        if id.starts_with(&filter.id) && convert::selected(&record.config.labels, &filter.label_selector) {
            result.push(convert::sandbox_stats(node, &record, &figures));
        }
    }
    Ok(cri::ListPodSandboxStatsResponse { stats: result })
}
