//! Device nodes in a container's /dev.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;

use super::paths::Root;
use super::spec::DeviceSpec;
use super::users::Identity;
use super::{HelperError, at};

/// Name, major and minor number of the character devices that every container has.
pub const STANDARD: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// Fills the new /dev.
pub(super) fn standard(root: &Root) -> Result<(), HelperError> {
    let dev = root.open(Path::new("/dev"), OFlags::PATH | OFlags::DIRECTORY).map_err(at("open /dev"))?;
    for (name, major, minor) in STANDARD {
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor))
            .map_err(at(format!("make /dev/{name}")))?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name).map_err(at(format!("make /dev/{name}")))?;
    }
    Ok(())
}

/// Makes one further node, in place of what is there.
pub(super) fn create(root: &Root, device: &DeviceSpec) -> Result<(), HelperError> {
    let step = || format!("make the device {}", device.path);
    let kind = match device.kind {
        'c' | 'u' => FileType::CharacterDevice,
        'b' => FileType::BlockDevice,
        'p' => FileType::Fifo,
        other => return Err(HelperError::Refused(format!("device {} has the unknown kind {other:?}", device.path))),
    };
    let (parent, name) = root.parent_of(Path::new(&device.path)).map_err(at(step()))?;
    root.remove_file(&parent, name).map_err(at(step()))?;
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    rustix::fs::mknodat(&parent, name, kind, mode, makedev(device.major, device.minor)).map_err(at(step()))?;
    give(&parent, name, device.uid, device.gid).map_err(at(step()))
}

/// Gives a node whose owner or group was left open to the container's user.
pub(super) fn give_to_user(root: &Root, device: &DeviceSpec, user: &Identity) -> Result<(), HelperError> {
    if device.uid.is_some() && device.gid.is_some() {
        return Ok(());
    }
    let step = || format!("give the device {} to the user", device.path);
    let (parent, name) = root.parent_of(Path::new(&device.path)).map_err(at(step()))?;
    // What is named was given from outside of the pod's user namespace, whose ids are others.
    let open = |named: Option<u32>, id| if named.is_none() { Some(id) } else { None };
    give(&parent, name, open(device.uid, user.uid), open(device.gid, user.gid)).map_err(at(step()))
}

/// Who is left out stays: the one that the node was made by.
fn give(parent: &OwnedFd, name: &OsStr, uid: Option<u32>, gid: Option<u32>) -> rustix::io::Result<()> {
    let owner = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    match rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::PERM) if uid.unwrap_or(0) == 0 && gid.unwrap_or(0) == 0 => Ok(()),
        other => other,
    }
}
