//! The cgroup of a pod's own process, and how the process gets there.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::sys::cgroup::{Cgroup, CgroupError, Hierarchy};
use crate::systemd::{self, Slice, SystemdError};

/// Leaf of the pod's cgroup for the pod's own process: a cgroup with children has no processes of its own.
pub const PROCESS_LEAF: &str = "agent";
/// Leaf of the pod's cgroup for the containers of a pod without a machine.
pub const CONTAINERS_LEAF: &str = "containers";

/// Why a process is not in its cgroup.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlaceError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error("the process that joins cgroup {} has ended", path.display())]
    Ended { path: PathBuf },
    #[error("interrupted")]
    Interrupted,
}

/// Who makes the pod's cgroup.
#[derive(Debug, Clone)]
pub enum Owner {
    /// This daemon.
    Own,
    /// systemd, as a scope in this slice.
    Scope(Slice),
}

/// A pod's cgroup and the leaf below it where the pod's own process goes.
#[derive(Debug, Clone)]
pub struct Place {
    hierarchy: Hierarchy,
    /// Relative to the hierarchy's root.
    pod: PathBuf,
    owner: Owner,
    /// Whether there are [`PROCESS_LEAF`] and [`CONTAINERS_LEAF`].
    has_leaves: bool,
    cgroup: Cgroup,
}

impl Place {
    /// Makes what can be made before there is a process. Blocking.
    ///
    /// # Errors
    /// A name that leaves the hierarchy, or when a directory cannot be made.
    pub fn prepare(hierarchy: &Hierarchy, pod: PathBuf, owner: Owner, has_leaves: bool) -> Result<Self, CgroupError> {
        let leaf = if has_leaves { pod.join(PROCESS_LEAF) } else { pod.clone() };
        let cgroup = hierarchy.cgroup(&leaf)?;
        let place = Self { hierarchy: hierarchy.clone(), pod, owner, has_leaves, cgroup };
        // A scope is made around a process.
        if matches!(place.owner, Owner::Own) {
            hierarchy.create(&leaf)?;
            place.make_containers_leaf()?;
        }
        Ok(place)
    }

    /// Of the process.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Makes the cgroup, if that takes a process, around the one that was started; `None` is one that has ended. Gives the
    /// cgroup's directory, for the process that goes on.
    ///
    /// # Errors
    /// When the process is gone, or the cgroup's owner refuses.
    pub async fn enter(&self, pid: Option<u32>) -> Result<OwnedFd, PlaceError> {
        if matches!(self.owner, Owner::Own) {
            return Ok(self.cgroup.open()?);
        }
        let pid = pid.ok_or_else(|| PlaceError::Ended { path: self.pod.clone() })?;
        let place = self.clone();
        tokio::task::spawn_blocking(move || place.enter_now(pid)).await.map_err(|_| PlaceError::Interrupted)?
    }

    fn enter_now(&self, pid: u32) -> Result<OwnedFd, PlaceError> {
        if let Owner::Scope(slice) = &self.owner {
            let unit = self.pod.file_name().unwrap_or_default().to_string_lossy();
            systemd::start_scope(&unit, slice, "Pod sandbox of Bulkhead", pid)?;
        }
        if self.has_leaves {
            // In this order: controllers that a cgroup with processes gives to its children make it threaded, and the
            // children take no process then (EOPNOTSUPP).
            self.cgroup.make()?;
            self.add(pid)?;
            self.make_containers_leaf()?;
        }
        Ok(self.cgroup.open()?)
    }

    fn add(&self, pid: u32) -> Result<(), PlaceError> {
        let pid = i32::try_from(pid).map_err(|_| PlaceError::Ended { path: self.pod.clone() })?;
        Ok(self.cgroup.add_process(pid)?)
    }

    fn make_containers_leaf(&self) -> Result<(), CgroupError> {
        if self.has_leaves {
            self.hierarchy.create_below(&self.pod, Path::new(CONTAINERS_LEAF))?;
        }
        Ok(())
    }
}
