//! RunPodSandbox.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;
use crate::sandbox;

pub(super) async fn run_pod_sandbox(
    node: &Arc<Node>,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("RunPodSandbox without config"))?;
    let pod_sandbox_id = sandbox::run(node, config, &request.runtime_handler).await?;
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id })
}
