//! Noticing that a machine ended by itself.

use std::sync::Arc;

use super::state::SandboxEvent;
use super::{Sandbox, SandboxError, SandboxRecord, SandboxState, native, release};
use crate::container;
use crate::node::Node;
use crate::sandboxer::Machine;
use crate::sandboxer::place::PROCESS_LEAF;

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
        match machine.again().await {
            Some(again) => machine = again,
            None => return why,
        }
    }
}

pub(super) async fn machine_ended(node: &Arc<Node>, sandbox: &Arc<Sandbox>, why: String) {
    let (why, reason) = match oom_kills(node, &sandbox.record.get()) {
        0 => (why, "Error"),
        _ => (format!("the host's kernel killed the pod's machine for memory: {why}"), "OOMKilled"),
    };
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
    native::kill_containers(node, &sandbox.record.get()).await;
    container::end_all_for(node, &sandbox.id, &why, reason).await;
    // The network stays until the sandbox is stopped: its namespace and the plugins' records go together.
    if let Err(error) = release::remove_cgroup(node, sandbox).await {
        tracing::warn!(sandbox = %sandbox.id, error = %crate::error_text(&error), "its cgroup stays until it is stopped");
    }
}

/// How many of the processes that carry the pod the host's kernel has killed for memory; asked before the cgroup goes.
fn oom_kills(node: &Node, record: &SandboxRecord) -> u64 {
    let names = [record.cgroup(), record.cgroup().join(PROCESS_LEAF)];
    let cgroups = names.iter().filter_map(|name| node.cgroups.as_ref()?.cgroup(name).ok());
    cgroups.map(|cgroup| cgroup.oom_kills()).sum()
}
