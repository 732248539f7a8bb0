//! ListPodSandboxMetrics: pods are asked side by side; one that hangs has the metrics it gave last.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::metrics;
use crate::node::Node;
use crate::sandbox::stats;

pub(super) async fn list_pod_sandbox_metrics(
    node: &Arc<Node>,
    _: cri::ListPodSandboxMetricsRequest,
) -> Result<cri::ListPodSandboxMetricsResponse, Status> {
    let samples = stats::sample_all(node).await;
    let pod_metrics = samples.iter().map(|(sandbox, sample)| metrics::of_pod(node, sandbox, sample)).collect();
    Ok(cri::ListPodSandboxMetricsResponse { pod_metrics })
}
