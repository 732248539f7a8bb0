//! Images: pulled from registries into a content-addressed store of EROFS metadata and data blobs.
//!
//! ```text
//! Images -> pull     -> registry             manifests, tokens, retries
//!                    -> layer                tar stream -> blob + tree
//!                    -> erofs                trees -> metadata image
//!        -> store                            files, index, leases
//! ```
//!
//! [`Images`] is what the rest of the daemon uses. Everything that a registry or an image says is bounded and checked
//! against a digest before it is used.

mod background;
pub mod config;
pub mod digest;
pub mod erofs;
mod error;
#[expect(clippy::module_inception)]
mod image;
pub mod layer;
mod pull;
pub mod reference;
mod registry;
mod store;

use std::sync::Arc;

pub use config::{ImageLimits, ImageStoreConfig, PlatformConfig, RegistryRule};
pub use digest::Digest;
pub use error::{OpenError, PullError, RemoveError, RootError, StoreError};
pub use image::{Image, ImageId, ImageLayer, ImageRuntimeConfig, ImageUser};
pub use pull::Progress;
pub use reference::{Reference, ReferenceError};
pub use registry::{Credentials, CredentialsError, ManifestError, RegistryError};
pub use store::{FsUsage, ImageFile, ImageRoot};

use pull::Puller;
use store::Store;

/// The image service. Clones share one store.
#[derive(Debug, Clone)]
pub struct Images {
    store: Arc<Store>,
    puller: Arc<Puller>,
}

impl Images {
    /// Opens the store of `config`, alone, and removes what a crash left half-made.
    pub async fn open(config: ImageStoreConfig) -> Result<Self, OpenError> {
        config.check().map_err(OpenError::Config)?;
        let root = config.root.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&root)).await;
        let store = store.map_err(|e| OpenError::Config(format!("opening it was broken off: {e}")))??;
        let puller = Arc::new(Puller::new(store.clone(), config));
        Ok(Self { store, puller })
    }

    /// Pulls an image by name and returns its id. Pulls of one name with the same credentials are one pull, and so are
    /// downloads of one layer; the last caller who gives up ends it. `progress` is called now and then.
    pub async fn pull(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        progress: impl Fn(Progress),
    ) -> Result<ImageId, PullError> {
        self.puller.pull(name, credentials, progress).await
    }

    /// An image by id, by a prefix of at least six digits that only it has, or by any form of its name. Never waits.
    #[must_use]
    pub fn find(&self, name_or_id: &str) -> Option<Image> {
        self.store.index().find(name_or_id).map(|image| Image::clone(image))
    }

    /// All images, by id. Never waits.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        self.store.index().images().map(|image| Image::clone(image)).collect()
    }

    /// Removes an image with all its names; one that is not there is no error. Layers of other images stay, and so do
    /// files that an [`ImageRoot`] or a pull uses, until it is dropped.
    pub async fn remove(&self, name_or_id: &str) -> Result<(), RemoveError> {
        let Some(id) = self.store.index().find(name_or_id).map(|image| image.id) else { return Ok(()) };
        let store = self.store.clone();
        let image = || name_or_id.to_owned();
        match tokio::task::spawn_blocking(move || store.remove(&id)).await {
            Ok(removed) => removed.map_err(|cause| RemoveError::Store { image: image(), cause }),
            Err(error) => Err(RemoveError::Internal { image: image(), reason: error.to_string() }),
        }
    }

    /// Waits until the files are deleted that pulls and roots dropped so far have left.
    pub async fn settle(&self) {
        self.puller.settle().await;
    }

    /// How much the store takes. Never waits.
    #[must_use]
    pub fn fs_usage(&self) -> FsUsage {
        self.store.usage()
    }

    /// Opens the files of an image's root file system. Opens files, so it may wait for a disk.
    pub fn open_root(&self, id: &ImageId) -> Result<ImageRoot, RootError> {
        self.store.open_root(id)
    }
}
