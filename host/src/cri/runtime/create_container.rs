//! CreateContainer.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::container;
use crate::node::Node;

pub(super) async fn create_container(
    node: &Arc<Node>,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("CreateContainer without config"))?;
    let sandbox = node.sandboxes.find("sandbox", &request.pod_sandbox_id)?;
    let container_id = container::create(node, &sandbox, config).await?;
    Ok(cri::CreateContainerResponse { container_id })
}
