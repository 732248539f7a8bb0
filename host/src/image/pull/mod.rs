//! Pulling: manifest, configuration, layers in parallel, EROFS metadata, and the index entry that makes it an image.

mod channel;
mod document;
mod ingest;
mod join;
mod keep;
mod layer;
mod meter;
mod run;
mod sources;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use tokio::sync::Semaphore;

use super::background::Background;
use super::config::ImageStoreConfig;
use super::credentials::PullSecret;
use super::digest::Digest;
use super::error::{OpenError, PullError, StoreError};
use super::image::ImageId;
use super::reference::Reference;
use super::registries::{NameError, Registries};
use super::registry::Http;
use super::store::{Lease, Store};
use ingest::{IngestError, Ingested};
use join::Joined;
pub use meter::Progress;

/// Callers with the same name and the same secret share one pull.
type PullKey = (Reference, Option<PullSecret>);

/// The pulling part of the image service.
pub(crate) struct Puller {
    store: Arc<Store>,
    config: ImageStoreConfig,
    registries: ArcSwap<Registries>,
    http: Arc<Http>,
    downloads: Semaphore,
    pulls: Joined<PullKey, Result<ImageId, PullError>>,
    layers: Joined<Digest, Result<Arc<Lease>, PullError>>,
    meters: meter::Meters<PullKey>,
    /// The blocking parts of pulls, in their order.
    ingesting: Arc<Background<Result<Ingested, IngestError>>>,
    placing: Arc<Background<Result<Lease, StoreError>>>,
    finishing: Arc<Background<Result<(), StoreError>>>,
    kept: keep::Kept,
}

impl Puller {
    pub fn new(store: Arc<Store>, config: ImageStoreConfig, registries: Registries) -> Self {
        Self {
            store,
            registries: ArcSwap::from_pointee(registries),
            http: Arc::new(Http::new(config.stall_timeout())),
            downloads: Semaphore::new(config.max_concurrent_downloads.max(1)),
            config,
            pulls: Joined::new(),
            layers: Joined::new(),
            meters: meter::Meters::default(),
            ingesting: Arc::default(),
            placing: Arc::default(),
            finishing: Arc::default(),
            kept: keep::Kept::default(),
        }
    }

    /// Waits until what dropped pulls and leases left is deleted.
    pub async fn settle(&self) {
        self.ingesting.wait().await;
        self.placing.wait().await;
        self.finishing.wait().await;
        self.store.collecting.wait().await;
    }

    /// Reads registries.conf again. Blocks on the disk.
    pub fn reload(&self) -> Result<(), OpenError> {
        self.registries.store(Arc::new(Registries::load(&self.config)?));
        Ok(())
    }

    /// What names mean at this moment.
    pub fn registries(&self) -> Arc<Registries> {
        self.registries.load_full()
    }

    /// Pulls the first image of those that the name may mean.
    pub async fn pull(
        self: &Arc<Self>,
        name: &str,
        secret: Option<PullSecret>,
        progress: impl Fn(Progress),
    ) -> Result<ImageId, PullError> {
        let mut names = self.registries().to_pull(name)?;
        let mut before = Vec::new();
        let last = names.pop();
        for reference in names {
            match self.pull_one(reference, secret.clone(), &progress).await {
                Err(error) if error.is_the_registrys() => before.push(error),
                done => return done,
            }
        }
        match last {
            Some(last) => self.pull_one(last, secret, &progress).await.map_err(|error| error.after(before)),
            None => Err(NameError::NoSearch { name: name.to_owned() }.into()),
        }
    }

    /// Pulls, or waits for the same pull of someone else.
    async fn pull_one(
        self: &Arc<Self>,
        reference: Reference,
        secret: Option<PullSecret>,
        progress: &impl Fn(Progress),
    ) -> Result<ImageId, PullError> {
        let key = (reference, secret);
        let meter = self.meters.of(&key);
        let mut seen = meter.watch();
        let begin = || {
            let (puller, meter, (reference, secret)) = (self.clone(), meter.clone(), key.clone());
            async move { puller.run(reference, secret, meter).await }.boxed()
        };
        let (mut work, _) = self.pulls.join(key.clone(), begin);
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                Ok(()) = seen.changed() => progress(seen.borrow_and_update().clone()),
            }
        }
    }
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("store", &self.store).finish_non_exhaustive()
    }
}
