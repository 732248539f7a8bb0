//! The process that holds the pod's PID, IPC and UTS namespaces.

use std::os::fd::{AsFd, OwnedFd};

use super::cgroups::Cgroup;
use super::launch::{Control, LaunchError, Launcher};
use crate::helper::spec::{PauseSpec, Spec};

/// Dropping it ends the namespaces.
#[derive(Debug)]
pub struct Pause {
    /// Of the holder.
    pub pidfd: OwnedFd,
    _control: Control,
}

impl Pause {
    /// Starts the holder; `spec` need not name the cgroup. Blocking.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn start(launcher: &Launcher, cgroup: &Cgroup, spec: PauseSpec) -> Result<Self, LaunchError> {
        let cgroup = cgroup.directory().map_err(|error| LaunchError::Refused(error.to_string()))?;
        let launched = launcher.launch(&Spec::Pause(PauseSpec { cgroup: 0, ..spec }), &[cgroup.as_fd()])?;
        Ok(Self { pidfd: launched.pidfd, _control: launched.control })
    }
}
