//! StopPodSandbox: idempotent, also for a sandbox that is gone.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::LookupError;
use crate::node::Node;
use crate::sandbox;

pub(super) async fn stop_pod_sandbox(
    node: &Arc<Node>,
    request: cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, Status> {
    match node.sandboxes.find("sandbox", &request.pod_sandbox_id) {
        Ok(found) => sandbox::stop(node, &found).await?,
        Err(LookupError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(cri::StopPodSandboxResponse {})
}
