//! Running one more command in a container, waiting for its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::exec::{self, Command, Prepared};
use super::{Container, ContainerError};
use crate::guest::stdio::{Output, StreamReader};
use crate::node::Node;

/// Bytes kept of each stream (CRI: ExecSync); the rest is discarded.
const MAX_OUTPUT: usize = 16 * 1024 * 1024;

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

/// Runs `command`; its session is killed after `timeout_s` seconds (0: no limit), and when the caller goes away.
pub async fn exec_sync(
    node: &Arc<Node>,
    container: &Arc<Container>,
    command: Vec<String>,
    timeout_s: i64,
) -> Result<ExecOutput, ContainerError> {
    let prepared = exec::prepare(node, container, Command { words: command, terminal: false, stdin: false })?;
    // Dropped with this future; the task goes on and cleans up.
    let (caller, gone) = oneshot::channel::<()>();
    let task = tokio::spawn(run(prepared, timeout_s, gone));
    let result = task.await.unwrap_or_else(|_| Err(ContainerError::Interrupted { id: container.id.clone() }));
    drop(caller);
    result
}

async fn run(prepared: Prepared, timeout_s: i64, gone: oneshot::Receiver<()>) -> Result<ExecOutput, ContainerError> {
    let handle = prepared.handle.clone();
    let id = handle.container().to_owned();
    let (reply, started) = oneshot::channel();
    // A start that was begun is waited for before anything is killed, or the process would escape.
    let starting = tokio::spawn(async move {
        let streams = exec::start(prepared).await;
        let runs = streams.is_ok();
        // Nobody takes the streams when the caller has gone.
        let _ = reply.send(streams);
        runs
    });
    let whole = async {
        let interrupted = |_| ContainerError::Interrupted { id: id.clone() };
        let mut streams = started.await.map_err(interrupted)??;
        collect(&id, &mut streams.reader).await
    };
    let result = tokio::select! {
        result = whole => result,
        () = limit(timeout_s) => Err(ContainerError::ExecTimeout { id: id.clone(), seconds: timeout_s }),
        _ = gone => Err(ContainerError::Interrupted { id: id.clone() }),
    };
    if result.is_ok() {
        handle.forget().await;
    } else {
        // The answer must not wait for a guest that may not answer at all.
        tokio::spawn(async move {
            if matches!(starting.await, Ok(true)) {
                handle.kill().await;
                handle.forget().await;
            }
        });
    }
    result
}

async fn limit(seconds: i64) {
    match u64::try_from(seconds) {
        Ok(seconds @ 1..) => tokio::time::sleep(Duration::from_secs(seconds)).await,
        _ => std::future::pending().await,
    }
}

async fn collect(id: &str, reader: &mut StreamReader) -> Result<ExecOutput, ContainerError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match reader.next().await.map_err(ContainerError::guest(id))? {
            Output::Stdout(bytes) => keep(&mut stdout, &bytes),
            Output::Stderr(bytes) => keep(&mut stderr, &bytes),
            Output::Closed => {}
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
