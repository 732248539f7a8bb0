//! UpdateContainer: other limits, all or none.

use std::fs;
use std::io;
use std::sync::Arc;

use bulkhead_proto::agent::{Resources, UpdateContainerRequest, UpdateContainerResponse};

use super::{Service, blocking, errors};
use crate::container::cgroups::CgroupError;
use crate::container::{Container, ContainerError, limits};
use crate::sandbox::Sandbox;

pub(super) async fn run(service: &Service, request: UpdateContainerRequest) -> ttrpc::Result<UpdateContainerResponse> {
    let container = service.sandbox.container(&request.container_id).map_err(errors::refuse)?;
    let sandbox = Arc::clone(&service.sandbox);
    let resources = request.resources.into_option().unwrap_or_default();
    let oom_score_adj = request.oom_score_adj;
    blocking(move || update(&sandbox, &container, &resources, oom_score_adj)).await?;
    Ok(UpdateContainerResponse::new())
}

fn update(
    sandbox: &Sandbox,
    container: &Container,
    resources: &Resources,
    oom_score_adj: Option<i32>,
) -> Result<(), ContainerError> {
    let (settings, missing) = sandbox.cgroup.applicable(limits::settings(resources)?);
    if !missing.is_empty() {
        return Err(CgroupError::NoController(missing.join(", ")).into());
    }
    if let Some(adj) = oom_score_adj {
        set_oom_score_adj(container, adj)?;
    }
    Ok(container.cgroup.apply(&settings)?)
}

/// Of all that run; their children inherit it.
fn set_oom_score_adj(container: &Container, adj: i32) -> Result<(), ContainerError> {
    for pid in container.cgroup.processes() {
        match fs::write(format!("/proc/{pid}/oom_score_adj"), adj.to_string()) {
            Ok(()) => {}
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(source) => {
                let step = "change oom_score_adj (a lower one takes CAP_SYS_RESOURCE)";
                return Err(ContainerError::Io { id: container.id.clone(), step, source });
            }
        }
    }
    Ok(())
}
