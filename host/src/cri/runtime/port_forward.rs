//! PortForward.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;
use crate::streaming::Request;

pub(super) async fn port_forward(
    node: &Arc<Node>,
    request: cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, Status> {
    let sandbox = node.sandboxes.find("sandbox", &request.pod_sandbox_id)?;
    sandbox.live("forwarding a port")?;
    let port = |port: &i32| {
        let valid = u16::try_from(*port).ok().filter(|port| *port != 0);
        valid.ok_or_else(|| Status::invalid_argument(format!("port {port} is no TCP port")))
    };
    let ports = request.port.iter().map(port).collect::<Result<_, _>>()?;
    let url = node.streaming.url(Request::PortForward { sandbox: sandbox.id.clone(), ports })?;
    Ok(cri::PortForwardResponse { url })
}
