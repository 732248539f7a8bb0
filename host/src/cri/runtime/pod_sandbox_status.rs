//! PodSandboxStatus.

use std::collections::HashMap;
use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::container;
use crate::node::{Node, now_ns};
use crate::sandbox::Sandbox;

pub(super) async fn pod_sandbox_status(
    node: &Arc<Node>,
    request: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Status> {
    let sandbox = node.sandboxes.find("sandbox", &request.pod_sandbox_id)?;
    let record = sandbox.record.get();
    let containers = container::of_sandbox(node, &sandbox.id);
    let info = if request.verbose { info(&sandbox) } else { HashMap::new() };
    Ok(cri::PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(&record)),
        info,
        containers_statuses: containers
            .iter()
            .map(|container| container.record.get())
            .filter(|record| convert::is_visible(record))
            .map(|record| convert::container_status(&record))
            .collect(),
        timestamp: now_ns(),
    })
}

/// What is known without asking the pod.
fn info(sandbox: &Sandbox) -> HashMap<String, String> {
    let mut info = convert::sandbox_info(&sandbox.record.get());
    let sample = sandbox.stats.last();
    let stats = serde_json::json!({
        "agentReadAt": sample.guest.map(|guest| guest.at),
        "hostReadAt": sample.host.map(|host| host.at),
        "noNewFiguresBecause": sample.silent,
    });
    info.insert("stats".to_owned(), stats.to_string());
    info
}
