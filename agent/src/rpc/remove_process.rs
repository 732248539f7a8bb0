//! RemoveProcess: an exec'd process is forgotten, at once or when it ends.

use bulkhead_proto::agent::{RemoveProcessRequest, RemoveProcessResponse};

use super::{Service, errors};

pub(super) fn run(service: &Service, request: &RemoveProcessRequest) -> ttrpc::Result<RemoveProcessResponse> {
    if request.exec_id.is_empty() {
        return Err(errors::invalid("the first process goes with its container: exec_id is empty".into()));
    }
    if let Ok(container) = service.sandbox.container(&request.container_id) {
        container.remove_process(&request.exec_id);
    }
    Ok(RemoveProcessResponse::new())
}
