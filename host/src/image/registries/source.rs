//! One place that serves an image, and how it is spoken to.

use reqwest::header::HeaderMap;

use crate::image::registry::Endpoint;
use crate::image::secret::Secret;

/// Whether a host speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// It must.
    Https,
    /// It does not.
    Http,
    /// It is tried with TLS, and without if nothing answers so.
    Either,
}

/// What TLS with a host needs beside the system's authorities.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Tls {
    /// Certificates of further authorities, PEM.
    pub ca: Vec<u8>,
    /// Our own certificate and its key, PEM.
    pub client: Option<Secret>,
    /// Any certificate will do.
    pub skip_verify: bool,
}

/// One place that serves an image.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Host and repository.
    pub endpoint: Endpoint,
    /// With or without TLS.
    pub scheme: Scheme,
    /// TLS's needs.
    pub tls: Tls,
    /// The path of the API: `/v2`.
    pub api: String,
    /// Tells a mirror of several registries which one is meant (`ns=`).
    pub namespace: Option<String>,
    /// May say which digest a tag has.
    pub resolve: bool,
    /// May send what has a digest.
    pub pull: bool,
    /// Sent with each request.
    pub headers: HeaderMap,
    /// `host[:port]` as the configuration names it, for credentials and signatures.
    pub registry: String,
}
