//! ContainerStatus.

use std::collections::HashMap;
use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::Node;

pub(super) async fn container_status(
    node: &Arc<Node>,
    request: cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Status> {
    let container = node.containers.find("container", &request.container_id)?;
    let record = container.record.get();
    let info = if request.verbose { convert::container_info(&record) } else { HashMap::new() };
    Ok(cri::ContainerStatusResponse { status: Some(convert::container_status(&record)), info })
}
