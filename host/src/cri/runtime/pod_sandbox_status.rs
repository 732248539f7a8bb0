//! PodSandboxStatus.

use std::collections::HashMap;
use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::container;
use crate::node::Node;
use crate::node::now_ns;

pub(super) async fn pod_sandbox_status(
    node: &Arc<Node>,
    request: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Status> {
    let sandbox = node.sandboxes.find("sandbox", &request.pod_sandbox_id)?;
    let record = sandbox.record.get();
    let containers = container::of_sandbox(node, &sandbox.id);
    let info = if request.verbose { convert::sandbox_info(&record) } else { HashMap::new() };
    Ok(cri::PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(&record)),
        info,
        containers_statuses: containers.iter().map(|c| convert::container_status(&c.record.get())).collect(),
        timestamp: now_ns(),
    })
}
