//! ExecSync.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::container;
use crate::node::Node;

pub(super) async fn exec_sync(
    node: &Arc<Node>,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Status> {
    let found = node.containers.find("container", &request.container_id)?;
    let output = container::exec_sync(node, &found, request.cmd, request.timeout).await?;
    Ok(cri::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}
