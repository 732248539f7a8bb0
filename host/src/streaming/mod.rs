//! The server behind the URLs that Exec, Attach and PortForward answer with.
//!
//! ```text
//! CRI verb -> Endpoint::url(request) -> http://HOST:PORT/VERB/TOKEN
//! client -> server -> upgrade: SPDY/3.1 or WebSocket -> remote_command | port_forward -> guest::stdio -> agent
//! ```
//!
//! A URL works once and for a minute. Everything a client sends is bounded: streams, headers, frames, silence.

mod config;
mod idle;
mod peer;
mod port_forward;
mod remote_command;
mod server;
mod spdy;
mod status;
mod tokens;
mod upgrade;
mod websocket;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use config::StreamingConfig;
pub use server::{Listener, bind, serve};
pub use tokens::TooMany;

use tokens::Tokens;

/// What a URL stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run a command.
    Exec {
        /// Full id.
        container: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Which streams.
        streams: Streams,
    },
    /// Join the container's own streams.
    Attach {
        /// Full id.
        container: String,
        /// Which streams.
        streams: Streams,
    },
    /// Connect to ports of the pod.
    PortForward {
        /// Full id.
        sandbox: String,
        /// Ports that a plain WebSocket client gets; others name them themselves.
        ports: Vec<u16>,
    },
}

impl Request {
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// The streams that a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// It sends input.
    pub stdin: bool,
    /// It takes output.
    pub stdout: bool,
    /// It takes errors; not together with a terminal.
    pub stderr: bool,
    /// A terminal: one stream of output, and sizes.
    pub terminal: bool,
}

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StreamingError {
    #[error("cannot listen on streaming.address {address}; choose another address or port")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot read {} for streaming's TLS", path.display())]
    Pem { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("streaming.tls_cert and streaming.tls_key do not make a TLS server")]
    Tls { source: rustls::Error },
}

/// Makes URLs.
#[derive(Debug)]
pub struct Endpoint {
    base: String,
    tokens: Tokens,
}

impl Endpoint {
    fn new(base: String) -> Self {
        Self { base, tokens: Tokens::default() }
    }

    /// A URL under which `request` is served once, within the next minute.
    pub fn url(&self, request: Request) -> Result<String, TooMany> {
        let verb = request.verb();
        Ok(format!("{}/{verb}/{}", self.base, self.tokens.issue(request)?))
    }
}
