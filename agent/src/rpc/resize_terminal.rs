//! ResizeTerminal: a new size for a process's terminal.

use bulkhead_proto::agent::{ResizeTerminalRequest, ResizeTerminalResponse};

use super::{Service, errors};

pub(super) fn run(service: &Service, request: &ResizeTerminalRequest) -> ttrpc::Result<ResizeTerminalResponse> {
    let process = service.sandbox.process(&request.container_id, &request.exec_id).map_err(errors::refuse)?;
    let size = |value: u32| u16::try_from(value).map_err(|_| errors::invalid(format!("{value} is no terminal size")));
    match process.io.resize(size(request.rows)?, size(request.columns)?) {
        Some(Ok(())) => Ok(ResizeTerminalResponse::new()),
        Some(Err(error)) => Err(errors::internal(&format!("cannot resize the terminal: {error}"))),
        None => Err(errors::invalid(format!("container {:?}: the process has no terminal", request.container_id))),
    }
}
