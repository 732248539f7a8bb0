//! Stopping a pod sandbox: its containers end, machine and network go. Idempotent.

use std::sync::Arc;

use super::state::SandboxEvent;
use super::{Sandbox, SandboxError, SandboxState, release};
use crate::node::Node;

/// Stops the sandbox; returns when it holds nothing any more.
pub async fn stop(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let (node, target) = (node.clone(), sandbox.clone());
    let done = sandbox.operations.run(async move { stop_now(&node, &target).await }).await;
    done.unwrap_or_else(|| Err(SandboxError::Interrupted { id: sandbox.id.clone() }))
}

pub(super) async fn stop_now(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    match sandbox.record.get().state {
        SandboxState::Stopped | SandboxState::Removing => return Ok(()),
        // Its creation failed and could not be undone then.
        SandboxState::Creating => {
            sandbox.take(SandboxEvent::Failed).await?;
            return release::release(node, sandbox).await;
        }
        SandboxState::Ready | SandboxState::Dead | SandboxState::Stopping => {}
    }
    sandbox.take(SandboxEvent::Stop).await?;
    release::release(node, sandbox).await?;
    sandbox.take(SandboxEvent::Released).await?;
    tracing::info!(sandbox = %sandbox.id, "pod sandbox stopped");
    Ok(())
}
