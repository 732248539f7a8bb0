//! Putting images into a registry with its own HTTP API.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::image::{Blob, Built, Index};
use crate::http::{self, Request, Response};

/// A registry to push to.
#[derive(Debug, Clone)]
pub struct Target {
    /// "127.0.0.1:5000"
    pub address: String,
    /// User and password, where it asks for them.
    pub credentials: Option<(String, String)>,
}

impl Target {
    /// Without a password.
    #[must_use]
    pub fn plain(address: &str) -> Self {
        Self { address: address.to_owned(), credentials: None }
    }

    /// Pushes an image as `repository:tag`; gives the manifest's digest.
    ///
    /// # Errors
    /// When the registry refuses; its answer is in the message.
    pub fn push(&self, repository: &str, tag: &str, image: &Built) -> Result<String> {
        self.push_blobs(repository, &image.blobs)?;
        self.put_manifest(repository, tag, &image.manifest)
    }

    /// Pushes every image of an index, and the index as `repository:tag`; gives the index's digest.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_index(&self, repository: &str, tag: &str, index: &Index) -> Result<String> {
        for image in &index.images {
            self.push_blobs(repository, &image.blobs)?;
            self.put_manifest(repository, &image.manifest.digest, &image.manifest)?;
        }
        self.put_manifest(repository, tag, &index.manifest())
    }

    fn push_blobs(&self, repository: &str, blobs: &[Blob]) -> Result<()> {
        for blob in blobs {
            self.push_blob(repository, blob).with_context(|| format!("cannot push {blob:?} to {repository}"))?;
        }
        Ok(())
    }

    fn push_blob(&self, repository: &str, blob: &Blob) -> Result<()> {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        if self.send("HEAD", &path, "", &[])?.status == 200 {
            return Ok(());
        }
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[])?;
        let location = expect(&begun, 202)?.header("location").context("the registry named no place to upload to")?;
        let path = location.split_once("//").map_or(location, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={}", blob.digest);
        expect(&self.send("PUT", &path, "application/octet-stream", &blob.bytes)?, 201)?;
        Ok(())
    }

    fn put_manifest(&self, repository: &str, reference: &str, manifest: &Blob) -> Result<String> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let answer = self.send("PUT", &path, &manifest.media_type, &manifest.bytes)?;
        expect(&answer, 201).with_context(|| format!("cannot push manifest {repository}:{reference}"))?;
        Ok(manifest.digest.clone())
    }

    fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Result<Response> {
        let mut headers = Vec::new();
        if !content_type.is_empty() {
            headers.push(("Content-Type", content_type.to_owned()));
        }
        if let Some((user, password)) = &self.credentials {
            headers.push(("Authorization", format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))));
        }
        http::send(&self.address, &Request { method, path, headers: &headers, body })
    }
}

fn expect(response: &Response, status: u16) -> Result<&Response> {
    ensure!(response.status == status, "the registry answered {}: {}", response.status, response.text());
    Ok(response)
}
