//! Info: who answers.

use bulkhead_proto::AGENT_PROTOCOL_VERSION;
use bulkhead_proto::agent::InfoResponse;

use super::Service;

pub(super) fn run(service: &Service) -> InfoResponse {
    let mut info = InfoResponse::new();
    info.protocol_version = AGENT_PROTOCOL_VERSION;
    info.agent_version = env!("CARGO_PKG_VERSION").into();
    info.kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
    let system = rustix::system::sysinfo();
    // Both fields have the width of a C long.
    #[allow(clippy::useless_conversion)]
    let total = u64::from(system.totalram);
    info.memory_total_bytes = total * u64::from(system.mem_unit.max(1));
    info.cpus_online = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    info.boot_us = service.boot_us;
    info.cgroup_controllers = service.sandbox.cgroup.controllers().to_vec();
    info
}
