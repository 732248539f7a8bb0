//! Picking containers up after a restart: those of machines that run on are resumed, the rest ended or undone.

use std::sync::Arc;

use super::record::ContainerRecord;
use super::{Container, ContainerError, ContainerEvent, ContainerState, remove, watch};
use crate::journaled::Journaled;
use crate::node::Node;
use crate::store::Kind;

/// Loads every container of the journal, so that the sandboxes' recovery can end those of dead machines.
pub fn load(node: &Arc<Node>) -> Result<(), ContainerError> {
    for record in node.store.load::<ContainerRecord>(Kind::Container)? {
        let id = record.id.clone();
        let journaled = Journaled::new(node.store.clone(), Kind::Container, &id, record);
        node.containers.insert(Container::new(&id, journaled.observed(node.events.of_container())));
    }
    Ok(())
}

/// Resumes or undoes each, after the sandboxes were recovered.
pub async fn recover(node: &Arc<Node>) {
    for container in node.containers.all() {
        if let Err(error) = recover_one(node, &container).await {
            tracing::error!(container = %container.id, error = %crate::error_text(&error), "cannot recover the container");
        }
    }
}

async fn recover_one(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), ContainerError> {
    let record = container.record.get();
    let orphan = node.sandboxes.find("sandbox", &record.sandbox_id).is_err();
    match record.state {
        ContainerState::Creating | ContainerState::Removing => undo(node, container).await,
        _ if orphan => undo(node, container).await,
        ContainerState::Created | ContainerState::Running { .. } => {
            watch::spawn(node, container);
            Ok(())
        }
        ContainerState::Exited { .. } => Ok(()),
    }
}

/// Takes away what is left of a container that nobody wants. Idempotent.
pub(super) async fn undo(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), ContainerError> {
    let (node, target) = (node.clone(), container.clone());
    container.operate(async move { undo_now(&node, &target).await }).await
}

async fn undo_now(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), ContainerError> {
    container.take(ContainerEvent::Remove).await?;
    remove::release(node, &container.record.get()).await?;
    node.nri.remove_container(&container.id).await;
    container.record.forget()?;
    node.containers.remove(&container.id);
    Ok(())
}
