//! How big the machine of a sandbox has to be.

use bulkhead_proto::launch::Monitor;

use super::{SandboxError, SandboxRecord};
use crate::node::Node;
use crate::sandboxer::sizing::{CgroupLimit, Demand, Size};
use crate::sys;

/// From what the kubelet says of the pod, and what its cgroup allows.
pub(super) fn of(node: &Node, record: &SandboxRecord, monitor: &Monitor) -> Result<Size, SandboxError> {
    let demand = Demand {
        handler: &record.runtime_handler,
        config: &record.handler,
        monitor,
        linux: record.config.linux.as_ref(),
        cgroup: cgroup_limit(node, record),
        host_cpus: sys::host::cpus(),
    };
    Ok(demand.size()?)
}

fn cgroup_limit(node: &Node, record: &SandboxRecord) -> CgroupLimit {
    let parent = record.cgroup_parent().zip(node.cgroups.as_ref());
    let cgroup = parent.and_then(|(parent, hierarchy)| hierarchy.cgroup(&parent).ok());
    match cgroup.and_then(|cgroup| cgroup.memory_max()) {
        None => CgroupLimit::Unknown,
        Some(None) => CgroupLimit::None,
        Some(Some(bytes)) => CgroupLimit::Bytes(bytes),
    }
}
