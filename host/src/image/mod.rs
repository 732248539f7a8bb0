//! Images: pulled from registries into a content-addressed store of EROFS metadata and data blobs.
//!
//! ```text
//! Images -> registries                       names; who serves an image, and how
//!        -> credentials                      who we are to a registry
//!        -> pull     -> registry             manifests, tokens, retries
//!                    -> layer                tar stream -> blob + tree
//!                    -> erofs                trees -> metadata image
//!        -> store                            files, index, leases
//! ```
//!
//! [`Images`] is what the rest of the daemon uses. Everything that a registry or an image says is bounded and checked
//! against a digest before it is used.

mod background;
pub mod config;
mod credentials;
pub mod digest;
pub mod erofs;
mod error;
#[expect(clippy::module_inception)]
mod image;
pub mod layer;
mod program;
mod pull;
pub mod reference;
mod registries;
mod registry;
pub mod secret;
mod store;

use std::sync::Arc;

pub use config::{ImageLimits, ImageStoreConfig, PlatformConfig, RegistryRule};
pub(crate) use credentials::CriAuth;
pub use credentials::{AuthError, Credentials, CredentialsError, PullSecret};
pub use digest::Digest;
pub use error::{OpenError, PullError, RemoveError, RootError, StoreError};
pub use image::{Image, ImageId, ImageLayer, ImageRuntimeConfig, ImageUser};
pub use program::ProgramError;
pub use pull::Progress;
pub use reference::{Reference, ReferenceError};
pub use registries::{ConfError, NameError, SourceError};
pub use registry::{ManifestError, RegistryError};
pub use store::{FsUsage, ImageFile, ImageRoot};

use pull::Puller;
use registries::Registries;
use store::{Index, Store};

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
        let settings = config.clone();
        let open = move || Ok((Registries::load(&settings)?, Store::open(&settings.root)?));
        let opened: Result<Result<_, OpenError>, _> = tokio::task::spawn_blocking(open).await;
        let (registries, store) =
            opened.map_err(|e| OpenError::Config(format!("opening it was broken off: {e}")))??;
        let puller = Arc::new(Puller::new(store.clone(), config, registries));
        Ok(Self { store, puller })
    }

    /// Reads the files again that tell names and registries. When one cannot be used, all stay as they were.
    pub async fn reload(&self) -> Result<(), OpenError> {
        let puller = self.puller.clone();
        let reloaded = tokio::task::spawn_blocking(move || puller.reload()).await;
        reloaded.map_err(|e| OpenError::Config(format!("reading it again was broken off: {e}")))?
    }

    /// Pulls an image by name and returns its id. Pulls of one name with the same secret are one pull, and so are
    /// downloads of one layer; the last caller who gives up ends it. `progress` is called now and then.
    pub async fn pull(
        &self,
        name: &str,
        secret: Option<PullSecret>,
        progress: impl Fn(Progress),
    ) -> Result<ImageId, PullError> {
        self.puller.pull(name, secret, progress).await
    }

    /// An image by id, by a prefix of at least six digits that only it has, or by any form of its name. Never waits.
    #[must_use]
    pub fn find(&self, name_or_id: &str) -> Option<Image> {
        self.look_up(&self.store.index(), name_or_id).map(|image| Image::clone(image))
    }

    /// Names mean here what they mean to [`Self::pull`].
    fn look_up<'i>(&self, index: &'i Index, name_or_id: &str) -> Option<&'i Arc<Image>> {
        // A whole id first: nobody may give an image a name that reads like another one's id.
        if name_or_id.parse::<Digest>().is_ok() {
            return index.by_id(name_or_id);
        }
        let names = self.puller.registries().candidates(name_or_id).unwrap_or_default();
        names.iter().find_map(|name| index.named(name)).or_else(|| index.by_id(name_or_id))
    }

    /// All images, by id. Never waits.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        self.store.index().images().map(|image| Image::clone(image)).collect()
    }

    /// Removes an image with all its names; one that is not there is no error. Layers of other images stay, and so do
    /// files that an [`ImageRoot`] or a pull uses, until it is dropped.
    pub async fn remove(&self, name_or_id: &str) -> Result<(), RemoveError> {
        let Some(id) = self.look_up(&self.store.index(), name_or_id).map(|image| image.id) else { return Ok(()) };
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
