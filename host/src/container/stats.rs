//! Resource use of containers and pods, as the agent reports it.

use std::time::Duration;

use bulkhead_proto::agent;

use crate::node::Node;
use crate::sandbox::{Sandbox, SandboxState};

/// A pod that does not answer in this time has no figures now.
const PATIENCE: Duration = Duration::from_secs(3);

/// The figures of one pod; `None` when it does not run or does not answer.
pub async fn of_pod(sandbox: &Sandbox) -> Option<agent::StatsResponse> {
    let live = sandbox.live("reading its resource use").ok()?;
    match tokio::time::timeout(PATIENCE, live.agent.stats(agent::StatsRequest::new())).await {
        Ok(Ok(stats)) => Some(stats),
        Ok(Err(error)) => {
            tracing::warn!(sandbox = %sandbox.id, %error, "no resource figures");
            None
        }
        Err(_) => {
            tracing::warn!(sandbox = %sandbox.id, "no resource figures: the agent does not answer");
            None
        }
    }
}

/// The figures of every pod that runs, all asked at once.
pub async fn of_all(node: &Node) -> Vec<(String, agent::StatsResponse)> {
    let mut ready = node.sandboxes.all();
    ready.retain(|sandbox| sandbox.record.get().state == SandboxState::Ready);
    let asked = ready.iter().map(|sandbox| async { (sandbox.id.clone(), of_pod(sandbox).await) });
    let answers = futures_util::future::join_all(asked).await;
    answers.into_iter().filter_map(|(id, stats)| Some((id, stats?))).collect()
}
