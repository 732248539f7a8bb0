//! StreamPodSandboxes: ListPodSandbox in batches.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::list_pod_sandbox::list_pod_sandbox;
use crate::cri::stream::{Batches, batches};
use crate::node::Node;

pub(super) async fn stream_pod_sandboxes(
    node: &Arc<Node>,
    request: cri::StreamPodSandboxesRequest,
) -> Result<Batches<cri::StreamPodSandboxesResponse>, Status> {
    let list = list_pod_sandbox(node, cri::ListPodSandboxRequest { filter: request.filter }).await?;
    Ok(batches(list.items, |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes }))
}
