//! Running one more command in a container, waiting for its end.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent;
use protobuf::Message;

use super::{Container, ContainerError, ContainerState};
use crate::guest::stdio::{Output, Streams};
use crate::node::{Node, new_id};
use crate::sandbox::Live;

/// Bytes kept of each stream (CRI: ExecSync); the rest is discarded.
const MAX_OUTPUT: usize = 16 * 1024 * 1024;
/// Longest wait for the end of a process that was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const SIGKILL: u32 = 9;

/// What a command left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
    /// 0 to 255.
    pub exit_code: i32,
}

/// Runs `command`; after `timeout_s` seconds (0: no limit) its process group is killed.
pub async fn exec_sync(
    node: &Arc<Node>,
    container: &Arc<Container>,
    command: Vec<String>,
    timeout_s: i64,
) -> Result<ExecOutput, ContainerError> {
    let record = container.record.get();
    if !matches!(record.state, ContainerState::Running { .. }) {
        let (id, state) = (record.id.clone(), record.state.name());
        return Err(ContainerError::WrongState { id, state, request: "executing a command" });
    }
    if command.is_empty() {
        return Err(ContainerError::Invalid("the command to execute is empty".into()));
    }
    let mut process = agent::Process::parse_from_bytes(&record.process)
        .map_err(|e| ContainerError::Invalid(format!("its record is damaged: {e}")))?;
    process.args = command.into_iter().map(String::into_bytes).collect();
    process.terminal = false;
    process.stdin = false;
    let sandbox = node.sandboxes.find("sandbox", &record.sandbox_id)?;
    let live = sandbox.live("executing a command")?;
    let id = record.id.clone();
    // A task of its own: the process is forgotten in the guest even when the caller goes away.
    let task = tokio::spawn(async move { run(&live, &id, process, timeout_s).await });
    task.await.unwrap_or_else(|_| Err(ContainerError::Interrupted { id: record.id.clone() }))
}

async fn run(live: &Live, id: &str, process: agent::Process, timeout_s: i64) -> Result<ExecOutput, ContainerError> {
    let exec_id = new_id();
    let request = agent::ExecProcessRequest {
        container_id: id.to_owned(),
        exec_id: exec_id.clone(),
        process: Some(process).into(),
        ..Default::default()
    };
    live.agent.exec_process(request).await.map_err(ContainerError::guest(id))?;
    let result = within(live, id, &exec_id, timeout_s).await;
    let forget = agent::RemoveProcessRequest { container_id: id.to_owned(), exec_id, ..Default::default() };
    if let Err(error) = live.agent.remove_process(forget).await {
        tracing::warn!(container = id, %error, "cannot forget an exec'd process");
    }
    result
}

async fn within(live: &Live, id: &str, exec_id: &str, timeout_s: i64) -> Result<ExecOutput, ContainerError> {
    let collected = collect(live, id, exec_id);
    let Ok(seconds @ 1..) = u64::try_from(timeout_s) else { return collected.await };
    tokio::pin!(collected);
    if let Ok(result) = tokio::time::timeout(Duration::from_secs(seconds), &mut collected).await {
        return result;
    }
    let kill = agent::SignalProcessRequest {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        signal: SIGKILL,
        all: true,
        ..Default::default()
    };
    live.agent.signal_process(kill).await.map_err(ContainerError::guest(id))?;
    let _ = tokio::time::timeout(KILL_TIMEOUT, &mut collected).await;
    Err(ContainerError::ExecTimeout { id: id.to_owned(), seconds: timeout_s })
}

async fn collect(live: &Live, id: &str, exec_id: &str) -> Result<ExecOutput, ContainerError> {
    let hello = agent::StdioHello {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        primary: true,
        ..Default::default()
    };
    let mut streams = Streams::open(live.agent.vsock(), &hello).await.map_err(ContainerError::guest(id))?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match streams.next().await.map_err(ContainerError::guest(id))? {
            Output::Stdout(bytes) => keep(&mut stdout, &bytes),
            Output::Stderr(bytes) => keep(&mut stderr, &bytes),
            Output::Exit(status) => return Ok(ExecOutput { stdout, stderr, exit_code: status.code.clamp(0, 255) }),
        }
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = MAX_OUTPUT.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_past_the_limit_is_dropped() {
        let mut kept = vec![0; MAX_OUTPUT - 2];
        keep(&mut kept, b"abc");
        keep(&mut kept, b"d");
        assert_eq!((kept.len(), &kept[MAX_OUTPUT - 2..]), (MAX_OUTPUT, &b"ab"[..]));
    }
}
