//! Noticing a container's end: its output has ended and its last line is written.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent;

use super::{Container, ContainerEvent, ContainerState, Exit};
use crate::node::{Node, now_ns};
use crate::sandbox::Live;

/// A guest that does not answer in this time is left to the watcher of its machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Watches a container that was built until it ends.
pub(super) fn spawn(node: &Arc<Node>, container: &Arc<Container>) {
    let (node, container) = (node.clone(), container.clone());
    tokio::spawn(async move {
        let sandbox_id = container.record.get().sandbox_id.clone();
        let Ok(sandbox) = node.sandboxes.find("sandbox", &sandbox_id) else { return };
        let Ok(live) = sandbox.live("watching a container") else { return };
        let exit = match output_end(&live, &container.id).await {
            Some(exit) => exit,
            // The machine's end is reported to its containers by the sandbox's own watcher.
            None if sandbox.live("watching a container").is_err() || !answers(&live).await => return,
            None => lost(&live, &container).await,
        };
        tracing::info!(container = %container.id, code = exit.code, reason = exit.reason, "container ended");
        if matches!(container.record.get().state, ContainerState::Removing) {
            return;
        }
        if let Err(error) = container.take(ContainerEvent::Ended(exit)).await {
            tracing::error!(container = %container.id, error = %crate::error_text(&error), "cannot record the end");
        }
        node.nri.container_ended(&container.id).await;
    });
}

/// The exit at the end of the container's output; `None` when the stream, or the machine, ended without one.
async fn output_end(live: &Live, id: &str) -> Option<Exit> {
    let end = match live.machine.wait_log(id).await {
        Ok(end) => end,
        // The connection may break while the process lives; another one asks the same question again.
        Err(_) => live.machine.again().await?.wait_log(id).await.ok()?,
    };
    if end.lost_bytes > 0 {
        tracing::warn!(container = id, bytes = end.lost_bytes, "log lines were lost: the log's disk is full");
    }
    end.exit.map(|exit| exit_of(exit.code, exit.oom_killed, exit.finished_at_ns))
}

/// Whether the guest lives: a stream that breaks is usually the first sign of its end.
async fn answers(live: &Live) -> bool {
    let asked = live.agent.info(agent::InfoRequest::new());
    matches!(tokio::time::timeout(PATIENCE, asked).await, Ok(Ok(_)))
}

/// A container whose output broke off in a guest that lives cannot be followed any more: it is killed.
async fn lost(live: &Live, container: &Container) -> Exit {
    let request =
        agent::SignalProcessRequest { container_id: container.id.clone(), signal: 9, all: true, ..Default::default() };
    if let Err(error) = live.agent.signal_process(request).await {
        tracing::warn!(container = %container.id, %error, "cannot kill a container whose output broke off");
    }
    let message = "its output stream broke off, so it was killed".to_owned();
    Exit { code: 137, reason: "Error".into(), message, finished_at: now_ns() }
}

/// What the kubelet reads from an exit.
pub(super) fn exit_of(code: i32, oom_killed: bool, finished_at_ns: i64) -> Exit {
    let reason = match (oom_killed, code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    let now = now_ns();
    let finished_at = if (1..=now).contains(&finished_at_ns) { finished_at_ns } else { now };
    Exit { code: code.clamp(0, 255), reason: reason.into(), message: String::new(), finished_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_follow_the_kubelet() {
        assert_eq!(exit_of(0, false, 5).reason, "Completed");
        assert_eq!(exit_of(3, false, 5).reason, "Error");
        let oom = exit_of(137, true, i64::MAX);
        assert!(oom.reason == "OOMKilled" && oom.finished_at <= now_ns());
    }
}
