//! `[streaming]`

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The server of exec, attach and port-forward.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingConfig {
    /// Where it listens; port 0 is any that is free. The kubelet connects from the node itself.
    pub address: SocketAddr,
    /// PEM file with the certificate chain; empty: plain HTTP.
    pub tls_cert: PathBuf,
    /// PEM file with the certificate's key.
    pub tls_key: PathBuf,
    /// Longest time without a byte in either direction, in seconds; the kubelet's own default is four hours.
    pub idle_timeout_s: u64,
    /// Longest time from the connection to the last of its streams, in seconds.
    pub creation_timeout_s: u64,
    /// Connections at one time; further ones wait.
    pub connections: usize,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            idle_timeout_s: 4 * 60 * 60,
            creation_timeout_s: 30,
            connections: 1000,
        }
    }
}

impl StreamingConfig {
    /// What is wrong with it, in words.
    pub fn validate(&self) -> Result<(), String> {
        if self.tls_cert.as_os_str().is_empty() != self.tls_key.as_os_str().is_empty() {
            return Err("streaming.tls_cert and streaming.tls_key go together; set both or neither".into());
        }
        for (key, value) in [("idle_timeout_s", self.idle_timeout_s), ("creation_timeout_s", self.creation_timeout_s)] {
            if value == 0 {
                return Err(format!("streaming.{key} is 0; a number of seconds is needed"));
            }
        }
        if self.connections == 0 {
            return Err("streaming.connections is 0; nobody could connect".into());
        }
        Ok(())
    }
}
