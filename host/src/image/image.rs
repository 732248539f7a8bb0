//! What the store says about an image, and the image configuration's JSON behind it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::config::PlatformConfig;
use super::digest::Digest;

/// The digest of the image's configuration.
pub type ImageId = Digest;

/// One image of the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the configuration.
    pub id: ImageId,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest` of what the names pointed to, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes it takes on disk; layers shared with other images count in each.
    pub size_bytes: u64,
    /// Lowest layer first.
    pub layers: Vec<ImageLayer>,
    /// Bytes of the EROFS metadata, a multiple of 4096.
    pub metadata_len: u64,
    /// What containers start from.
    pub config: ImageRuntimeConfig,
    /// When it was built, as the image says it, if it does.
    pub created: Option<String>,
    /// Platform the image says it is for.
    pub platform: String,
    /// Never collected by the kubelet.
    #[serde(default)]
    pub pinned: bool,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// Of the compressed stream.
    pub digest: Digest,
    /// Of the tar stream; names the blob.
    pub diff_id: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Bytes of the blob, a multiple of 4096.
    pub blob_len: u64,
}

impl Image {
    /// The files behind the metadata on the flat device, in order: each layer's blob, but for those without data.
    pub fn devices(&self) -> impl Iterator<Item = (Digest, u64)> + '_ {
        self.layers.iter().filter(|layer| layer.blob_len > 0).map(|layer| (layer.diff_id, layer.blob_len))
    }
}

/// The `config` part of an image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRuntimeConfig {
    /// `user[:group]`, names or numbers; empty is root.
    #[serde(default, rename = "User", deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value`.
    #[serde(default, rename = "Env", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Comes before the command.
    #[serde(default, rename = "Entrypoint", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Replaced by a container's own arguments.
    #[serde(default, rename = "Cmd", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Empty is `/`.
    #[serde(default, rename = "WorkingDir", deserialize_with = "or_default")]
    pub working_dir: String,
    /// `SIGTERM` or a number; empty is SIGTERM.
    #[serde(default, rename = "StopSignal", deserialize_with = "or_default")]
    pub stop_signal: String,
    /// The image's labels.
    #[serde(default, rename = "Labels", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Directories that get an anonymous volume.
    #[serde(default, rename = "Volumes", deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// `80/tcp`.
    #[serde(default, rename = "ExposedPorts", deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
}

/// A user as CRI's `ImageStatus` wants it: a number or a name, never both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// `USER 1000`
    Uid(i64),
    /// `USER www`
    Name(String),
}

impl ImageRuntimeConfig {
    /// The user without its group; none when the image sets none. A number is what the agent takes for one: digits, at
    /// most `i32::MAX`; one above it is told as a name, which nobody takes for a user other than root.
    #[must_use]
    pub fn image_user(&self) -> Option<ImageUser> {
        let user = self.user.split(':').next().unwrap_or_default();
        if user.is_empty() {
            return None;
        }
        let digits = user.bytes().all(|byte| byte.is_ascii_digit());
        Some(match user.parse::<i32>() {
            Ok(uid) if digits => ImageUser::Uid(i64::from(uid)),
            _ => ImageUser::Name(user.to_owned()),
        })
    }
}

/// An image configuration, as far as it is used.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub variant: String,
    #[serde(default)]
    pub created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub config: ImageRuntimeConfig,
    pub rootfs: RootFs,
}

impl ConfigFile {
    /// `os/architecture[/variant]`
    pub fn platform(&self) -> String {
        let (os, architecture, variant) = (self.os.clone(), self.architecture.clone(), self.variant.clone());
        PlatformConfig { os, architecture, variant }.to_string()
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// Builders write `null` where they mean nothing.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The keys of `{"80/tcp": {}}`, or a plain list, which is how the index keeps them.
fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Keys {
        Map(BTreeMap<String, serde::de::IgnoredAny>),
        List(Vec<String>),
    }
    Ok(match Option::deserialize(from)? {
        None => Vec::new(),
        Some(Keys::Map(map)) => map.into_keys().collect(),
        Some(Keys::List(list)) => list,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_builders_write() {
        let text = r#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","history":[],
            "config":{"User":"1000:1000","Env":null,"Cmd":["sh"],"Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}},
            "Labels":null,"Healthcheck":{"Test":["NONE"]}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let file: ConfigFile = serde_json::from_str(text).unwrap();
        assert_eq!(file.config.volumes, ["/data"]);
        assert_eq!(file.config.image_user(), Some(ImageUser::Uid(1000)));
        let again: ImageRuntimeConfig = serde_json::from_str(&serde_json::to_string(&file.config).unwrap()).unwrap();
        assert_eq!(again, file.config);
        assert!(serde_json::from_str::<ConfigFile>(r#"{"config":null,"rootfs":{}}"#).is_ok());
    }

    #[test]
    fn a_user_is_a_number_or_a_name() {
        let user = |text: &str| ImageRuntimeConfig { user: text.into(), ..Default::default() }.image_user();
        assert_eq!(user(""), None);
        assert_eq!(user("0"), Some(ImageUser::Uid(0)));
        assert_eq!(user("www:data"), Some(ImageUser::Name("www".into())));
        assert_eq!(user(":5"), None);
        assert_eq!(user("2147483647"), Some(ImageUser::Uid(i64::from(i32::MAX))));
        for name in ["2147483648", "4294967295", "-1", "+5"] {
            assert_eq!(user(name), Some(ImageUser::Name(name.into())));
        }
    }
}
