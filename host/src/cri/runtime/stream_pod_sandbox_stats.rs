//! StreamPodSandboxStats: ListPodSandboxStats in batches.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::list_pod_sandbox_stats::list_pod_sandbox_stats;
use crate::cri::stream::{Batches, batches};
use crate::node::Node;

pub(super) async fn stream_pod_sandbox_stats(
    node: &Arc<Node>,
    request: cri::StreamPodSandboxStatsRequest,
) -> Result<Batches<cri::StreamPodSandboxStatsResponse>, Status> {
    let list = list_pod_sandbox_stats(node, cri::ListPodSandboxStatsRequest { filter: request.filter }).await?;
    Ok(batches(list.stats, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}
