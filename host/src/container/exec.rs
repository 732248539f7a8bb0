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
    let whole = start_and_collect(live, id, &exec_id, process);
    let result = match u64::try_from(timeout_s) {
        Ok(seconds @ 1..) => match tokio::time::timeout(Duration::from_secs(seconds), whole).await {
            Ok(result) => result,
            Err(_) => {
                // The answer must not wait for a guest that may not answer at all.
                let (live, container) = (live.clone(), id.to_owned());
                tokio::spawn(async move { forget(&live, &container, exec_id, true).await });
                return Err(ContainerError::ExecTimeout { id: id.to_owned(), seconds: timeout_s });
            }
        },
        _ => whole.await,
    };
    forget(live, id, exec_id, false).await;
    result
}

async fn start_and_collect(
    live: &Live,
    id: &str,
    exec_id: &str,
    process: agent::Process,
) -> Result<ExecOutput, ContainerError> {
    let request = agent::ExecProcessRequest {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        process: Some(process).into(),
        ..Default::default()
    };
    live.agent.exec_process(request).await.map_err(ContainerError::guest(id))?;
    collect(live, id, exec_id).await
}

/// Forgets the process in the guest, after killing its process group if it may still run.
async fn forget(live: &Live, id: &str, exec_id: String, kill: bool) {
    if kill {
        let request = agent::SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.clone(),
            signal: SIGKILL,
            all: true,
            ..Default::default()
        };
        if let Err(error) = live.agent.signal_process(request).await {
            tracing::warn!(container = id, %error, "cannot kill a command that took too long");
        }
    }
    let request = agent::RemoveProcessRequest { container_id: id.to_owned(), exec_id, ..Default::default() };
    match live.agent.remove_process(request).await {
        Err(error) if error.code() != Some(ttrpc::Code::NOT_FOUND) => {
            tracing::warn!(container = id, %error, "cannot forget an exec'd process");
        }
        _ => {}
    }
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
