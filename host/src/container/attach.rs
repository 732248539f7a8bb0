//! Joining a running container's own streams.

use std::sync::Arc;

use super::exec::ProcessHandle;
use super::{Container, ContainerError, ContainerState};
use crate::guest::stdio::Streams;
use crate::node::Node;

/// A copy of a container's output from now on, and its input.
#[derive(Debug)]
pub struct Attached {
    /// Output of the container; input reaches it only if it was created with `stdin`.
    pub streams: Streams,
    /// Its first process.
    pub handle: ProcessHandle,
    /// The end of this client's input is the end of the container's (`stdin_once`).
    pub closes_stdin: bool,
}

/// Attaches to the first process; any number may at one time.
pub async fn attach(node: &Arc<Node>, container: &Container, stdin: bool) -> Result<Attached, ContainerError> {
    const REQUEST: &str = "attaching";
    let record = container.record.get();
    if !matches!(record.state, ContainerState::Running { .. }) {
        let (id, state) = (record.id.clone(), record.state.name());
        return Err(ContainerError::WrongState { id, state, request: REQUEST });
    }
    let live = node.sandboxes.find("sandbox", &record.sandbox_id)?.live(REQUEST)?;
    let handle = ProcessHandle::first(live, &record.id, record.config.tty);
    let stdin = stdin && record.config.stdin;
    let streams = handle.open(false, stdin).await?;
    Ok(Attached { streams, handle, closes_stdin: stdin && record.config.stdin_once })
}
