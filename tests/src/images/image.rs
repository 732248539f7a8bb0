//! From layers to the blobs and manifests of a registry.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layer::LayerBytes;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As most registries have it.
    Gzip,
    /// OCI only.
    Zstd,
    /// A plain tar.
    None,
}

/// Which media types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// application/vnd.oci.image.*
    Oci,
    /// application/vnd.docker.distribution.*, schema 2
    Docker,
}

/// An image to be built.
#[derive(Debug, Clone)]
pub struct Image {
    /// Bottom first.
    pub layers: Vec<LayerBytes>,
    /// Of all layers.
    pub compression: Compression,
    /// Of the manifest.
    pub flavour: Flavour,
    /// "amd64"
    pub architecture: String,
    /// `config` of the image configuration: Cmd, Env, User, ...
    pub config: Value,
}

/// A blob of a registry.
#[derive(Clone)]
pub struct Blob {
    /// "sha256:..."
    pub digest: String,
    /// What it is.
    pub media_type: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {} bytes)", self.digest, self.media_type, self.bytes.len())
    }
}

/// An image as a registry holds it.
#[derive(Debug, Clone)]
pub struct Built {
    /// Configuration and layers.
    pub blobs: Vec<Blob>,
    /// Of one platform.
    pub manifest: Blob,
    /// os and architecture for an index.
    pub architecture: String,
}

/// Manifests of several platforms under one name.
#[derive(Debug, Clone)]
pub struct Index {
    /// In the order of the list.
    pub images: Vec<Built>,
}

impl Blob {
    /// Names `bytes` by their digest.
    #[must_use]
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), media_type: media_type.to_owned(), bytes }
    }

    /// The descriptor that a manifest refers to it by.
    #[must_use]
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

impl Image {
    /// amd64, OCI, gzip, with this `config`.
    #[must_use]
    pub fn new(layers: Vec<LayerBytes>, config: Value) -> Self {
        Self { layers, compression: Compression::Gzip, flavour: Flavour::Oci, architecture: "amd64".into(), config }
    }

    /// Compresses and describes.
    ///
    /// # Errors
    /// When a compressor fails.
    pub fn build(&self) -> Result<Built> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(&layer.0)).collect();
        let configuration = json!({
            "created": "2023-11-14T22:13:20Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": diff_ids.iter().map(|_| json!({ "created_by": "bulkhead tests" })).collect::<Vec<_>>(),
        });
        let layers =
            self.layers.iter().map(|layer| Ok(Blob::new(self.layer_type(), compress(&layer.0, self.compression)?)));
        Ok(self.with_blobs(&configuration, layers.collect::<Result<_>>()?))
    }

    /// With a configuration and layer blobs as they are; for images that are wrong on purpose.
    #[must_use]
    pub fn with_blobs(&self, configuration: &Value, layers: Vec<Blob>) -> Built {
        let oci = self.flavour == Flavour::Oci;
        let config_type = if oci {
            "application/vnd.oci.image.config.v1+json"
        } else {
            "application/vnd.docker.container.image.v1+json"
        };
        let manifest_type = if oci {
            "application/vnd.oci.image.manifest.v1+json"
        } else {
            "application/vnd.docker.distribution.manifest.v2+json"
        };
        let configuration = Blob::new(config_type, configuration.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": configuration.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(manifest_type, manifest.to_string().into_bytes());
        let blobs = std::iter::once(configuration).chain(layers).collect();
        Built { blobs, manifest, architecture: self.architecture.clone() }
    }

    /// Media type of this image's layers.
    #[must_use]
    pub fn layer_type(&self) -> &'static str {
        match (self.flavour, self.compression) {
            (Flavour::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Flavour::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Flavour::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Flavour::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
        }
    }
}

impl Index {
    /// The list itself.
    #[must_use]
    pub fn manifest(&self) -> Blob {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let manifests: Vec<Value> = self
            .images
            .iter()
            .map(|image| {
                let mut descriptor = image.manifest.descriptor();
                descriptor["platform"] = json!({ "os": "linux", "architecture": image.architecture });
                descriptor
            })
            .collect();
        let list = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        Blob::new(media_type, list.to_string().into_bytes())
    }
}

/// "sha256:" and the digest of `bytes`.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn compress(bytes: &[u8], how: Compression) -> Result<Vec<u8>> {
    Ok(match how {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes)?;
            encoder.finish()?
        }
        Compression::Zstd => zstd::encode_all(bytes, 3)?,
        Compression::None => bytes.to_vec(),
    })
}
