//! CreateContainer: everything up to the exec of the command.

use std::sync::Arc;

use bulkhead_proto::agent::{CreateContainerRequest, CreateContainerResponse, Identity};

use super::{Service, blocking};
use crate::helper::users;

pub(super) async fn run(service: &Service, request: CreateContainerRequest) -> ttrpc::Result<CreateContainerResponse> {
    let sandbox = Arc::clone(&service.sandbox);
    let spec = request.spec.into_option().unwrap_or_default();
    let created = blocking(move || sandbox.create_container(&spec)).await?;
    let mut response = CreateContainerResponse::new();
    response.pid = created.pid.cast_unsigned();
    response.warnings = created.warnings;
    response.identity = created.identity.map(identity).into();
    Ok(response)
}

fn identity(found: users::Identity) -> Identity {
    Identity { uid: found.uid, gid: found.gid, groups: found.groups, ..Default::default() }
}
