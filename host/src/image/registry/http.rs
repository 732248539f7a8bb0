//! HTTP clients: with and without TLS, with and without the environment's proxy.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};

use crate::error_text;
use crate::image::registries::Tls;

/// Redirects that registries use: to a blob store, at times by way of another.
const MAX_REDIRECTS: usize = 5;
/// Registries with certificates of their own are few; beyond this many, connections are made anew.
const MAX_CLIENTS: usize = 64;

/// Which client: what TLS needs, or none, and whether the host is this machine.
type Key = (Option<Tls>, bool);

/// Connections of all pulls.
pub(crate) struct Http {
    connect_timeout: Duration,
    clients: Mutex<HashMap<Key, reqwest::Client>>,
}

impl Http {
    /// Nothing is connected or loaded yet.
    pub fn new(stall_timeout: Duration) -> Self {
        Self { connect_timeout: stall_timeout.min(Duration::from_secs(15)), clients: Mutex::default() }
    }

    /// A client, without TLS if that is none; requests to this machine itself never take a proxy. Loading the CA
    /// certificates can fail.
    pub fn client(&self, tls: Option<&Tls>, loopback: bool) -> Result<reqwest::Client, String> {
        let key = (tls.cloned(), loopback);
        if let Some(client) = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(tls, loopback)?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, tls: Option<&Tls>, loopback: bool) -> Result<reqwest::Client, String> {
        // An error means that the process has chosen a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = tls.map_or(&[][..], |tls| &tls.ca);
        let own = reqwest::Certificate::from_pem_bundle(own).map_err(|e| error_text(&e))?;
        let Some(tls) = tls else {
            // Such a client must work on machines without CA certificates.
            return self.common(loopback).tls_certs_only([]).build().map_err(|e| error_text(&e));
        };
        let with = |builder: reqwest::ClientBuilder| -> Result<reqwest::Client, reqwest::Error> {
            let mut builder = builder.tls_danger_accept_invalid_certs(tls.skip_verify);
            if let Some(client) = &tls.client {
                builder = builder.identity(reqwest::Identity::from_pem(client.expose().as_bytes())?);
            }
            builder.build()
        };
        match with(self.common(loopback).tls_certs_merge(own.clone())) {
            // A machine without CA certificates can still speak to registries that bring their own, or need none.
            Err(_) if !own.is_empty() || tls.skip_verify => with(self.common(loopback).tls_certs_only(own)),
            built => built,
        }
        .map_err(|e| error_text(&e))
    }

    fn common(&self, loopback: bool) -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .redirect(Policy::custom(redirect))
            .tcp_nodelay(true);
        if loopback { builder.no_proxy() } else { builder }
    }
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("connect_timeout", &self.connect_timeout).finish_non_exhaustive()
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
