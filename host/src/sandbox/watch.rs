//! Noticing that a machine ended by itself.

use std::sync::Arc;

use super::state::SandboxEvent;
use super::{Sandbox, SandboxError, SandboxRecord, SandboxState};
use crate::container;
use crate::node::Node;
use crate::sandboxer::Machine;

/// Watches the machine of a ready sandbox until it ends.
pub(super) fn spawn(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    let (node, sandbox) = (node.clone(), sandbox.clone());
    tokio::spawn(async move {
        let Ok(live) = sandbox.live("watching its machine") else { return };
        let why = end_of(live.machine).await;
        if sandbox.record.get().state == SandboxState::Ready {
            machine_ended(&node, &sandbox, why).await;
        }
    });
}

/// A broken connection is not yet the end: only a process that no longer answers is.
async fn end_of(mut machine: Machine) -> String {
    loop {
        let why = machine.wait_exit().await;
        match Machine::reconnect(machine.paths().clone()).await {
            Some(again) => machine = again,
            None => return why,
        }
    }
}

pub(super) async fn machine_ended(node: &Arc<Node>, sandbox: &Arc<Sandbox>, why: String) {
    tracing::warn!(sandbox = %sandbox.id, why, "the pod's machine ended");
    let words = why.clone();
    let changed = sandbox.record.change(move |record: &mut SandboxRecord| {
        record.state = record.state.next(SandboxEvent::MachineEnded)?;
        record.end = Some(words);
        Ok::<_, SandboxError>(())
    });
    if let Err(error) = changed.await {
        tracing::error!(sandbox = %sandbox.id, error = %crate::error_text(&error), "cannot record the machine's end");
    }
    container::end_all(node, &sandbox.id, &why).await;
}
