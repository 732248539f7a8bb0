//! The set-up of a container, in order.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::mount::{MountPropagationFlags, MoveMountFlags};

use super::mounts::{self, ATTR_READONLY, Attach};
use super::paths::Root;
use super::spec::{ContainerSpec, Propagation, UserNamespaceSpec};
use super::{
    Descriptors, Entry, HelperError, at, command, devices, enter_and_fork, go_on_in_child, hidden, user_namespace,
};
use crate::sys;

pub(super) fn run(control: &UnixStream, spec: &ContainerSpec, fds: Descriptors) -> Result<(), HelperError> {
    let mut warnings = Vec::new();
    command::set_oom_score(&spec.process, &mut warnings)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let is_shared = spec.mounts.iter().any(|mount| mount.propagation == Propagation::Shared);
    let attach = if is_shared { hidden::attach } else { mounts::attach };
    let unshare = if spec.new_pid_namespace { libc::CLONE_NEWPID } else { 0 };
    let entry = Entry { cgroup: spec.cgroup, join: &spec.join, unshare };
    let root = match &spec.user_namespace {
        None => {
            enter_and_fork(control, &entry, &fds)?;
            sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).map_err(at("make mount and cgroup namespaces"))?;
            attach_root(spec, &fds, attach)?
        }
        Some(users) => {
            user_namespace::join(&entry, &fds)?;
            sys::unshare(libc::CLONE_NEWNS).map_err(at("make a mount namespace"))?;
            user_namespace::make_files_of_its_root(users)?;
            attach_root(spec, &fds, attach)?;
            enter_user_namespace(users, unshare, &fds)?;
            go_on_in_child(control, None, &spec.join, &fds)?;
            own_root(spec, attach)?
        }
    };
    restrict_paths(&root, spec, attach)?;
    pivot(&root)?;
    command::make_working_directory(&spec.process)?;
    let prepared = command::prepare(&spec.process, &fds, &mut warnings)?;
    // Others in the pod may say what lies at the paths that are followed once the container is started, and /proc/self/fd would
    // lead out of it.
    drop(fds);
    for device in &spec.devices {
        devices::give_to_user(&root, device, prepared.identity())?;
    }
    if prepared.has_terminal() {
        prepared.bind_console(&root, attach)?;
    }
    if spec.root_readonly {
        sys::mount_setattr(root.as_fd(), false, ATTR_READONLY, 0).map_err(at("make the root read-only"))?;
    }
    drop(root);
    command::report_and_start(control, &spec.process, prepared, warnings)
}

/// Keeps what is mounted from here on in this mount namespace.
pub(super) fn make_mounts_private() -> Result<(), HelperError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(at("make mounts private"))
}

/// The mounts so far are copied into a namespace of the user namespace, in which the kernel locks them: neither can they be
/// taken apart there, nor can what is read-only become writable.
fn enter_user_namespace(users: &UserNamespaceSpec, new_pid: i32, fds: &Descriptors) -> Result<(), HelperError> {
    user_namespace::enter(users, fds)?;
    // The current directory, the container's root, becomes the copy's: its path leads through directories of the host's root.
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP | new_pid).map_err(at("make namespaces of the pod's users"))
}

/// The container's root in the present mount namespace, with the kernel's file systems of the pod's namespaces.
fn own_root(spec: &ContainerSpec, attach: Attach) -> Result<Root, HelperError> {
    let staged = mounts::current_directory().map_err(at("open the staged root"))?;
    mounts::of_kernel(&Root::new(staged), spec.privileged)?;
    // A locked mount cannot become "/"; its copy is not locked, but all below it are.
    let tree = mounts::clone_of_current_directory().map_err(at("clone the staged root"))?;
    let staged = mounts::current_directory().map_err(at("open the staged root"))?;
    attach(tree.as_fd(), staged.as_fd()).map_err(at("attach the root"))?;
    Ok(Root::new(tree))
}

/// Attaches the root, which is the current directory then, and all on it; in a user namespace the file systems of the kernel
/// are left to [`own_root`].
fn attach_root(spec: &ContainerSpec, fds: &Descriptors, attach: Attach) -> Result<Root, HelperError> {
    make_mounts_private()?;
    let tree = fds.get(spec.root)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", rustix::fs::CWD, &spec.attach_point, flags)
        .map_err(at(format!("attach the root at {}", spec.attach_point.display())))?;
    let root = Root::new(tree.try_clone_to_owned().map_err(at("keep the root"))?);
    mounts::dev(&root)?;
    if spec.user_namespace.is_none() {
        mounts::of_kernel(&root, spec.privileged)?;
    }
    devices::standard(&root)?;
    for mount in &spec.mounts {
        mounts::volume(&root, mount, fds, attach)?;
    }
    for device in &spec.devices {
        devices::create(&root, device)?;
    }
    rustix::process::fchdir(root.as_fd()).map_err(at("enter the root"))?;
    Ok(root)
}

fn restrict_paths(root: &Root, spec: &ContainerSpec, attach: Attach) -> Result<(), HelperError> {
    for path in &spec.readonly_paths {
        mounts::make_readonly(root, path, attach)?;
    }
    for path in &spec.masked_paths {
        mounts::mask(root, path, attach)?;
    }
    Ok(())
}

/// Makes the attached root "/", and drops the agent's tree from the namespace.
pub(super) fn pivot(root: &Root) -> Result<(), HelperError> {
    rustix::process::fchdir(root.as_fd()).map_err(at("enter the root"))?;
    rustix::process::pivot_root(".", ".").map_err(at("pivot into the root"))?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).map_err(at("drop the agent's mounts"))?;
    rustix::process::chdir("/").map_err(at("enter /"))
}
