//! Stopping a pod sandbox: its containers end, machine and network go. Idempotent.

use std::sync::Arc;
use std::time::Duration;

use super::state::SandboxEvent;
use super::{Sandbox, SandboxError, SandboxState, release};
use crate::container;
use crate::node::Node;

/// Longest wait for the end of containers before their machine is ended.
const CONTAINERS_END: Duration = Duration::from_secs(2);

/// Stops the sandbox; returns when it holds nothing any more.
pub async fn stop(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let (node, target) = (node.clone(), sandbox.clone());
    let done = sandbox.operations.run(async move { stop_now(&node, &target).await }).await;
    done.unwrap_or_else(|| Err(SandboxError::Interrupted { id: sandbox.id.clone() }))
}

/// Kills what still runs, as far as the guest answers; what does not end here ends with its machine.
async fn end_containers(node: &Arc<Node>, sandbox: &Sandbox) {
    let all = container::of_sandbox(node, &sandbox.id);
    let ends = all.iter().map(|container| container::stop(node, container, Duration::ZERO));
    let _ = tokio::time::timeout(CONTAINERS_END, futures_util::future::join_all(ends)).await;
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
    // Plugins are told of the pod's stop while its network is still there, and after its containers' ends, for which its agent
    // must still be asked.
    let tells_plugins = node.nri.is_serving();
    if tells_plugins {
        end_containers(node, sandbox).await;
    }
    sandbox.take(SandboxEvent::Stop).await?;
    if tells_plugins {
        node.nri.stop_pod(&sandbox.id).await;
    }
    release::release(node, sandbox).await?;
    sandbox.take(SandboxEvent::Released).await?;
    tracing::info!(sandbox = %sandbox.id, "pod sandbox stopped");
    Ok(())
}
