//! Certificates made on the spot.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::command;

/// A self-signed certificate for this machine, good for servers and clients, and its key; `directory/NAME.{pem,key}`.
///
/// # Errors
/// When openssl fails; its words are in the message.
pub fn self_signed(directory: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    std::fs::create_dir_all(directory)?;
    let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    let (out, keyout) = (certificate.to_string_lossy(), key.to_string_lossy());
    let names = "subjectAltName=IP:127.0.0.1,DNS:localhost";
    let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let rest = ["-subj", "/CN=localhost", "-addext", names, "-keyout", &keyout, "-out", &out];
    command::run("openssl", &[&request[..], &rest[..]].concat(), Duration::from_secs(60))?.success()?;
    Ok((certificate, key))
}

/// A certificate for this machine of an authority of its own; `directory/{authority.pem,NAME.pem,NAME.key}`.
///
/// # Errors
/// When openssl fails; its words are in the message.
pub fn signed(directory: &Path, name: &str) -> Result<Signed> {
    let (authority, authority_key) = self_signed(directory, "authority")?;
    let path = |extension: &str| directory.join(format!("{name}.{extension}"));
    let (certificate, key, request, extensions) = (path("pem"), path("key"), path("csr"), path("ext"));
    std::fs::write(&extensions, "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n")?;
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let ask = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=tests -keyout KEY -out REQUEST";
    let sign = "x509 -req -in REQUEST -CA AUTHORITY -CAkey SIGNER -CAcreateserial -days 2 -extfile EXTENSIONS -out OUT";
    for line in [ask, sign] {
        let word = |word: &str| match word {
            "KEY" => text(&key),
            "REQUEST" => text(&request),
            "AUTHORITY" => text(&authority),
            "SIGNER" => text(&authority_key),
            "EXTENSIONS" => text(&extensions),
            "OUT" => text(&certificate),
            other => other.to_owned(),
        };
        let arguments: Vec<String> = line.split(' ').map(word).collect();
        command::run("openssl", &arguments, Duration::from_secs(60))?.success()?;
    }
    Ok(Signed { authority, certificate, key })
}

/// What [`signed`] made, PEM files.
#[derive(Debug)]
pub struct Signed {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// For servers and clients.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}
