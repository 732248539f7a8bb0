//! Removing a container; a running one is killed, as the CRI demands. Idempotent.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent;

use super::{Container, ContainerError, ContainerEvent, ContainerRecord, stop};
use crate::node::Node;

/// Removes the container; returns when nothing of it is left but its log, which is the kubelet's.
pub async fn remove(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), ContainerError> {
    let (node, target) = (node.clone(), container.clone());
    container.operate(async move { remove_now(&node, &target).await }).await
}

async fn remove_now(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), ContainerError> {
    stop::stop(node, container, Duration::ZERO).await?;
    container.take(ContainerEvent::Remove).await?;
    let record = container.record.get();
    release(node, &record).await?;
    node.nri.remove_container(&container.id).await;
    container.record.forget()?;
    node.containers.remove(&container.id);
    Ok(())
}

/// Takes the container out of its guest, if the guest still runs.
pub(super) async fn release(node: &Arc<Node>, record: &ContainerRecord) -> Result<(), ContainerError> {
    let Ok(sandbox) = node.sandboxes.find("sandbox", &record.sandbox_id) else { return Ok(()) };
    let Ok(live) = sandbox.live("removing a container") else { return Ok(()) };
    let request = agent::RemoveContainerRequest { container_id: record.id.clone(), ..Default::default() };
    // Every step is tried: a volume that stays cloned keeps the host from unmounting it.
    let (removed, detached) = tokio::join!(live.agent.remove_container(request), live.machine.detach_log(&record.id));
    let mut first = match removed {
        Err(error) if error.code() != Some(ttrpc::Code::NOT_FOUND) => Err(ContainerError::guest(&record.id)(error)),
        _ => Ok(()),
    };
    first = first.and(detached.map_err(ContainerError::machine(&record.id)));
    for volume in &record.volumes {
        first = first.and(live.machine.remove_volume(volume).await.map_err(ContainerError::machine(&record.id)));
    }
    first
}
