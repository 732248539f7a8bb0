//! The volume tree and what is mounted in it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_change, move_mount, unmount,
};

use super::FileServerError;
use crate::volumes::checked;

/// A directory that exists everywhere; only this process's namespace sees the tree on it.
const STAGING: &str = "/tmp";
/// The guest may make entries in the tree's root; these bound what that costs the host.
const TREE_OPTIONS: &std::ffi::CStr = c"size=64k,nr_inodes=4096,mode=0755";

/// Leaves the host's mounts for an empty root.
pub(super) fn enter_tree() -> Result<(), FileServerError> {
    let setup = |step| FileServerError::setup::<io::Error>(step);
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(own).map_err(|e| setup("leave the host's namespaces")(e.into()))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|e| setup("make the mounts private")(e.into()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("volumes", STAGING, "tmpfs", flags, TREE_OPTIONS).map_err(|e| setup("mount the volume tree")(e.into()))?;
    std::env::set_current_dir(STAGING).map_err(setup("enter the volume tree"))?;
    // The old root lands on the new one and is taken off at once (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").map_err(|e| setup("pivot into the volume tree")(e.into()))?;
    unmount(".", UnmountFlags::DETACH).map_err(|e| setup("leave the old root")(e.into()))?;
    std::env::set_current_dir("/").map_err(setup("enter the new root"))
}

/// Maps every id in the server's new user namespace, when it says that it has one, and lets it go on.
pub(super) fn map_ids(proc: &OwnedFd, child: Pid, mut channel: UnixStream) -> Result<(), FileServerError> {
    let setup = |step| FileServerError::setup::<io::Error>(step);
    channel.read_exact(&mut [0]).map_err(setup("wait for the server's user namespace"))?;
    for map in ["uid_map", "gid_map"] {
        let file = openat(proc, format!("{child}/{map}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let mut file = File::from(file.map_err(|e| setup("open the server's id map")(e.into()))?);
        file.write_all(b"0 0 4294967295").map_err(setup("map the server's ids"))?;
    }
    channel.write_all(b"!").map_err(setup("let the server go on"))
}

/// Obeys until the other side is gone.
pub(super) fn serve(socket: &UnixStream) -> Result<(), FileServerError> {
    while let Some((request, descriptor)) = super::receive(socket)? {
        super::answer(socket, obey(&request, descriptor))?;
    }
    Ok(())
}

fn obey(request: &str, descriptor: Option<OwnedFd>) -> Result<(), FileServerError> {
    let words: Vec<&str> = request.split(' ').collect();
    match (words.as_slice(), descriptor) {
        (["add", name, kind @ ("dir" | "file")], Some(mount)) => add(&path(name)?, *kind == "dir", &mount),
        (["remove", name], None) => remove(&path(name)?),
        _ => Err(FileServerError::Request(request.to_owned())),
    }
}

fn path(name: &str) -> Result<PathBuf, FileServerError> {
    Ok(Path::new("/").join(checked(name)?))
}

fn add(path: &Path, directory: bool, tree: &OwnedFd) -> Result<(), FileServerError> {
    let failed = |step| move |source: io::Error| FileServerError::Mount { step, path: path.to_owned(), source };
    if directory {
        fs::create_dir(path).map_err(failed("make the mount point"))?;
    } else {
        File::create_new(path).map_err(failed("make the mount point"))?;
    }
    let moved = move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    moved.map_err(|error| {
        let _ = remove_point(path);
        failed("move the volume to")(error.into())
    })
}

fn remove(path: &Path) -> Result<(), FileServerError> {
    let failed = |step| move |source: io::Error| FileServerError::Mount { step, path: path.to_owned(), source };
    match unmount(path, UnmountFlags::DETACH) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) | Ok(()) => {}
        Err(error) => return Err(failed("unmount")(error.into())),
    }
    match remove_point(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove the mount point")(error)),
        _ => Ok(()),
    }
}

fn remove_point(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) }
}
