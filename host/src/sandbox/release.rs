//! Giving back what a sandbox holds. Every step is idempotent and finds its object by the sandbox's id, so that it can
//! be repeated after a crash at any point.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::{Sandbox, SandboxError, native, run};
use crate::container;
use crate::node::Node;
use crate::sandboxer::Machine;
use crate::sys;

/// Longest wait for a process that was told to end before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends the machine and releases network and cgroup; the run directory stays.
pub(super) async fn release(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let id = sandbox.id.as_str();
    let record = sandbox.record.get();
    // Nothing of the pod may run on with an address that the plugins give away.
    native::kill_containers(node, &record).await;
    // Both take their time, and neither waits for the other: an interface may go before the process that had it.
    let (ended, detached) = tokio::join!(
        end_machine(node, sandbox),
        // Another boot's namespace is gone, but the plugins' own records (addresses) are not.
        node.network.teardown(run::network_request(&record), record.network.as_ref())
    );
    ended?;
    sandbox.set_live(None);
    // Before anything that can fail: nobody may wait for containers of a machine that is gone.
    container::end_all(node, id, "its pod sandbox was stopped").await;
    detached.map_err(SandboxError::step(id, "network removal"))?;
    remove_cgroup(node, sandbox).await?;
    let netns = record.netns();
    let (name, shares_host, config) = (id.to_owned(), record.shares_host(), node.config.clone());
    let rest = tokio::task::spawn_blocking(move || {
        sys::netns::remove(&netns).map_err(SandboxError::step(&name, "removal of the network namespace"))?;
        if shares_host {
            let removed = native::remove_layers(&config, &name);
            removed.map_err(SandboxError::step(&name, "removal of the writable layers"))?;
        }
        Ok(())
    });
    rest.await.map_err(|_| SandboxError::Interrupted { id: id.to_owned() })?
}

/// Kills what is left in the pod's cgroup and removes it. One that is gone is success.
pub(super) async fn remove_cgroup(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let id = sandbox.id.clone();
    let Some(hierarchy) = node.cgroups.clone() else { return Ok(()) };
    let cgroup = sandbox.record.get().cgroup();
    let failed = SandboxError::step(&sandbox.id, "removal of the cgroup");
    let removal = move || hierarchy.cgroup(&cgroup).and_then(|cgroup| cgroup.remove(END_TIMEOUT));
    match tokio::task::spawn_blocking(removal).await {
        Ok(removed) => removed.map_err(failed),
        Err(_) => Err(SandboxError::Interrupted { id }),
    }
}

/// Ends the per-pod process, and with it everything that it parents. A process that is gone is success.
pub(super) async fn end_machine(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let paths = sandbox.record.get().paths(&node.config);
    let failed_to_connect = SandboxError::step(&sandbox.id, "connection to the machine");
    let Some((machine, process)) = Machine::find(paths).await.map_err(failed_to_connect)? else { return Ok(()) };
    let failed = |source: std::io::Error| SandboxError::step(&sandbox.id, "end of the machine")(source);
    if machine.shutdown().await.is_err() {
        process.signal(Signal::KILL).map_err(failed)?;
    }
    if tokio::time::timeout(END_TIMEOUT, process.wait()).await.is_err() {
        tracing::warn!(sandbox = %sandbox.id, "bulkhead-vmm did not end when told; killing it");
        process.signal(Signal::KILL).map_err(failed)?;
        process.wait().await.map_err(failed)?;
    }
    Ok(())
}

/// Removes the run directory and the record.
pub(super) async fn forget(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let dir = sandbox.record.get().paths(&node.config);
    match std::fs::remove_dir_all(dir.dir()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(SandboxError::step(&sandbox.id, "removal of the run directory")(e));
        }
        _ => {}
    }
    sandbox.record.forget()?;
    if let Some(user) = sandbox.record.get().user {
        node.users.give_back(user);
    }
    node.sandboxes.remove(&sandbox.id);
    Ok(())
}
