//! ListContainers: from memory, never waits.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::Node;

pub(super) async fn list_containers(
    node: &Arc<Node>,
    request: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let state = filter.state.as_ref().map(|value| value.state);
    let mut containers: Vec<cri::Container> = node
        .containers
        .all()
        .iter()
        .map(|container| container.record.get())
        .filter(|record| convert::is_visible(record))
        .map(|record| convert::container(&record))
        .filter(|item| item.id.starts_with(&filter.id) && item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id))
        .filter(|item| state.is_none_or(|state| item.state == state))
        .filter(|item| convert::selected(&item.labels, &filter.label_selector))
        .collect();
    containers.sort_by_key(|item| std::cmp::Reverse(item.created_at));
    Ok(cri::ListContainersResponse { containers })
}
