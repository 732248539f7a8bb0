//! UpdateContainer: other limits, all or none.

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
    blocking(move || update(&sandbox, &container, &resources)).await?;
    Ok(UpdateContainerResponse::new())
}

fn update(sandbox: &Sandbox, container: &Container, resources: &Resources) -> Result<(), ContainerError> {
    let (settings, missing) = sandbox.cgroup.applicable(limits::settings(resources)?);
    if !missing.is_empty() {
        return Err(CgroupError::NoController(missing.join(", ")).into());
    }
    Ok(container.cgroup.apply(&settings)?)
}
