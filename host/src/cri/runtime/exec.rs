//! Exec.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::attach::{check_streams, running};
use crate::node::Node;
use crate::streaming::{Request, Streams};

pub(super) async fn exec(node: &Arc<Node>, request: cri::ExecRequest) -> Result<cri::ExecResponse, Status> {
    if request.cmd.is_empty() {
        return Err(Status::invalid_argument("cmd is empty; name the command to execute"));
    }
    let streams =
        Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.tty };
    check_streams(streams)?;
    let container = running(node, &request.container_id)?;
    let url = node.streaming.url(Request::Exec { container, command: request.cmd, streams })?;
    Ok(cri::ExecResponse { url })
}
