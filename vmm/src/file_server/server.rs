//! The process that answers the guest's FUSE requests, with no more rights than that takes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, PassthroughFs};
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::ServerError;
use super::namespace::{own_descriptors, step};

/// How long the guest may believe what it knows of a file that the host may change.
const CACHE: Duration = Duration::from_secs(1);
/// Requests at a time: one that hangs in a network file system does not stop the others.
const THREADS: usize = 4;
/// Descriptors kept from the guest, for the server itself.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Capabilities that acting for any user of the guest takes.
const CAPABILITIES: [CapabilitySet; 9] = [
    CapabilitySet::CHOWN,
    CapabilitySet::DAC_OVERRIDE,
    CapabilitySet::DAC_READ_SEARCH,
    CapabilitySet::FOWNER,
    CapabilitySet::FSETID,
    CapabilitySet::SETGID,
    CapabilitySet::SETUID,
    CapabilitySet::MKNOD,
    CapabilitySet::SETFCAP,
];

/// Serves one vhost-user connection to its end. `descriptors` is how many the process may have open.
///
/// # Errors
/// When the server cannot start or loses the connection in the middle of a message.
pub fn run(listener: UnixListener, proc: OwnedFd, descriptors: u64) -> Result<(), ServerError> {
    let own = own_descriptors(proc)?;
    let config = Config {
        entry_timeout: CACHE,
        attr_timeout: CACHE,
        cache_policy: CachePolicy::Auto,
        root_dir: "/".into(),
        xattr: true,
        proc_sfd_rawfd: Some(File::from(own)),
        announce_submounts: true,
        inode_file_handles: InodeFileHandlesMode::Never,
        guest_fd_limit: descriptors.saturating_sub(RESERVED_DESCRIPTORS),
        ..Config::default()
    };
    let files = step("open the volume tree", PassthroughFs::new(config))?;
    step("drop capabilities", restrict())?;
    enable_seccomp(SeccompAction::Kill, false).map_err(|error| ServerError::Seccomp(error.to_string()))?;
    let failed = |what: String| ServerError::VhostUser(what);
    let backend = VhostUserFsBackendBuilder::default().set_thread_pool_size(THREADS).build(files);
    let backend = Arc::new(backend.map_err(|error| failed(error.to_string()))?);
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon =
        VhostUserDaemon::new("volumes".into(), backend, memory).map_err(|error| failed(error.to_string()))?;
    let served = daemon.start(&mut Listener::from(listener)).and_then(|()| daemon.wait());
    match served {
        Ok(()) | Err(DaemonError::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) => Ok(()),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Gives up every capability that the list does not have, for good.
fn restrict() -> rustix::io::Result<()> {
    let mut keep = CapabilitySet::empty();
    for capability in CAPABILITIES {
        keep |= capability;
    }
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if keep.contains(capability) {
            continue;
        }
        // Behind the kernel's last capability.
        if rustix::thread::remove_capability_from_bounding_set(capability) == Err(rustix::io::Errno::INVAL) {
            break;
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)
}
