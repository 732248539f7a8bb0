//! Images on the pod's image drive: one device-mapper device and one EROFS mount for each, while containers use it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, UnmountFlags};
use thiserror::Error;

use crate::helper::detached_mount;
use crate::sys::dm;

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

/// Part of the image drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The image's id.
    pub image: String,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub sectors: u64,
}

#[derive(Debug)]
struct Mounted {
    extent: Extent,
    directory: PathBuf,
    device: String,
    users: usize,
}

/// The mounted images.
#[derive(Debug)]
pub struct Images {
    directory: PathBuf,
    table: Mutex<(u64, HashMap<String, Mounted>)>,
}

impl Images {
    /// Mounts go below `directory`.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, table: Mutex::default() }
    }

    /// Mounts the image, or counts one more user; `drive` is "MAJOR:MINOR". Blocking: the lock serialises mounting.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing is left then.
    pub fn acquire(&self, extent: &Extent, drive: Option<&str>) -> Result<PathBuf, ImageError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mounted) = table.1.get_mut(&extent.image) {
            if mounted.extent != *extent {
                return Err(ImageError::Conflict(extent.image.clone()));
            }
            mounted.users += 1;
            return Ok(mounted.directory.clone());
        }
        let drive = drive.ok_or_else(|| ImageError::NoDrive(extent.image.clone()))?;
        table.0 += 1;
        let device = format!("image-{}", table.0);
        let directory = self.directory.join(&device);
        mount(extent, drive, &device, &directory)?;
        let mounted = Mounted { extent: extent.clone(), directory: directory.clone(), device, users: 1 };
        table.1.insert(extent.image.clone(), mounted);
        Ok(directory)
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
        dm::Control::open().and_then(|control| control.remove(&mounted.device)).map_err(fail("remove the device"))
    }
}

fn mount(extent: &Extent, drive: &str, device: &str, directory: &Path) -> Result<(), ImageError> {
    let fail = |step| move |source| ImageError::Io { step, image: extent.image.clone(), source };
    let control = dm::Control::open().map_err(fail("open device-mapper for the extent"))?;
    let number = control.create_linear(device, drive, extent.start, extent.sectors).map_err(fail("map the extent"))?;
    let mounted = mount_erofs(number, directory);
    if mounted.is_err() {
        // The mount's own failure is what gets told.
        let _ = fs::remove_dir(directory);
        let _ = control.remove(device);
    }
    mounted.map_err(fail("mount the file system"))
}

fn mount_erofs((_, minor): (u32, u32), directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let source = format!("/dev/dm-{minor}");
    let tree = detached_mount("erofs", &[("source", &source), ("ro", "")], MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree.as_fd(), "", CWD, directory, flags)?)
}
