//! Sources of a container's mounts, as detached trees.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, FileType, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use thiserror::Error;

use crate::helper::{Root, detached_mount};

/// Why a mount's source is not to be had.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// The share itself.
    #[error("cannot mount the pod's volume share {tag:?} at {path}: {source}")]
    Share {
        /// Its virtio-fs tag.
        tag: String,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path in it.
    #[error("cannot open {path:?} in {within}: {source}")]
    Open {
        /// What.
        path: String,
        /// Of what.
        within: String,
        /// Why.
        source: io::Error,
    },
    /// A memory-backed volume.
    #[error("cannot make the memory volume {name:?}: {source}")]
    Memory {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// A tree to be attached in a container.
#[derive(Debug)]
pub struct Tree {
    /// Detached.
    pub fd: OwnedFd,
    /// Goes on a directory, else on a file.
    pub directory: bool,
}

/// The pod's volumes.
#[derive(Debug)]
pub struct Volumes {
    /// Where the share is, or will be.
    share: PathBuf,
    /// virtio-fs tag; without it `share` is a directory as it is.
    tag: Option<String>,
    memory: PathBuf,
    mounted: Mutex<Mounted>,
}

#[derive(Debug, Default)]
struct Mounted {
    share: bool,
    memory: HashMap<String, PathBuf>,
}

impl Volumes {
    /// Memory volumes are mounted below `memory`.
    #[must_use]
    pub fn new(share: PathBuf, tag: Option<String>, memory: PathBuf) -> Self {
        Self { share, tag, memory, mounted: Mutex::default() }
    }

    /// A path of the share; it is mounted at the first use. Blocking.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn shared(&self, path: &str) -> Result<Tree, VolumeError> {
        self.ensure_share()?;
        tree_of(&self.share, path, "the pod's volumes")
    }

    fn ensure_share(&self) -> Result<(), VolumeError> {
        let Some(tag) = &self.tag else { return Ok(()) };
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if !mounted.share {
            mount_shared("virtiofs", &[("source", tag)], &self.share, MountAttrFlags::empty())
                .map_err(|source| VolumeError::Share { tag: tag.clone(), path: self.share.clone(), source })?;
            mounted.share = true;
        }
        Ok(())
    }

    /// The memory volume `name`, made at the first use.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn memory(&self, name: &str, size: u64, mode: u32) -> Result<Tree, VolumeError> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let path = match mounted.memory.get(name) {
            Some(path) => path.clone(),
            None => {
                let path = self.memory.join(mounted.memory.len().to_string());
                let (size, mode) = (size.to_string(), format!("{mode:o}"));
                let mut options = vec![("source", "tmpfs"), ("mode", mode.as_str())];
                if size != "0" {
                    options.push(("size", &size));
                }
                let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
                mount_shared("tmpfs", &options, &path, attributes)
                    .map_err(|source| VolumeError::Memory { name: name.into(), source })?;
                mounted.memory.insert(name.into(), path.clone());
                path
            }
        };
        tree_of(&path, "/", name)
    }
}

/// Mounts at `path`, in a peer group of its own so that propagation can be asked for.
fn mount_shared(kind: &str, options: &[(&str, &str)], path: &Path, attributes: MountAttrFlags) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let tree = detached_mount(kind, options, attributes)?;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(rustix::mount::mount_change(path, MountPropagationFlags::SHARED)?)
}

/// A detached copy of `path` in the directory `root`, which symlinks never lead out of.
///
/// # Errors
/// See [`VolumeError`].
pub fn tree_of(root: &Path, path: &str, within: &str) -> Result<Tree, VolumeError> {
    open_tree(root, path).map_err(|source| VolumeError::Open { path: path.into(), within: within.into(), source })
}

fn open_tree(root: &Path, path: &str) -> io::Result<Tree> {
    let root = Root::new(fs::File::open(root)?.into());
    let source = root.open(Path::new(path), OFlags::PATH)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let fd = rustix::mount::open_tree(source.as_fd(), "", flags)?;
    Ok(Tree { fd, directory: kind == FileType::Directory })
}
