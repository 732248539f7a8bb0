//! Entering the pod's user namespace.
//!
//! A helper keeps the memory of a program that was started outside of it, and is not dumpable: the pod's root may neither
//! trace it nor reach its descriptors and its root through /proc, whoever it has become.

use nix::unistd::{Gid as FsGid, Uid as FsUid, setfsgid, setfsuid};
use rustix::fs::{Mode, OFlags, openat};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitiesSecureBits, Gid, ThreadNameSpaceType, Uid, move_into_thread_name_spaces};

use super::spec::UserNamespaceSpec;
use super::{Descriptors, Entry, HelperError, at};

/// Moves into the cgroup, which the pod's root may not, and then into the namespaces of others.
pub(super) fn join(entry: &Entry<'_>, fds: &Descriptors) -> Result<(), HelperError> {
    let step = "enter the container's cgroup";
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let procs = openat(fds.get(entry.cgroup)?, "cgroup.procs", flags, Mode::empty()).map_err(at(step))?;
    rustix::io::write(&procs, b"0").map_err(at(step))?;
    super::join(entry.join, !libc::CLONE_NEWCGROUP, fds)
}

/// What is made from here on belongs to the namespace's root, while this process keeps its capabilities on the host: only
/// with them it can attach volumes and make device nodes, and files on id-mapped mounts have no owner outside.
pub(super) fn make_files_of_its_root(users: &UserNamespaceSpec) -> Result<(), HelperError> {
    let keep = CapabilitiesSecureBits::NO_SETUID_FIXUP;
    rustix::thread::set_capabilities_secure_bits(keep).map_err(at("keep capabilities as another user of files"))?;
    let (uid, gid) = (FsUid::from_raw(users.uid), FsGid::from_raw(users.gid));
    setfsgid(gid);
    setfsuid(uid);
    // Neither call tells a failure but by what the next one gives, the id until then.
    if setfsgid(gid) == gid && setfsuid(uid) == uid {
        return Ok(());
    }
    Err(HelperError::Refused(format!("the kernel does not make files of user {uid} and group {gid}")))
}

/// Joins the namespace as its root, with every capability in it and none outside; the secure bits are the default ones again.
pub(super) fn enter(users: &UserNamespaceSpec, fds: &Descriptors) -> Result<(), HelperError> {
    move_into_thread_name_spaces(fds.get(users.fd)?, ThreadNameSpaceType::USER)
        .map_err(at("enter the pod's user namespace"))?;
    become_root()
}

/// Becomes root of the user namespace that was just joined: until then this process is still the host's root to files.
pub(super) fn become_root() -> Result<(), HelperError> {
    rustix::thread::set_thread_groups(&[]).map_err(at("leave the host's groups"))?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(at("become the pod's root group"))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(at("become the pod's root"))?;
    // A change of user gives the setting that the host has for set-user-id programs.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("become non-dumpable"))
}
