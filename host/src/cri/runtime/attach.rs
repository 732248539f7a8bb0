//! Attach.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::container::{ContainerError, ContainerState};
use crate::node::Node;
use crate::streaming::{Request, Streams};

pub(super) async fn attach(node: &Arc<Node>, request: cri::AttachRequest) -> Result<cri::AttachResponse, Status> {
    let streams =
        Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.tty };
    check_streams(streams)?;
    let container = running(node, &request.container_id)?;
    let url = node.streaming.url(Request::Attach { container, streams })?;
    Ok(cri::AttachResponse { url })
}

/// What a client cannot ask for.
pub(super) fn check_streams(streams: Streams) -> Result<(), Status> {
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Status::invalid_argument("one of stdin, stdout and stderr must be set"));
    }
    if streams.terminal && streams.stderr {
        return Err(Status::invalid_argument("tty and stderr are both set; a terminal has one stream of output"));
    }
    Ok(())
}

/// The full id of a container that runs.
pub(super) fn running(node: &Node, id: &str) -> Result<String, Status> {
    let record = node.containers.find("container", id)?.record.get();
    match record.state {
        ContainerState::Running { .. } => Ok(record.id.clone()),
        ref state => {
            let (id, state) = (record.id.clone(), state.name());
            Err(ContainerError::WrongState { id, state, request: "streaming" }.into())
        }
    }
}
