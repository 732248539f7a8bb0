//! The process that holds the pod's PID, IPC and UTS namespaces.

use std::os::fd::OwnedFd;

use super::cgroups::Cgroup;
use super::launch::{Control, LaunchError, Launcher};
use super::request::FdTable;
use super::user_namespace::UserNamespace;
use crate::helper::spec::{PauseSpec, Spec};

/// Dropping it ends the namespaces.
#[derive(Debug)]
pub struct Pause {
    /// Of the holder.
    pub pidfd: OwnedFd,
    _control: Control,
}

impl Pause {
    /// Starts the holder; `spec` need name neither the cgroup nor the user namespace. Blocking.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn start(
        launcher: &Launcher,
        cgroup: &Cgroup,
        users: Option<&UserNamespace>,
        spec: PauseSpec,
    ) -> Result<Self, LaunchError> {
        let mut fds = FdTable::default();
        let directory = cgroup.directory().map_err(|error| LaunchError::Refused(error.to_string()))?;
        let cgroup = fds.add(directory);
        let user_namespace = users.map(|users| users.spec(&mut fds)).transpose().map_err(LaunchError::Control)?;
        let spec = Spec::Pause(PauseSpec { cgroup, user_namespace, ..spec });
        let launched = launcher.launch(&spec, &fds.borrowed())?;
        Ok(Self { pidfd: launched.pidfd, _control: launched.control })
    }
}
