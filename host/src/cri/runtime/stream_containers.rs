//! StreamContainers: ListContainers in batches.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::list_containers::list_containers;
use crate::cri::stream::{Batches, batches};
use crate::node::Node;

pub(super) async fn stream_containers(
    node: &Arc<Node>,
    request: cri::StreamContainersRequest,
) -> Result<Batches<cri::StreamContainersResponse>, Status> {
    let list = list_containers(node, cri::ListContainersRequest { filter: request.filter }).await?;
    Ok(batches(list.containers, |containers| cri::StreamContainersResponse { containers }))
}
