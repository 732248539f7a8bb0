//! SignalProcess: one process, or all of a container or process group.

use std::io;

use bulkhead_proto::agent::{SignalProcessRequest, SignalProcessResponse};

use super::{Service, blocking, errors};
use crate::container::signal::send_to_first;
use crate::container::{Container, ContainerError};
use crate::sys;

pub(super) async fn run(service: &Service, request: SignalProcessRequest) -> ttrpc::Result<SignalProcessResponse> {
    let signal = i32::try_from(request.signal).ok().filter(|signal| (1..=64).contains(signal));
    let signal = signal.ok_or_else(|| errors::invalid(format!("{} is no signal", request.signal)))?;
    let container = service.sandbox.container(&request.container_id).map_err(errors::refuse)?;
    blocking(move || send(&container, &request, signal)).await?;
    Ok(SignalProcessResponse::new())
}

fn send(container: &Container, request: &SignalProcessRequest, signal: i32) -> Result<(), ContainerError> {
    let process = container.process(&request.exec_id)?;
    if signal == libc::SIGKILL && request.exec_id.is_empty() {
        container.expect_kill();
    }
    let failed = |source: io::Error| ContainerError::Io { id: container.id.clone(), step: "send a signal", source };
    match (request.all, request.exec_id.is_empty()) {
        (false, true) => send_to_first(&process, signal).map_err(failed),
        (false, false) => process.signal(signal).map_err(failed),
        (true, true) if signal == libc::SIGKILL => Ok(container.cgroup.kill()?),
        (true, true) => {
            container.cgroup.signal(signal);
            Ok(())
        }
        (true, false) if process.has_ended() => Ok(()),
        (true, false) => signal_session(process.pid, signal).map_err(failed),
    }
}

/// Every exec'd process leads a session and a group, both of its number. A signal that ends processes reaches the
/// groups that a shell has made for its jobs, too.
fn signal_session(leader: i32, signal: i32) -> io::Result<()> {
    let found = if signal == libc::SIGKILL { sys::session_members(leader) } else { Vec::new() };
    match sys::kill_group(leader, signal) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
        _ => {}
    }
    for pid in found {
        // Its end came first.
        let _ = sys::kill_process(pid, signal);
    }
    Ok(())
}
