//! PodSandboxStats.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::figures;
use crate::node::Node;
use crate::sandbox::stats;

pub(super) async fn pod_sandbox_stats(
    node: &Arc<Node>,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Status> {
    let sandbox = node.sandboxes.find("sandbox", &request.pod_sandbox_id)?;
    let sample = stats::sample(node, &sandbox).await;
    Ok(cri::PodSandboxStatsResponse { stats: Some(figures::sandbox(node, &sandbox.record.get(), &sample)) })
}
