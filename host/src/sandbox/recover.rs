//! Picking up after a restart: every record is finished, resumed or undone.

use std::sync::Arc;

use super::state::SandboxEvent;
use super::{Live, Sandbox, SandboxError, SandboxRecord, SandboxState, release, remove, stop, watch};
use crate::journaled::Journaled;
use crate::node::Node;
use crate::sandboxer::Machine;
use crate::store::Kind;

/// Loads every sandbox of the journal. Called once, before the first request and after the containers were loaded.
pub async fn recover(node: &Arc<Node>) -> Result<(), SandboxError> {
    for record in node.store.load::<SandboxRecord>(Kind::Sandbox)? {
        let id = record.id.clone();
        let sandbox = Sandbox::new(&id, Journaled::new(node.store.clone(), Kind::Sandbox, &id, record));
        node.sandboxes.insert(sandbox.clone());
        if let Err(error) = recover_one(node, &sandbox).await {
            // The record stays, and with it the knowledge of what to undo at the next attempt.
            tracing::error!(sandbox = %id, error = %crate::error_text(&error), "cannot recover the sandbox");
        }
    }
    Ok(())
}

async fn recover_one(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    match sandbox.record.get().state {
        SandboxState::Creating => {
            tracing::warn!(sandbox = %sandbox.id, "was being created when the daemon ended; undoing it");
            sandbox.take(SandboxEvent::Failed).await?;
            release::release(node, sandbox).await?;
            release::forget(node, sandbox).await
        }
        SandboxState::Ready => resume(node, sandbox).await,
        SandboxState::Stopping => stop::stop(node, sandbox).await,
        SandboxState::Removing => remove::remove(node, sandbox).await,
        SandboxState::Dead | SandboxState::Stopped => Ok(()),
    }
}

async fn resume(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let record = sandbox.record.get();
    let paths = record.paths(&node.config);
    let found = match Machine::reconnect(paths.clone()).await {
        Some(machine) if record.boot_id == node.boot_id => Live::connect(machine).await.ok(),
        _ => None,
    };
    match found {
        Some(live) => {
            sandbox.set_live(Some(live));
            watch::spawn(node, sandbox);
            tracing::info!(sandbox = %sandbox.id, "pod sandbox runs on");
        }
        None => {
            let why = match paths.exit_record() {
                Some(end) => end.message,
                None if record.boot_id != node.boot_id => "the host was restarted".to_owned(),
                None => "its machine vanished while the daemon was down".to_owned(),
            };
            watch::machine_ended(node, sandbox, why).await;
        }
    }
    Ok(())
}
