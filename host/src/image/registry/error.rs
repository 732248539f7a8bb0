//! Why a registry did not give what was asked for.

use std::time::Duration;

/// One failed request, after retries.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// Network trouble, 429 or 5xx to the end.
    #[error(
        "registry {host} is unavailable: {what}: {reason} ({attempts} attempts); check the network and the registry"
    )]
    Unavailable {
        /// `host[:port]`
        host: String,
        /// What was asked for.
        what: String,
        /// The last failure.
        reason: String,
        /// Requests made.
        attempts: u32,
    },
    /// 429 or 503 with a wait longer than a pull may take.
    #[error("registry {host} is unavailable: {what}: it asks to wait {} s before the next request", .wait.as_secs())]
    AskedToWait {
        /// `host[:port]`
        host: String,
        /// What was asked for.
        what: String,
        /// As the registry said.
        wait: Duration,
    },
    /// 404.
    #[error("{what} does not exist in registry {host}{answer}")]
    NotFound {
        /// `host[:port]`
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's words, with a separator before them.
        answer: String,
    },
    /// 401 or 403.
    #[error(
        "registry {host} refuses {what} to {credentials} ({status}{answer}); check the pull secret, and that the repository exists"
    )]
    Unauthorized {
        /// `host[:port]`
        host: String,
        /// What was asked for.
        what: String,
        /// Which credentials were tried, without the secret.
        credentials: String,
        /// HTTP status.
        status: u16,
        /// The registry's words, with a separator before them.
        answer: String,
    },
    /// Any other answer.
    #[error("registry {host} answered {what} with {status}{answer}")]
    Answer {
        /// `host[:port]`
        host: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// The registry's words, with a separator before them.
        answer: String,
    },
    /// More bytes than such a thing may have.
    #[error("registry {host} sent more than {limit} bytes for {what}")]
    TooLarge {
        /// `host[:port]`
        host: String,
        /// What was asked for.
        what: String,
        /// In bytes.
        limit: usize,
    },
    /// The token server's address or answer cannot be used.
    #[error("registry {host} sends to the token server {realm:?} for {what}: {reason}")]
    Token {
        /// `host[:port]`
        host: String,
        /// What was asked for.
        what: String,
        /// Where the registry sent us.
        realm: String,
        /// What is wrong.
        reason: String,
    },
    /// No TLS on this machine.
    #[error(
        "cannot set up TLS for registry {host}: {reason}; install CA certificates, put its own into /etc/containers/certs.d/{host}, or list it in image.plain_http"
    )]
    Tls {
        /// `host[:port]`
        host: String,
        /// What is wrong.
        reason: String,
    },
}

impl RegistryError {
    /// Whether trying again later may help: CRI's `RegistryUnavailable`.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::AskedToWait { .. })
    }
}
