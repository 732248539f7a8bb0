//! Picking up after a restart: every record is finished, resumed or undone.

use std::sync::Arc;

use super::state::SandboxEvent;
use super::{Link, Live, Sandbox, SandboxError, SandboxRecord, SandboxState, release, remove, stop, watch};
use crate::container;
use crate::guest::GuestError;
use crate::journaled::Journaled;
use crate::node::Node;
use crate::sandboxer::Machine;
use crate::store::Kind;
use crate::version::VersionError;

/// Loads every sandbox of the journal. Called once, before the first request and after the containers were loaded.
pub async fn recover(node: &Arc<Node>) -> Result<(), SandboxError> {
    for record in node.store.load::<SandboxRecord>(Kind::Sandbox)? {
        let id = record.id.clone();
        if let Some(user) = record.user {
            node.users.keep(user);
        }
        let journaled = Journaled::new(node.store.clone(), Kind::Sandbox, &id, record);
        node.sandboxes.insert(Sandbox::new(&id, journaled.observed(node.events.of_sandbox())));
    }
    let holds =
        |id: &str| node.sandboxes.find("sandbox", id).is_ok_and(|sandbox| sandbox.record.get().boot_id == node.boot_id);
    if let Err(error) = node.network.recover(holds).await {
        tracing::error!(error = %crate::error_text(&error), "cannot take up the pods' host ports");
    }
    // Side by side: one pod that hangs must not hold up the others.
    let all = node.sandboxes.all();
    futures_util::future::join_all(all.iter().map(|sandbox| async {
        if let Err(error) = recover_one(node, sandbox).await {
            // The record stays, and with it the knowledge of what to undo at the next attempt.
            tracing::error!(sandbox = %sandbox.id, error = %crate::error_text(&error), "cannot recover the sandbox");
        }
    }))
    .await;
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
        SandboxState::Dead | SandboxState::Stopped => {
            let why = sandbox.record.get().end.clone().unwrap_or_else(|| "its pod sandbox was stopped".to_owned());
            container::end_all(node, &sandbox.id, &why).await;
            Ok(())
        }
    }
}

async fn resume(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let record = sandbox.record.get();
    let paths = record.paths(&node.config);
    let mut silent = None;
    let found = match Machine::reconnect(paths.clone()).await {
        Ok(Some(machine)) if record.boot_id == node.boot_id => match Live::connect_again(machine, &record).await {
            Ok(live) => Some(live),
            Err(GuestError::Version(foreign)) => return leave(sandbox, foreign),
            Err(error) => {
                silent = Some(crate::error_text(&error));
                None
            }
        },
        Err(foreign) if record.boot_id == node.boot_id => return leave(sandbox, foreign),
        _ => None,
    };
    match found {
        Some(live) => {
            sandbox.set_live(Some(live));
            watch::spawn(node, sandbox);
            tracing::info!(sandbox = %sandbox.id, "pod sandbox runs on");
            tokio::spawn(check_network(node.clone(), sandbox.id.clone()));
        }
        None => {
            // A machine that runs without an agent that answers is of no use to anybody.
            release::end_machine(node, sandbox).await?;
            let why = match (silent, paths.exit_record()) {
                (Some(error), _) => format!("its agent did not answer the restarted daemon: {error}"),
                (None, Some(end)) => end.message,
                (None, None) if record.boot_id != node.boot_id => "the host was restarted".to_owned(),
                (None, None) => "its machine vanished while the daemon was down".to_owned(),
            };
            watch::machine_ended(node, sandbox, why).await;
        }
    }
    Ok(())
}

/// Nothing is done to a pod that a newer release made, before an older daemon took over: its users lose nothing by waiting.
fn leave(sandbox: &Sandbox, foreign: VersionError) -> Result<(), SandboxError> {
    tracing::error!(sandbox = %sandbox.id, "{foreign}");
    sandbox.set_link(Link::Foreign(foreign));
    Ok(())
}

/// CNI CHECK: tells when the pod's network was changed while nobody looked; the pod runs on all the same.
async fn check_network(node: Arc<Node>, id: String) {
    if let Err(error) = node.network.check(&id).await {
        tracing::warn!(sandbox = %id, error = %crate::error_text(&error), "the pod's network is not as it was set up");
    }
}
