//! `[nri]`

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// NRI plugins of the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NriConfig {
    /// Whether plugins are served at all.
    pub enabled: bool,
    /// Where plugins connect; empty: only those of `plugin_path` are served.
    pub socket: PathBuf,
    /// Programs `NN-NAME` that the daemon starts itself.
    pub plugin_path: PathBuf,
    /// Their configurations: `NN-NAME.conf`, else `NAME.conf`.
    pub plugin_config_path: PathBuf,
    /// Longest time from a plugin's connection to its registration, in seconds.
    pub registration_timeout_s: u64,
    /// Longest time of a plugin for one request, in milliseconds.
    pub request_timeout_ms: u64,
}

impl Default for NriConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            socket: "/var/run/nri/nri.sock".into(),
            plugin_path: "/opt/nri/plugins".into(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            registration_timeout_s: 5,
            request_timeout_ms: 2000,
        }
    }
}

impl NriConfig {
    /// What is wrong with it, in words.
    pub fn validate(&self) -> Result<(), String> {
        if self.registration_timeout_s == 0 || self.request_timeout_ms == 0 {
            return Err("nri.registration_timeout_s and nri.request_timeout_ms are 1 or more".into());
        }
        for (key, path) in [("socket", &self.socket), ("plugin_path", &self.plugin_path)] {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return Err(format!("nri.{key} is {:?}; an absolute path is needed", path.display()));
            }
        }
        Ok(())
    }

    pub(super) fn registration_timeout(&self) -> Duration {
        Duration::from_secs(self.registration_timeout_s)
    }

    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }
}
