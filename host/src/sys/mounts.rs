//! Detached mounts: a volume is cloned from the host's mount tree, restricted, and handed over as a descriptor.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

/// A host path could not be turned into a detached mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `open_tree`.
    #[error("cannot clone the mount at {path}")]
    Clone {
        /// The host path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `mount_setattr`.
    #[error("cannot set {attributes} on the clone of the mount at {path}")]
    SetAttributes {
        /// The host path.
        path: PathBuf,
        /// What was asked for.
        attributes: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// How a volume's clone may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As the mount it was cloned from.
    ReadWrite,
    /// The mount itself is read-only; mounts below it keep what they are.
    ReadOnly,
    /// Every mount in the tree is read-only.
    RecursiveReadOnly,
}

/// Clones the tree at `path`, with every mount below it, into a detached mount. Symbolic links are followed; files can
/// be cloned like directories. Every mount in the clone is nosuid and nodev, and receives mounts made on the host later
/// but sends none back (slave).
///
/// # Errors
/// When the path does not exist or the kernel refuses (CAP_SYS_ADMIN is needed).
pub fn clone_tree(path: &Path, access: Access) -> Result<OwnedFd, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree =
        open_tree(CWD, path, flags).map_err(|e| MountError::Clone { path: path.to_owned(), source: e.into() })?;
    let failed = |attributes, source| MountError::SetAttributes { path: path.to_owned(), attributes, source };
    let common = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_attributes(&tree, common, libc::MS_SLAVE, true).map_err(|e| failed("nosuid and nodev", e))?;
    if access != Access::ReadWrite {
        let recursive = access == Access::RecursiveReadOnly;
        set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, 0, recursive).map_err(|e| failed("read-only", e))?;
    }
    Ok(tree)
}

/// Whether the mount that `path` (without symbolic links) lies on is in a peer group, so that what is mounted in a clone
/// of it appears here too.
///
/// # Errors
/// When /proc cannot be read.
pub fn is_shared(path: &Path) -> io::Result<bool> {
    Ok(shared_in(&std::fs::read_to_string("/proc/self/mountinfo")?, path))
}

fn shared_in(mountinfo: &str, path: &Path) -> bool {
    let mounts = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let point = unescape(fields.nth(4)?);
        let mut options = fields.skip(1).take_while(|field| *field != "-");
        Some((point, options.any(|field| field.starts_with("shared:"))))
    });
    // Later lines lie on top of earlier ones.
    let below = mounts.filter(|(point, _)| path.starts_with(point));
    below.max_by_key(|(point, _)| point.components().count()).is_some_and(|(_, shared)| shared)
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\\OOO`.
fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (octal, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(octal, plain);
    }
    text.into()
}

/// Shows the owners in the detached mount `tree` as ids of the user namespace `users`.
///
/// # Errors
/// The kernel's: `EINVAL` when the file system cannot do that.
pub fn map_ids(tree: &OwnedFd, users: &File) -> io::Result<()> {
    let userns_fd = users.as_raw_fd().unsigned_abs().into();
    apply(tree, libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd }, false)
}

fn set_attributes(tree: &OwnedFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    apply(tree, libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 }, recursive)
}

fn apply(tree: &OwnedFd, attributes: libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open; the path is a NUL-terminated literal; the kernel reads `size_of::<mount_attr>()`
    // bytes from `attributes`, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs, openat};
    use rustix::mount::{UnmountFlags, mount, unmount};

    #[test]
    fn peer_groups_are_read_from_the_kernels_table() {
        let table = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n\
                     2 1 0:5 / /mnt/a\\040b rw,nosuid - tmpfs x rw\n\
                     3 1 0:6 / /var rw master:2 shared:9 - tmpfs x rw\n\
                     4 1 0:7 / /run rw master:2 - tmpfs x rw\n";
        for (path, shared) in
            [("/etc", true), ("/mnt/a b/c", false), ("/var/lib", true), ("/run", false), ("/runs", true)]
        {
            assert_eq!(shared_in(table, Path::new(path)), shared, "{path}");
        }
    }

    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }

    fn create_in(tree: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
        openat(tree, name, OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600))
    }

    #[test]
    fn a_clone_is_as_restricted_as_asked() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("below");
        std::fs::create_dir(&below).unwrap();
        mount("bulkhead-test", &below, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        let _mounted = Mounted(below);

        let open = clone_tree(directory.path(), Access::ReadWrite).unwrap();
        let flags = fstatvfs(&open).unwrap().f_flag;
        assert!(flags.contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV), "{flags:?}");
        create_in(&open, "file").unwrap();
        create_in(&open, "below/file").unwrap();

        let shallow = clone_tree(directory.path(), Access::ReadOnly).unwrap();
        assert_eq!(create_in(&shallow, "other").unwrap_err(), rustix::io::Errno::ROFS);
        create_in(&shallow, "below/other").unwrap();

        let deep = clone_tree(directory.path(), Access::RecursiveReadOnly).unwrap();
        assert_eq!(create_in(&deep, "below/third").unwrap_err(), rustix::io::Errno::ROFS);

        let file = clone_tree(&directory.path().join("file"), Access::ReadOnly).unwrap();
        assert!(fstatvfs(&file).unwrap().f_flag.contains(StatVfsMountFlags::RDONLY));
        let missing = clone_tree(Path::new("/no/such/volume"), Access::ReadWrite).unwrap_err();
        assert_eq!(missing.to_string(), "cannot clone the mount at /no/such/volume");
    }
}
