//! Removing a pod sandbox and its containers. Idempotent; a running one is stopped first, as the CRI demands.

use std::sync::Arc;

use super::state::SandboxEvent;
use super::{Sandbox, SandboxError, SandboxState, release, stop};
use crate::container;
use crate::node::Node;

/// Removes the sandbox; returns when nothing of it is left.
pub async fn remove(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let (node, target) = (node.clone(), sandbox.clone());
    let done = sandbox.operations.run(async move { remove_now(&node, &target).await }).await;
    done.unwrap_or_else(|| Err(SandboxError::Interrupted { id: sandbox.id.clone() }))
}

async fn remove_now(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    if matches!(sandbox.record.get().state, SandboxState::Removing | SandboxState::Creating) {
        // An earlier removal, or the undoing of a failed creation, did not get through.
        release::release(node, sandbox).await?;
    } else {
        stop::stop_now(node, sandbox).await?;
    }
    for container in container::of_sandbox(node, &sandbox.id) {
        container::remove(node, &container)
            .await
            .map_err(SandboxError::step(&sandbox.id, "removal of its containers"))?;
    }
    sandbox.take(SandboxEvent::Remove).await?;
    node.nri.remove_pod(&sandbox.id).await;
    release::forget(node, sandbox).await?;
    tracing::info!(sandbox = %sandbox.id, "pod sandbox removed");
    Ok(())
}
