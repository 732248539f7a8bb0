//! UpdateContainerResources.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::container;
use crate::node::Node;

pub(super) async fn update_container_resources(
    node: &Arc<Node>,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, Status> {
    let found = node.containers.find("container", &request.container_id)?;
    let changes =
        request.linux.ok_or_else(|| Status::invalid_argument("UpdateContainerResources without linux resources"))?;
    container::update(node, &found, changes).await?;
    Ok(cri::UpdateContainerResourcesResponse {})
}
