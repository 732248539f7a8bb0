//! Mounting below a volume that stays connected with the host (bidirectional propagation) without the host seeing it.
//!
//! What the container mounts there itself reaches the host and stays, as the field's runtimes have it: that is what CSI
//! node plugins are for. What this program mounts there for the container would reach the host too, and stay for good.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::mounts;
use crate::sys;

/// As [`mounts::attach`]: while it happens, the mount around `target` is taken out of its peer group.
pub(super) fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let Some(around) = shared_mount_around(target).map_err(errno)? else { return mounts::attach(tree, target) };
    // Keeps the group, for the way back.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let member = open_tree(around.as_fd(), "", flags)?;
    sys::mount_setattr(around.as_fd(), false, 0, libc::MS_PRIVATE).map_err(errno)?;
    let attached = mounts::attach(tree, target);
    let flags = MoveMountFlags::MOVE_MOUNT_SET_GROUP
        | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(member.as_fd(), "", around.as_fd(), "", flags)?;
    attached
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// The root of the mount that `target` lies in, when it passes on what is mounted in it.
fn shared_mount_around(target: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let id = mount_id(target)?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let Some(point) = shared_point(&table, id) else { return Ok(None) };
    let root = rustix::fs::openat(CWD, &point, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if mount_id(root.as_fd())? == id {
        return Ok(Some(root));
    }
    let text = format!("another mount hides {}, where the host's mounts are shared", point.display());
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

fn mount_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Where the mount `id` is, when `table` (`/proc/self/mountinfo`) has it as a shared one.
fn shared_point(table: &str, id: u64) -> Option<PathBuf> {
    let line = table.lines().find(|line| line.split(' ').next().and_then(|text| text.parse().ok()) == Some(id))?;
    let mut optional = line.split(' ').skip(6).take_while(|field| *field != "-");
    let is_shared = optional.any(|field| field.starts_with("shared:"));
    is_shared.then(|| line.split(' ').nth(4).map(crate::host::unescaped))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_mounts_are_told_by_their_id() {
        let table = "22 1 8:1 / / rw shared:1 - ext4 x rw\n23 22 0:5 / /a\\040b rw,nosuid master:3 shared:7 - proc x rw\n\
                     24 22 0:6 / /slave rw master:1 - tmpfs x rw\n25 22 0:7 / /private rw - tmpfs shared:9 rw\n";
        assert_eq!(shared_point(table, 22), Some("/".into()));
        assert_eq!(shared_point(table, 23), Some("/a b".into()));
        assert_eq!([24, 25, 2].map(|id| shared_point(table, id)), [None, None, None]);
    }
}
