//! What can go wrong with the store and with a pull.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::credentials::AuthError;
use super::digest::Digest;
use super::registries::{ConfError, NameError, SourceError};
use super::registry::{ManifestError, RegistryError};

/// Something about the store's files.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No space or quota left.
    #[error("disk full: {doing} {}: {cause}; remove images or give the image store more room", .path.display())]
    DiskFull {
        /// "writing", "creating".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// From the kernel.
        cause: Arc<io::Error>,
    },
    /// Any other trouble.
    #[error("{doing} {} failed: {cause}", .path.display())]
    Io {
        /// "writing", "creating".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// From the kernel.
        cause: Arc<io::Error>,
    },
    /// The EROFS writer or a layer's saved tree.
    #[error("building the metadata of image {id} failed: {reason}")]
    Metadata {
        /// The image.
        id: Digest,
        /// The layer or EROFS module's words.
        reason: String,
    },
}

impl StoreError {
    /// Sorts an I/O error, for use with `map_err`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |cause| {
            let (path, full) = (path.to_owned(), is_disk_full(&cause));
            let cause = Arc::new(cause);
            if full { Self::DiskFull { doing, path, cause } } else { Self::Io { doing, path, cause } }
        }
    }
}

/// Whether an error or one of its causes says that there is no room.
pub(crate) fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        // An io::Error's source is that of the error it wraps, so the wrapped one is asked for by itself.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// Why the store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has it.
    #[error("image store {} is in use by another process: only one daemon may use it", .root.display())]
    Locked {
        /// The store.
        root: PathBuf,
    },
    /// Written by a newer version.
    #[error("index {} has version {found}, this version reads {supported}: upgrade, or move the store away", .path.display())]
    Version {
        /// The index file.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// `[[image.registry]]` or `plain_http`.
    #[error("configuration of the image store: {0}")]
    Config(String),
    /// registries.conf and its drop-ins.
    #[error(transparent)]
    Registries(#[from] ConfError),
    /// Files.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an image was not pulled. Cheap to clone: joined pulls share it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Nobody may or can be asked.
    #[error("pulling {image}: {cause}")]
    Source {
        /// As asked for.
        image: String,
        /// Why.
        cause: SourceError,
    },
    /// Auth files and credential helpers.
    #[error("pulling {image}: {cause}")]
    Credentials {
        /// As asked for.
        image: String,
        /// Why.
        cause: AuthError,
    },
    /// Each place may serve something else.
    #[error(
        "pulling {image}: no host in hosts.toml has the capability for it: \"resolve\" finds the digest of a tag, \"pull\" \
         gets what has a digest"
    )]
    NoSource {
        /// As asked for.
        image: String,
    },
    /// The last place that may have it failed, and so did those before.
    #[error("{cause}; tried before: {}", .before.join("; "))]
    Everywhere {
        /// The last failure.
        cause: Box<PullError>,
        /// The earlier ones.
        before: Vec<String>,
    },
    /// Network trouble, 429 or 5xx to the end.
    #[error("pulling {image}: {cause}")]
    RegistryUnavailable {
        /// As asked for.
        image: String,
        /// What the registry did.
        cause: Box<RegistryError>,
    },
    /// Neither tag nor digest is there.
    #[error("image {image} does not exist in registry {host}: {what} was not found{answer}")]
    NotFound {
        /// As asked for.
        image: String,
        /// `host[:port]`
        host: String,
        /// "manifest 1.2" or "layer sha256:...".
        what: String,
        /// The registry's words, with a separator before them.
        answer: String,
    },
    /// 401 or 403.
    #[error("pulling {image}: {cause}")]
    Unauthorized {
        /// As asked for.
        image: String,
        /// With the credentials tried.
        cause: Box<RegistryError>,
    },
    /// Other answers that make no sense.
    #[error("pulling {image}: {cause}")]
    Registry {
        /// As asked for.
        image: String,
        /// What the registry did.
        cause: Box<RegistryError>,
    },
    /// The bytes are no manifest that can be pulled.
    #[error("pulling {image}: cannot use manifest {digest}: {cause}")]
    Manifest {
        /// As asked for.
        image: String,
        /// Of the manifest's bytes.
        digest: Digest,
        /// What is wrong.
        cause: ManifestError,
    },
    /// The image configuration.
    #[error("pulling {image}: cannot use image configuration {digest}: {reason}")]
    Config {
        /// As asked for.
        image: String,
        /// Of its bytes.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// Nothing for this machine.
    #[error("image {image} is not made for {wanted}; it has {}", list(.available))]
    NoMatchingPlatform {
        /// As asked for.
        image: String,
        /// os/architecture.
        wanted: String,
        /// What the image has.
        available: Vec<String>,
    },
    /// Bytes that are not what was asked for.
    #[error(
        "pulling {image}: {what} from registry {host} has digest {found} instead of {expected}: the registry or the way to it alters data"
    )]
    DigestMismatch {
        /// As asked for.
        image: String,
        /// `host[:port]`
        host: String,
        /// "manifest", "layer 2 of 5 (uncompressed)".
        what: String,
        /// Asked for.
        expected: Box<Digest>,
        /// Of the bytes that came.
        found: Box<Digest>,
    },
    /// More bytes than the manifest says.
    #[error("pulling {image}: registry {host} sent more than the {size} bytes that the manifest gives {what}")]
    TooManyBytes {
        /// As asked for.
        image: String,
        /// `host[:port]`
        host: String,
        /// The layer.
        what: String,
        /// By the manifest.
        size: u64,
    },
    /// A transfer that stops to the end.
    #[error("pulling {image}: {what} broke off after {received} of {size} bytes: {cause}")]
    Interrupted {
        /// As asked for.
        image: String,
        /// The layer.
        what: String,
        /// Bytes that arrived.
        received: u64,
        /// By the manifest.
        size: u64,
        /// What the registry did.
        cause: Box<RegistryError>,
    },
    /// The tar stream or its compression.
    #[error("pulling {image}: cannot use {what}: {reason}")]
    Layer {
        /// As asked for.
        image: String,
        /// The layer.
        what: String,
        /// The layer module's words.
        reason: String,
    },
    /// Files of the store.
    #[error("pulling {image}: {cause}")]
    Store {
        /// As asked for.
        image: String,
        /// Which file.
        cause: StoreError,
    },
    /// A task of ours died.
    #[error("pulling {image}: internal error: {reason}")]
    Internal {
        /// As asked for.
        image: String,
        /// What is known.
        reason: String,
    },
}

impl PullError {
    /// Sorts a registry's failure by what a caller does about it.
    pub(crate) fn registry(image: &str, cause: RegistryError) -> Self {
        let (image, unavailable) = (image.to_owned(), cause.is_unavailable());
        match cause {
            RegistryError::NotFound { host, what, answer } => Self::NotFound { image, host, what, answer },
            RegistryError::Unauthorized { .. } => Self::Unauthorized { image, cause: Box::new(cause) },
            _ if unavailable => Self::RegistryUnavailable { image, cause: Box::new(cause) },
            _ => Self::Registry { image, cause: Box::new(cause) },
        }
    }

    /// For `map_err`.
    pub(crate) fn store(image: &str) -> impl Fn(StoreError) -> Self {
        move |cause| Self::Store { image: image.to_owned(), cause }
    }

    /// Whether trying later may help: CRI's `RegistryUnavailable`.
    #[must_use]
    pub fn is_registry_unavailable(&self) -> bool {
        match self {
            Self::RegistryUnavailable { .. } => true,
            Self::Interrupted { cause, .. } => cause.is_unavailable(),
            Self::Everywhere { cause, .. } => cause.is_registry_unavailable(),
            _ => false,
        }
    }

    /// Whether the store has no room.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Everywhere { cause, .. } => cause.is_disk_full(),
            _ => matches!(self, Self::Store { cause: StoreError::DiskFull { .. }, .. }),
        }
    }

    /// Whether another registry, asked for the same, may do better.
    pub(crate) fn is_the_registrys(&self) -> bool {
        matches!(
            self,
            Self::RegistryUnavailable { .. }
                | Self::Credentials { .. }
                | Self::NotFound { .. }
                | Self::Unauthorized { .. }
                | Self::Registry { .. }
                | Self::Manifest { .. }
                | Self::Config { .. }
                | Self::DigestMismatch { .. }
                | Self::TooManyBytes { .. }
                | Self::Interrupted { .. }
        )
    }

    /// The last of several failures, with the earlier ones.
    pub(crate) fn all(image: &str, mut failures: Vec<Self>) -> Self {
        match failures.pop() {
            Some(last) => last.after(failures),
            None => Self::NoSource { image: image.to_owned() },
        }
    }

    /// Adds what went wrong at other places first.
    pub(crate) fn after(self, before: Vec<Self>) -> Self {
        if before.is_empty() {
            return self;
        }
        let before = before.iter().map(|error| crate::error_text(error)).collect();
        Self::Everywhere { cause: Box::new(self), before }
    }
}

fn list(platforms: &[String]) -> String {
    if platforms.is_empty() { "no platform at all".into() } else { format!("only {}", platforms.join(", ")) }
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Files of the store.
    #[error("removing image {image}: {cause}")]
    Store {
        /// As asked for.
        image: String,
        /// Which file.
        cause: StoreError,
    },
    /// A task of ours died.
    #[error("removing image {image}: internal error: {reason}")]
    Internal {
        /// As asked for.
        image: String,
        /// What is known.
        reason: String,
    },
}

/// Why an image's files were not opened.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Removed, or never there.
    #[error("image {0} is not in the store: pull it first")]
    NotFound(Digest),
    /// Files of the store.
    #[error("opening the root file system of image {id}: {cause}")]
    Store {
        /// The image.
        id: Digest,
        /// Which file.
        cause: StoreError,
    },
    /// A file is not as long as it was when it was written.
    #[error("opening the root file system of image {id}: {} has {found} bytes instead of {expected}: remove the image and pull it again", .path.display())]
    Length {
        /// The image.
        id: Digest,
        /// The file.
        path: PathBuf,
        /// By the index.
        expected: u64,
        /// On disk.
        found: u64,
    },
}
