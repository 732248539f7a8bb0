//! The FUSE half: virtiofsd's pass-through file system, with no more rights than it needs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{Resource, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::FileServerError;
use crate::sys;

/// A configMap's symlink that was swapped on the host is seen within this time.
const ATTRIBUTES_HOLD: Duration = Duration::from_millis(500);
/// Descriptors that are not the guest's files.
const OWN_DESCRIPTORS: u64 = 64;

/// What acting for any user on files of any owner takes.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Serves the one monitor that connects, until it disconnects.
pub(super) fn serve(listener: UnixListener, proc: &OwnedFd, channel: UnixStream) -> Result<(), FileServerError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(FileServerError::setup("tie the server to the mounter"))?;
    enter_user_namespace(channel)?;
    let config = config(proc)?;
    drop_rights()?;
    let file_system = PassthroughFs::new(config).map_err(FileServerError::setup("open the volume tree"))?;
    let backend = VhostUserFsBackendBuilder::default()
        .set_thread_pool_size(0)
        .build(file_system)
        .map_err(|e| FileServerError::Serve(e.to_string()))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("volumes".to_owned(), Arc::new(backend), memory)
        .map_err(|e| FileServerError::Serve(format!("{e:?}")))?;
    let mut listener = Listener::from(listener);
    daemon.start(&mut listener).map_err(|e| FileServerError::Serve(format!("{e:?}")))?;
    match daemon.wait() {
        Ok(()) | Err(vhost_user_backend::Error::HandleRequest(vhost::vhost_user::Error::Disconnected)) => Ok(()),
        Err(error) => Err(FileServerError::Serve(format!("{error:?}"))),
    }
}

/// All capabilities from here on count only for what this namespace maps and owns.
fn enter_user_namespace(mut channel: UnixStream) -> Result<(), FileServerError> {
    sys::new_user_namespace().map_err(FileServerError::setup("make a user namespace"))?;
    channel.write_all(b"!").map_err(FileServerError::setup::<io::Error>("tell the mounter"))?;
    channel.read_exact(&mut [0]).map_err(FileServerError::setup("wait for the id maps"))
}

fn config(proc: &OwnedFd) -> Result<Config, FileServerError> {
    let open = |path: &str, flags| {
        openat(proc, path, flags | OFlags::CLOEXEC, Mode::empty())
            .map(File::from)
            .map_err(FileServerError::setup("open /proc/self"))
    };
    let limits = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limits.maximum, maximum: limits.maximum };
    setrlimit(Resource::Nofile, raised).map_err(FileServerError::setup("raise the limit of open files"))?;
    Ok(Config {
        entry_timeout: ATTRIBUTES_HOLD,
        attr_timeout: ATTRIBUTES_HOLD,
        cache_policy: CachePolicy::Auto,
        root_dir: "/".into(),
        xattr: true,
        proc_sfd_rawfd: Some(open("self/fd", OFlags::PATH)?),
        proc_mountinfo_rawfd: Some(open("self/mountinfo", OFlags::RDONLY)?),
        announce_submounts: true,
        readdirplus: true,
        guest_fd_limit: limits.maximum.unwrap_or(1 << 20).saturating_sub(OWN_DESCRIPTORS),
        ..Default::default()
    })
}

fn drop_rights() -> Result<(), FileServerError> {
    for capability in CapabilitySet::all().difference(NEEDED).iter() {
        match remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know cannot be had either.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(FileServerError::setup("limit the bounding set")(error)),
        }
    }
    let sets = CapabilitySets { effective: NEEDED, permitted: NEEDED, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(FileServerError::setup("drop capabilities"))?;
    set_no_new_privs(true).map_err(FileServerError::setup("set no_new_privs"))?;
    enable_seccomp(SeccompAction::Kill, false).map_err(|e| FileServerError::Serve(format!("seccomp: {e}")))
}
