//! One pull from its first request to the image in the index.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;

use super::Puller;
use super::document::{self, Documents};
use super::layer::LayerJob;
use super::meter::Meter;
use super::sources::Sources;
use crate::image::background::Blocking;
use crate::image::credentials::PullSecret;
use crate::image::digest::Digest;
use crate::image::erofs::{self, BlobRef};
use crate::image::error::{PullError, StoreError};
use crate::image::image::{Image, ImageId};
use crate::image::layer::Tree;
use crate::image::reference::Reference;
use crate::image::store::{LayerRecord, Lease, METADATA, Store, TempPath};

impl Puller {
    pub(super) async fn run(
        self: Arc<Self>,
        reference: Reference,
        secret: Option<PullSecret>,
        meter: Arc<Meter>,
    ) -> Result<ImageId, PullError> {
        let image = reference.to_string();
        let sources = Arc::new(Sources::of(&self, &reference, secret).await?);
        let documents = document::fetch(&sources, &reference, &self.config, &self.store).await?;
        meter.begin(documents.layers.len(), documents.layers.iter().map(|layer| layer.size).sum());

        let count = documents.layers.len();
        let jobs: Vec<_> = documents
            .layers
            .iter()
            .enumerate()
            .map(|(at, source)| LayerJob {
                sources: sources.clone(),
                image: image.clone(),
                what: format!("layer {} of {count} ({})", at + 1, source.digest),
                source: source.clone(),
                meter: meter.clone(),
            })
            .collect();
        let layers = self.layers(&jobs).await?;

        let store = self.store.clone();
        let id = documents.config_digest;
        let finish = move || Finish { store, reference, documents }.run();
        let finished = match Blocking::start(&self.finishing, finish).finish().await {
            Ok(finished) => finished.map_err(PullError::store(&image)),
            Err(reason) => Err(PullError::Internal { image, reason }),
        };
        if let Err(error) = &finished {
            self.clean_up(error, layers).await;
        }
        finished.map(|()| id)
    }

    /// All layers, or the first failure.
    async fn layers(self: &Arc<Self>, jobs: &[LayerJob]) -> Result<Vec<Arc<Lease>>, PullError> {
        let complete = Mutex::new(Vec::new());
        let one = async |job| {
            let lease = self.layer(job).await?;
            complete.lock().unwrap_or_else(PoisonError::into_inner).push(lease.clone());
            Ok(lease)
        };
        let layers = try_join_all(jobs.iter().map(one)).await;
        if let Err(error) = &layers {
            self.clean_up(error, complete.into_inner().unwrap_or_else(PoisonError::into_inner)).await;
        }
        layers
    }

    /// A caller who is told of a failure finds nothing half-made, and complete layers only if there is room.
    async fn clean_up(self: &Arc<Self>, error: &PullError, complete: Vec<Arc<Lease>>) {
        if error.is_disk_full() {
            drop(complete);
            self.keep_nothing();
        } else {
            self.keep(complete);
        }
        self.settle().await;
    }
}

/// What is left when all layers are in place and leased.
struct Finish {
    store: Arc<Store>,
    reference: Reference,
    documents: Documents,
}

impl Finish {
    fn run(self) -> Result<(), StoreError> {
        let repo_tag = self.reference.repo_tag();
        let repo_digest = self.reference.repo_digest(&self.documents.name_digest);
        let (repo_tags, repo_digests) = (repo_tag.into_iter().collect::<Vec<_>>(), vec![repo_digest]);
        if let Some((_lease, known)) = Lease::of_image(&self.store, &self.documents.config_digest) {
            let has = |names: &[String], wanted: &[String]| wanted.iter().all(|name| names.contains(name));
            if has(&known.repo_digests, &repo_digests) && has(&known.repo_tags, &repo_tags) {
                return Ok(());
            }
            return self.store.add(Image { repo_tags, repo_digests, ..Image::clone(&known) }, None);
        }
        let directory = TempPath::new(&self.store);
        let image = Image { repo_tags, repo_digests, ..self.build(&directory)? };
        self.store.add(image, Some(directory))
    }

    /// Merges the layers' trees and writes the image's directory.
    fn build(&self, directory: &TempPath) -> Result<Image, StoreError> {
        let Documents { config_digest: id, manifest_bytes, config_bytes, config, layers, .. } = &self.documents;
        let records = layers.iter().map(|layer| self.record(&layer.diff_id)).collect::<Result<Vec<_>, _>>()?;
        let trees = records.iter().map(|record| self.tree(record)).collect::<Result<Vec<_>, _>>()?;
        let merged = erofs::merge(&trees.iter().collect::<Vec<_>>()).map_err(|e| self.broken(&e))?;
        let blobs: Vec<_> = records.iter().map(|r| BlobRef { digest: r.diff_id, len: r.blob_len }).collect();

        let path = directory.path();
        std::fs::create_dir(path).map_err(StoreError::io("creating", path))?;
        write(&path.join("manifest.json"), manifest_bytes)?;
        write(&path.join("config.json"), config_bytes)?;
        let metadata_len = self.write_metadata(&path.join(METADATA), &merged, &blobs)?;

        let sizes = records.iter().map(|record| record.disk_bytes).sum::<u64>();
        Ok(Image {
            id: *id,
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size_bytes: sizes + metadata_len + (manifest_bytes.len() + config_bytes.len()) as u64,
            layers: layers.iter().zip(&records).map(|(layer, record)| layer.record(record.blob_len)).collect(),
            metadata_len,
            config: config.config.clone(),
            created: config.created.clone(),
            platform: config.platform(),
            pinned: false,
        })
    }

    fn record(&self, diff_id: &Digest) -> Result<LayerRecord, StoreError> {
        let known = self.store.state().layers.get(diff_id).cloned();
        known.ok_or_else(|| self.broken(&std::io::Error::other(format!("layer {diff_id} is not in the store"))))
    }

    fn tree(&self, record: &LayerRecord) -> Result<Tree, StoreError> {
        let path = self.store.tree_path(&record.diff_id);
        let bytes = std::fs::read(&path).map_err(StoreError::io("reading", &path))?;
        Tree::from_bytes(&bytes).map_err(|e| self.broken(&e))
    }

    fn write_metadata(&self, path: &Path, tree: &Tree, blobs: &[BlobRef]) -> Result<u64, StoreError> {
        let failed = StoreError::io("writing", path);
        let mut out = std::fs::File::create_new(path).map_err(&failed)?;
        let written = erofs::write(tree, blobs, &mut out).map_err(|e| {
            if crate::image::error::is_disk_full(&e) {
                failed(std::io::Error::from(std::io::ErrorKind::StorageFull))
            } else {
                self.broken(&e)
            }
        })?;
        Ok(written.len)
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> StoreError {
        StoreError::Metadata { id: self.documents.config_digest, reason: crate::error_text(error) }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    std::fs::write(path, bytes).map_err(StoreError::io("writing", path))
}
