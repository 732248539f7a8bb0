//! `[image]` of the daemon's configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::registries::conf;

/// Image store and registries.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageStoreConfig {
    /// Blobs, image metadata and the index live below this directory.
    pub root: PathBuf,
    /// Which manifest of a multi-platform image is taken.
    pub platform: PlatformConfig,
    /// containers-registries.conf(5), with its drop-ins in the folder of the same name and `.d`. A file that is named must
    /// exist; empty: `/etc/containers/registries.conf` where it exists.
    pub registries_conf: PathBuf,
    /// Folders of certificates by registry, containers-certs.d(5).
    pub certs_dirs: Vec<PathBuf>,
    /// containerd's tree of `hosts.toml` files (its `config_path`); empty: none.
    pub hosts_dir: PathBuf,
    /// Credentials of the node itself, containers-auth.json(5) or Docker's config.json; the first with an entry wins, and
    /// files need not exist.
    pub auth_files: Vec<PathBuf>,
    /// Registries (`host[:port]`) that are spoken to without TLS. Loopback addresses fall back to plain HTTP by themselves.
    pub plain_http: Vec<String>,
    /// Where a registry or part of it is fetched from instead; like `[[registry]]` in registries.conf, and comes last.
    pub registry: Vec<RegistryRule>,
    /// Layers in transfer at one time, over all pulls.
    pub max_concurrent_downloads: usize,
    /// Seconds without one byte from the registry after which a request is broken off.
    pub stall_timeout_s: u64,
    /// Requests tried in all before a registry counts as unavailable.
    pub attempts: u32,
    /// Milliseconds before the second attempt; doubles with each further one.
    pub retry_delay_ms: u64,
    /// Seconds for which the complete layers of a failed pull wait for the next attempt.
    pub keep_layers_s: u64,
    /// What an image may be at most.
    pub limits: ImageLimits,
}

/// `[image.platform]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlatformConfig {
    /// As Go names it: `linux`.
    pub os: String,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// `v7`; empty takes the architecture's usual one.
    pub variant: String,
}

/// `[[image.registry]]`: images whose full name begins with `prefix` are fetched from `location`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryRule {
    /// `registry.k8s.io` or `docker.io/library`; ends at a path boundary.
    pub prefix: String,
    /// `host[:port][/path]` put in the prefix's place.
    pub location: String,
}

/// `[image.limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageLimits {
    /// Layers of one image.
    pub layers: usize,
    /// Bytes of one layer's tar stream.
    pub layer_bytes: u64,
    /// Entries of one layer's tar stream.
    pub layer_entries: u64,
}

impl From<&RegistryRule> for conf::Registry {
    fn from(rule: &RegistryRule) -> Self {
        let trimmed = |text: &str| text.trim_end_matches('/').to_owned();
        Self { prefix: trimmed(&rule.prefix), location: trimmed(&rule.location), ..Self::default() }
    }
}

impl Default for ImageStoreConfig {
    fn default() -> Self {
        Self {
            root: "/var/lib/bulkhead/images".into(),
            platform: PlatformConfig::default(),
            registries_conf: PathBuf::new(),
            certs_dirs: vec!["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()],
            hosts_dir: PathBuf::new(),
            auth_files: vec![
                "/run/containers/0/auth.json".into(),
                "/root/.config/containers/auth.json".into(),
                "/root/.docker/config.json".into(),
            ],
            plain_http: Vec::new(),
            registry: Vec::new(),
            max_concurrent_downloads: 6,
            stall_timeout_s: 60,
            attempts: 5,
            retry_delay_ms: 500,
            keep_layers_s: 600,
            limits: ImageLimits::default(),
        }
    }
}

impl Default for PlatformConfig {
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: String::new() }
    }
}

impl std::fmt::Display for PlatformConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { layers: 256, layer_bytes: 64 << 30, layer_entries: 4 << 20 }
    }
}

impl ImageStoreConfig {
    /// Whether names of registries are such; the reason if not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let host = |text: &str| text.split('/').next().unwrap_or_default().to_owned();
        let rules = self.registry.iter().flat_map(|rule| [host(&rule.prefix), host(&rule.location)]);
        for registry in rules.chain(self.plain_http.iter().cloned()) {
            super::reference::check_registry(&registry).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Longest silence of a registry.
    pub(crate) fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.stall_timeout_s.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        let text = r#"
            plain_http = ["10.0.0.1:5000"]
            [[registry]]
            prefix = "registry.k8s.io"
            location = "10.0.0.1:5000/k8s"
            [limits]
            layers = 100
        "#;
        let config: ImageStoreConfig = toml::from_str(text).unwrap();
        assert_eq!(config.limits, ImageLimits { layers: 100, ..ImageLimits::default() });
        assert_eq!(config.check(), Ok(()));
        assert!(toml::from_str::<ImageStoreConfig>("plain-http = []").is_err());
        let wrong = ImageStoreConfig { plain_http: vec!["http://10.0.0.1".into()], ..config };
        assert!(wrong.check().is_err_and(|why| why.contains("\"http://10.0.0.1\" is no host[:port]")));
    }
}
