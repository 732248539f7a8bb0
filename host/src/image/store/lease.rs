//! Leases keep files while someone uses them, whatever happens to the images that named them.

use std::path::PathBuf;
use std::sync::Arc;

use super::{LayerRecord, Store};
use crate::image::digest::Digest;
use crate::image::image::{Image, ImageId};

/// What can be leased, and is deleted when neither an image nor a lease needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    /// A layer's blob and tree, by diff id.
    Layer(Digest),
    /// An image's directory, by image id.
    Image(Digest),
}

/// Keeps objects until it is dropped.
pub(crate) struct Lease {
    store: Arc<Store>,
    objects: Vec<Object>,
}

impl Lease {
    /// Of a layer, if the store has it.
    pub fn of_layer(store: &Arc<Store>, diff_id: Digest) -> Option<(Self, LayerRecord)> {
        let mut state = store.state();
        let record = state.layers.get(&diff_id)?.clone();
        Some((Self::take(store, &mut state, vec![Object::Layer(diff_id)]), record))
    }

    /// Of anything, whether there yet or not.
    pub fn of(store: &Arc<Store>, objects: Vec<Object>) -> Self {
        Self::take(store, &mut store.state(), objects)
    }

    /// Of an image with its layers, if the store has it.
    pub fn of_image(store: &Arc<Store>, id: &ImageId) -> Option<(Self, Arc<Image>)> {
        let image = store.index().get(id).cloned()?;
        let mut objects = vec![Object::Image(*id)];
        objects.extend(image.layers.iter().map(|layer| Object::Layer(layer.diff_id)));
        let lease = Self::of(store, objects);
        // Removal looks at leases after it changed the index, so an image still in the index keeps its files from here on.
        let image = store.index().get(id).cloned()?;
        Some((lease, image))
    }

    fn take(store: &Arc<Store>, state: &mut super::State, objects: Vec<Object>) -> Self {
        for object in &objects {
            *state.leases.entry(*object).or_default() += 1;
        }
        Self { store: store.clone(), objects }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let objects = std::mem::take(&mut self.objects);
        let unused: Vec<_> = {
            let mut state = self.store.state();
            objects.into_iter().filter(|object| state.release(object)).collect()
        };
        let index = self.store.index();
        if unused.iter().all(|object| object.is_used(&index)) {
            return;
        }
        let store = self.store.clone();
        // A drop may happen on a thread that must not wait for the disk.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let task = runtime.spawn_blocking(move || store.collect(&unused));
                self.store.collecting.push(task);
            }
            Err(_) => store.collect(&unused),
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.objects).finish()
    }
}

impl Object {
    /// Whether an image of the index needs it.
    pub fn is_used(&self, index: &super::Index) -> bool {
        match self {
            Self::Layer(diff_id) => index.uses_layer(diff_id),
            Self::Image(id) => index.get(id).is_some(),
        }
    }

    /// Its files and directories.
    pub fn paths(&self, store: &Store) -> Vec<PathBuf> {
        match self {
            Self::Layer(diff_id) => vec![store.blob_path(diff_id), store.tree_path(diff_id)],
            Self::Image(id) => vec![store.image_path(id)],
        }
    }
}
