//! StartContainer: the exec of the command.

use bulkhead_proto::agent::{StartContainerRequest, StartContainerResponse};

use super::{Service, blocking, errors};

pub(super) async fn run(service: &Service, request: StartContainerRequest) -> ttrpc::Result<StartContainerResponse> {
    let container = service.sandbox.container(&request.container_id).map_err(errors::refuse)?;
    let mut response = StartContainerResponse::new();
    response.started_at_ns = blocking(move || container.start()).await?;
    Ok(response)
}
