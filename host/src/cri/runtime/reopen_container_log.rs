//! ReopenContainerLog.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::container;
use crate::node::Node;

pub(super) async fn reopen_container_log(
    node: &Arc<Node>,
    request: cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, Status> {
    let found = node.containers.find("container", &request.container_id)?;
    container::reopen_log(node, &found).await?;
    Ok(cri::ReopenContainerLogResponse {})
}
