//! Stopping a container: its stop signal, then SIGKILL to everything in it. Idempotent.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::{agent, cri};

use super::{Container, ContainerError, ContainerEvent, ContainerRecord, ContainerState, Exit};
use crate::node::{Node, now_ns};
use crate::sandbox::Live;

/// Longest wait for the end after SIGKILL, in seconds.
const KILL_TIMEOUT_S: u64 = 10;
/// Longest wait for the report of a machine's end.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// Stops the container, giving it `grace` to end by itself; returns when it ended, and NRI plugins know it.
pub async fn stop(node: &Arc<Node>, container: &Arc<Container>, grace: Duration) -> Result<(), ContainerError> {
    let stopped = end(node, container, grace).await;
    if stopped.is_ok() {
        node.nri.container_ended(&container.id).await;
    }
    stopped
}

async fn end(node: &Arc<Node>, container: &Arc<Container>, grace: Duration) -> Result<(), ContainerError> {
    // Not queued behind other steps: a kubelet that shortens the grace must not wait for the longer one.
    let record = container.record.get();
    if ended(&record) {
        return Ok(());
    }
    let sandbox = node.sandboxes.find("sandbox", &record.sandbox_id)?;
    let Ok(live) = sandbox.live("stopping a container") else {
        return end_with_machine(container).await;
    };
    if !grace.is_zero() {
        signal(&live, &record.id, stop_signal(&record), false).await?;
        if tokio::time::timeout(grace, container.record.wait_until(ended)).await.is_ok() {
            return Ok(());
        }
    }
    signal(&live, &record.id, SIGKILL, true).await?;
    let limit = Duration::from_secs(KILL_TIMEOUT_S);
    match tokio::time::timeout(limit, container.record.wait_until(ended)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(ContainerError::StopTimeout { id: record.id.clone(), seconds: KILL_TIMEOUT_S }),
    }
}

/// The machine's end ends its containers; that report may still be on its way, or have been lost with a daemon.
async fn end_with_machine(container: &Arc<Container>) -> Result<(), ContainerError> {
    if tokio::time::timeout(REPORT_TIMEOUT, container.record.wait_until(ended)).await.is_ok() {
        return Ok(());
    }
    let message = "its pod's machine is gone".to_owned();
    let exit = Exit { code: 137, reason: "Error".into(), message, finished_at: now_ns() };
    container.take(ContainerEvent::Ended(exit)).await
}

fn ended(record: &ContainerRecord) -> bool {
    matches!(record.state, ContainerState::Exited { .. } | ContainerState::Removing)
}

/// A process that is gone already needs no signal.
async fn signal(live: &Live, id: &str, signal: u32, all: bool) -> Result<(), ContainerError> {
    let request = agent::SignalProcessRequest { container_id: id.to_owned(), signal, all, ..Default::default() };
    match live.agent.signal_process(request).await {
        Err(error) if error.code() != Some(ttrpc::Code::NOT_FOUND) && error.code().is_some() => {
            tracing::debug!(container = id, %error, "signal not delivered");
            Ok(())
        }
        Err(error) if error.code().is_none() => Err(ContainerError::guest(id)(error)),
        _ => Ok(()),
    }
}

fn stop_signal(record: &ContainerRecord) -> u32 {
    if let Ok(signal) = cri::Signal::try_from(record.config.stop_signal)
        && let Some(number) = signal_number(signal.as_str_name())
    {
        return number;
    }
    record.image_stop_signal.as_deref().and_then(signal_number).unwrap_or(SIGTERM)
}

/// "SIGTERM", "TERM", "15", "SIGRTMIN+3" or the CRI's "SIGRTMINPLUS3" as a number.
pub(super) fn signal_number(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse::<u32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset =
        |rest: &str, words: [&str; 2]| words.iter().find_map(|word| rest.strip_prefix(word)?.parse::<u32>().ok());
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return if rest.is_empty() { Some(34) } else { Some(34 + offset(rest, ["PLUS", "+"])?) };
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return if rest.is_empty() { Some(64) } else { 64u32.checked_sub(offset(rest, ["MINUS", "-"])?) };
    }
    let full = format!("SIG{short}");
    full.parse::<nix::sys::signal::Signal>().ok().and_then(|signal| u32::try_from(signal as i32).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        for (name, number) in [
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("SIGRTMINPLUS3", 37),
            ("SIGRTMAX-2", 62),
            ("SIGRTMAXMINUS2", 62),
        ] {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for name in ["", "SIGNOPE", "0", "65", "SIGRTMIN+x"] {
            assert_eq!(signal_number(name), None, "{name}");
        }
    }
}
