//! Sources of a container's mounts, as detached trees.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, FileType, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use thiserror::Error;

use crate::helper::{Root, detached_mount};
use crate::sys::in_mount_namespace;

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

/// Where volumes come from.
#[derive(Debug)]
pub enum Share {
    /// A virtio-fs device with this tag.
    Tag(String),
    /// The host's own mount namespace: what is cloned in it can stay connected with the host's mounts.
    Host(Arc<OwnedFd>),
}

impl Share {
    /// The host's mount namespace, where volumes come from it.
    #[must_use]
    pub fn host(&self) -> Option<Arc<OwnedFd>> {
        match self {
            Self::Tag(_) => None,
            Self::Host(namespace) => Some(Arc::clone(namespace)),
        }
    }
}

/// The pod's volumes.
#[derive(Debug)]
pub struct Volumes {
    /// Where the share is, or will be.
    directory: PathBuf,
    share: Share,
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
    pub fn new(directory: PathBuf, share: Share, memory: PathBuf) -> Self {
        Self { directory, share, memory, mounted: Mutex::default() }
    }

    /// A path of the share, with the mounts below it if `recursive`; a device is mounted at the first use. Blocking.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn shared(&self, path: &str, recursive: bool) -> Result<Tree, VolumeError> {
        match &self.share {
            Share::Tag(tag) => {
                self.ensure_mounted(tag)?;
                tree_of(&self.directory, path, "the pod's volumes")
            }
            Share::Host(namespace) => {
                let cloned = in_mount_namespace(namespace.as_fd(), || open_tree(&self.directory, path, recursive));
                cloned.map_err(|source| VolumeError::Open { path: path.into(), within: "the host".into(), source })
            }
        }
    }

    fn ensure_mounted(&self, tag: &str) -> Result<(), VolumeError> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if !mounted.share {
            mount_shared("virtiofs", &[("source", tag)], &self.directory, MountAttrFlags::empty())
                .map_err(|source| VolumeError::Share { tag: tag.into(), path: self.directory.clone(), source })?;
            mounted.share = true;
        }
        Ok(())
    }

    /// The memory volume `name`, made at the first use as the property of `owner`, user and group.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn memory(&self, name: &str, size: u64, mode: u32, owner: (u32, u32)) -> Result<Tree, VolumeError> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let path = match mounted.memory.get(name) {
            Some(path) => path.clone(),
            None => {
                let path = self.memory.join(mounted.memory.len().to_string());
                let (size, mode) = (size.to_string(), format!("{mode:o}"));
                let (uid, gid) = (owner.0.to_string(), owner.1.to_string());
                let mut options = vec![("source", "tmpfs"), ("mode", mode.as_str()), ("uid", &uid), ("gid", &gid)];
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
    open_tree(root, path, true).map_err(|source| VolumeError::Open { path: path.into(), within: within.into(), source })
}

fn open_tree(root: &Path, path: &str, recursive: bool) -> io::Result<Tree> {
    let root = Root::new(fs::File::open(root)?.into());
    let source = root.open(Path::new(path), OFlags::PATH)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode);
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let fd = rustix::mount::open_tree(source.as_fd(), "", flags)?;
    Ok(Tree { fd, directory: kind == FileType::Directory })
}
