//! The pulling side of the OCI distribution protocol: one [`Session`] per pull, bounded answers, typed failures.
//!
//! Models and media types are oci-client's. The transport is our own, because oci-client reads manifests and tokens
//! without a bound, hashes a blob twice, and drops `Retry-After`.

mod challenge;
mod endpoint;
mod error;
mod http;
mod manifest;
mod retry;
mod session;
mod token;

pub(crate) use endpoint::Endpoint;
pub use error::RegistryError;
pub(crate) use http::Http;
pub use manifest::ManifestError;
pub(crate) use manifest::{Document, choose, parse};
pub(crate) use retry::Backoff;
pub(crate) use session::{Request, Session};
