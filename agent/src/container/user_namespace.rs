//! The pod's user namespace, as its agent, which stays outside, uses it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_proto::agent;
use rustix::fs::{Gid, Uid, fchown, fstat};

use super::request::FdTable;
use crate::helper::spec::{DeviceSpec, UserNamespaceSpec};
use crate::sys;

/// Ids 0 to `length` - 1 of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    host: u32,
    length: u32,
}

impl Range {
    fn checked(range: &agent::IdRange) -> io::Result<Self> {
        let plain = range.host_id > 0 && range.length > 0 && range.host_id.checked_add(range.length).is_some();
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{range} is no range of ids"));
        plain.then_some(Self { host: range.host_id, length: range.length }).ok_or_else(wrong)
    }

    /// The host's id for one of the pod; what the pod does not have stays as it is, and is nobody in there.
    fn to_host(self, id: u32) -> u32 {
        if id < self.length { self.host.saturating_add(id) } else { id }
    }
}

/// A user namespace below the agent's own, which owns the pod's other namespaces.
#[derive(Debug)]
pub struct UserNamespace {
    namespace: OwnedFd,
    uids: Range,
    gids: Range,
}

impl UserNamespace {
    /// The owner of the network namespace that this process is in.
    ///
    /// # Errors
    /// When that is this process's own user namespace, or the ranges are none.
    pub fn of_network(ranges: &agent::UserNamespace) -> io::Result<Self> {
        let namespace = sys::owning_user_namespace(File::open("/proc/self/ns/net")?.as_fd())?;
        if fstat(&namespace)?.st_ino == fstat(File::open("/proc/self/ns/user")?)?.st_ino {
            let why = "the network namespace belongs to the agent's own user namespace";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let (uids, gids) = (Range::checked(&ranges.uids)?, Range::checked(&ranges.gids)?);
        Ok(Self { namespace, uids, gids })
    }

    /// What a helper is told of it.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn spec(&self, fds: &mut FdTable) -> io::Result<UserNamespaceSpec> {
        let fd = fds.add(self.namespace.try_clone()?);
        Ok(UserNamespaceSpec { fd, uid: self.uids.host, gid: self.gids.host })
    }

    /// How many user and group ids it has.
    #[must_use]
    pub fn ids(&self) -> (u32, u32) {
        (self.uids.length, self.gids.length)
    }

    /// User and group of its root on the host.
    #[must_use]
    pub fn root(&self) -> (u32, u32) {
        (self.uids.host, self.gids.host)
    }

    /// Shows the owners in a detached tree as ids of the pod.
    ///
    /// # Errors
    /// See [`sys::map_ids`].
    pub fn map(&self, tree: BorrowedFd<'_>) -> io::Result<()> {
        sys::map_ids(tree, self.namespace.as_fd())
    }

    /// Gives something of the pod alone to its root.
    ///
    /// # Errors
    /// The kernel's.
    pub fn give(&self, file: impl AsFd) -> io::Result<()> {
        let (uid, gid) = self.root();
        Ok(fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
    }

    /// A device that the pod was granted has the same owner in there as on the host.
    pub fn own_device(&self, device: &mut DeviceSpec) {
        device.uid = device.uid.map(|uid| self.uids.to_host(uid));
        device.gid = device.gid.map(|gid| self.gids.to_host(gid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(host_id: u32, length: u32) -> io::Result<Range> {
        Range::checked(&agent::IdRange { host_id, length, ..Default::default() })
    }

    #[test]
    fn ranges_never_hold_the_hosts_root_nor_end_beyond_all_ids() {
        for (host, length) in [(0, 65536), (1, 0), (u32::MAX, 1), (65536, u32::MAX)] {
            assert!(range(host, length).is_err(), "{host} {length}");
        }
        let users = range(65536, 1000).unwrap();
        assert_eq!((users.to_host(0), users.to_host(999), users.to_host(1000)), (65536, 66535, 1000));
    }

    #[test]
    fn a_network_of_the_agents_own_users_is_refused() {
        let of = |host_id| Some(agent::IdRange { host_id, length: 9, ..Default::default() }).into();
        let ranges = agent::UserNamespace { uids: of(1), gids: of(1), ..Default::default() };
        let text = UserNamespace::of_network(&ranges).unwrap_err().to_string();
        assert!(text.contains("own user namespace"), "{text}");
    }
}
