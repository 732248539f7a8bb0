//! UpdateRuntimeConfig: the kubelet tells the pod CIDR; CNI configuration comes from files here.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;

pub(super) async fn update_runtime_config(
    _: &Arc<Node>,
    request: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, Status> {
    if let Some(network) = request.runtime_config.and_then(|config| config.network_config) {
        tracing::debug!(pod_cidr = network.pod_cidr, "pod CIDR told; CNI configuration decides");
    }
    Ok(cri::UpdateRuntimeConfigResponse {})
}
