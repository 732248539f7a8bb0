//! The mounter: puts volumes into the tree and takes them out, for as long as the server lives.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MntFlags, umount2};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use super::protocol::{MAX_REQUEST, Name, Request};
use crate::rights;

/// Why a request failed; sent back as text.
#[derive(Debug, thiserror::Error)]
enum MountError {
    #[error("the request is not understood")]
    Request,
    #[error("no mount came with the request")]
    NoMount,
    #[error("the mount is a {0}, but a {1} was announced")]
    Kind(&'static str, &'static str),
    #[error("a volume is called {0} already")]
    Exists(String),
    #[error("{step} {name}: {source}")]
    Step { step: &'static str, name: String, source: io::Error },
}

/// Serves requests until the peer is gone or `server` (a pidfd) has ended.
///
/// # Errors
/// When the socket fails.
pub fn run(requests: impl AsFd, server: impl AsFd, tree: &OwnedFd) -> io::Result<()> {
    loop {
        let mut polled = [PollFd::new(&requests, PollFlags::IN), PollFd::new(&server, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))?;
        if !polled[1].revents().is_empty() {
            return Ok(());
        }
        let mut buffer = [0; MAX_REQUEST];
        let answer = match rights::receive(&requests, &mut buffer, 1) {
            Ok((0, _)) => return Ok(()),
            Ok((count, mut descriptors)) => match obey(&buffer[..count], descriptors.pop(), tree) {
                Ok(()) => "ok".to_owned(),
                Err(error) => format!("error: {error}"),
            },
            Err(error) if error.kind() == io::ErrorKind::InvalidData => format!("error: {error}"),
            Err(error) => return Err(error),
        };
        rights::send(&requests, answer.as_bytes(), None)?;
    }
}

fn obey(message: &[u8], mount: Option<OwnedFd>, tree: &OwnedFd) -> Result<(), MountError> {
    match Request::parse(message).ok_or(MountError::Request)? {
        Request::Add { name, directory } => add(&name, directory, &mount.ok_or(MountError::NoMount)?, tree),
        Request::Remove(name) => remove(&name, tree),
    }
}

fn add(name: &Name, directory: bool, mount: &OwnedFd, tree: &OwnedFd) -> Result<(), MountError> {
    let failed =
        |step| move |error: Errno| MountError::Step { step, name: name.as_str().to_owned(), source: error.into() };
    let kind = rustix::fs::fstat(mount).map_err(failed("look at the mount of"))?;
    let is_directory = FileType::from_raw_mode(kind.st_mode) == FileType::Directory;
    if is_directory != directory {
        let word = |directory| if directory { "directory" } else { "file" };
        return Err(MountError::Kind(word(is_directory), word(directory)));
    }
    let made = if directory {
        rustix::fs::mkdirat(tree, name.as_str(), Mode::from_raw_mode(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(tree, name.as_str(), flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    match made {
        Err(Errno::EXIST) => return Err(MountError::Exists(name.as_str().to_owned())),
        other => other.map_err(failed("make the mount point"))?,
    }
    let moved = move_mount(mount, "", CWD, path(name), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    if moved.is_err() {
        let _ = unlink(name, tree);
    }
    moved.map_err(failed("mount"))
}

fn remove(name: &Name, tree: &OwnedFd) -> Result<(), MountError> {
    let failed = |step, source: io::Error| MountError::Step { step, name: name.as_str().to_owned(), source };
    match umount2(path(name).as_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(failed("unmount", error.into())),
    }
    match unlink(name, tree) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("remove the mount point", error.into())),
    }
}

fn unlink(name: &Name, tree: &OwnedFd) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(tree, name.as_str(), AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(tree, name.as_str(), AtFlags::REMOVEDIR),
        other => other,
    }
}

fn path(name: &Name) -> String {
    format!("/{}", name.as_str())
}
