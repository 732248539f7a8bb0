//! Changing a running container's limits.

use std::sync::Arc;

use bulkhead_proto::nri::{self, Event};
use bulkhead_proto::{agent, cri};
use protobuf::Message;

use super::{Container, ContainerError, ContainerRecord, ContainerState, resources};
use crate::node::Node;
use crate::nri::Updates;
use crate::nri::check::limits as check_limits;
use crate::nri::resources::{to_cri, to_nri as resources_of};

/// Applies `changes` in the guest, then remembers them. Values that are 0 or empty stay as they are.
pub async fn update(
    node: &Arc<Node>,
    container: &Arc<Container>,
    changes: cri::LinuxContainerResources,
) -> Result<(), ContainerError> {
    let (node, target) = (node.clone(), container.clone());
    // On a task of its own, so that plugins hear of the change although the caller went away.
    let done = tokio::spawn(async move {
        let mut changes = changes;
        let mut others = Updates::default();
        if node.nri.is_serving() {
            let (limits, updates) = node.nri.update_container(&target, resources_of(&changes)).await?;
            changes = cri::LinuxContainerResources { oom_score_adj: changes.oom_score_adj, ..to_cri(&limits) };
            others = updates;
        }
        apply(&node, &target, changes).await?;
        node.nri.container_told(Event::POST_UPDATE_CONTAINER, &target).await;
        node.nri.apply(others).await;
        Ok(())
    });
    done.await.unwrap_or_else(|_| Err(ContainerError::Interrupted { id: container.id.clone() }))
}

/// Applies what an NRI plugin wants of a container, which is not asked again.
pub async fn update_for_plugin(
    node: &Arc<Node>,
    plugin: &str,
    update: &nri::ContainerUpdate,
) -> Result<(), ContainerError> {
    let Some(limits) = update.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else { return Ok(()) };
    check_limits(plugin, limits)?;
    let container = node.containers.find("container", &update.container_id)?;
    apply(node, &container, to_cri(limits)).await
}

async fn apply(
    node: &Arc<Node>,
    container: &Arc<Container>,
    changes: cri::LinuxContainerResources,
) -> Result<(), ContainerError> {
    let (on, target) = (node.clone(), container.clone());
    container.operate(async move { update_now(&on, &target, changes).await }).await?;
    // A kubelet that does not know UpdatePodSandboxResources says it by the containers alone. The pod's operations wait for those of
    // its containers, so none of these may wait for one of the pod.
    let Ok(sandbox) = node.sandboxes.find("sandbox", &container.record.get().sandbox_id) else { return Ok(()) };
    Ok(crate::sandbox::containers_changed(node, &sandbox).await?)
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
        .await
        .map(drop)
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
