//! Changing a running container's limits.

use std::sync::Arc;

use bulkhead_proto::{agent, cri};

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
    let merged = resources::merge(before, changes);
    let request = agent::UpdateContainerRequest {
        container_id: record.id.clone(),
        resources: Some(resources::to_agent(&merged)).into(),
        ..Default::default()
    };
    live.agent.update_container(request).await.map_err(ContainerError::guest(&record.id))?;
    container
        .record
        .change(move |record: &mut ContainerRecord| {
            record.config.linux.get_or_insert_with(Default::default).resources = Some(merged);
            Ok::<_, ContainerError>(())
        })
        .await?;
    // A kubelet that does not know UpdatePodSandboxResources says it by the containers alone.
    Ok(crate::sandbox::containers_changed(node, &sandbox).await?)
}
