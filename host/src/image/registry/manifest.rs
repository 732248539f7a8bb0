//! Manifests and indexes, OCI and Docker schema 2: what they are, and which one fits the platform.

use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciImageIndex, OciImageManifest,
};
use serde::Deserialize;

use crate::image::config::PlatformConfig;

/// Entries of an index that are looked at.
const MAX_ENTRIES: usize = 4096;

/// What a manifest endpoint may answer.
#[derive(Debug)]
pub(crate) enum Document {
    Image(Box<OciImageManifest>),
    Index(OciImageIndex),
}

impl Document {
    /// What we accept, for the request's header.
    pub fn accept() -> String {
        [OCI_IMAGE_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE]
            .join(", ")
    }
}

/// Why bytes are no manifest that can be pulled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Docker's old format.
    #[error(
        "it is a Docker schema 1 manifest, a format that was retired in 2017: push the image again with a current tool"
    )]
    Schema1,
    /// Helm charts and the like have other types.
    #[error("its media type {0:?} is none of an image or an image index")]
    MediaType(String),
    /// Not the JSON it should be.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// Over the limit.
    #[error("it lists {found} {what}, at most {limit} are allowed")]
    TooMany {
        /// Layers or manifests.
        what: &'static str,
        /// Listed.
        found: usize,
        /// Allowed.
        limit: usize,
    },
}

/// Reads a manifest or index.
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>, max_layers: usize) -> Result<Document, ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        schema_version: i32,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let malformed = |e: serde_json::Error| ManifestError::Malformed(e.to_string());
    let kind: Kind = serde_json::from_slice(bytes).map_err(malformed)?;
    if kind.schema_version == 1 {
        return Err(ManifestError::Schema1);
    }
    // OCI makes the field optional; the header is no part of the digest, so it only fills in.
    let media_type = kind.media_type.as_deref().or(content_type.map(|t| t.split(';').next().unwrap_or(t).trim()));
    let is_index = match media_type {
        Some(OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE) => false,
        Some(OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE) => true,
        None | Some("" | "application/json" | "application/octet-stream") => kind.manifests.is_some(),
        Some(other) => return Err(ManifestError::MediaType(other.chars().take(100).collect())),
    };
    if is_index {
        let index: OciImageIndex = serde_json::from_slice(bytes).map_err(malformed)?;
        let found = index.manifests.len();
        return if found > MAX_ENTRIES {
            Err(ManifestError::TooMany { what: "manifests", found, limit: MAX_ENTRIES })
        } else {
            Ok(Document::Index(index))
        };
    }
    let image: Box<OciImageManifest> = serde_json::from_slice(bytes).map_err(malformed)?;
    let found = image.layers.len();
    if found > max_layers {
        return Err(ManifestError::TooMany { what: "layers", found, limit: max_layers });
    }
    Ok(Document::Image(image))
}

/// The platforms an index has instead of the one wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoPlatform {
    pub available: Vec<String>,
}

/// The entry that fits best: the same variant, then a lower one of a compatible family, then one without platform.
pub(crate) fn choose<'i>(index: &'i OciImageIndex, wanted: &PlatformConfig) -> Result<&'i ImageIndexEntry, NoPlatform> {
    let best = index
        .manifests
        .iter()
        .enumerate()
        .filter_map(|(at, entry)| Some((fitness(entry, wanted)?, std::cmp::Reverse(at), entry)))
        .max_by_key(|(fitness, at, _)| (*fitness, *at));
    match best {
        Some((_, _, entry)) => Ok(entry),
        None => {
            let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
            let mut available: Vec<_> = platforms
                .filter(|p| p.os.to_string() != "unknown")
                .map(|p| {
                    let variant = p.variant.clone().unwrap_or_default();
                    PlatformConfig { os: p.os.to_string(), architecture: p.architecture.to_string(), variant }
                        .to_string()
                })
                .collect();
            available.sort();
            available.dedup();
            available.truncate(40);
            Err(NoPlatform { available })
        }
    }
}

/// How well an entry fits, more is better; none when it does not run here.
fn fitness(entry: &ImageIndexEntry, wanted: &PlatformConfig) -> Option<u32> {
    let Some(platform) = &entry.platform else { return Some(0) };
    if platform.os.to_string() != wanted.os || platform.architecture.to_string() != wanted.architecture {
        return None;
    }
    let has = level(&wanted.architecture, platform.variant.as_deref().unwrap_or_default())?;
    let runs = level(&wanted.architecture, &wanted.variant)?;
    (has <= runs).then_some(1 + has)
}

/// A variant as a number within its architecture; the usual one when empty.
fn level(architecture: &str, variant: &str) -> Option<u32> {
    let usual = match architecture {
        "arm64" => 8,
        "arm" => 7,
        "amd64" => 1,
        _ => 0,
    };
    if variant.is_empty() { Some(usual) } else { variant.trim_start_matches('v').parse().ok().filter(|v| *v < 100) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn damaged_manifests_never_panic(at in 0usize..400, byte: u8) {
            let layer = r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:00","size":1}"#;
            let text = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer},{layer}],"annotations":{{}}}}"#);
            let mut bytes = text.into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = parse(&bytes, None, 10);
            let _ = parse(&bytes[..at], Some("application/vnd.oci.image.index.v1+json"), 10);
        }
    }

    fn index(platforms: &[&str]) -> OciImageIndex {
        let entries: Vec<_> = platforms
            .iter()
            .map(|p| {
                let parts: Vec<_> = p.split('/').collect();
                let platform = match parts[..] {
                    [os, arch] => serde_json::json!({"os": os, "architecture": arch}),
                    [os, arch, variant] => serde_json::json!({"os": os, "architecture": arch, "variant": variant}),
                    _ => serde_json::Value::Null,
                };
                serde_json::json!({"mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": p, "size": 2, "platform": platform})
            })
            .collect();
        let text = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
        match parse(text.as_bytes(), None, 1).unwrap() {
            Document::Index(index) => index,
            Document::Image(_) => panic!("an index"),
        }
    }

    fn chosen(platforms: &[&str], architecture: &str, variant: &str) -> Result<String, Vec<String>> {
        let wanted = PlatformConfig { os: "linux".into(), architecture: architecture.into(), variant: variant.into() };
        choose(&index(platforms), &wanted).map(|e| e.digest.clone()).map_err(|e| e.available)
    }

    #[test]
    fn takes_the_platform_that_fits() {
        let all = ["windows/amd64", "linux/arm/v6", "linux/arm/v7", "linux/amd64", "linux/arm64/v8", "unknown/unknown"];
        assert_eq!(chosen(&all, "amd64", "").unwrap(), "linux/amd64");
        assert_eq!(chosen(&all, "arm", "").unwrap(), "linux/arm/v7");
        assert_eq!(chosen(&all, "arm", "v6").unwrap(), "linux/arm/v6");
        assert_eq!(chosen(&all, "arm64", "").unwrap(), "linux/arm64/v8");
        assert_eq!(chosen(&["linux/arm64"], "arm64", "v8").unwrap(), "linux/arm64");
        assert_eq!(chosen(&["linux/amd64/v3", "linux/amd64"], "amd64", "").unwrap(), "linux/amd64");
        assert_eq!(chosen(&["none"], "amd64", "").unwrap(), "none");
        assert_eq!(chosen(&all[..2], "s390x", "").unwrap_err(), ["linux/arm/v6", "windows/amd64"]);
    }

    #[test]
    fn refuses_with_the_reason() {
        let why = |text: &str| parse(text.as_bytes(), None, 1).unwrap_err().to_string();
        assert!(why(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema 1"));
        assert!(why(r#"{"schemaVersion":2,"mediaType":"application/x"}"#).contains("\"application/x\""));
        assert!(why("<html>").contains("malformed"));
        let layer = r#"{"mediaType":"l","digest":"d","size":1}"#;
        let many = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer},{layer}]}}"#);
        assert!(why(&many).contains("lists 2 layers, at most 1"));
    }
}
