//! PodSandboxStats.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::container::stats;
use crate::node::Node;

pub(super) async fn pod_sandbox_stats(
    node: &Arc<Node>,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Status> {
    let sandbox = node.sandboxes.find("sandbox", &request.pod_sandbox_id)?;
    let figures = stats::of_pod(&sandbox).await.unwrap_or_default();
    Ok(cri::PodSandboxStatsResponse { stats: Some(convert::sandbox_stats(node, &sandbox.record.get(), &figures)) })
}
