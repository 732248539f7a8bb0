//! The guest's own mounts. Containers bring theirs, so /dev/pts, /dev/shm and /dev/mqueue are not needed here.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use thiserror::Error;

use crate::container::cgroups::{CgroupError, PodCgroup};
use crate::helper::detached_mount;

const CGROUPS: &str = "/sys/fs/cgroup";

/// A mount that the guest cannot live without.
#[derive(Debug, Error)]
#[error("cannot {step} {path}: {source}")]
pub(super) struct MountError {
    step: &'static str,
    path: &'static str,
    source: io::Error,
}

fn at<E: Into<io::Error>>(step: &'static str, path: &'static str) -> impl FnOnce(E) -> MountError {
    move |source| MountError { step, path, source: source.into() }
}

/// Puts the initramfs on itself: the kernel's own root mount has no parent, and containers could not pivot off it.
pub(super) fn root() -> Result<(), MountError> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, "/", clone).map_err(at("clone", "/"))?;
    rustix::mount::move_mount(&tree, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(at("mount the clone on", "/"))?;
    // The name "/" still means the lower mount.
    rustix::process::fchdir(&tree).map_err(at("enter", "/"))?;
    rustix::process::chroot(".").map_err(at("change the root to", "/"))?;
    rustix::process::chdir("/").map_err(at("enter", "/"))
}

/// What the agent itself reads and writes.
pub(super) fn early() -> Result<(), MountError> {
    let strict = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let strict_no_dev = strict | MountAttrFlags::MOUNT_ATTR_NODEV;
    mount("proc", &[], "/proc", strict_no_dev)?;
    mount("sysfs", &[], "/sys", strict_no_dev)?;
    mount("devtmpfs", &[("mode", "0755")], "/dev", strict)?;
    mount("tmpfs", &[("mode", "0755")], "/run", MountAttrFlags::MOUNT_ATTR_NOSUID)
}

fn mount(
    kind: &'static str,
    options: &[(&str, &str)],
    path: &'static str,
    attributes: MountAttrFlags,
) -> Result<(), MountError> {
    fs::create_dir_all(path).map_err(at("make", path))?;
    let tree = detached_mount(kind, options, attributes).map_err(at("make the file system for", path))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", CWD, path, flags).map_err(at("mount", path))
}

/// Mounts cgroup v2, moves the agent to a leaf and makes the pod's cgroup.
pub(super) fn cgroups() -> Result<PodCgroup, Box<dyn std::error::Error + Send + Sync>> {
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NODEV;
    // Processes move between cgroups at every start, hardly ever otherwise: make that the fast case.
    mount("cgroup2", &[("favordynmods", "")], CGROUPS, attributes)?;
    let own = Path::new(CGROUPS).join("agent");
    fs::create_dir(&own)?;
    fs::write(own.join("cgroup.procs"), "0")?;
    let pod: Result<_, CgroupError> = PodCgroup::create(&Path::new(CGROUPS).join("pod"));
    Ok(pod?)
}
