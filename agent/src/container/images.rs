//! Images: one EROFS mount for each, while containers use it; on the pod's image drive by device-mapper, or on files of the
//! host.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, UnmountFlags};
use thiserror::Error;

use super::user_namespace::UserNamespace;
use crate::helper::detached_mount;
use crate::sys::loop_device::LoopDevice;
use crate::sys::{dm, in_mount_namespace};

/// Why an image cannot be mounted or released.
#[derive(Debug, Error)]
pub enum ImageError {
    /// This agent has no image drive.
    #[error("image {0} is an extent of an image drive, and this pod has none")]
    NoDrive(String),
    /// The same id with another place.
    #[error("image {0} is mounted from another extent of the image drive")]
    Conflict(String),
    /// A step failed.
    #[error("cannot {step} of image {image}: {source}")]
    Io {
        /// What.
        step: &'static str,
        /// Whose.
        image: String,
        /// Why.
        source: io::Error,
    },
}

/// One image and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The image's id.
    pub image: String,
    /// Where its file system is.
    pub place: Place,
}

/// Where an image's file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Part of the image drive.
    Drive {
        /// First sector.
        start: u64,
        /// Sectors.
        sectors: u64,
    },
    /// Files: the metadata, then its devices in their order.
    Files(Vec<PathBuf>),
}

#[derive(Debug)]
struct Mounted {
    extent: Extent,
    directory: PathBuf,
    /// Of device-mapper.
    device: Option<String>,
    users: usize,
}

/// The mounted images.
#[derive(Debug)]
pub struct Images {
    directory: PathBuf,
    /// The mount namespace that paths of files are looked up in; the agent's own when left out.
    host: Option<Arc<OwnedFd>>,
    table: Mutex<(u64, HashMap<String, Mounted>)>,
}

impl Images {
    /// Mounts go below `directory`; files are looked up in the mount namespace `host`, where there is one.
    #[must_use]
    pub fn new(directory: PathBuf, host: Option<Arc<OwnedFd>>) -> Self {
        Self { directory, host, table: Mutex::default() }
    }

    /// Mounts the image, or counts one more user; `drive` is "MAJOR:MINOR", and what is mounted from files shows its owners
    /// as ids of the pod's `users`. Blocking: the lock serialises mounting.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing is left then.
    pub fn acquire(
        &self,
        extent: &Extent,
        drive: Option<&str>,
        users: Option<&UserNamespace>,
    ) -> Result<PathBuf, ImageError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mounted) = table.1.get_mut(&extent.image) {
            if mounted.extent != *extent {
                return Err(ImageError::Conflict(extent.image.clone()));
            }
            mounted.users += 1;
            return Ok(mounted.directory.clone());
        }
        table.0 += 1;
        let name = format!("image-{}", table.0);
        let directory = self.directory.join(&name);
        let device = match &extent.place {
            Place::Drive { start, sectors } => {
                let drive = drive.ok_or_else(|| ImageError::NoDrive(extent.image.clone()))?;
                mount_extent(&extent.image, drive, (*start, *sectors), &name, &directory)?;
                Some(name)
            }
            Place::Files(files) => {
                self.mount_files(&extent.image, files, &directory, users)?;
                None
            }
        };
        let mounted = Mounted { extent: extent.clone(), directory: directory.clone(), device, users: 1 };
        table.1.insert(extent.image.clone(), mounted);
        Ok(directory)
    }

    /// Mounts the files themselves where the kernel can (Linux 6.12), else loop devices over them.
    fn mount_files(
        &self,
        image: &str,
        files: &[PathBuf],
        directory: &Path,
        users: Option<&UserNamespace>,
    ) -> Result<(), ImageError> {
        let fail = |step| move |source| ImageError::Io { step, image: image.into(), source };
        let named: Vec<String> = files.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let mount = || erofs(&sources(&named)).or_else(|_| on_loops(files));
        let tree = match &self.host {
            Some(host) => in_mount_namespace(host.as_fd(), mount),
            None => mount(),
        };
        let tree = tree.map_err(fail("mount the file system"))?;
        if let Some(users) = users {
            users.map(tree.as_fd()).map_err(fail("map the owners' ids in the file system"))?;
        }
        let attached = attach(&tree, directory);
        if attached.is_err() {
            let _ = fs::remove_dir(directory);
        }
        attached.map_err(fail("attach the file system"))
    }

    /// One user less; the last one unmounts.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn release(&self, image: &str) -> Result<(), ImageError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mounted) = table.1.get_mut(image) else { return Ok(()) };
        mounted.users -= 1;
        if mounted.users > 0 {
            return Ok(());
        }
        let Some(mounted) = table.1.remove(image) else { return Ok(()) };
        let fail = |step| move |source| ImageError::Io { step, image: image.into(), source };
        rustix::mount::unmount(&mounted.directory, UnmountFlags::DETACH)
            .map_err(|error| fail("unmount the file system")(error.into()))?;
        fs::remove_dir(&mounted.directory).map_err(fail("remove the mount point"))?;
        let Some(device) = &mounted.device else { return Ok(()) };
        dm::Control::open().and_then(|control| control.remove(device)).map_err(fail("remove the device"))
    }
}

fn mount_extent(
    image: &str,
    drive: &str,
    (start, sectors): (u64, u64),
    device: &str,
    directory: &Path,
) -> Result<(), ImageError> {
    let fail = |step| move |source| ImageError::Io { step, image: image.into(), source };
    let control = dm::Control::open().map_err(fail("open device-mapper for the extent"))?;
    let (_, minor) = control.create_linear(device, drive, start, sectors).map_err(fail("map the extent"))?;
    let source = format!("/dev/dm-{minor}");
    let mounted = erofs(&[("source", &source)]).and_then(|tree| attach(&tree, directory));
    if mounted.is_err() {
        // The mount's own failure is what gets told.
        let _ = fs::remove_dir(directory);
        let _ = control.remove(device);
    }
    mounted.map_err(fail("mount the file system"))
}

/// The devices go with the mount: each ends when nobody has it open any more.
fn on_loops(files: &[PathBuf]) -> io::Result<OwnedFd> {
    let loops = files.iter().map(|file| LoopDevice::attach(file)).collect::<io::Result<Vec<_>>>()?;
    let paths: Vec<String> = loops.iter().map(|device| device.path().to_owned()).collect();
    erofs(&sources(&paths))
}

fn sources(paths: &[String]) -> Vec<(&'static str, &str)> {
    paths.iter().enumerate().map(|(at, path)| (if at == 0 { "source" } else { "device" }, path.as_str())).collect()
}

fn erofs(options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let options = [options, &[("ro", "")]].concat();
    Ok(detached_mount("erofs", &options, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

fn attach(tree: &OwnedFd, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree.as_fd(), "", CWD, directory, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::process::Command;

    #[test]
    fn an_image_is_read_from_files_and_from_loop_devices() {
        let directory = tempfile::tempdir().unwrap();
        let (tree, file) = (directory.path().join("tree"), directory.path().join("image"));
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("hello"), "world").unwrap();
        let made = Command::new("mkfs.erofs").arg(&file).arg(&tree).output();
        if !made.is_ok_and(|output| output.status.success()) || !rustix::process::geteuid().is_root() {
            return eprintln!("SKIPPED: no root or no mkfs.erofs (package erofs-utils)");
        }
        let named = file.to_str().unwrap().to_owned();
        let mounts = [erofs(&sources(&[named])).ok(), Some(on_loops(&[file]).unwrap())];
        for mount in mounts.into_iter().flatten() {
            let flags = rustix::fs::OFlags::RDONLY;
            let opened = rustix::fs::openat(&mount, "hello", flags, rustix::fs::Mode::empty()).unwrap();
            let mut text = String::new();
            fs::File::from(opened).read_to_string(&mut text).unwrap();
            assert_eq!(text, "world");
        }
    }
}
