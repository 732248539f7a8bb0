//! Writable layers of containers, on the scratch drive or in memory, and the overlays made with them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bulkhead_proto::agent::FileSystem;
use rustix::mount::MountAttrFlags;
use thiserror::Error;

use crate::helper::detached_mount;

/// Entries counted for one container's usage; beyond that the figure is a lower bound.
const MAX_COUNTED: u64 = 1_000_000;

/// Why a writable layer cannot be made or removed.
#[derive(Debug, Error)]
#[error("cannot {step} {path}: {source}")]
pub struct LayerError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayerError {
    move |source| LayerError { step, path: path.into(), source }
}

/// The writable layer of one container.
#[derive(Debug, Clone)]
pub struct Layer {
    path: PathBuf,
}

impl Layer {
    /// Makes an empty layer for container `id` below `directory`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(directory: &Path, id: &str) -> Result<Self, LayerError> {
        let layer = Self { path: directory.join(id) };
        layer.remove()?;
        for part in ["upper", "work"] {
            let path = layer.path.join(part);
            fs::create_dir_all(&path).map_err(at("make the layer", &path))?;
        }
        Ok(layer)
    }

    /// An overlay of this layer on `lower`, mounted nowhere yet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn overlay(&self, lower: &Path) -> Result<OwnedFd, LayerError> {
        let (upper, work) = (self.path.join("upper"), self.path.join("work"));
        if let Ok(attributes) = fs::metadata(lower) {
            copy_root_attributes(&attributes, &upper).map_err(at("prepare the layer", &upper))?;
        }
        let text = |path: &Path| path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:");
        let options = [
            ("source", "overlay"),
            ("lowerdir", &text(lower)),
            ("upperdir", &upper.to_string_lossy()),
            ("workdir", &work.to_string_lossy()),
            ("index", "off"),
            ("metacopy", "off"),
        ];
        detached_mount("overlay", &options, MountAttrFlags::empty())
            .map_err(|error| at("mount an overlay on", lower)(error.into()))
    }

    /// The file system that it lies on.
    #[must_use]
    pub fn space(&self) -> Option<FileSystem> {
        let found = rustix::fs::statvfs(&self.path).ok()?;
        let mut space = FileSystem::new();
        space.total_bytes = found.f_blocks.saturating_mul(found.f_frsize);
        space.available_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        (space.total_inodes, space.free_inodes) = (found.f_files, found.f_ffree);
        Some(space)
    }

    /// Bytes and inodes in use.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        let (mut bytes, mut inodes) = (0, 0);
        let mut directories = vec![self.path.join("upper")];
        while let Some(directory) = directories.pop() {
            // What vanishes while it is counted does not count.
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                inodes += 1;
                bytes += metadata.blocks() * 512;
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
            }
            if inodes > MAX_COUNTED {
                break;
            }
        }
        (bytes, inodes)
    }

    /// Removes the layer. Idempotent.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self) -> Result<(), LayerError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove the layer", &self.path)(error)),
            _ => Ok(()),
        }
    }
}

/// The overlay's root shows the upper directory's attributes.
fn copy_root_attributes(from: &fs::Metadata, to: &Path) -> io::Result<()> {
    std::os::unix::fs::chown(to, Some(from.uid()), Some(from.gid()))?;
    fs::set_permissions(to, from.permissions())
}
