//! HTTP clients: with and without TLS, with and without the environment's proxy.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};

use crate::error_text;

/// Redirects that registries use: to a blob store, at times by way of another.
const MAX_REDIRECTS: usize = 5;

/// Connections of all pulls.
#[derive(Debug)]
pub(crate) struct Http {
    connect_timeout: Duration,
    /// By (TLS, loopback).
    clients: [OnceLock<Result<reqwest::Client, String>>; 4],
}

impl Http {
    /// Nothing is connected or loaded yet.
    pub fn new(stall_timeout: Duration) -> Self {
        Self { connect_timeout: stall_timeout.min(Duration::from_secs(15)), clients: Default::default() }
    }

    /// A client; requests to this machine itself never take a proxy. Loading the CA certificates can fail.
    pub fn client(&self, tls: bool, loopback: bool) -> Result<&reqwest::Client, String> {
        let slot = &self.clients[usize::from(tls) * 2 + usize::from(loopback)];
        slot.get_or_init(|| self.build(tls, loopback)).as_ref().map_err(Clone::clone)
    }

    fn build(&self, tls: bool, loopback: bool) -> Result<reqwest::Client, String> {
        // An error means that the process has chosen a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .redirect(Policy::custom(redirect))
            .tcp_nodelay(true);
        if loopback {
            builder = builder.no_proxy();
        }
        if !tls {
            // Such a client must work on machines without CA certificates.
            builder = builder.tls_certs_only([]);
        }
        builder.build().map_err(|e| error_text(&e))
    }
}

/// Follows a few redirects, never from TLS to plain text.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let downgrade = attempt.url().scheme() == "http" && attempt.previous().iter().any(|url| url.scheme() == "https");
    if downgrade {
        return attempt.error("redirected from https to http");
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    attempt.follow()
}
