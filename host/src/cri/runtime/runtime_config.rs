//! RuntimeConfig: which cgroup driver the kubelet must use.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;

pub(super) async fn runtime_config(
    _: &Arc<Node>,
    _request: cri::RuntimeConfigRequest,
) -> Result<cri::RuntimeConfigResponse, Status> {
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: cri::CgroupDriver::Cgroupfs as i32 };
    Ok(cri::RuntimeConfigResponse { linux: Some(linux) })
}
