//! The store on disk.
//!
//! ```text
//! root/lock                         flock while a daemon has the store
//! root/index.json                   which images there are; decides alone, replaced atomically
//! root/blobs/sha256/<diff id>       a layer's file contents, block by block
//! root/blobs/sha256/<diff id>.tree  a layer's names and attributes
//! root/images/<image id>/           manifest.json config.json metadata.erofs
//! root/tmp/                         everything in the making; emptied at start
//! ```
//!
//! Files go to their place before the index names them, after one `syncfs`; they leave after it stops naming them. So a
//! crash at any point costs at most files that nothing names, and [`Store::open`] removes those.

mod index;
mod lease;
mod root;
mod sweep;
mod temp;

use std::collections::HashMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::background::Background;
use super::digest::Digest;
use super::error::{OpenError, StoreError};
use super::image::{Image, ImageId};
pub(crate) use index::{Index, LayerRecord};
pub(crate) use lease::{Lease, Object};
pub use root::{ImageFile, ImageRoot};
pub(crate) use temp::TempPath;

/// Name of an image's EROFS metadata in its directory.
pub(crate) const METADATA: &str = "metadata.erofs";

/// Files, index and leases.
pub(crate) struct Store {
    root: PathBuf,
    /// For readers; never waited for.
    index: ArcSwap<Index>,
    /// Held for moments, never across I/O.
    state: Mutex<State>,
    /// Orders changes of the index and of which files are in place. Taken before `state`.
    files: Mutex<()>,
    next_temporary: AtomicU64,
    /// Deletions begun by dropped leases.
    pub(crate) collecting: Background<()>,
    _lock: File,
}

/// What exists beside the index.
#[derive(Default)]
pub(crate) struct State {
    /// Layers in place.
    pub layers: HashMap<Digest, LayerRecord>,
    /// Lease counts.
    pub leases: HashMap<Object, usize>,
}

impl State {
    /// Gives one lease back; true when it was the last.
    fn release(&mut self, object: &Object) -> bool {
        match self.leases.get_mut(object) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                self.leases.remove(object);
                true
            }
        }
    }
}

/// How much the store takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The store's directory.
    pub mountpoint: PathBuf,
    /// By blobs, trees and metadata.
    pub used_bytes: u64,
    /// Files and directories.
    pub inodes_used: u64,
    /// When that was so.
    pub timestamp: std::time::SystemTime,
}

fn blobs(root: &Path) -> PathBuf {
    root.join("blobs/sha256")
}

fn images(root: &Path) -> PathBuf {
    root.join("images")
}

fn blob(root: &Path, diff_id: &Digest) -> PathBuf {
    blobs(root).join(diff_id.hex())
}

fn tree(root: &Path, diff_id: &Digest) -> PathBuf {
    blobs(root).join(diff_id.hex() + ".tree")
}

fn image(root: &Path, id: &ImageId) -> PathBuf {
    images(root).join(id.hex())
}

impl Store {
    /// Takes the store at `root`, which is made if need be, and cleans up after a crash.
    pub fn open(root: &Path) -> Result<Arc<Self>, OpenError> {
        for directory in [root.to_owned(), blobs(root), images(root), root.join("tmp")] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(StoreError::io("creating", &directory))?;
        }
        let lock = lock(root)?;
        sweep::sweep(&root.join("tmp"), &Default::default())?;
        let (mut index, mut layers) = Index::read(root)?;
        Self::reconcile(root, &mut index, &mut layers)?;
        Ok(Arc::new(Self {
            root: root.to_owned(),
            index: ArcSwap::from_pointee(index),
            state: Mutex::new(State { layers, leases: HashMap::new() }),
            files: Mutex::new(()),
            next_temporary: AtomicU64::new(0),
            collecting: Background::default(),
            _lock: lock,
        }))
    }

    /// The images at this moment.
    pub fn index(&self) -> Arc<Index> {
        self.index.load_full()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // State is consistent between any two statements that change it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary_path(&self) -> PathBuf {
        self.root.join("tmp").join(self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// A layer's data.
    pub fn blob_path(&self, diff_id: &Digest) -> PathBuf {
        blob(&self.root, diff_id)
    }

    /// A layer's saved tree.
    pub fn tree_path(&self, diff_id: &Digest) -> PathBuf {
        tree(&self.root, diff_id)
    }

    /// An image's directory.
    pub fn image_path(&self, id: &ImageId) -> PathBuf {
        image(&self.root, id)
    }

    /// Puts a finished layer in its place, unless it is there already. Blocks on the disk.
    pub fn place_layer(
        self: &Arc<Self>,
        record: LayerRecord,
        blob: TempPath,
        tree: TempPath,
    ) -> Result<Lease, StoreError> {
        let _order = self.files();
        if let Some(lease) = Lease::of_layer(self, record.diff_id).map(|(lease, _)| lease) {
            return Ok(lease);
        }
        let object = Object::Layer(record.diff_id);
        tree.place(&self.tree_path(&record.diff_id))?;
        blob.place(&self.blob_path(&record.diff_id))?;
        self.state().layers.insert(record.diff_id, record);
        Ok(Lease::of(self, vec![object]))
    }

    /// Adds an image whose layers are in place and leased, with its directory; without one it must be leased itself, and
    /// only gets further names. Blocks on the disk.
    pub fn add(self: &Arc<Self>, image: Image, directory: Option<TempPath>) -> Result<(), StoreError> {
        let _keep = Lease::of(self, vec![Object::Image(image.id)]);
        if let Some(directory) = directory {
            self.place_image(&image.id, directory)?;
            let root = File::open(&self.root).map_err(StoreError::io("opening", &self.root))?;
            rustix::fs::syncfs(root).map_err(|e| StoreError::io("syncing", &self.root)(e.into()))?;
        }
        self.change(|index| index.insert(image))
    }

    fn place_image(&self, id: &ImageId, directory: TempPath) -> Result<(), StoreError> {
        let _order = self.files();
        let place = self.image_path(id);
        // The same image by another name may have come first.
        if place.exists() { Ok(()) } else { directory.place(&place) }
    }

    /// Takes an image out; its files go unless leased. Blocks on the disk.
    pub fn remove(&self, id: &ImageId) -> Result<(), StoreError> {
        let Some(image) = self.index().get(id).cloned() else { return Ok(()) };
        self.change(|index| {
            index.remove(id);
        })?;
        let mut objects = vec![Object::Image(*id)];
        objects.extend(image.layers.iter().map(|layer| Object::Layer(layer.diff_id)));
        self.collect(&objects);
        Ok(())
    }

    /// The configuration of an image that the store has, as it was pulled.
    pub async fn config(&self, id: &ImageId) -> Option<Vec<u8>> {
        self.index().get(id)?;
        let bytes = tokio::fs::read(self.image_path(id).join("config.json")).await.ok()?;
        (Digest::of(&bytes) == *id).then_some(bytes)
    }

    /// Changes the index: first on disk, then for readers.
    fn change(&self, change: impl FnOnce(&mut Index)) -> Result<(), StoreError> {
        let _order = self.files();
        let mut next = Index::clone(&self.index());
        change(&mut next);
        let layers = self.state().layers.clone();
        next.write(&self.root, &layers)?;
        self.index.store(Arc::new(next));
        Ok(())
    }

    /// Deletes those objects that neither an image nor a lease needs.
    fn collect(&self, objects: &[Object]) {
        let mut doomed = Vec::new();
        {
            let _order = self.files();
            let index = self.index();
            for object in objects.iter().filter(|object| !object.is_used(&index)) {
                {
                    let mut state = self.state();
                    if state.leases.contains_key(object) {
                        continue;
                    }
                    if let Object::Layer(diff_id) = object {
                        state.layers.remove(diff_id);
                    }
                }
                for path in object.paths(self) {
                    let away = TempPath::new(self);
                    if std::fs::rename(&path, away.path()).is_ok() {
                        doomed.push(away);
                    }
                }
            }
        }
        // Deleting large files takes long; they were moved away, so nobody has to wait.
        drop(doomed);
    }

    /// How much the store takes, from memory.
    pub fn usage(&self) -> FsUsage {
        let (layers, layer_bytes) = {
            let state = self.state();
            let bytes: u64 = state.layers.values().map(|layer| layer.disk_bytes).sum();
            (state.layers.len() as u64, bytes)
        };
        let index = self.index();
        let (images, metadata) =
            index.images().fold((0, 0), |(count, bytes), image| (count + 1, bytes + image.metadata_len));
        // Root, four directories, lock and index; two files per layer; a directory and three files per image.
        let inodes_used = 7 + 2 * layers + 4 * images;
        FsUsage {
            mountpoint: self.root.clone(),
            used_bytes: layer_bytes + metadata,
            inodes_used,
            timestamp: std::time::SystemTime::now(),
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

/// The kernel lets go of the lock with the process, however it ends.
fn lock(root: &Path) -> Result<File, OpenError> {
    let path = root.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(StoreError::io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { root: root.to_owned() }),
        Err(TryLockError::Error(error)) => Err(StoreError::io("locking", &path)(error).into()),
    }
}
