//! ExecProcess: a further command in a running container.

use std::sync::Arc;

use bulkhead_proto::agent::{ExecProcessRequest, ExecProcessResponse};

use super::{Service, blocking, errors};

pub(super) async fn run(service: &Service, request: ExecProcessRequest) -> ttrpc::Result<ExecProcessResponse> {
    let container = service.sandbox.container(&request.container_id).map_err(errors::refuse)?;
    let sandbox = Arc::clone(&service.sandbox);
    let process = request.process.into_option().unwrap_or_default();
    let pid = blocking(move || container.exec(&sandbox, &request.exec_id, &process)).await?;
    let mut response = ExecProcessResponse::new();
    response.pid = pid.cast_unsigned();
    Ok(response)
}
