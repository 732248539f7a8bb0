//! StreamContainerStats: ListContainerStats in batches.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::list_container_stats::list_container_stats;
use crate::cri::stream::{Batches, batches};
use crate::node::Node;

pub(super) async fn stream_container_stats(
    node: &Arc<Node>,
    request: cri::StreamContainerStatsRequest,
) -> Result<Batches<cri::StreamContainerStatsResponse>, Status> {
    let list = list_container_stats(node, cri::ListContainerStatsRequest { filter: request.filter }).await?;
    Ok(batches(list.stats, |container_stats| cri::StreamContainerStatsResponse { container_stats }))
}
