//! Changing a running container's limits.

use std::sync::Arc;

use bulkhead_proto::{agent, cri};
use protobuf::Message;

use super::{Container, ContainerError, ContainerRecord, ContainerState, resources};
use crate::node::Node;

/// Applies `changes` in the guest, then remembers them. Values that are 0 or empty stay as they are.
pub async fn update(
    node: &Arc<Node>,
    container: &Arc<Container>,
    changes: cri::LinuxContainerResources,
) -> Result<(), ContainerError> {
    let (node, target) = (node.clone(), container.clone());
    container.operate(async move { update_now(&node, &target, changes).await }).await
}

async fn update_now(
    node: &Arc<Node>,
    container: &Arc<Container>,
    changes: cri::LinuxContainerResources,
) -> Result<(), ContainerError> {
    let record = container.record.get();
    if !matches!(record.state, ContainerState::Created | ContainerState::Running { .. }) {
        let (id, state) = (record.id.clone(), record.state.name());
        return Err(ContainerError::WrongState { id, state, request: "changing its limits" });
    }
    let sandbox = node.sandboxes.find("sandbox", &record.sandbox_id)?;
    let live = sandbox.live("changing a container's limits")?;
    let before = record.config.linux.clone().unwrap_or_default().resources.unwrap_or_default();
    // The kubelet sends the same one again with other changes; on some hosts even that is more than the agent may set.
    let is_change = changes.oom_score_adj != 0 && changes.oom_score_adj != before.oom_score_adj;
    let oom_score_adj = i32::try_from(changes.oom_score_adj).ok().filter(|_| is_change);
    let process = with_oom_score_adj(&record, oom_score_adj)?;
    let merged = resources::merge(before, changes);
    let request = agent::UpdateContainerRequest {
        container_id: record.id.clone(),
        resources: Some(resources::to_agent(&merged)).into(),
        oom_score_adj,
        ..Default::default()
    };
    live.agent.update_container(request).await.map_err(ContainerError::guest(&record.id))?;
    container
        .record
        .change(move |record: &mut ContainerRecord| {
            record.config.linux.get_or_insert_with(Default::default).resources = Some(merged);
            record.process = process;
            Ok::<_, ContainerError>(())
        })
        .await?;
    // A kubelet that does not know UpdatePodSandboxResources says it by the containers alone.
    Ok(crate::sandbox::containers_changed(node, &sandbox).await?)
}

/// The first process as commands that are executed from now on inherit it.
fn with_oom_score_adj(record: &ContainerRecord, adj: Option<i32>) -> Result<Vec<u8>, ContainerError> {
    if adj.is_none() {
        return Ok(record.process.clone());
    }
    let changed = agent::Process::parse_from_bytes(&record.process).and_then(|mut process| {
        process.oom_score_adj = adj;
        process.write_to_bytes()
    });
    changed.map_err(|error| ContainerError::Request {
        id: record.id.clone(),
        request: "changing its limits",
        why: format!("the container's record is damaged: {error}"),
    })
}
