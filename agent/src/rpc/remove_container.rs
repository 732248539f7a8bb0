//! RemoveContainer: everything it had is given back.

use std::sync::Arc;

use bulkhead_proto::agent::{RemoveContainerRequest, RemoveContainerResponse};

use super::{Service, blocking};

pub(super) async fn run(service: &Service, request: RemoveContainerRequest) -> ttrpc::Result<RemoveContainerResponse> {
    let sandbox = Arc::clone(&service.sandbox);
    blocking(move || sandbox.remove_container(&request.container_id)).await?;
    Ok(RemoveContainerResponse::new())
}
