//! From a reference to one image's manifest and configuration, every byte checked against its digest.

use oci_client::manifest::OciImageManifest;
use reqwest::header::{CONTENT_TYPE, HeaderMap};

use super::sources::Sources;
use crate::image::config::ImageStoreConfig;
use crate::image::digest::Digest;
use crate::image::error::PullError;
use crate::image::image::{ConfigFile, ImageLayer};
use crate::image::reference::Reference;
use crate::image::registries::Source;
use crate::image::registry::{self, Document, ManifestError, Request, Session};
use crate::image::store::Store;

const MAX_MANIFEST: usize = 4 << 20;
const MAX_CONFIG: usize = 8 << 20;
/// An index in an index is allowed by the specification; deeper nesting is nobody's honest work.
const MAX_NESTING: usize = 3;
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// The documents of one image.
pub(super) struct Documents {
    /// What the name points to: an index's digest if it is one.
    pub name_digest: Digest,
    pub manifest_bytes: Vec<u8>,
    pub config_digest: Digest,
    pub config_bytes: Vec<u8>,
    pub config: ConfigFile,
    pub layers: Vec<LayerSource>,
}

/// A layer to get.
#[derive(Debug, Clone)]
pub(super) struct LayerSource {
    pub media_type: String,
    pub digest: Digest,
    pub diff_id: Digest,
    pub size: u64,
}

impl LayerSource {
    /// As the image records it.
    pub fn record(&self, blob_len: u64) -> ImageLayer {
        ImageLayer { digest: self.digest, diff_id: self.diff_id, size: self.size, blob_len }
    }
}

/// Fetches manifest and configuration for the platform.
pub(super) async fn fetch(
    sources: &Sources,
    reference: &Reference,
    config: &ImageStoreConfig,
    store: &Store,
) -> Result<Documents, PullError> {
    let fetcher = Fetcher { sources, config, store };
    let NamedManifest { name_digest, digest, bytes: manifest_bytes, manifest } = fetcher.manifest(reference).await?;
    let (config_digest, config_bytes, config) = fetcher.config(digest, &manifest).await?;
    let layers = fetcher.layers(digest, config_digest, &manifest, &config)?;
    Ok(Documents { name_digest, manifest_bytes, config_digest, config_bytes, config, layers })
}

/// A manifest, found by way of a name.
struct NamedManifest {
    /// What the name points to: the manifest itself or an index above it.
    name_digest: Digest,
    digest: Digest,
    bytes: Vec<u8>,
    manifest: Box<OciImageManifest>,
}

struct Fetcher<'a> {
    sources: &'a Sources,
    config: &'a ImageStoreConfig,
    store: &'a Store,
}

impl Fetcher<'_> {
    /// Follows indexes down to a manifest.
    async fn manifest(&self, reference: &Reference) -> Result<NamedManifest, PullError> {
        let mut name = reference.manifest_name();
        let mut expected = reference.digest();
        let mut name_digest = None;
        for _ in 0..MAX_NESTING {
            let (digest, bytes, document) = self.one_manifest(&name, expected).await?;
            match document {
                Document::Image(manifest) => {
                    let name_digest = name_digest.unwrap_or(digest);
                    return Ok(NamedManifest { name_digest, digest, bytes, manifest });
                }
                Document::Index(index) => {
                    name_digest.get_or_insert(digest);
                    let entry = registry::choose(&index, &self.config.platform)
                        .map_err(|none| self.no_platform(none.available))?;
                    expected = Some(self.digest(digest, &entry.digest)?);
                    name = entry.digest.clone();
                }
            }
        }
        let cause = ManifestError::Malformed("image indexes are nested too deeply".into());
        Err(self.bad_manifest(name_digest.unwrap_or(Digest::of(b"")), cause))
    }

    /// A manifest, parsed and checked, from the first place that has it as it should be.
    async fn one_manifest(
        &self,
        name: &str,
        expected: Option<Digest>,
    ) -> Result<(Digest, Vec<u8>, Document), PullError> {
        let (path, what, accept) = (format!("manifests/{name}"), format!("manifest {name}"), Document::accept());
        let request = Request { path: &path, what: &what, accept: Some(&accept), from: 0 };
        let fits = if expected.is_some() { |source: &Source| source.pull } else { |source: &Source| source.resolve };
        let mut asking = self.sources.asking(fits);
        loop {
            let session = asking.next().await?;
            match self.manifest_of(&session, request, expected).await {
                Err(error) => asking.failed(error)?,
                done => return done,
            }
        }
    }

    async fn manifest_of(
        &self,
        session: &Session,
        request: Request<'_>,
        expected: Option<Digest>,
    ) -> Result<(Digest, Vec<u8>, Document), PullError> {
        let (headers, bytes) = session.fetch(request, MAX_MANIFEST).await.map_err(|e| self.registry(e))?;
        let found = Digest::of(&bytes);
        let announced = || header(&headers, "docker-content-digest").and_then(|text| text.parse().ok());
        if let Some(expected) = expected.or_else(announced) {
            self.check(session, request.what, expected, found)?;
        }
        let parsed = registry::parse(&bytes, header(&headers, CONTENT_TYPE.as_str()), self.config.limits.layers);
        Ok((found, bytes, parsed.map_err(|cause| self.bad_manifest(found, cause))?))
    }

    async fn config(
        &self,
        manifest_digest: Digest,
        manifest: &OciImageManifest,
    ) -> Result<(Digest, Vec<u8>, ConfigFile), PullError> {
        let descriptor = &manifest.config;
        if !CONFIG_TYPES.contains(&descriptor.media_type.as_str()) {
            let media_type = descriptor.media_type.chars().take(100).collect();
            return Err(self.bad_manifest(manifest_digest, ManifestError::MediaType(media_type)));
        }
        let expected = self.digest(manifest_digest, &descriptor.digest)?;
        let bytes = match self.store.config(&expected).await {
            Some(bytes) => bytes,
            None => self.config_bytes(expected).await?,
        };
        let file: ConfigFile = serde_json::from_slice(&bytes).map_err(|e| self.bad_config(expected, e.to_string()))?;
        let wanted = &self.config.platform;
        let fits = |has: &str, wanted: &str| has.is_empty() || has == wanted;
        if !fits(&file.os, &wanted.os) || !fits(&file.architecture, &wanted.architecture) {
            return Err(self.no_platform(vec![file.platform()]));
        }
        Ok((expected, bytes, file))
    }

    async fn config_bytes(&self, expected: Digest) -> Result<Vec<u8>, PullError> {
        let (path, what) = (format!("blobs/{expected}"), format!("image configuration {expected}"));
        let request = Request { path: &path, what: &what, accept: None, from: 0 };
        let mut asking = self.sources.asking(|source| source.pull);
        loop {
            let session = asking.next().await?;
            let fetched = session.fetch(request, MAX_CONFIG).await.map_err(|e| self.registry(e));
            let checked = fetched
                .and_then(|(_, bytes)| self.check(&session, &what, expected, Digest::of(&bytes)).map(|()| bytes));
            match checked {
                Err(error) => asking.failed(error)?,
                done => return done,
            }
        }
    }

    /// The manifest's layers with the configuration's diff ids.
    fn layers(
        &self,
        manifest_digest: Digest,
        config_digest: Digest,
        manifest: &OciImageManifest,
        config: &ConfigFile,
    ) -> Result<Vec<LayerSource>, PullError> {
        let (layers, diff_ids) = (&manifest.layers, &config.rootfs.diff_ids);
        if layers.len() != diff_ids.len() {
            let reason = format!("it has {} diff ids, the manifest has {} layers", diff_ids.len(), layers.len());
            return Err(self.bad_config(config_digest, reason));
        }
        let source = |(layer, diff_id): (&oci_client::manifest::OciDescriptor, &Digest)| {
            let negative = || ManifestError::Malformed(format!("layer {} has size {}", layer.digest, layer.size));
            Ok(LayerSource {
                media_type: layer.media_type.clone(),
                digest: self.digest(manifest_digest, &layer.digest)?,
                diff_id: *diff_id,
                size: u64::try_from(layer.size).map_err(|_| self.bad_manifest(manifest_digest, negative()))?,
            })
        };
        layers.iter().zip(diff_ids).map(source).collect()
    }

    fn check(&self, session: &Session, what: &str, expected: Digest, found: Digest) -> Result<(), PullError> {
        if expected == found {
            return Ok(());
        }
        let (image, host, what) = (self.sources.image.clone(), session.host().to_owned(), what.to_owned());
        let (expected, found) = (Box::new(expected), Box::new(found));
        Err(PullError::DigestMismatch { image, host, what, expected, found })
    }

    /// A digest that a manifest names.
    fn digest(&self, manifest: Digest, text: &str) -> Result<Digest, PullError> {
        text.parse().map_err(|e: crate::image::digest::DigestError| {
            self.bad_manifest(manifest, ManifestError::Malformed(e.to_string()))
        })
    }

    fn registry(&self, cause: registry::RegistryError) -> PullError {
        PullError::registry(&self.sources.image, cause)
    }

    fn bad_manifest(&self, digest: Digest, cause: ManifestError) -> PullError {
        PullError::Manifest { image: self.sources.image.clone(), digest, cause }
    }

    fn bad_config(&self, digest: Digest, reason: String) -> PullError {
        PullError::Config { image: self.sources.image.clone(), digest, reason }
    }

    fn no_platform(&self, available: Vec<String>) -> PullError {
        PullError::NoMatchingPlatform {
            image: self.sources.image.clone(),
            wanted: self.config.platform.to_string(),
            available,
        }
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
