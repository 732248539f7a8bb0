//! Images made on the spot: tar streams, packed, with configuration and manifest around them.

use std::collections::HashMap;
use std::io::Write;

use bulkhead::image::Digest;
use serde_json::{Value, json};

/// How a layer is packed.
#[derive(Clone, Copy, PartialEq)]
pub enum Pack {
    Plain,
    Gzip,
    Zstd,
}

/// Bytes with their type.
#[derive(Clone)]
pub struct Blob {
    pub media_type: String,
    pub bytes: Vec<u8>,
}

impl Blob {
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest().to_string(), "size": self.bytes.len()})
    }
}

/// A whole image.
#[derive(Clone)]
pub struct Built {
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<Blob>,
}

impl Built {
    /// The image id.
    pub fn id(&self) -> Digest {
        self.config.digest()
    }
}

/// A tar stream of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        // Set by hand: the library refuses the names that some tests need.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *contents).expect("tar entry");
    }
    builder.into_inner().expect("tar end")
}

/// Bytes that no compression shortens, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn pack(tar: &[u8], pack: Pack) -> Vec<u8> {
    match pack {
        Pack::Plain => tar.to_vec(),
        Pack::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).expect("gzip");
            encoder.finish().expect("gzip")
        }
        Pack::Zstd => zstd::encode_all(tar, 1).expect("zstd"),
    }
}

/// What an image is made from.
pub struct Recipe {
    pub docker: bool,
    pub architecture: &'static str,
    pub user: &'static str,
    pub layers: Vec<(Vec<u8>, Pack)>,
}

impl Recipe {
    /// An OCI image for amd64 of gzip layers.
    pub fn new(layers: Vec<Vec<u8>>) -> Self {
        let layers = layers.into_iter().map(|tar| (tar, Pack::Gzip)).collect();
        Self { docker: false, architecture: "amd64", user: "1000:1000", layers }
    }

    fn media_type(&self, oci: &str, docker: &str) -> String {
        if self.docker {
            format!("application/vnd.docker.{docker}")
        } else {
            format!("application/vnd.oci.image.{oci}")
        }
    }

    pub fn build(&self) -> Built {
        let layer = |(tar, how): &(Vec<u8>, Pack)| {
            let (oci, docker) = match how {
                Pack::Plain => ("layer.v1.tar", "image.rootfs.diff.tar"),
                Pack::Gzip => ("layer.v1.tar+gzip", "image.rootfs.diff.tar.gzip"),
                Pack::Zstd => ("layer.v1.tar+zstd", "image.rootfs.diff.tar.zstd"),
            };
            Blob { media_type: self.media_type(oci, docker), bytes: pack(tar, *how) }
        };
        let layers: Vec<_> = self.layers.iter().map(layer).collect();
        let diff_ids: Vec<_> = self.layers.iter().map(|(tar, _)| Digest::of(tar).to_string()).collect();
        let config = json!({
            "architecture": self.architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {"User": self.user, "Env": ["A=b"], "Entrypoint": ["/bin/sh"], "Cmd": ["-c", "true"],
                "WorkingDir": "/tmp", "Labels": {"l": "v"}, "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}},
                "StopSignal": "SIGINT"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Blob {
            media_type: self.media_type("config.v1+json", "container.image.v1+json"),
            bytes: config.to_string().into_bytes(),
        };
        let manifest = Blob {
            media_type: self.media_type("manifest.v1+json", "distribution.manifest.v2+json"),
            bytes: Vec::new(),
        };
        Built { manifest, config, layers }.sealed()
    }
}

impl Built {
    /// Writes the manifest anew from what the image has now.
    pub fn sealed(mut self) -> Self {
        let layers: Vec<_> = self.layers.iter().map(Blob::descriptor).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": self.manifest.media_type,
            "config": self.config.descriptor(), "layers": layers});
        self.manifest.bytes = manifest.to_string().into_bytes();
        self
    }
}

/// An index, or Docker's manifest list, over images for platforms.
pub fn index(docker: bool, images: &[(&str, &Built)]) -> Blob {
    let entries: Vec<_> = images
        .iter()
        .map(|(architecture, image)| {
            let mut entry = image.manifest.descriptor();
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        })
        .collect();
    let media_type = if docker {
        "application/vnd.docker.distribution.manifest.list.v2+json"
    } else {
        "application/vnd.oci.image.index.v1+json"
    };
    let bytes = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string().into_bytes();
    Blob { media_type: media_type.into(), bytes }
}

/// What a registry serves, by path.
#[derive(Clone, Default)]
pub struct Content(pub HashMap<String, Blob>);

impl Content {
    /// One image under one tag.
    pub fn of(repository: &str, tag: &str, image: &Built) -> Self {
        Self::default().and(repository, tag, image)
    }

    /// Adds an image.
    pub fn and(mut self, repository: &str, tag: &str, image: &Built) -> Self {
        for blob in image.layers.iter().chain([&image.config]) {
            self.0.insert(format!("/v2/{repository}/blobs/{}", blob.digest()), blob.clone());
        }
        self.and_manifest(repository, tag, &image.manifest)
    }

    /// Adds a manifest or index by tag and by digest.
    pub fn and_manifest(mut self, repository: &str, tag: &str, manifest: &Blob) -> Self {
        for name in [tag.to_owned(), manifest.digest().to_string()] {
            self.0.insert(format!("/v2/{repository}/manifests/{name}"), manifest.clone());
        }
        self
    }
}
