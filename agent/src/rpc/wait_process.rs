//! WaitProcess: answers when a process has ended, any number of times.

use bulkhead_proto::agent::{ExitStatus, WaitProcessRequest, WaitProcessResponse};

use super::{Service, errors};

pub(super) async fn run(service: &Service, request: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
    let process = service.sandbox.process(&request.container_id, &request.exec_id).map_err(errors::refuse)?;
    let ended = process.wait().await;
    let mut status = ExitStatus::new();
    status.code = ended.code;
    status.oom_killed = ended.oom_killed;
    status.finished_at_ns = ended.finished_at_ns;
    let mut response = WaitProcessResponse::new();
    response.status = Some(status).into();
    Ok(response)
}
