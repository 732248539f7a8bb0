//! ListPodSandboxStats: pods are asked side by side; one that hangs has the figures it gave last, or the host's alone.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::{convert, figures};
use crate::node::Node;
use crate::sandbox::stats;

pub(super) async fn list_pod_sandbox_stats(
    node: &Arc<Node>,
    request: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let mut result = Vec::new();
    for (sandbox, sample) in stats::sample_all(node).await {
        let record = sandbox.record.get();
        if record.id.starts_with(&filter.id) && convert::selected(&record.config.labels, &filter.label_selector) {
            result.push(figures::sandbox(node, &record, &sample));
        }
    }
    Ok(cri::ListPodSandboxStatsResponse { stats: result })
}
