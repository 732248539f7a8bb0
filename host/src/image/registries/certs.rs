//! Certificates of single registries: containers-certs.d(5), and the paths that a `hosts.toml` names.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::SourceError;
use super::source::Tls;

/// A file of certificates is a few KiB.
const MAX_FILE: u64 = 1 << 20;

/// Reads `*.crt`, `*.cert` and `*.key` of a folder, which need not exist, into `tls`.
pub(super) fn add_folder(tls: &mut Tls, folder: &Path) -> Result<(), SourceError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(SourceError::file(folder, error)),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    let has = |path: &Path, extension: &str| path.extension().is_some_and(|found| found == extension);
    for path in &paths {
        if has(path, "crt") {
            add_authority(tls, path)?;
        } else if has(path, "cert") {
            let key = path.with_extension("key");
            if !paths.contains(&key) {
                return Err(SourceError::file(&key, "it is missing, and a client certificate needs its key"));
            }
            add_client(tls, path, Some(&key))?;
        } else if has(path, "key") && !paths.contains(&path.with_extension("cert")) {
            return Err(SourceError::file(path, "there is no certificate (.cert) for this key"));
        }
    }
    Ok(())
}

/// Trusts a further authority.
pub(super) fn add_authority(tls: &mut Tls, path: &Path) -> Result<(), SourceError> {
    let pem = read(path)?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => {}
        Ok(_) => return Err(SourceError::file(path, "it holds no PEM certificate")),
        Err(error) => return Err(SourceError::file(path, crate::error_text(&error))),
    }
    tls.ca.extend_from_slice(&pem);
    tls.ca.push(b'\n');
    Ok(())
}

/// Takes a client certificate; the first of several is shown to the registry.
pub(super) fn add_client(tls: &mut Tls, certificate: &Path, key: Option<&Path>) -> Result<(), SourceError> {
    let mut pem = read(certificate)?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.append(&mut read(key)?);
    }
    let text = String::from_utf8(pem).map_err(|_| SourceError::file(certificate, "it is no PEM text"))?;
    if let Err(error) = reqwest::Identity::from_pem(text.as_bytes()) {
        return Err(SourceError::file(certificate, crate::error_text(&error)));
    }
    tls.client.get_or_insert(text.into());
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    let found = std::fs::metadata(path).map_err(|error| SourceError::file(path, error))?;
    if found.len() > MAX_FILE {
        return Err(SourceError::file(path, format!("it has {} bytes, {MAX_FILE} are allowed", found.len())));
    }
    std::fs::read(path).map_err(|error| SourceError::file(path, error))
}
