//! SignalProcess: one process, or all of a container or process group.

use std::io;

use bulkhead_proto::agent::{SignalProcessRequest, SignalProcessResponse};

use super::{Service, blocking, errors};
use crate::container::{Container, ContainerError};

pub(super) async fn run(service: &Service, request: SignalProcessRequest) -> ttrpc::Result<SignalProcessResponse> {
    let signal = i32::try_from(request.signal).ok().filter(|signal| (1..=64).contains(signal));
    let signal = signal.ok_or_else(|| errors::invalid(format!("{} is no signal", request.signal)))?;
    let container = service.sandbox.container(&request.container_id).map_err(errors::refuse)?;
    blocking(move || send(&container, &request, signal)).await?;
    Ok(SignalProcessResponse::new())
}

fn send(container: &Container, request: &SignalProcessRequest, signal: i32) -> Result<(), ContainerError> {
    let process = container.process(&request.exec_id)?;
    let failed = |source: io::Error| ContainerError::Io { id: container.id.clone(), step: "send a signal", source };
    match (request.all, request.exec_id.is_empty()) {
        (false, _) => process.signal(signal).map_err(failed),
        (true, true) if signal == libc::SIGKILL => Ok(container.cgroup.kill()?),
        (true, true) => {
            container.cgroup.signal(signal);
            Ok(())
        }
        // Every process is a session leader, so its group has its number.
        (true, false) if process.has_ended() => Ok(()),
        (true, false) => match crate::sys::kill_group(process.pid, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map_err(failed),
        },
    }
}
