//! Noticing a container's end: its output has ended and its last line is written.

use std::sync::Arc;

use super::{Container, ContainerEvent, ContainerState, Exit};
use crate::node::{Node, now_ns};

/// Watches a container that was built until it ends.
pub(super) fn spawn(node: &Arc<Node>, container: &Arc<Container>) {
    let (node, container) = (node.clone(), container.clone());
    tokio::spawn(async move {
        let sandbox_id = container.record.get().sandbox_id.clone();
        let Ok(sandbox) = node.sandboxes.find("sandbox", &sandbox_id) else { return };
        let Ok(live) = sandbox.live("watching a container") else { return };
        // A connection that breaks means the machine's end, which the sandbox's own watcher reports to its containers.
        let Ok(end) = live.machine.wait_log(&container.id).await else { return };
        if end.lost_bytes > 0 {
            tracing::warn!(container = %container.id, bytes = end.lost_bytes, "log lines were lost: the log's disk is full");
        }
        let Some(exit) = end.exit else { return };
        let exit = exit_of(exit.code, exit.oom_killed, exit.finished_at_ns);
        tracing::info!(container = %container.id, code = exit.code, reason = exit.reason, "container ended");
        if matches!(container.record.get().state, ContainerState::Removing) {
            return;
        }
        if let Err(error) = container.take(ContainerEvent::Ended(exit)).await {
            tracing::error!(container = %container.id, error = %crate::error_text(&error), "cannot record the end");
        }
    });
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
