//! ListPodSandbox: from memory, never waits.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::Node;

pub(super) async fn list_pod_sandbox(
    node: &Arc<Node>,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, Status> {
    let filter = request.filter.unwrap_or_default();
    let state = filter.state.as_ref().map(|value| value.state);
    let mut items: Vec<cri::PodSandbox> = node
        .sandboxes
        .all()
        .iter()
        .map(|sandbox| convert::sandbox(&sandbox.record.get()))
        .filter(|item| item.id.starts_with(&filter.id))
        .filter(|item| state.is_none_or(|state| item.state == state))
        .filter(|item| convert::selected(&item.labels, &filter.label_selector))
        .collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.created_at));
    Ok(cri::ListPodSandboxResponse { items })
}
