//! What is mounted in every container, its volumes, and what is hidden from it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::paths::Root;
use super::spec::{MountSpec, Propagation};
use super::{Descriptors, HelperError, at};
use crate::sys;

/// `MOUNT_ATTR_RDONLY`.
pub const ATTR_READONLY: u64 = 1;
/// `MOUNT_ATTR_NOSUID`.
const ATTR_NO_SUID: u64 = 2;
/// `MOUNT_ATTR_NODEV`.
const ATTR_NO_DEV: u64 = 4;
/// `MOUNT_ATTR_NOEXEC`.
const ATTR_NO_EXEC: u64 = 8;
const NO_SUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NO_DEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NO_EXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// Makes a file system that is mounted nowhere yet; an option without a value is a flag.
///
/// # Errors
/// The kernel's.
pub fn detached(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// How a tree comes to its place: [`attach`], or without being seen by the host.
pub(super) type Attach = fn(BorrowedFd<'_>, BorrowedFd<'_>) -> rustix::io::Result<()>;

/// Puts `tree` on `target`, which no longer shows what was there.
pub(super) fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

fn mount_at(root: &Root, path: &str, tree: &OwnedFd) -> Result<(), HelperError> {
    root.ensure_directory(Path::new(path), Mode::from_raw_mode(0o755))
        .and_then(|target| attach(tree.as_fd(), target.as_fd()))
        .map_err(at(format!("mount {path}")))
}

fn new_at(
    root: &Root,
    path: &str,
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<(), HelperError> {
    let tree = detached(kind, options, attributes).map_err(at(format!("make a {kind} file system for {path}")))?;
    mount_at(root, path, &tree)
}

/// The container's own /dev, empty.
pub(super) fn dev(root: &Root) -> Result<(), HelperError> {
    let options = [("mode", "755"), ("size", "65536k"), ("source", "tmpfs")];
    new_at(root, "/dev", "tmpfs", &options, NO_SUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME)
}

/// The file systems that show the namespaces that this process is in: /proc, /sys, cgroup and those in /dev.
pub(super) fn of_kernel(root: &Root, privileged: bool) -> Result<(), HelperError> {
    let quiet = NO_SUID | NO_DEV | NO_EXEC;
    let sys = if privileged { quiet } else { quiet | READ_ONLY };
    new_at(root, "/proc", "proc", &[], quiet)?;
    new_at(root, "/sys", "sysfs", &[], sys)?;
    new_at(root, "/sys/fs/cgroup", "cgroup2", &[], sys)?;
    let pts = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    new_at(root, "/dev/pts", "devpts", &pts, NO_SUID | NO_EXEC)?;
    new_at(root, "/dev/mqueue", "mqueue", &[], quiet)
}

/// A volume that the agent has prepared as a detached tree.
pub(super) fn volume(root: &Root, mount: &MountSpec, fds: &Descriptors, attach: Attach) -> Result<(), HelperError> {
    let step = || format!("mount the volume at {}", mount.destination);
    let tree = fds.get(mount.tree)?;
    let propagation = match mount.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => 0,
    };
    sys::mount_setattr(tree, true, 0, propagation).map_err(at(step()))?;
    if mount.recursive_readonly {
        sys::mount_setattr(tree, true, ATTR_READONLY, 0).map_err(at(step()))?;
    }
    let attributes = [
        (mount.readonly, ATTR_READONLY),
        (mount.no_suid, ATTR_NO_SUID),
        (mount.no_dev, ATTR_NO_DEV),
        (mount.no_exec, ATTR_NO_EXEC),
    ];
    let attributes = attributes.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, bit)| all | bit);
    if attributes != 0 {
        sys::mount_setattr(tree, false, attributes, 0).map_err(at(step()))?;
    }
    let path = Path::new(&mount.destination);
    let target = match mount.directory {
        true => root.ensure_directory(path, Mode::from_raw_mode(0o755)),
        false => root.ensure_file(path),
    };
    let target = target.map_err(at(format!("make the mount point {}", mount.destination)))?;
    attach(tree, target.as_fd()).map_err(at(step()))
}

fn existing(root: &Root, path: &str) -> Result<Option<OwnedFd>, HelperError> {
    match root.open(Path::new(path), OFlags::PATH) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(at(format!("look up {path}"))(error)),
    }
}

const CLONE_ALL: OpenTreeFlags =
    OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC).union(OpenTreeFlags::AT_RECURSIVE);

fn clone_of(target: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    open_tree(target, "", CLONE_ALL | OpenTreeFlags::AT_EMPTY_PATH)
}

/// The current directory with all mounts below it, mounted nowhere yet.
pub(super) fn clone_of_current_directory() -> rustix::io::Result<OwnedFd> {
    open_tree(CWD, ".", CLONE_ALL)
}

/// The current directory, as it is mounted in the present mount namespace.
pub(super) fn current_directory() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes `path`, when it exists, and all mounts below it read-only.
pub(super) fn make_readonly(root: &Root, path: &str, attach: Attach) -> Result<(), HelperError> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let step = || format!("make {path} read-only");
    let tree = clone_of(&target).map_err(at(step()))?;
    sys::mount_setattr(tree.as_fd(), true, ATTR_READONLY, 0).map_err(at(step()))?;
    attach(tree.as_fd(), target.as_fd()).map_err(at(step()))
}

/// The container's own /dev/null, and nothing that something in the image or a volume would put in its place.
fn null_device(root: &Root) -> Result<OwnedFd, HelperError> {
    let step = "look up /dev/null";
    let null = root.open(Path::new("/dev/null"), OFlags::PATH | OFlags::NOFOLLOW).map_err(at(step))?;
    let stat = rustix::fs::fstat(&null).map_err(at(step))?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && stat.st_rdev == rustix::fs::makedev(1, 3) {
        return Ok(null);
    }
    let why = "/dev/null of the container is not the null device (character device 1:3), so no file can be masked \
               with it; mount nothing else there";
    Err(HelperError::Refused(why.into()))
}

/// Hides `path`, when it exists: an empty read-only directory, or /dev/null.
pub(super) fn mask(root: &Root, path: &str, attach: Attach) -> Result<(), HelperError> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let step = || format!("mask {path}");
    let mode = rustix::fs::fstat(&target).map_err(at(step()))?.st_mode;
    let tree = if FileType::from_raw_mode(mode) == FileType::Directory {
        detached("tmpfs", &[("mode", "755"), ("nr_inodes", "1")], NO_SUID | NO_DEV | NO_EXEC | READ_ONLY)
    } else {
        clone_of(&null_device(root)?)
    };
    let tree = tree.map_err(at(step()))?;
    attach(tree.as_fd(), target.as_fd()).map_err(at(step()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_null_device_masks_files() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("dev")).unwrap();
        let root = Root::new(std::fs::File::open(directory.path()).unwrap().into());
        let null = directory.path().join("dev/null");
        std::os::unix::fs::symlink("/etc/shadow", &null).unwrap();
        assert!(null_device(&root).unwrap_err().to_string().contains("not the null device"));
        std::fs::remove_file(&null).unwrap();
        std::fs::write(&null, "").unwrap();
        assert!(null_device(&root).is_err());
        let host = Root::new(std::fs::File::open("/").unwrap().into());
        null_device(&host).unwrap();
    }
}
