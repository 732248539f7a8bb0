//! StopContainer: idempotent, also for a container that is gone.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::cri;
use tonic::Status;

use crate::container;
use crate::node::LookupError;
use crate::node::Node;

pub(super) async fn stop_container(
    node: &Arc<Node>,
    request: cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, Status> {
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    match node.containers.find("container", &request.container_id) {
        Ok(found) => container::stop(node, &found, grace).await?,
        Err(LookupError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(cri::StopContainerResponse {})
}
