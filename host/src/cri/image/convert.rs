//! The store's images as the CRI shows them.

use std::collections::HashMap;

use bulkhead_proto::cri;
use tonic::Status;

use crate::image::{CriAuth, FsUsage, Image, ImageUser, PullSecret};

pub(super) fn image(image: &Image) -> cri::Image {
    let (uid, username) = match image.config.image_user() {
        Some(ImageUser::Uid(value)) => (Some(cri::Int64Value { value }), String::new()),
        Some(ImageUser::Name(name)) => (None, name),
        None => (None, String::new()),
    };
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        uid,
        username,
        spec: Some(cri::ImageSpec { image: image.id.to_string(), ..Default::default() }),
        pinned: image.pinned,
    }
}

/// `crictl inspecti` shows this.
pub(super) fn image_info(image: &Image) -> HashMap<String, String> {
    HashMap::from([("info".to_owned(), serde_json::to_string(image).unwrap_or_default())])
}

pub(super) fn fs_usage(usage: &FsUsage) -> cri::FilesystemUsage {
    let since = usage.timestamp.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    cri::FilesystemUsage {
        timestamp: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: Some(cri::UInt64Value { value: usage.used_bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes_used }),
    }
}

/// The CRI's credentials; all fields empty is none.
pub(super) fn secret(auth: cri::AuthConfig) -> Result<Option<PullSecret>, Status> {
    let cri::AuthConfig { username, password, auth, server_address, identity_token, registry_token } = auth;
    PullSecret::from_cri(CriAuth { username, password, auth, server_address, identity_token, registry_token })
        .map_err(|e| Status::invalid_argument(crate::error_text(&e)))
}
