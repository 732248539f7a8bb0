//! containers-auth.json(5), of which Docker's `config.json` is the older sister.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{AuthError, Credentials, normalized_host};
use crate::image::secret::Secret;

const MAX_FILE: u64 = 4 << 20;

/// What an auth file holds.
#[derive(Default, Deserialize)]
pub(crate) struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    /// Helpers by registry.
    #[serde(default, rename = "credHelpers")]
    pub cred_helpers: HashMap<String, String>,
    /// The helper of all others; empty: none.
    #[serde(default, rename = "credsStore")]
    pub creds_store: String,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<Secret>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<Secret>,
}

impl AuthFile {
    /// Reads a file, which need not exist.
    pub(super) async fn read(path: &Path) -> Result<Option<Self>, AuthError> {
        let failed = |reason: String| AuthError::File { path: path.to_owned(), reason };
        let bytes = match tokio::fs::metadata(path).await {
            Ok(found) if found.len() > MAX_FILE => {
                return Err(failed(format!("it has {} bytes, {MAX_FILE} are allowed", found.len())));
            }
            Ok(_) => tokio::fs::read(path).await,
            Err(error) => Err(error),
        };
        match bytes {
            Ok(bytes) => Self::parse(&Zeroizing::new(bytes)).map(Some).map_err(failed),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Reads a file's bytes. The reason names the place, never what is there.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| {
            format!("it is no auth file: line {}, column {} cannot be understood", error.line(), error.column())
        })
    }

    /// The entry of the longest part of `registry/repository` that has one.
    pub(crate) fn find(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, String> {
        let whole = format!("{registry}/{repository}");
        let mut key = whole.as_str();
        loop {
            if let Some(found) = self.auths.get(key).map(Entry::credentials).transpose()?.flatten() {
                return Ok(Some(found));
            }
            match key.rfind('/') {
                Some(end) => key = &key[..end],
                None => break,
            }
        }
        // Docker wrote URLs.
        let wanted = normalized_host(registry);
        let mut old: Vec<_> =
            self.auths.iter().filter(|(key, _)| is_old_key(key) && normalized_host(key) == wanted).collect();
        old.sort_by_key(|(key, _)| key.as_str());
        for (_, entry) in old {
            if let Some(found) = entry.credentials()? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// `https://index.docker.io/v1/`, `http://host`, `host/v2/`: not a namespace.
fn is_old_key(key: &str) -> bool {
    key.contains("://") || key.ends_with("/v1/") || key.ends_with("/v2/") || !key.contains('/')
}

impl Entry {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        if let Some(token) = self.identity_token.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::Identity(token.clone())));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        Credentials::from_auth(auth.expose()).map(Some).map_err(|error| error.to_string())
    }
}
