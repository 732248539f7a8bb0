//! The set-up of a container, in order.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::mount::{MountPropagationFlags, MoveMountFlags};

use super::mounts::{self, ATTR_READONLY, Attach};
use super::paths::Root;
use super::spec::{ContainerSpec, Propagation};
use super::{Descriptors, Entry, HelperError, at, command, devices, enter_and_fork, hidden};
use crate::sys;

pub(super) fn run(control: &UnixStream, spec: &ContainerSpec, fds: &Descriptors) -> Result<(), HelperError> {
    let mut warnings = Vec::new();
    command::set_oom_score(&spec.process, &mut warnings)?;
    let unshare = if spec.new_pid_namespace { libc::CLONE_NEWPID } else { 0 };
    let entry = Entry { cgroup: spec.cgroup, join: &spec.join, unshare };
    enter_and_fork(control, &entry, fds)?;
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).map_err(at("make mount and cgroup namespaces"))?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let is_shared = spec.mounts.iter().any(|mount| mount.propagation == Propagation::Shared);
    let attach = if is_shared { hidden::attach } else { mounts::attach };
    let root = build_root(spec, fds, attach)?;
    pivot(&root)?;
    command::make_working_directory(&spec.process)?;
    let prepared = command::prepare(&spec.process, fds, &mut warnings)?;
    for device in &spec.devices {
        devices::give_to_user(&root, device, prepared.identity())?;
    }
    if prepared.has_terminal() {
        prepared.bind_console(&root, attach)?;
    }
    if spec.root_readonly {
        sys::mount_setattr(root.as_fd(), false, ATTR_READONLY, 0).map_err(at("make the root read-only"))?;
    }
    command::report_and_start(control, &spec.process, prepared, warnings)
}

/// Keeps what is mounted from here on in this mount namespace.
pub(super) fn make_mounts_private() -> Result<(), HelperError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(at("make mounts private"))
}

/// Attaches the root and everything on it.
fn build_root(spec: &ContainerSpec, fds: &Descriptors, attach: Attach) -> Result<Root, HelperError> {
    make_mounts_private()?;
    let tree = fds.get(spec.root)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", rustix::fs::CWD, &spec.attach_point, flags)
        .map_err(at(format!("attach the root at {}", spec.attach_point.display())))?;
    let root = Root::new(tree.try_clone_to_owned().map_err(at("keep the root"))?);
    mounts::standard(&root, spec.privileged)?;
    devices::standard(&root)?;
    for mount in &spec.mounts {
        mounts::volume(&root, mount, fds, attach)?;
    }
    for device in &spec.devices {
        devices::create(&root, device)?;
    }
    for path in &spec.readonly_paths {
        mounts::make_readonly(&root, path, attach)?;
    }
    for path in &spec.masked_paths {
        mounts::mask(&root, path, attach)?;
    }
    Ok(root)
}

/// Makes the attached root "/", and drops the agent's tree from the namespace.
pub(super) fn pivot(root: &Root) -> Result<(), HelperError> {
    rustix::process::fchdir(root.as_fd()).map_err(at("enter the root"))?;
    rustix::process::pivot_root(".", ".").map_err(at("pivot into the root"))?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).map_err(at("drop the agent's mounts"))?;
    rustix::process::chdir("/").map_err(at("enter /"))
}
