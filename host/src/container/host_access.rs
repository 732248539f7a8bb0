//! Whether a container can be given what is the host's own: its processes, devices, mounts.

use super::ContainerError;
use crate::config::Config;
use crate::sandbox::SandboxRecord;
use crate::sys::userns::Mapping;

/// What a pod's runtime handler says to a request for something of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostAccess {
    /// The containers run on the host's kernel, in this user namespace where the pod has its own.
    Given(Option<Mapping>),
    /// They run in a VM; the words name the handler that could.
    Refused(String),
}

impl HostAccess {
    /// For the containers of this sandbox.
    pub(super) fn of(sandbox: &SandboxRecord, config: &Config) -> Self {
        if sandbox.shares_host() { Self::Given(sandbox.users()) } else { Self::Refused(config.native_handlers()) }
    }

    /// The pod's user namespace, where it is not the host's.
    pub(super) fn users(&self) -> Option<Mapping> {
        if let Self::Given(users) = self { *users } else { None }
    }

    /// Nothing, or the refusal of `field`, which asks for what the words `wanted` say.
    pub(super) fn ask(&self, field: &str, wanted: &str) -> Result<(), ContainerError> {
        match self {
            Self::Given(_) => Ok(()),
            Self::Refused(who) => {
                Err(ContainerError::Invalid(format!("{field} asks for {wanted}, which a VM cannot give; {who}")))
            }
        }
    }
}
