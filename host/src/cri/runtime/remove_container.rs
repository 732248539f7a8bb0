//! RemoveContainer: idempotent, also for a container that is gone.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::container;
use crate::node::LookupError;
use crate::node::Node;

pub(super) async fn remove_container(
    node: &Arc<Node>,
    request: cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, Status> {
    match node.containers.find("container", &request.container_id) {
        Ok(found) => container::remove(node, &found).await?,
        Err(LookupError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(cri::RemoveContainerResponse {})
}
