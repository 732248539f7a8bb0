//! What the process may use up, as far as no cgroup says it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::plan::{JailError, Plan, step};

/// Image parts, logs, connections of the guest and their sockets, each far from its own limit at the same time.
const DESCRIPTORS: u64 = 16 * 1024;
/// vCPUs, devices, one thread for each container's log. A user id's tasks are this process's threads.
const THREADS: u64 = 2048;

/// No limit on file sizes: logs and the scratch drive have their own, and share the process.
pub(super) fn apply(_plan: &Plan) -> Result<(), JailError> {
    let limits = [
        // Guest memory in a core file would be the tenant's secrets on the host's disk.
        (Resource::Core, 0),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Nproc, THREADS),
        (Resource::Msgqueue, 0),
    ];
    for (resource, limit) in limits {
        let maximum = getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit));
        let both = Rlimit { current: Some(maximum), maximum: Some(maximum) };
        step("limit the process's resources", setrlimit(resource, both))?;
    }
    Ok(())
}
