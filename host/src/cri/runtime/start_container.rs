//! StartContainer.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::container;
use crate::node::Node;

pub(super) async fn start_container(
    node: &Arc<Node>,
    request: cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, Status> {
    let found = node.containers.find("container", &request.container_id)?;
    container::start(node, &found).await?;
    Ok(cri::StartContainerResponse {})
}
