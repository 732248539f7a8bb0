//! StreamPodSandboxMetrics: ListPodSandboxMetrics in batches.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::list_pod_sandbox_metrics::list_pod_sandbox_metrics;
use crate::cri::stream::{Batches, batches};
use crate::node::Node;

pub(super) async fn stream_pod_sandbox_metrics(
    node: &Arc<Node>,
    _: cri::StreamPodSandboxMetricsRequest,
) -> Result<Batches<cri::StreamPodSandboxMetricsResponse>, Status> {
    let list = list_pod_sandbox_metrics(node, cri::ListPodSandboxMetricsRequest {}).await?;
    Ok(batches(list.pod_metrics, |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}
