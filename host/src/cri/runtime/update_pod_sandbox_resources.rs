//! UpdatePodSandboxResources.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;
use crate::sandbox;

pub(super) async fn update_pod_sandbox_resources(
    node: &Arc<Node>,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, Status> {
    let found = node.sandboxes.find("sandbox", &request.pod_sandbox_id)?;
    sandbox::update(node, &found, request.overhead, request.resources).await?;
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}
