//! Version: the kubelet checks `version` and `runtime_api_version` literally.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;

pub(super) async fn version(_: &Arc<Node>, _request: cri::VersionRequest) -> Result<cri::VersionResponse, Status> {
    Ok(cri::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "bulkhead".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    })
}
