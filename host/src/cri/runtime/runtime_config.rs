//! RuntimeConfig: which cgroup driver the kubelet must use.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::config::CgroupDriver;
use crate::node::Node;

pub(super) async fn runtime_config(
    node: &Arc<Node>,
    _request: cri::RuntimeConfigRequest,
) -> Result<cri::RuntimeConfigResponse, Status> {
    let driver = match node.config.daemon.cgroup_driver {
        CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
    };
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver as i32 };
    Ok(cri::RuntimeConfigResponse { linux: Some(linux) })
}
